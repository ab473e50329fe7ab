//! Facts: what happened outside the orchestrator. Appended to the log without a condition; nobody can refuse a fact.
//!
//! Whether a fact still matters is decided when it is folded: a result counts only while its effect is open and its
//! attempt is the current one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chat::{FinishReason, Message, Sampling, ToolCall, ToolSpec, Usage};
use crate::ids::{EffectId, ExecutionId};
use crate::wire::{DecodeError, Nanos, Schema, decode};

/// One fact in its envelope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// `fact/1.0`.
    pub schema: String,
    /// The execution it belongs to.
    pub exec: ExecutionId,
    /// When it happened, by the clock of the process that saw it.
    pub at: Nanos,
    /// What caused it, for people: a worker's id, a client's request id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trace: BTreeMap<String, String>,
    /// What happened.
    pub body: FactBody,
}

impl Schema for Fact {
    const SCHEMA: &'static str = "fact/1.0";
}

impl Fact {
    /// A fact that happened at `at`.
    #[must_use]
    pub fn new(exec: ExecutionId, at: Nanos, body: FactBody) -> Self {
        Self { schema: Self::SCHEMA.to_owned(), exec, at, cause: None, trace: BTreeMap::new(), body }
    }

    /// Reads a fact and checks its version.
    ///
    /// # Errors
    /// When the bytes are no fact, or one of a version this code does not know.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let fact: Self = decode(bytes)?;
        if !Self::reads(&fact.schema) {
            return Err(DecodeError::Schema { found: fact.schema, expected: Self::SCHEMA });
        }
        Ok(fact)
    }

    /// The id under which this fact is stored once, however often it is published.
    #[must_use]
    pub fn message_id(&self) -> String {
        let exec = self.exec;
        match &self.body {
            FactBody::ExecutionSubmitted(_) => format!("{exec}/submitted"),
            FactBody::InferenceCompleted(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::InferenceFailed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::ToolCompleted(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::ToolFailed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::EffectLost(f) => format!("{exec}/{}/{}/lost", f.effect, f.attempt),
            FactBody::TimerFired(f) => format!("{exec}/timer/{}/{}", f.timer, f.due),
            FactBody::CancelRequested(_) => format!("{exec}/cancel/{}", self.at),
        }
    }
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum FactBody {
    /// A request was accepted at the edge; the first fact of every execution.
    #[serde(rename = "execution.submitted")]
    ExecutionSubmitted(Box<ExecutionSubmitted>),
    /// A worker generated an answer.
    #[serde(rename = "inference.completed")]
    InferenceCompleted(InferenceCompleted),
    /// A worker could not.
    #[serde(rename = "inference.failed")]
    InferenceFailed(InferenceFailed),
    /// A tool ran to its end.
    #[serde(rename = "tool.completed")]
    ToolCompleted(ToolCompleted),
    /// A tool refused, broke or ran out of time.
    #[serde(rename = "tool.failed")]
    ToolFailed(ToolFailed),
    /// Somebody wants the execution to end.
    #[serde(rename = "cancel.requested")]
    CancelRequested(CancelRequested),
    /// A moment the execution waits for has come.
    #[serde(rename = "timer.fired")]
    TimerFired(TimerFired),
    /// The worker that held an effect is gone.
    #[serde(rename = "effect.lost")]
    EffectLost(EffectLost),
}

impl FactBody {
    /// The fact's name, as on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ExecutionSubmitted(_) => "execution.submitted",
            Self::InferenceCompleted(_) => "inference.completed",
            Self::InferenceFailed(_) => "inference.failed",
            Self::ToolCompleted(_) => "tool.completed",
            Self::ToolFailed(_) => "tool.failed",
            Self::CancelRequested(_) => "cancel.requested",
            Self::TimerFired(_) => "timer.fired",
            Self::EffectLost(_) => "effect.lost",
        }
    }
}

/// What kind of request an execution carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One answer; tool calls go back to the caller.
    Chat,
    /// The tool loop: calls are carried out here until the model answers.
    Agent,
    /// A single tool call without a model.
    Tool,
}

/// A request as it was accepted: complete, so that replaying it needs nothing but the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutionSubmitted {
    /// What is asked for.
    pub kind: Kind,
    /// The agent type's name (`chat`, `coder`, …).
    pub agent: String,
    /// The model that serves it; empty for [`Kind::Tool`].
    #[serde(default)]
    pub model: String,
    /// The model's context window, in tokens; 0 when unknown.
    #[serde(default)]
    pub window: u32,
    /// The conversation so far, oldest first, system message included.
    #[serde(default)]
    pub messages: Vec<Message>,
    /// Tools offered to the model.
    #[serde(default)]
    pub tools: Vec<ToolSpec>,
    /// For [`Kind::Tool`]: the call to carry out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<ToolCall>,
    /// The workspace its tools may read: a path under an allowed root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// On whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// An earlier execution whose conversation this one continues; its messages stay where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ExecutionId>,
    /// How tokens are drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// What the execution may use.
    pub limits: Limits,
    /// A subject that receives the end as a core message, for plain NATS clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
}

/// What an execution may use before it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Inferences.
    pub iterations: u32,
    /// Prompt and completion tokens over all inferences.
    pub tokens: u64,
    /// Tool calls over all turns.
    pub tool_calls: u32,
    /// The moment at which it ends whatever happens.
    pub deadline: Nanos,
}

/// The answer of one inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceCompleted {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who did it.
    pub worker: String,
    /// The text, tool-call markup removed.
    pub text: String,
    /// The calls the model asked for, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it stopped.
    pub finish: FinishReason,
    /// Tokens read and generated.
    pub usage: Usage,
    /// Prompt tokens that were found in the prefix cache.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Where the time went.
    #[serde(default)]
    pub timing: InferenceTiming,
}

/// Where the time of an inference went, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceTiming {
    /// From the publishing of the job to the worker that took it.
    pub queue_us: u64,
    /// From taking the job to the first token.
    pub prefill_us: u64,
    /// From the first token to the last.
    pub decode_us: u64,
}

/// Why an inference or a tool failed. The class says what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// No room now; worth another attempt.
    Overloaded,
    /// An accident in the worker; worth another attempt.
    Internal,
    /// The prompt does not fit the window.
    Overflow,
    /// The request itself is wrong.
    BadRequest,
    /// No such model or tool.
    Unknown,
    /// It took too long.
    Timeout,
    /// A rule forbids it (a path outside the workspace, no sandbox).
    Refused,
    /// It was cancelled.
    Cancelled,
}

impl FailureClass {
    /// Whether the same effect may succeed when tried again.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(self, Self::Overloaded | Self::Internal)
    }
}

/// An inference that gave no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceFailed {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who tried.
    pub worker: String,
    /// What kind of failure.
    pub class: FailureClass,
    /// For people: fits after "failed to".
    pub detail: String,
}

/// A tool's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCompleted {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who did it.
    pub worker: String,
    /// The text the model reads.
    pub result: String,
    /// Wall time of the call.
    pub duration_us: u64,
    /// How it was confined.
    pub sandbox: Sandbox,
}

/// How a tool call was confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// `docker`, `bubblewrap`, or `none` for a tool that touches nothing.
    pub tier: String,
    /// What was enforced, for example `landlock`, `seccomp`, `no-network`.
    #[serde(default)]
    pub enforced: Vec<String>,
}

/// A tool call that gave no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolFailed {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who tried.
    pub worker: String,
    /// What kind of failure.
    pub class: FailureClass,
    /// For the model and for people: what was wrong and what would be right.
    pub detail: String,
    /// Wall time until it failed.
    #[serde(default)]
    pub duration_us: u64,
    /// How it was confined.
    #[serde(default)]
    pub sandbox: Sandbox,
}

/// A request to end the execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelRequested {
    /// Who asked.
    pub by: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A moment came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimerFired {
    /// Which timer: `deadline`, or an effect's id.
    pub timer: String,
    /// The moment it was set for.
    pub due: Nanos,
}

/// The holder of an effect is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EffectLost {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who held it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
}
