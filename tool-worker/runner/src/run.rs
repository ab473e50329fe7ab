//! The main function: lock up, take one call, answer it, and go.

use std::io::{self, BufRead, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use crate::confine::{self, Layers};
use crate::failure::Failure;
use crate::message::{BoxedAnswer, BoxedCall};
use crate::{CONTAINER_ONLY, PROBE, WORKSPACE, probe, tools};

/// Longest call accepted: a page of 2 MiB, of which every byte is escaped. The registry lets 64 KiB of arguments through.
const CALL_BYTES_MAX: u64 = 13 << 20;
/// Exit code of a runner that refuses to start.
const NOT_CONFINED: u8 = 71;

/// The main function of the hidden command `tool-runner`. It must be called first thing, before any thread starts:
/// what it gives up, it gives up for the whole process.
#[must_use]
pub fn runner_main() -> ExitCode {
    let layers = match std::env::args().any(|argument| argument == CONTAINER_ONLY) {
        true => Layers::ContainerOnly,
        false => Layers::All,
    };
    let enforced = match confine::confine(layers) {
        Ok(enforced) => enforced,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::from(NOT_CONFINED);
        }
    };
    // A box that waited for a call and got none has nothing to say.
    let Some(text) = call() else { return ExitCode::SUCCESS };
    let answered = || text.and_then(|text| answer(&text, layers));
    let outcome =
        catch_unwind(AssertUnwindSafe(answered)).unwrap_or_else(|_| Err(Failure::internal("the tool crashed")));
    let mut answer = serde_json::to_vec(&BoxedAnswer { enforced, outcome: outcome.into() }).expect("strings only");
    answer.push(b'\n');
    match io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One line: its end says that the call is whole, also where the stream stays open.
fn call() -> Option<Result<String, Failure>> {
    let mut text = String::new();
    match io::stdin().lock().take(CALL_BYTES_MAX).read_line(&mut text) {
        Ok(0) => None,
        Ok(_) => Some(Ok(text)),
        Err(error) => Some(Err(unreadable(&error))),
    }
}

fn answer(text: &str, layers: Layers) -> Result<String, Failure> {
    let call: BoxedCall = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    if call.tool == PROBE {
        probe::run(&call.arguments)
    } else if layers == Layers::All {
        tools::run(Path::new(WORKSPACE), &call.tool, &call.arguments)
    } else {
        Err(Failure::refused("this box takes probes only"))
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("the call cannot be read: {error}"))
}
