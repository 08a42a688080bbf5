// SPDX-License-Identifier: GPL-2.0

//! A plugin for QEMU that counts the instructions that a virtual machine with one CPU executes.
//!
//!     -plugin profiler.so,symbols=FILE,parts=FILE,out=FILE,marker=NAME,call=NAME,call=NAME...
//!
//! `symbols` is the output of `nm --numeric-sort --demangle` on the kernel. A new phase begins whenever
//! the function `marker` is called. For each phase, and for each function whose name contains
//! one of those given, the output tells how often it was called and what a call costs with all
//! that it calls: least, median and mean. Below that stand the functions that the instructions were
//! executed in, as a mean for each call.
//!
//! `parts` tells which instructions belong to which part of the work, whatever functions the compiler
//! has put them in: lines of first address, address after the last, and name of the part. The
//! output tells how many instructions each took, with all that they call.
//!
//! A function returns when the instruction after the call is reached; what an interrupt
//! executes meanwhile counts too, so the median is what to look at. It doesn't count for the parts.

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
pub static qemu_plugin_version: c_int = 3;

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
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    fn qemu_plugin_insn_data(insn: *const Insn, data: *mut c_void, len: usize) -> usize;
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
    begins_function: bool,
    begins_interrupt: bool,
    ends_interrupt: bool,
    ends_with_call: bool,
    /// How many instructions belong to each part: its index in `Profile::parts`.
    parts: Vec<(usize, u64)>,
    /// What the last instruction belongs to.
    last_part: Option<usize>,
}

/// A part of the work, and how many instructions it took in this phase.
struct Part {
    name: String,
    /// By the function that they were executed in.
    inside: HashMap<usize, u64>,
}

impl Part {
    fn execute(&mut self, symbol: usize, insns: u64) {
        *self.inside.entry(symbol).or_default() += insns;
    }
}

/// What a part has called, or jumped to for good.
struct Callee {
    part: usize,
    returns_to: u64,
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

/// Where the kernel is with an interrupt.
#[derive(Clone, Copy, Default, PartialEq)]
enum Interrupt {
    #[default]
    None,
    Handled,
    /// It goes back to where it came from with this block.
    Returns,
}

impl Interrupt {
    /// What it is when `block` is executed next.
    fn next(self, block: &Known) -> Self {
        match self {
            _ if block.begins_interrupt => Interrupt::Handled,
            Interrupt::Handled if block.ends_interrupt => Interrupt::Returns,
            // Another thread may be the first to get there.
            Interrupt::Handled if block.symbol != 0 => Interrupt::Handled,
            _ => Interrupt::None,
        }
    }
}

#[derive(Default)]
struct Profile {
    /// Start and name of each function, by address.
    symbols: Vec<(u64, String)>,
    marker: String,
    names: Vec<String>,
    parts: Vec<Part>,
    /// First address, address after the last, and part, by address.
    ranges: Vec<(u64, u64, usize)>,
    callee: Option<Callee>,
    /// Where the function that belongs to a part as a whole returns to.
    part_returns_to: u64,
    was_part: Option<usize>,
    interrupt: Interrupt,
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
            "call" => self.names.push(value.into()),
            "parts" => {
                let text = fs::read_to_string(value).map_err(|error| error.to_string())?;
                for line in text.lines() {
                    self.add_range(line)
                        .ok_or_else(|| format!("bad line '{line}'"))?;
                }
                self.ranges.sort_unstable();
            }
            _ => return Err(format!("{key} is unknown")),
        }
        Ok(())
    }

    fn add_range(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let first = u64::from_str_radix(words.next()?, 16).ok()?;
        let end = u64::from_str_radix(words.next()?, 16).ok()?;
        let name = words.next()?;
        let part = self.parts.iter().position(|part| part.name == name);
        let part = part.unwrap_or_else(|| {
            self.parts.push(Part {
                name: name.into(),
                inside: HashMap::new(),
            });
            self.parts.len() - 1
        });
        self.ranges.push((first, end, part));
        Some(())
    }

    /// What an instruction belongs to.
    fn part(&self, addr: u64) -> Option<usize> {
        let after = self.ranges.partition_point(|(first, _, _)| *first <= addr);
        let (_, end, part) = self.ranges.get(after.checked_sub(1)?)?;
        (addr < *end).then_some(*part)
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

    fn know(&mut self, insns: &[u64], end: u64, ends_with_call: bool) -> Known {
        let start = insns[0];
        let last_part = self.part(insns[insns.len() - 1]);
        let mut parts = Vec::new();
        for (index, _) in self.parts.iter().enumerate() {
            let count = insns
                .iter()
                .filter(|insn| self.part(**insn) == Some(index))
                .count();
            if count > 0 {
                parts.push((index, count as u64));
            }
        }
        let symbol = self.symbol(start);
        let entry = symbol != 0 && self.symbols[symbol - 1].0 == start;
        let name = self.symbol_name(symbol).to_string();
        let watched = entry && self.names.iter().any(|part| name.contains(part.as_str()));
        Known {
            start,
            end,
            insns: insns.len() as u64,
            symbol,
            begins_function: entry,
            begins_interrupt: entry
                && (name.starts_with("asm_sysvec_") || name == "asm_common_interrupt"),
            ends_interrupt: name == "native_irq_return_iret",
            ends_with_call,
            parts,
            last_part,
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
        self.interrupt = self.interrupt.next(block);
        if self.interrupt == Interrupt::None {
            self.execute_parts(block);
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

    fn execute_parts(&mut self, block: &Known) {
        let before = self.was_part.take();
        if let Some(callee) = &self.callee {
            if callee.returns_to != block.start {
                self.parts[callee.part].execute(block.symbol, block.insns);
                return;
            }
            self.callee = None;
        } else if let (Some(part), true) = (before, block.begins_function && block.parts.is_empty())
        {
            // A jump into a function, which returns in place of the one that jumped.
            self.parts[part].execute(block.symbol, block.insns);
            self.callee = Some(Callee {
                part,
                returns_to: self.part_returns_to,
            });
            return;
        }
        if block.begins_function && !block.parts.is_empty() {
            self.part_returns_to = self.last_end;
        }
        for (part, count) in &block.parts {
            self.parts[*part].execute(block.symbol, *count);
        }
        self.was_part = block.last_part;
        if let (Some(part), true) = (block.last_part, block.ends_with_call) {
            self.callee = Some(Callee {
                part,
                returns_to: block.end,
            });
        }
    }

    fn end_phase(&mut self) {
        let mut text = format!(
            "phase {}: {} instructions\n",
            self.phase,
            self.executed - self.phase_began
        );
        for index in 0..self.parts.len() {
            let inside = std::mem::take(&mut self.parts[index].inside);
            let executed: u64 = inside.values().sum();
            let _ = writeln!(text, "part {}: {executed}", self.parts[index].name);
            self.list(&mut text, inside, 1);
        }
        let inside = std::mem::take(&mut self.phase_inside);
        text.push_str("all:\n");
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
        self.callee = None;
        self.phase += 1;
        self.phase_began = self.executed;
    }

    fn list(&self, text: &mut String, inside: HashMap<usize, u64>, count: u64) {
        let mut inside: Vec<_> = inside.into_iter().collect();
        inside.sort_by_key(|(_, insns)| std::cmp::Reverse(*insns));
        for (symbol, insns) in inside
            .into_iter()
            .take(200)
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

/// Whether this x86 instruction is a call.
fn is_call(code: &[u8]) -> bool {
    let prefixes = [0x2e, 0x3e, 0x66, 0xf2, 0xf3];
    let mut code = code
        .iter()
        .skip_while(|byte| prefixes.contains(*byte) || (0x40..0x50).contains(*byte));
    match code.next() {
        Some(0xe8) => true,
        Some(0xff) => code.next().is_some_and(|modrm| (modrm >> 3) & 7 == 2),
        _ => false,
    }
}

extern "C" fn translated(_: Id, block: *mut Block) {
    // SAFETY: QEMU passes a valid block with at least one instruction.
    let (insns, end, ends_with_call) = unsafe {
        let insns: Vec<_> = (0..qemu_plugin_tb_n_insns(block))
            .map(|index| qemu_plugin_tb_get_insn(block, index))
            .collect();
        let last = insns[insns.len() - 1];
        let mut code = [0u8; 16];
        let len = qemu_plugin_insn_data(last, code.as_mut_ptr().cast(), code.len());
        let end = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) as u64;
        let addrs: Vec<_> = insns
            .iter()
            .map(|insn| qemu_plugin_insn_vaddr(*insn))
            .collect();
        (addrs, end, is_call(&code[..len]))
    };
    let known = Box::leak(Box::new(profile().know(&insns, end, ends_with_call)));
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
