//! Jobs: self-contained work on a disposable queue. The log is the outbox; a queue that is lost is filled again.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::{Message, Priority, Sampling, ToolSpec, Truncation};
use crate::ids::{EffectId, ExecutionId};
use crate::subject;
use crate::wire::{DecodeError, Nanos, Schema, read};

/// What every job says, whatever its work.
pub trait Job: Schema + Serialize + serde::de::DeserializeOwned + Send + Sync + 'static {
    /// Its name and version.
    fn schema(&self) -> &str;
    /// Reads a job and checks its version.
    ///
    /// # Errors
    /// When the bytes are no such job, or one of a version this code does not know.
    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        read(bytes, Self::schema)
    }
    /// The execution.
    fn exec(&self) -> ExecutionId;
    /// The effect it carries out.
    fn effect(&self) -> &EffectId;
    /// The attempt of the effect, from 1.
    fn attempt(&self) -> u32;
    /// The moment after which nobody wants the result.
    fn deadline(&self) -> Nanos;
    /// W3C trace context.
    fn trace(&self) -> &BTreeMap<String, String>;
    /// Where it is queued.
    fn subject(&self) -> String;
    /// The id under which this attempt is queued once.
    fn message_id(&self) -> String {
        format!("{}/{}/{}", self.exec(), self.effect(), self.attempt())
    }
}

/// Generate an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferenceJob {
    /// `inference-job/1.0`.
    pub schema: String,
    /// The execution.
    pub exec: ExecutionId,
    /// The effect.
    pub effect: EffectId,
    /// The attempt, from 1. From 2 on, the worker continues after the tokens already published.
    pub attempt: u32,
    /// The moment after which nobody wants the result.
    pub deadline: Nanos,
    /// When the job was queued.
    pub queued_at: Nanos,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trace: BTreeMap<String, String>,
    /// The model's name, which is also its pool.
    pub model: String,
    /// The whole prompt, oldest first.
    pub messages: Vec<Message>,
    /// Tools offered to the model.
    #[serde(default)]
    pub tools: Vec<ToolSpec>,
    /// How tokens are drawn; the seed is always set.
    pub sampling: Sampling,
    /// Tokens to generate at most; 0 means as many as the window leaves.
    pub tokens_max: u64,
    /// On whose behalf; the scheduler is fair between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// What the text is for.
    #[serde(default, skip_serializing_if = "Purpose::is_answer")]
    pub purpose: Purpose,
    /// Who goes first where there is no room for all.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// What becomes of a prompt that does not fit the window.
    #[serde(default, skip_serializing_if = "Truncation::is_disabled")]
    pub truncation: Truncation,
    /// The result may be kept, and taken from what was kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
}

/// What the text of an inference is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// An answer: streamed, and a fact `inference.completed`.
    #[default]
    Answer,
    /// A summary: not streamed, and a fact `compression.completed`.
    Summary,
}

impl Purpose {
    fn is_answer(&self) -> bool {
        *self == Self::Answer
    }
}

impl Schema for InferenceJob {
    const SCHEMA: &'static str = "inference-job/1.0";
}

impl Job for InferenceJob {
    fn schema(&self) -> &str {
        &self.schema
    }
    fn exec(&self) -> ExecutionId {
        self.exec
    }
    fn effect(&self) -> &EffectId {
        &self.effect
    }
    fn attempt(&self) -> u32 {
        self.attempt
    }
    fn deadline(&self) -> Nanos {
        self.deadline
    }
    fn trace(&self) -> &BTreeMap<String, String> {
        &self.trace
    }
    fn subject(&self) -> String {
        subject::inference_job(&self.model, self.exec)
    }
}

/// Carry out a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolJob {
    /// `tool-job/1.0`.
    pub schema: String,
    /// The execution.
    pub exec: ExecutionId,
    /// The effect.
    pub effect: EffectId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The moment after which nobody wants the result.
    pub deadline: Nanos,
    /// When the job was queued.
    pub queued_at: Nanos,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trace: BTreeMap<String, String>,
    /// The tool's name.
    pub tool: String,
    /// JSON text, as the model or the caller wrote it.
    pub arguments: String,
    /// The workspace it may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// On whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Bytes of result text at most; the rest is cut and said to be. 0 means the tool's own limit.
    #[serde(default)]
    pub result_bytes_max: u64,
    /// The agent type that calls; empty when nobody said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
    /// Nobody needs to allow the call any more: a person has, or a person calls.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// The call is carried out even where its result is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

impl Schema for ToolJob {
    const SCHEMA: &'static str = "tool-job/1.0";
}

impl Job for ToolJob {
    fn schema(&self) -> &str {
        &self.schema
    }
    fn exec(&self) -> ExecutionId {
        self.exec
    }
    fn effect(&self) -> &EffectId {
        &self.effect
    }
    fn attempt(&self) -> u32 {
        self.attempt
    }
    fn deadline(&self) -> Nanos {
        self.deadline
    }
    fn trace(&self) -> &BTreeMap<String, String> {
        &self.trace
    }
    fn subject(&self) -> String {
        subject::tool_job(&self.tool, self.exec)
    }
}

/// Do a part of the work of an index execution; see [`crate::code`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnalysisJob {
    /// `analysis-job/1.0`.
    pub schema: String,
    /// The execution.
    pub exec: ExecutionId,
    /// The effect.
    pub effect: EffectId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The moment after which nobody wants the result.
    pub deadline: Nanos,
    /// When the job was queued.
    pub queued_at: Nanos,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trace: BTreeMap<String, String>,
    /// What is asked: [`crate::code::PLAN`], [`crate::code::FILES`] or [`crate::code::FINISH`].
    pub kind: String,
    /// Its arguments, JSON text.
    pub arguments: String,
}

impl Schema for AnalysisJob {
    const SCHEMA: &'static str = "analysis-job/1.0";
}

impl Job for AnalysisJob {
    fn schema(&self) -> &str {
        &self.schema
    }
    fn exec(&self) -> ExecutionId {
        self.exec
    }
    fn effect(&self) -> &EffectId {
        &self.effect
    }
    fn attempt(&self) -> u32 {
        self.attempt
    }
    fn deadline(&self) -> Nanos {
        self.deadline
    }
    fn trace(&self) -> &BTreeMap<String, String> {
        &self.trace
    }
    fn subject(&self) -> String {
        subject::analysis_job(&self.kind, self.exec)
    }
}
