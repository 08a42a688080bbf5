// SPDX-License-Identifier: GPL-2.0

//! The demo of the Binder buffer allocator: real services and clients that talk through a
//! service manager, each in its own cgroup, and a director that watches where their idle
//! buffer pages are and whom squeezing takes them from.
//!
//! One binary plays all the parts, so that the initramfs needs only this file.

mod cast;
mod cgroup;
mod client;
mod director;
mod launch;
mod logs;
mod payload;
mod plot;
mod report;
mod sampler;
mod service;
mod shrinker;
mod snapshot;
mod stage;
mod steps;
mod tap;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// What build.rs made of aidl/.
mod aidl {
    rsbinder::include_aidl!("payload_service");
    pub use lab::demo::{
        IPayloadService::{BnPayloadService, IPayloadService},
        Payload::Payload,
        Tally::Tally,
    };
}

#[derive(Parser)]
#[command(version, about = "Demo of the Binder buffer allocator")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole demo, check what happens, write a report
    Direct(DirectArgs),
    /// Be the service of this name
    Service { name: String },
    /// Be a client of these services: one round of traffic for each line on stdin
    Client { services: Vec<String> },
    /// Enter a cgroup, then become another program
    #[command(hide = true)]
    Launch(LaunchArgs),
}

#[derive(Args)]
pub struct DirectArgs {
    /// Only what needs no memory cgroups; chosen by itself where there are none
    #[arg(long)]
    no_memcg: bool,
    /// The service manager
    #[arg(long, default_value = "/bin/rsb_hub")]
    hub: PathBuf,
    /// Directory to write report/index.html into
    #[arg(long, default_value = "/host/report")]
    report: PathBuf,
}

#[derive(Args)]
pub struct LaunchArgs {
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Direct(args) => Ok(director::run(&args)),
        Command::Service { name } => service::run(&name).map(|()| ExitCode::SUCCESS),
        Command::Client { services } => client::run(&services).map(|()| ExitCode::SUCCESS),
        Command::Launch(args) => launch::become_program(&args),
    }
}
