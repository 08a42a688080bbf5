// SPDX-License-Identifier: GPL-2.0

//! The data structures against the model.

#![no_main]

use binder_alloc_host::data::model::Input;

libfuzzer_sys::fuzz_target!(|input: Input| input.run());
