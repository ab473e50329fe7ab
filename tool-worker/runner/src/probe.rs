//! Escape attempts, run inside a box by the self-test and the tests, never outside: the runner has locked itself up
//! before it takes any call. Each attempt must be refused by the box itself; an attempt that fails for another
//! reason (no such protocol, bad argument) counts as open, because it got through to the kernel.

mod attempts;
mod commands;
mod misuse;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::WORKSPACE;
use crate::failure::Failure;

/// The file a self-test's workspace holds: reading it shows that a box works, not only that it is closed.
pub const CANARY: &str = "canary";

/// The operation that tries every escape.
pub const ESCAPE: &str = "escape";

/// Marks what only landlock closes. Without it the runner can read itself and its libraries, which tells nothing.
pub const ONLY_LANDLOCK: &str = "landlock: ";

/// Runs one operation: `escape` tries all there is, the name of a group tries that, and the rest misuses time, memory,
/// processes or output.
pub(crate) fn run(arguments: &Map<String, Value>) -> Result<String, Failure> {
    let operation = arguments.get("op").and_then(Value::as_str).unwrap_or_default();
    if operation == ESCAPE {
        let mut open = Vec::new();
        if !fs::read(Path::new(WORKSPACE).join(CANARY)).is_ok_and(|content| content == CANARY.as_bytes()) {
            open.push("the workspace cannot be read".to_owned());
        }
        open.extend(attempts::GROUPS.iter().flat_map(|(_, attempt)| attempt()));
        return Ok(open.join("\n"));
    }
    let mut groups = attempts::GROUPS.iter().chain(attempts::DEADLY);
    if let Some((_, attempt)) = groups.find(|(name, _)| *name == operation) {
        return Ok(attempt().join("\n"));
    }
    misuse::run(operation).ok_or_else(|| no_such_probe(operation))
}

/// The same in a box for commands, where more is allowed and all else must be refused.
pub(crate) fn run_for_commands(operation: &str) -> Result<String, Failure> {
    if operation == ESCAPE {
        let mut open = Vec::new();
        // A box need not have a workspace; the self-test's has.
        if !fs::read(Path::new(WORKSPACE).join(CANARY)).is_ok_and(|content| content == CANARY.as_bytes()) {
            open.push("the workspace cannot be read".to_owned());
        }
        open.extend(commands::GROUPS.iter().flat_map(|(_, attempt)| attempt()));
        return Ok(open.join("\n"));
    }
    let mut groups = commands::GROUPS.iter().chain(attempts::DEADLY);
    if let Some((_, attempt)) = groups.find(|(name, _)| *name == operation) {
        return Ok(attempt().join("\n"));
    }
    misuse::run(operation).ok_or_else(|| no_such_probe(operation))
}

fn no_such_probe(operation: &str) -> Failure {
    Failure::bad_request(format!("no such probe: {operation}"))
}
