// SPDX-License-Identifier: GPL-2.0

//! The whole allocator against the model.

#![no_main]

use binder_alloc_host::process::model::Input;

libfuzzer_sys::fuzz_target!(|input: Input| input.run());
