// SPDX-License-Identifier: GPL-2.0

//! Stand-ins for the kernel's procedural macros.

use proc_macro::TokenStream;

/// Makes a module of KUnit tests a module of ordinary tests: the two look the same inside.
#[proc_macro_attribute]
pub fn kunit_tests(_suite: TokenStream, module: TokenStream) -> TokenStream {
    let mut tests: TokenStream = "#[cfg(test)]".parse().unwrap();
    tests.extend(module);
    tests
}
