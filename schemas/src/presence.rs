//! Presence: which workers are there, what they offer, and what they hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::Refused;
use crate::ids::{EffectId, ExecutionId};

/// A worker's entry in the KV bucket `vl_workers`, renewed while it lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    /// Unique for this process, for example `inference-7f3a`. A subject token.
    pub id: String,
    /// `inference`, `tool` or `analysis`.
    pub role: String,
    /// Version of the program.
    pub version: String,
    /// Jobs it carries out at once.
    pub slots: u32,
    /// Models it has loaded.
    #[serde(default)]
    pub models: Vec<crate::rpc::Model>,
    /// Tools it carries out.
    #[serde(default)]
    pub tools: Vec<crate::rpc::Tool>,
    /// An inference worker's models, loaded or not, and what it does with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<crate::models::InferenceState>,
    /// How a tool worker confines calls; none of other workers, and of tool workers that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Confinement>,
    /// Files and settings from which a tool worker should have tools and has none, or not the newest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Where an analysis worker keeps vectors; none of other workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<Vectors>,
    /// Where a worker shares results with others; none of workers that keep none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
}

/// Where results are shared, and whether they can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cache {
    /// The store, for people: `NATS`, or `Redis at redis:6379`.
    pub store: String,
    /// Why it does not answer; every worker knows its own results only, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Where vectors are kept, and whether they can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vectors {
    /// The store, for people: `Qdrant at http://qdrant:6334`.
    pub store: String,
    /// The model that makes them; none while no inference worker has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Why they cannot be had; code is found by words only, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How a tool worker confines its calls, or why it carries out none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Confinement {
    /// `docker`, `bubblewrap`, or `none`, with which every call that needs a box is refused.
    pub tier: String,
    /// What its self-test found in force.
    #[serde(default)]
    pub enforced: Vec<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What is in force around commands and plugins, which may start processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Why no commands and plugins run there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands_refused: Option<String>,
}

/// Answer to a request on `vl.v1.ctl.worker.<id>` (with an empty body): the worker lives and holds these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Holds {
    /// Effects it is working on.
    pub effects: Vec<Hold>,
}

/// One effect a worker works on. Also announced once on `vl.v1.ctl.claim.<part>` when a worker takes a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    /// The execution.
    pub exec: ExecutionId,
    /// The effect.
    pub effect: EffectId,
    /// The attempt.
    pub attempt: u32,
    /// The worker's id.
    pub worker: String,
}
