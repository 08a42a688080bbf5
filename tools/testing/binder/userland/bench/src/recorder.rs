// SPDX-License-Identifier: GPL-2.0

//! Records which buffers all the processes of a program are sent, as if it were one, by watching their
//! system calls. It sees a buffer when it is received, not already when it is sent, and not what the driver
//! puts behind payload and offsets.

use crate::trace::Event;
use binder_raw::{
    outcome::{Context, Outcome},
    uapi::{
        payload_size, TransactionData, WriteRead, BC_FREE_BUFFER, BR_REPLY, BR_TRANSACTION,
        BR_TRANSACTION_SEC_CTX, WRITE_READ,
    },
};
use libc::{c_uint, pid_t};
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    mem::MaybeUninit,
    os::unix::{fs::FileExt, process::CommandExt},
    path::Path,
    process::Command,
    ptr,
};

/// What was received and freed.
#[derive(Default)]
struct Recording {
    events: Vec<Event>,
    /// The numbers of the buffers that aren't freed, by process and address.
    held: HashMap<(pid_t, u64), usize>,
    came: usize,
}

impl Recording {
    /// Goes through what a process told the driver, or what the driver told it.
    fn talked(&mut self, pid: pid_t, mut stream: &[u8]) {
        while let Some((code, rest)) = stream.split_first_chunk() {
            let code = u32::from_ne_bytes(*code);
            let Some((payload, rest)) = rest.split_at_checked(payload_size(code)) else {
                return;
            };
            stream = rest;
            match code {
                BR_TRANSACTION | BR_TRANSACTION_SEC_CTX | BR_REPLY => {
                    // SAFETY: The payload of all begins with a `TransactionData`, of any alignment.
                    let data = unsafe { ptr::read_unaligned(payload.as_ptr().cast()) };
                    self.came(pid, data);
                }
                BC_FREE_BUFFER => {
                    let buffer = payload.try_into().expect("its code says 8 bytes");
                    self.freed(pid, u64::from_ne_bytes(buffer));
                }
                _ => {}
            }
        }
    }

    fn came(&mut self, pid: pid_t, data: TransactionData) {
        let bytes = data.data_size.next_multiple_of(8) + data.offsets_size.next_multiple_of(8);
        self.held.insert((pid, data.buffer), self.came);
        self.came += 1;
        self.events.push(Event::Came {
            bytes: bytes as usize,
        });
    }

    fn freed(&mut self, pid: pid_t, buffer: u64) {
        if let Some(number) = self.held.remove(&(pid, buffer)) {
            self.events.push(Event::Freed { number });
        }
    }
}

/// A thread that is watched.
struct Thread {
    pid: pid_t,
    /// Where the request is that it made of the driver and has no answer to yet, and how much of the answer
    /// was there before.
    asked: Option<(u64, u64)>,
}

/// Runs a program to its end, and writes the trace into a file.
pub fn record(path: &Path, program: &str, arguments: &[String]) -> Outcome {
    let recording = run(program, arguments)?;
    let mut text = format!(
        "# What the processes of \"{program} {}\" received and freed, by binder-bench record\n",
        arguments.join(" ")
    );
    for event in &recording.events {
        text += &format!("{event}\n");
    }
    fs::write(path, text).context(&path.display().to_string())
}

fn run(program: &str, arguments: &[String]) -> Outcome<Recording> {
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: Between fork and exec, it makes system calls only.
    unsafe {
        command.pre_exec(|| {
            trace(libc::PTRACE_TRACEME, 0, 0)?;
            Ok(())
        })
    };
    let child = command.spawn().context(program)?;
    let mut recording = Recording::default();
    let mut threads: HashMap<pid_t, Thread> = HashMap::new();
    let mut status = 0;
    // SAFETY: The status is valid for the call.
    while let tid @ 1.. = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) } {
        if !libc::WIFSTOPPED(status) {
            threads.remove(&tid);
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let is_new = !threads.contains_key(&tid);
        let thread = threads.entry(tid).or_insert_with(|| Thread {
            pid: process_of(tid),
            asked: None,
        });
        let mut pass_on = 0;
        if signal == libc::SIGTRAP | 0x80 {
            if let Some(stream) = thread.step(tid) {
                recording.talked(thread.pid, &stream);
            }
        } else if is_new && tid == child.id() as pid_t {
            let options = libc::PTRACE_O_TRACESYSGOOD
                | libc::PTRACE_O_TRACECLONE
                | libc::PTRACE_O_TRACEFORK
                | libc::PTRACE_O_TRACEVFORK
                | libc::PTRACE_O_TRACEEXEC
                | libc::PTRACE_O_EXITKILL;
            trace(libc::PTRACE_SETOPTIONS, tid, options as usize)?;
        } else if status >> 16 == 0 && !(is_new && signal == libc::SIGSTOP) {
            pass_on = signal as usize;
        }
        // It may have been killed meanwhile.
        let _ = trace(libc::PTRACE_SYSCALL, tid, pass_on);
    }
    Ok(recording)
}

impl Thread {
    /// Called when the thread enters or leaves a system call. Returns what it tells the driver when it
    /// enters, and what the driver told it when it leaves: so a buffer has been freed before its address
    /// is used again.
    fn step(&mut self, tid: pid_t) -> Option<Vec<u8>> {
        let info = syscall_info(tid).ok()?;
        let memory = File::open(format!("/proc/{tid}/mem")).ok()?;
        let stream = |buffer: u64, from: u64, to: u64| {
            let mut stream = vec![0; to.checked_sub(from)? as usize];
            memory.read_exact_at(&mut stream, buffer + from).ok()?;
            Some(stream)
        };
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: This is what it is at the entry.
            let entry = unsafe { info.u.entry };
            if entry.nr != libc::SYS_ioctl as u64 || entry.args[1] as c_uint != WRITE_READ {
                return None;
            }
            let address = entry.args[2];
            let request = request(&memory, address)?;
            self.asked = Some((address, request.read_consumed));
            stream(
                request.write_buffer,
                request.write_consumed,
                request.write_size,
            )
        } else {
            let (address, read_before) = self.asked.take()?;
            let request = request(&memory, address)?;
            stream(request.read_buffer, read_before, request.read_consumed)
        }
    }
}

fn request(memory: &File, address: u64) -> Option<WriteRead> {
    let mut bytes = [0; size_of::<WriteRead>()];
    memory.read_exact_at(&mut bytes, address).ok()?;
    // SAFETY: It consists of numbers only.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn process_of(tid: pid_t) -> pid_t {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    pid.and_then(|pid| pid.trim().parse().ok()).unwrap_or(tid)
}

fn syscall_info(tid: pid_t) -> io::Result<libc::ptrace_syscall_info> {
    let mut info = MaybeUninit::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: The kernel writes no more than the size.
    let result =
        unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr()) };
    match result {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: It is valid with all zeroes, and with what the kernel writes.
        _ => Ok(unsafe { info.assume_init() }),
    }
}

/// A request that takes a number only.
fn trace(request: c_uint, tid: pid_t, number: usize) -> io::Result<()> {
    // SAFETY: The requests that this is used for take no pointer.
    match unsafe { libc::ptrace(request, tid, 0usize, number) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
