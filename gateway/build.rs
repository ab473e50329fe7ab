//! Makes Rust of the proto in `schemas/proto`, without a protoc on the machine.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

#[expect(clippy::disallowed_methods, reason = "cargo says in the environment where to write")]
fn main() -> Result<(), Box<dyn Error>> {
    let proto = "../schemas/proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::compile(["vlinders/v1/inference.proto"], [proto])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // What the reflection service tells.
    std::fs::write(out.join("vlinders.v1.bin"), descriptors.encode_to_vec())?;
    // The client is for the tests, which bring their own connection.
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
