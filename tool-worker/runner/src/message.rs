//! What passes between the worker and a box: one call in, one answer out, each a line of JSON.

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
}

impl BoxedCall {
    /// One operation of the self-test.
    #[must_use]
    pub fn probe(operation: &str) -> Self {
        let arguments = Map::from_iter([("op".to_owned(), Value::from(operation))]);
        Self { tool: PROBE.to_owned(), arguments }
    }

    /// As the runner reads it: one line.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings only");
        line.push(b'\n');
        line
    }
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
