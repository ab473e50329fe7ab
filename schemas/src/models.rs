//! Models at run time: what a worker knows of each, and what it is asked to do with them.
//!
//! A model is named, never a path: a worker loads what lies in its own directories. What became of a request is read
//! from the worker's entry (`presence`), which it renews at once when something changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire::Nanos;

/// Question on `vl.v1.rpc.models.change`, or on `vl.v1.rpc.models.change.<worker>` for one worker; the answer is
/// `Vec<Operation>`, one for each worker that does something, or a refusal of code `unknown_model`, `unknown_worker`,
/// `not_loaded`, `no_room`, `same_model`, `name_taken`, `fixed_model` or `model_busy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeModels {
    /// What should happen.
    pub change: Change,
    /// The worker that should do it. None: one that has room takes a load, all that have the model do an unload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
}

/// What should happen to a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Load it.
    Load {
        /// Its name.
        model: String,
    },
    /// Finish what waits for it, then give its memory back.
    Unload {
        /// Its name.
        model: String,
        /// Only what is in hand is finished; what is queued waits for another worker.
        #[serde(default)]
        force: bool,
    },
    /// Load one, then unload the other.
    Switch {
        /// The model that goes.
        from: String,
        /// The model that comes.
        to: String,
        /// Of the one that goes only what is in hand is finished.
        #[serde(default)]
        force: bool,
    },
}

/// Something a worker does with its models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// Its id: the worker's, a dot, a number.
    pub id: String,
    /// The worker.
    pub worker: String,
    /// What it does.
    pub change: Change,
    /// How far it is.
    pub state: OperationState,
    /// When it began.
    pub started_at: Nanos,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Nanos>,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Done,
    /// It came to nothing.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Change {
    /// `load`, `unload` or `switch`.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Load { .. } => "load",
            Self::Unload { .. } => "unload",
            Self::Switch { .. } => "switch",
        }
    }

    /// The model that is loaded, or unloaded where none is.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Load { model } | Self::Unload { model, .. } | Self::Switch { to: model, .. } => model,
        }
    }
}

/// A model as one worker knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KnownModel {
    /// Its name.
    pub name: String,
    /// `chat` or `embedding`.
    pub kind: String,
    /// Context window, tokens; 0 while nobody knows.
    pub window: u32,
    /// What the worker has of it.
    pub state: ModelState,
    /// Bytes its weights take in memory; what they will take where it is not loaded. 0 while nobody knows.
    #[serde(default)]
    pub weights_bytes: u64,
    /// Bytes its keys and values take at most.
    #[serde(default)]
    pub cache_bytes_max: u64,
    /// Where it lies, or is about to: `cpu`, `gpu 0`, or `gpus 0,1` where several compute it together. None where it is not
    /// loaded, or is served by somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What a worker has of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// It lies in one of the worker's directories.
    Known,
    /// It is being read.
    Loading {
        /// How much of it is, by bytes: 0 to 1.
        progress: f64,
    },
    /// It answers.
    Ready,
    /// It finishes what waits for it, and is offered to nobody any more.
    Draining,
    /// It could not be loaded.
    Failed {
        /// Why.
        reason: String,
    },
}

impl ModelState {
    /// `known`, `loading`, `ready`, `draining` or `failed`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Loading { .. } => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The memory of a worker's machine that its models may take, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostMemory {
    /// All of it.
    pub max_bytes: u64,
    /// What loaded models take, with the most that their keys and values may.
    pub taken_bytes: u64,
    /// What is kept of the keys and values of models that are no longer loaded; it gives way to a model.
    pub kept_bytes: u64,
}

/// A GPU as its driver reports it. What it does not report is missing, not zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// The driver's number of it.
    pub id: u32,
    /// What it is called.
    pub name: String,
    /// Part of the time in which it computed, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
    /// Memory in use, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// All its memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
}

/// What an inference worker says of itself in its entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferenceState {
    /// Every model it knows, sorted by name.
    pub models: Vec<KnownModel>,
    /// What it does and did lately with them, oldest first.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// The memory for them.
    #[serde(default)]
    pub memory: HostMemory,
    /// The GPUs of its machine; empty where there are none, or nobody can ask them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}
