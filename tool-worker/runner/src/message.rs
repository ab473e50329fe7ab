//! What passes between the worker and a box: one call in, one answer out, each a line of JSON.

use std::collections::BTreeMap;

use schemas::fact::FailureClass;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::PROBE;
use crate::failure::Failure;

/// What goes into a box.
#[derive(Debug, Serialize, Deserialize)]
pub struct BoxedCall {
    /// The tool's name.
    pub tool: String,
    /// Its arguments, checked.
    pub arguments: Map<String, Value>,
    /// Whether so little of the result will be shown that it should not say how to go on.
    #[serde(default)]
    pub brief: bool,
}

impl BoxedCall {
    /// One operation of the self-test.
    #[must_use]
    pub fn probe(operation: &str) -> Self {
        let arguments = Map::from_iter([("op".to_owned(), Value::from(operation))]);
        Self { tool: PROBE.to_owned(), arguments, brief: false }
    }

    /// As the runner reads it: one line.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings only");
        line.push(b'\n');
        line
    }
}

/// What goes into a box for commands: four bytes that say how long it is, the lowest first, and so many of JSON. What
/// follows it is the command's own input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One operation of the self-test; answered as a call is.
    Probe(String),
    /// The runner becomes this program. What it writes and how it ends is the answer.
    Run(Command),
}

/// A program to become.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program, looked up in `PATH`, and its arguments; nothing is given to a shell.
    pub argv: Vec<String>,
    /// Where it starts, below the workspace.
    #[serde(default)]
    pub directory: String,
    /// Variables beside the few that are always there.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

impl Order {
    /// Longest order: what a kernel takes as arguments of a program, and some more.
    pub const BYTES_MAX: usize = 256 * 1024;

    /// As the runner reads it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("strings only");
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes();
        [&length[..], &json].concat()
    }
}

/// What a box for commands allows, as the runner is told on its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Allowance {
    /// Whether the workspace may be written to.
    pub writes: bool,
    /// Processes and threads at once.
    pub processes: u32,
    /// Size of a file, in bytes.
    pub file_bytes: u64,
}

/// What comes out of a box.
#[derive(Debug, Serialize, Deserialize)]
pub struct BoxedAnswer {
    /// What the runner put in force before it read the call.
    pub enforced: Vec<String>,
    /// The text, or why there is none.
    pub outcome: BoxedOutcome,
}

impl BoxedAnswer {
    /// As it came out.
    pub fn read(bytes: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(bytes)
            .map_err(|error| Failure::internal(format!("the sandbox answered nonsense: {error}")))
    }
}

/// How a call ended inside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoxedOutcome {
    /// The text the model reads.
    Done(String),
    /// Why there is none.
    Failed {
        /// What kind of failure.
        class: FailureClass,
        /// For the model and for people.
        detail: String,
    },
}

impl From<Result<String, Failure>> for BoxedOutcome {
    fn from(result: Result<String, Failure>) -> Self {
        match result {
            Ok(text) => Self::Done(text),
            Err(Failure { class, detail }) => Self::Failed { class, detail },
        }
    }
}

impl From<BoxedOutcome> for Result<String, Failure> {
    fn from(outcome: BoxedOutcome) -> Self {
        match outcome {
            BoxedOutcome::Done(text) => Ok(text),
            BoxedOutcome::Failed { class, detail } => Err(Failure { class, detail }),
        }
    }
}
