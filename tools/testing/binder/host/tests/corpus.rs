// SPDX-License-Identifier: GPL-2.0

//! What the fuzzer found worth keeping, without the fuzzer.

#![cfg(not(loom))]

use arbitrary::{
    Arbitrary,
    Unstructured, //
};
use binder_alloc_host::{
    data,
    process, //
};
use std::{
    fs,
    path::Path, //
};

/// Calls `run` with each file of the corpus of a target.
fn replay<T>(target: &str, run: impl Fn(&T))
where
    T: for<'a> Arbitrary<'a>,
{
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files = 0;
    for file in fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        println!("{}", path.display());
        let bytes = fs::read(path).unwrap();
        let input = T::arbitrary_take_rest(Unstructured::new(&bytes));
        run(&input.expect("not an input"));
        files += 1;
    }
    assert_ne!(files, 0);
}

#[test]
fn data() {
    replay("data", data::model::Input::run);
}

#[test]
fn pages() {
    replay("pages", process::model::Input::run);
}
