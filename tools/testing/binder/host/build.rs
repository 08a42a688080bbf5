// SPDX-License-Identifier: GPL-2.0

fn main() {
    println!("cargo::rustc-cfg=host_test");
    println!("cargo::rustc-cfg=CONFIG_ANDROID_BINDER_RUST_KUNIT_TEST");
}
