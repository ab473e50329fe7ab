//! `vlinders object get`: the bytes of an object, through the gateway.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{Object, ObjectWhat};
use crate::client::report;
use crate::settings::Usage;

/// Writes the bytes; exit code 1 when there are none.
pub(crate) async fn run(options: Object) -> anyhow::Result<ExitCode> {
    let ObjectWhat::Get(options) = options.what;
    if !schemas::object::is_name(&options.sha256) {
        let said = &options.sha256;
        return Err(
            Usage(format!("{said:?} is no object: say the SHA-256 of its bytes, 64 lower-case hex digits")).into()
        );
    }
    let gateway = options.target.gateway()?;
    let response = gateway.get(&format!("/internal/objects/{}", options.sha256)).await?;
    let status = response.status();
    if !status.is_success() {
        report(&response.json().await.unwrap_or_default(), &status.to_string());
        return Ok(ExitCode::from(1));
    }
    let content = response.bytes().await.context("read the object")?;
    match options.output {
        Some(file) => std::fs::write(&file, &content).with_context(|| format!("write {}", file.display()))?,
        None => std::io::stdout().write_all(&content).context("write the object")?,
    }
    Ok(ExitCode::SUCCESS)
}
