// SPDX-License-Identifier: GPL-2.0

//! Compiles the AIDL interface of the demo's services.

use std::path::PathBuf;

fn main() -> miette::Result<()> {
    rsbinder_aidl::Builder::new()
        .source(PathBuf::from("aidl/lab/demo/IPayloadService.aidl"))
        .include_dir(PathBuf::from("aidl"))
        .output(PathBuf::from("payload_service.rs"))
        .generate()?;
    println!("cargo:rerun-if-changed=aidl");
    Ok(())
}
