// SPDX-License-Identifier: GPL-2.0

//! The device, and the driver's file with its mapping.

use crate::{
    outcome::{Context, Outcome},
    uapi::{BinderfsDevice, WriteRead, CTL_ADD, WRITE_READ},
};
use rustix::{
    fs::{open, Mode, OFlags},
    io::Errno,
    ioctl::{ioctl, Opcode, Setter, Updater},
    mm::{mmap, munmap, MapFlags, ProtFlags},
};
use std::{ffi::c_void, os::fd::OwnedFd, path::PathBuf, ptr};

pub const PAGE: usize = 4096;
pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

const BINDERFS: &str = "/dev/binderfs";

/// A binder device made for one test, so that tests don't meet each other's context manager.
pub struct Device {
    pub name: String,
}

impl Device {
    pub fn create(name: &str) -> rustix::io::Result<Self> {
        let mut device = BinderfsDevice {
            name: [0; 256],
            major: 0,
            minor: 0,
        };
        device.name[..name.len()].copy_from_slice(name.as_bytes());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let control = open(format!("{BINDERFS}/binder-control"), flags, Mode::empty())?;
        // SAFETY: The ioctl reads and writes one `BinderfsDevice`.
        unsafe { ioctl(&control, Updater::<{ CTL_ADD }, _>::new(&mut device))? };
        Ok(Device { name: name.into() })
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(BINDERFS).join(&self.name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

/// A mapping of the driver's file. Unmapped when dropped.
pub struct Map {
    pub addr: usize,
    pub len: usize,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: Only raw pointers are ever made from this range.
        let _ = unsafe { munmap(self.addr as *mut c_void, self.len) };
    }
}

/// One open file of the driver: to the driver, one "process".
pub struct Binder {
    pub fd: OwnedFd,
    pub map: Option<Map>,
}

impl Binder {
    pub fn open(dev: &Device) -> Outcome<Self> {
        let fd = open(dev.path(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Binder { fd, map: None })
    }

    pub fn mmap(&self, len: usize, prot: ProtFlags, offset: u64) -> rustix::io::Result<Map> {
        // SAFETY: The kernel picks a free place.
        let addr = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                prot,
                MapFlags::PRIVATE,
                &self.fd,
                offset,
            )?
        };
        Ok(Map {
            addr: addr as usize,
            len,
        })
    }

    /// Opens the device and maps `len` bytes for what it receives.
    pub fn mapped(dev: &Device, len: usize) -> Outcome<Self> {
        let mut binder = Binder::open(dev)?;
        binder.map = Some(binder.mmap(len, ProtFlags::READ, 0).context("mmap")?);
        Ok(binder)
    }

    pub fn set<const OP: Opcode>(&self, value: u32) -> rustix::io::Result<()> {
        // SAFETY: Only used with ioctls that read four bytes.
        unsafe { ioctl(&self.fd, Setter::<OP, u32>::new(value)) }
    }

    /// The mapping's first address.
    pub fn base(&self) -> usize {
        self.map.as_ref().expect("mapped").addr
    }

    /// One BINDER_WRITE_READ; how many bytes were consumed of each buffer.
    pub fn write_read(&self, write: &[u8], read: &mut [u8]) -> rustix::io::Result<(usize, usize)> {
        let mut request = WriteRead {
            write_size: write.len() as u64,
            write_buffer: write.as_ptr() as u64,
            read_size: read.len() as u64,
            read_buffer: read.as_mut_ptr() as u64,
            ..Default::default()
        };
        loop {
            // SAFETY: The ioctl reads and writes one `WriteRead`, and the buffers that it names.
            let result = unsafe {
                ioctl(
                    &self.fd,
                    Updater::<{ WRITE_READ }, WriteRead>::new(&mut request),
                )
            };
            match result {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok((
            request.write_consumed as usize,
            request.read_consumed as usize,
        ))
    }
}

/// Copies `len` bytes at `addr` of this process.
pub fn peek(addr: usize, len: usize) -> Vec<u8> {
    let mut copy = vec![0u8; len];
    // SAFETY: The caller read the address from the driver or mapped it; a fault ends the test's
    // process, which fails the test and nothing else.
    unsafe { ptr::copy_nonoverlapping(addr as *const u8, copy.as_mut_ptr(), len) };
    copy
}
