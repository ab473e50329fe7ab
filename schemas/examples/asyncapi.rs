//! Writes `schemas/asyncapi.json` anew: `cargo run -p schemas --example asyncapi`, after a change of the bus.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json");
    std::fs::write(file, format!("{}\n", serde_json::to_string_pretty(&schemas::asyncapi::document())?))?;
    println!("{file}");
    Ok(())
}
