//! Memory across executions: facts of a user and a workspace, found again by meaning.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::ExecutionId;
use crate::wire::Nanos;

/// Bytes of one fact at most.
pub const FACT_BYTES_MAX: usize = 4 << 10;

/// Whose memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scope {
    /// The user; nobody in particular when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The workspace, absolute and without symbolic links; none in particular when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
}

/// Question on `vl.v1.rpc.memory`; the answer is [`Told`], or a refusal of code `bad_request`, `no_model`, or
/// `unreachable`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Keep a fact. One that says the same is renewed instead.
    Remember {
        /// Whose.
        scope: Scope,
        /// The fact.
        text: String,
        /// The execution it comes from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<ExecutionId>,
    },
    /// Find facts by meaning.
    Recall {
        /// Whose.
        scope: Scope,
        /// What they should be about.
        query: String,
        /// Tokens of all of them together at most, estimated.
        tokens_max: u32,
    },
    /// List facts.
    List {
        /// Whose; what is missing is not looked at.
        scope: Scope,
        /// At most so many.
        limit: u32,
    },
    /// Forget facts.
    Forget {
        /// By their ids; unknown ones are no error.
        ids: Vec<String>,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// The fact is kept.
    Remembered {
        /// Under this id.
        id: String,
        /// It said the same as one that was there.
        renewed: bool,
    },
    /// Facts, nearest or newest first.
    Facts(Vec<Remembered>),
    /// So many were forgotten.
    Forgotten(u64),
}

/// A fact that is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Remembered {
    /// A UUID.
    pub id: String,
    /// The fact.
    pub text: String,
    /// Whose.
    pub scope: Scope,
    /// The execution it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ExecutionId>,
    /// When it was kept, or renewed.
    pub at: Nanos,
    /// How near it is to what was asked, -1 to 1; 0 where nothing was asked.
    #[serde(default)]
    pub score: f32,
}
