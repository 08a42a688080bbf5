// SPDX-License-Identifier: GPL-2.0

//! The service process.

use std::{
    sync::{
        atomic::{AtomicI64, Ordering},
        Condvar, Mutex, PoisonError,
    },
    time::{Duration, Instant},
};

use anyhow::{anyhow, Context, Result};
use rsbinder::{hub, BinderResult, Interface, ProcessState, Status};

use crate::{
    aidl::{BnPayloadService, IPayloadService, Payload, Tally},
    cast, payload,
};

/// Pool threads beyond the two that are always there; enough to have echo() answered while
/// post() waits in pause.
const EXTRA_THREADS: u32 = 4;

/// A pause ends by itself when its client dies before resume().
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Service {
    echoed: AtomicI64,
    posted: AtomicI64,
    corrupt: AtomicI64,
    paused: Mutex<bool>,
    resumed: Condvar,
}

impl Service {
    /// Counts the payload in `intact` or as corrupt.
    fn receive(&self, payload: &Payload, intact: &AtomicI64) -> BinderResult<()> {
        if payload::is_intact(payload) {
            intact.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.corrupt.fetch_add(1, Ordering::Relaxed);
        let what = format!("{} bytes arrived with a wrong checksum", payload.data.len());
        Err(Status::new_service_specific_error(1, Some(what)))
    }

    fn set_paused(&self, paused: bool) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = paused;
        self.resumed.notify_all();
    }
}

impl Interface for Service {}

impl IPayloadService for Service {
    fn echo(&self, payload: &Payload) -> BinderResult<Payload> {
        self.receive(payload, &self.echoed)?;
        Ok(payload.clone())
    }

    fn post(&self, payload: &Payload) -> BinderResult<()> {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.resumed
                .wait_timeout_while(paused, LONGEST_PAUSE, |paused| *paused),
        );
        self.receive(payload, &self.posted)
    }

    fn pause(&self) -> BinderResult<()> {
        self.set_paused(true);
        Ok(())
    }

    fn resume(&self) -> BinderResult<()> {
        self.set_paused(false);
        Ok(())
    }

    fn tally(&self) -> BinderResult<Tally> {
        Ok(Tally {
            echoed: self.echoed.load(Ordering::Relaxed),
            posted: self.posted.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
        })
    }
}

/// Opens the device, and waits for the service manager, which may be starting up.
pub fn connect(threads: u32) -> Result<()> {
    ProcessState::init("/dev/binderfs/binder", threads).map_err(|e| anyhow!("binder: {e}"))?;
    let deadline = Instant::now() + crate::stage::PATIENCE;
    while let Err(e) = hub::default() {
        if Instant::now() > deadline {
            return Err(e).context("no service manager");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Registers the service, says "ready" on stdout, and serves until killed.
pub fn run(name: &str) -> Result<()> {
    connect(EXTRA_THREADS)?;
    ProcessState::start_thread_pool();
    hub::add_service(
        &cast::instance(name),
        BnPayloadService::new_binder(Service::default()),
    )
    .context("add_service")?;
    println!("ready");
    ProcessState::join_thread_pool().context("thread pool")
}
