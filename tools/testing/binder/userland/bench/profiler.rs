// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU that counts the instructions that a virtual machine with one CPU executes.
//!
//!     -plugin profiler.so,symbols=FILE,out=FILE,marker=NAME,call=PART,call=PART...
//!
//! `symbols` is the output of `nm --numeric-sort --demangle` on the kernel. A new phase begins whenever
//! the function `marker` is called. For each phase, and for each function whose name contains
//! one of the PARTs, the output tells how often it was called and what a call costs with all
//! that it calls: least, median and mean. Below that stand the functions that the instructions were
//! executed in, as a mean for each call.
//!
//! A function returns when the instruction after the call is reached; what an interrupt
//! executes meanwhile counts too, so the median is what to look at.

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_void, CStr},
    fmt::Write as _,
    fs,
    sync::{Mutex, MutexGuard, OnceLock},
};

/// QEMU's plugin interface (`qemu-plugin.h`): an id of the plugin, a translation block, an instruction.
type Id = u64;
enum Block {}
enum Insn {}

/// No registers are read in a callback.
const NO_REGISTERS: c_int = 0;

/// The version of the interface that this is written for.
#[no_mangle]
pub static qemu_plugin_version: c_int = 2;

extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: extern "C" fn(Id, *mut Block));
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        callback: extern "C" fn(u32, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_atexit_cb(
        id: Id,
        callback: extern "C" fn(Id, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
}

/// What is known of a translation block.
struct Known {
    start: u64,
    end: u64,
    insns: u64,
    symbol: usize,
    /// The function that begins here, if it is one to watch: its index in `Profile::calls`.
    call: Option<usize>,
    marks: bool,
}

/// What was seen of a function in this phase.
#[derive(Default)]
struct Call {
    name: String,
    costs: Vec<u64>,
    /// Instructions executed in each symbol during all its calls.
    inside: HashMap<usize, u64>,
}

/// A call that hasn't returned yet.
struct Pending {
    call: usize,
    returns_to: u64,
    began: u64,
}

#[derive(Default)]
struct Profile {
    /// Start and name of each function, by address.
    symbols: Vec<(u64, String)>,
    marker: String,
    parts: Vec<String>,
    out: String,
    calls: Vec<Call>,
    by_name: HashMap<String, usize>,
    pending: Vec<Pending>,
    executed: u64,
    last_end: u64,
    phase: usize,
    phase_began: u64,
    phase_inside: HashMap<usize, u64>,
    text: String,
}

static PROFILE: OnceLock<Mutex<Profile>> = OnceLock::new();

fn profile() -> MutexGuard<'static, Profile> {
    PROFILE
        .get_or_init(Default::default)
        .lock()
        .expect("no callback panics")
}

impl Profile {
    fn configure(&mut self, argument: &str) -> Result<(), String> {
        let (key, value) = argument.split_once('=').ok_or("KEY=VALUE is wanted")?;
        match key {
            "symbols" => {
                let text = fs::read_to_string(value).map_err(|error| error.to_string())?;
                self.symbols = text.lines().filter_map(function).collect();
                self.symbols.sort();
            }
            "out" => self.out = value.into(),
            "marker" => self.marker = value.into(),
            "call" => self.parts.push(value.into()),
            _ => return Err(format!("{key} is unknown")),
        }
        Ok(())
    }

    /// The index of the function that an address is in; 0 is for everything outside of the kernel.
    fn symbol(&self, addr: u64) -> usize {
        self.symbols.partition_point(|(start, _)| *start <= addr)
    }

    fn symbol_name(&self, symbol: usize) -> &str {
        match symbol {
            0 => "(user space)",
            _ => &self.symbols[symbol - 1].1,
        }
    }

    fn know(&mut self, start: u64, end: u64, insns: u64) -> Known {
        let symbol = self.symbol(start);
        let entry = symbol != 0 && self.symbols[symbol - 1].0 == start;
        let name = self.symbol_name(symbol).to_string();
        let watched = entry && self.parts.iter().any(|part| name.contains(part.as_str()));
        Known {
            start,
            end,
            insns,
            symbol,
            call: watched.then(|| {
                *self.by_name.entry(name.clone()).or_insert_with(|| {
                    self.calls.push(Call {
                        name: name.clone(),
                        ..Default::default()
                    });
                    self.calls.len() - 1
                })
            }),
            marks: entry && name == self.marker,
        }
    }

    fn execute(&mut self, block: &Known) {
        if let Some(at) = self
            .pending
            .iter()
            .rposition(|pending| pending.returns_to == block.start)
        {
            let pending = &self.pending[at];
            self.calls[pending.call]
                .costs
                .push(self.executed - pending.began);
            // What was called by it and seems not to have returned ended with a jump elsewhere.
            self.pending.truncate(at);
        }
        if block.marks {
            self.end_phase();
        }
        if let Some(call) = block.call {
            if self.pending.len() == 16 {
                self.pending.clear();
            }
            self.pending.push(Pending {
                call,
                returns_to: self.last_end,
                began: self.executed,
            });
        }
        self.executed += block.insns;
        *self.phase_inside.entry(block.symbol).or_default() += block.insns;
        for pending in &self.pending {
            *self.calls[pending.call]
                .inside
                .entry(block.symbol)
                .or_default() += block.insns;
        }
        self.last_end = block.end;
    }

    fn end_phase(&mut self) {
        let mut text = format!(
            "phase {}: {} instructions\n",
            self.phase,
            self.executed - self.phase_began
        );
        let inside = std::mem::take(&mut self.phase_inside);
        self.list(&mut text, inside, 1);
        for index in 0..self.calls.len() {
            let mut costs = std::mem::take(&mut self.calls[index].costs);
            let inside = std::mem::take(&mut self.calls[index].inside);
            if costs.is_empty() {
                continue;
            }
            costs.sort_unstable();
            let count = costs.len() as u64;
            let _ = writeln!(
                text,
                "call {}: count {count} min {} median {} mean {}",
                self.calls[index].name,
                costs[0],
                costs[costs.len() / 2],
                costs.iter().sum::<u64>() / count,
            );
            self.list(&mut text, inside, count);
        }
        self.text.push_str(&text);
        self.pending.clear();
        self.phase += 1;
        self.phase_began = self.executed;
    }

    fn list(&self, text: &mut String, inside: HashMap<usize, u64>, count: u64) {
        let mut inside: Vec<_> = inside.into_iter().collect();
        inside.sort_by_key(|(_, insns)| std::cmp::Reverse(*insns));
        for (symbol, insns) in inside
            .into_iter()
            .take(50)
            .filter(|(_, insns)| *insns >= count)
        {
            let _ = writeln!(
                text,
                "{:12.1} {}",
                insns as f64 / count as f64,
                self.symbol_name(symbol)
            );
        }
    }
}

/// One line of `nm`: the start and name of a function.
fn function(line: &str) -> Option<(u64, String)> {
    let mut words = line.splitn(3, ' ');
    let addr = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    ("tTwW".contains(kind) && addr >> 63 == 1).then(|| (addr, name.into()))
}

extern "C" fn translated(_: Id, block: *mut Block) {
    // SAFETY: QEMU passes a valid block with at least one instruction.
    let (start, end, insns) = unsafe {
        let insns = qemu_plugin_tb_n_insns(block);
        let last = qemu_plugin_tb_get_insn(block, insns - 1);
        let end = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) as u64;
        (qemu_plugin_tb_vaddr(block), end, insns as u64)
    };
    let known = Box::leak(Box::new(profile().know(start, end, insns)));
    // SAFETY: The callback gets what it is written for, which is never freed.
    unsafe {
        qemu_plugin_register_vcpu_tb_exec_cb(
            block,
            executed,
            NO_REGISTERS,
            std::ptr::from_mut(known).cast(),
        );
    }
}

extern "C" fn executed(_: u32, known: *mut c_void) {
    // SAFETY: This is what `translated` registered.
    profile().execute(unsafe { &*known.cast::<Known>() });
}

extern "C" fn exited(_: Id, _: *mut c_void) {
    let mut profile = profile();
    profile.end_phase();
    if let Err(error) = fs::write(&profile.out, &profile.text) {
        eprintln!("profiler: {}: {error}", profile.out);
    }
}

/// Called by QEMU when it has loaded the plugin.
///
/// # Safety
///
/// `argv` points to `argc` strings.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    for index in 0..argc as usize {
        // SAFETY: The caller guarantees it.
        let argument = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        if let Err(error) = profile().configure(&argument) {
            eprintln!("profiler: {argument}: {error}");
            return 1;
        }
    }
    // SAFETY: `id` is what QEMU gave.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, exited, std::ptr::null_mut());
    }
    0
}
