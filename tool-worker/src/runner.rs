//! The tool runner: the program inside the box. One call in, one answer out, and it is gone.

use std::io::{self, Read, Write};
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;

use crate::failure::Failure;
use crate::sandbox::{BoxedAnswer, BoxedCall, PROBE, WORKSPACE, confine, probe};
use crate::tools;

/// Longest call accepted: a fetched page, escaped as JSON.
const CALL_BYTES_MAX: u64 = 8 << 20;
/// Exit code of a runner that refuses to start.
const NOT_CONFINED: u8 = 71;

/// The main function of the hidden command `tool-runner`. It must be called first thing, before any thread starts:
/// what it gives up, it gives up for the whole process.
#[must_use]
pub fn runner_main() -> ExitCode {
    let enforced = match confine::confine() {
        Ok(enforced) => enforced,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::from(NOT_CONFINED);
        }
    };
    let outcome = catch_unwind(answer).unwrap_or_else(|_| Err(Failure::internal("the tool crashed"))).into();
    let answer = serde_json::to_vec(&BoxedAnswer { enforced, outcome }).expect("strings only");
    match io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().take(CALL_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::internal(format!("the call cannot be read: {error}")))?;
    let call: BoxedCall =
        serde_json::from_str(&text).map_err(|error| Failure::internal(format!("the call cannot be read: {error}")))?;
    if call.tool == PROBE {
        probe::run(&call.arguments)
    } else {
        tools::run(Path::new(WORKSPACE), &call.tool, &call.arguments)
    }
}
