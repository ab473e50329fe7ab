//! The box in which every tool call runs.
//!
//! Two halves. Outside, [`bubblewrap`] starts one box a call: fresh namespaces, an empty environment, read-only binds
//! of the runner, its libraries and the workspace, and nothing else; it keeps the time and the size of the answer.
//! Inside, the runner locks itself up further ([`confine`]) before it reads the call. A self-test tries the escapes
//! ([`probe`]) inside a box at start; a box that leaks is never used, and nothing runs without one.

pub(crate) mod bubblewrap;
pub(crate) mod confine;
pub(crate) mod probe;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Name of the tier, as it is written in results.
pub(crate) const TIER: &str = "bubblewrap";
/// Where the box shows the workspace.
pub(crate) const WORKSPACE: &str = "/workspace";
/// The name under which the runner takes the self-test's operations. No tool of the registry has it.
pub(crate) const PROBE: &str = "__probe";

/// What goes into a box.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BoxedCall {
    pub tool: String,
    pub arguments: Map<String, Value>,
}

/// What comes out of a box.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BoxedAnswer {
    /// What the runner put in force before it read the call.
    pub enforced: Vec<String>,
    /// The text, or why there is none.
    pub outcome: BoxedOutcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BoxedOutcome {
    Done(String),
    Failed { class: schemas::fact::FailureClass, detail: String },
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
