//! Facts: what happened outside the orchestrator. Appended to the log without a condition; nobody can refuse a fact.
//!
//! Whether a fact still matters is decided when it is folded: a result counts only while its effect is open and its
//! attempt is the current one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::Problem;
use crate::chat::{FinishReason, Message, Priority, Sampling, TokenLogprob, ToolCall, ToolSpec, Truncation, Usage};
use crate::ids::{EffectId, ExecutionId};
use crate::object::Reference;
use crate::wire::{DecodeError, Nanos, Schema, read, read_json};

/// One fact in its envelope. Ours are MessagePack; a plain client may write the same as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
        // No MessagePack of a map begins like that.
        match bytes.trim_ascii_start().first() {
            Some(b'{') => read_json(bytes, |fact: &Self| &fact.schema),
            _ => read(bytes, |fact: &Self| &fact.schema),
        }
    }

    /// The id under which this fact is stored once, however often it is published.
    #[must_use]
    pub fn message_id(&self) -> String {
        let exec = self.exec;
        match &self.body {
            FactBody::ExecutionSubmitted(_) => format!("{exec}/submitted"),
            FactBody::ExecutionRequested(_) => format!("{exec}/requested"),
            FactBody::ExecutionRefused(_) => format!("{exec}/refused"),
            FactBody::InferenceCompleted(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::InferenceFailed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::ToolCompleted(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::ToolFailed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::EffectLost(f) => format!("{exec}/{}/{}/lost", f.effect, f.attempt),
            FactBody::TimerFired(f) => format!("{exec}/timer/{}/{}", f.timer, f.due),
            FactBody::CancelRequested(_) => format!("{exec}/cancel/{}", self.at),
            FactBody::UserMessage(f) => format!("{exec}/message/{}", f.id),
            FactBody::ChildClosed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::CompressionCompleted(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::CompressionFailed(f) => format!("{exec}/{}/{}/result", f.effect, f.attempt),
            FactBody::ApprovalDecided(f) => format!("{exec}/{}/approval/{}", f.approval, self.at),
            FactBody::BudgetGranted(f) => format!("{exec}/grant/{}/{}", f.dimension, self.at),
            FactBody::PauseRequested(_) => format!("{exec}/pause/{}", self.at),
            FactBody::ResumeRequested(_) => format!("{exec}/resume/{}", self.at),
        }
    }
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "data")]
pub enum FactBody {
    /// A request was accepted at the edge; the first fact of every execution.
    #[serde(rename = "execution.submitted")]
    ExecutionSubmitted(Box<ExecutionSubmitted>),
    /// A plain NATS client asks for something; the first fact of its execution. A gateway says what it comes to, and that
    /// is the next: `execution.submitted`, or `execution.refused`.
    #[serde(rename = "execution.requested")]
    ExecutionRequested(Box<ExecutionRequested>),
    /// What a plain client asks for cannot be carried out.
    #[serde(rename = "execution.refused")]
    ExecutionRefused(Box<Problem>),
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
    /// Somebody says more while the execution runs.
    #[serde(rename = "user.message")]
    UserMessage(UserMessage),
    /// An execution that this one asked for has ended.
    #[serde(rename = "child.closed")]
    ChildClosed(ChildClosed),
    /// A worker summarised a part of the context.
    #[serde(rename = "compression.completed")]
    CompressionCompleted(CompressionCompleted),
    /// A worker could not.
    #[serde(rename = "compression.failed")]
    CompressionFailed(CompressionFailed),
    /// A person decided about a tool call.
    #[serde(rename = "approval.decided")]
    ApprovalDecided(ApprovalDecided),
    /// A person allows more.
    #[serde(rename = "budget.granted")]
    BudgetGranted(BudgetGranted),
    /// Somebody wants the execution to wait.
    #[serde(rename = "pause.requested")]
    PauseRequested(PauseRequested),
    /// Somebody wants it to go on.
    #[serde(rename = "resume.requested")]
    ResumeRequested(ResumeRequested),
}

impl FactBody {
    /// The effect whose result this is, and which attempt of it; none when it is none.
    #[must_use]
    pub const fn result_of(&self) -> Option<(&EffectId, u32)> {
        match self {
            Self::InferenceCompleted(f) => Some((&f.effect, f.attempt)),
            Self::InferenceFailed(f) => Some((&f.effect, f.attempt)),
            Self::ToolCompleted(f) => Some((&f.effect, f.attempt)),
            Self::ToolFailed(f) => Some((&f.effect, f.attempt)),
            Self::ChildClosed(f) => Some((&f.effect, f.attempt)),
            Self::CompressionCompleted(f) => Some((&f.effect, f.attempt)),
            Self::CompressionFailed(f) => Some((&f.effect, f.attempt)),
            Self::ExecutionSubmitted(_)
            | Self::ExecutionRequested(_)
            | Self::ExecutionRefused(_)
            | Self::CancelRequested(_)
            | Self::TimerFired(_)
            | Self::EffectLost(_)
            | Self::UserMessage(_)
            | Self::ApprovalDecided(_)
            | Self::BudgetGranted(_)
            | Self::PauseRequested(_)
            | Self::ResumeRequested(_) => None,
        }
    }

    /// The fact's name, as on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ExecutionSubmitted(_) => "execution.submitted",
            Self::ExecutionRequested(_) => "execution.requested",
            Self::ExecutionRefused(_) => "execution.refused",
            Self::InferenceCompleted(_) => "inference.completed",
            Self::InferenceFailed(_) => "inference.failed",
            Self::ToolCompleted(_) => "tool.completed",
            Self::ToolFailed(_) => "tool.failed",
            Self::CancelRequested(_) => "cancel.requested",
            Self::TimerFired(_) => "timer.fired",
            Self::EffectLost(_) => "effect.lost",
            Self::UserMessage(_) => "user.message",
            Self::ChildClosed(_) => "child.closed",
            Self::CompressionCompleted(_) => "compression.completed",
            Self::CompressionFailed(_) => "compression.failed",
            Self::ApprovalDecided(_) => "approval.decided",
            Self::BudgetGranted(_) => "budget.granted",
            Self::PauseRequested(_) => "pause.requested",
            Self::ResumeRequested(_) => "resume.requested",
        }
    }
}

/// What kind of request an execution carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One answer; tool calls go back to the caller.
    Chat,
    /// The tool loop: calls are carried out here until the model answers.
    Agent,
    /// A single tool call without a model.
    Tool,
    /// Code is indexed, in parts; see [`crate::code`].
    Index,
}

/// A request as a plain client writes it: it needs to know nothing of models, windows and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionRequested {
    /// What is asked for.
    pub request: Request,
    /// A subject that receives the end as a core message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
}

/// The body of a request of the HTTP API, as it came: what is wrong with it is told like there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// That of `POST /internal/chat` ([`crate::api::ChatRequest`]).
    Chat(#[schemars(with = "crate::api::ChatRequest")] Value),
    /// That of `POST /internal/agent` ([`crate::api::AgentRequest`]).
    Agent(#[schemars(with = "crate::api::AgentRequest")] Value),
    /// That of `POST /internal/tools/execute` ([`crate::api::ToolRequest`]).
    Tool(#[schemars(with = "crate::api::ToolRequest")] Value),
}

impl Request {
    /// The agent type it names; empty when it names none.
    #[must_use]
    pub fn agent(&self) -> &str {
        match self {
            Self::Chat(_) => "chat",
            Self::Agent(body) => body.get("agent_type").and_then(Value::as_str).unwrap_or_default(),
            Self::Tool(_) => "tool",
        }
    }
}

/// A request as it was accepted: complete, so that replaying it needs nothing but the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// For [`Kind::Tool`]: the call to carry out. For [`Kind::Index`]: the one that plans.
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
    /// The execution that asked for this one, and which of its effects this one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// How many executions stand above this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
    /// What the agent type says beside its limits.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
    /// Agent types that it, and those below it, may delegate to: complete, so that replaying needs nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentSpec>,
    /// Who goes first where there is no room for all; for the executions below it, too.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// What becomes of a prompt that does not fit the window.
    #[serde(default, skip_serializing_if = "Truncation::is_disabled")]
    pub truncation: Truncation,
    /// Results may be kept and taken from what was kept: the caller does not object, and they follow from the request
    /// alone, because nothing is drawn, or by a seed that the caller chose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
    /// Tools are called even where a result is known; by the executions below it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh_tools: bool,
}

impl ExecutionSubmitted {
    /// A request for nothing yet: fill in what is asked.
    #[must_use]
    pub fn new(kind: Kind, agent: impl Into<String>, limits: Limits) -> Self {
        Self {
            kind,
            agent: agent.into(),
            model: String::new(),
            window: 0,
            messages: Vec::new(),
            tools: Vec::new(),
            call: None,
            workspace: None,
            user_id: None,
            conversation_id: None,
            sampling: Sampling::default(),
            limits,
            reply: None,
            parent: None,
            depth: 0,
            policy: Policy::default(),
            agents: Vec::new(),
            priority: Priority::default(),
            truncation: Truncation::default(),
            cache: false,
            fresh_tools: false,
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Whose child an execution is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Parent {
    /// The parent.
    pub exec: ExecutionId,
    /// The parent's effect that this execution carries out.
    pub effect: EffectId,
    /// The attempt of that effect.
    pub attempt: u32,
}

/// The rules of an agent type that are no limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Tools that a person must allow, call by call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approve: Vec<String>,
    /// How long a call waits for that person before it counts as denied, milliseconds; 0 means ten minutes.
    #[serde(skip_serializing_if = "is_zero_ms")]
    pub approval_ms: u64,
    /// When the children of a turn have done enough.
    #[serde(skip_serializing_if = "Join::is_all")]
    pub join: Join,
    /// What happens at a limit.
    #[serde(skip_serializing_if = "AtLimit::is_end")]
    pub at_limit: AtLimit,
    /// The model that summarises; the execution's own when missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub small_model: Option<String>,
    /// Whether what is remembered of earlier executions is recalled at the start (with the tool `recall`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recall: bool,
    /// Whether question and answer are remembered at the end (with the tool `remember`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remember: bool,
}

impl Policy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero_ms(number: &u64) -> bool {
    *number == 0
}

/// When the children of one turn are joined. Those still running are cancelled then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// When every one has ended.
    #[default]
    All,
    /// When one has succeeded.
    Any,
    /// When that many have succeeded.
    Quorum(u32),
    /// When every one has ended, or one has failed.
    FirstError,
}

impl Join {
    fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// What happens when a limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtLimit {
    /// The execution ends.
    #[default]
    End,
    /// It pauses until somebody grants more.
    Ask,
}

impl AtLimit {
    fn is_end(&self) -> bool {
        *self == Self::End
    }
}

/// An agent type as it was when the request was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentSpec {
    /// Its name.
    pub name: String,
    /// Its system prompt.
    pub system: String,
    /// The model that serves it.
    pub model: String,
    /// The model's window, tokens.
    pub window: u32,
    /// The tools it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolSpec>,
    /// Agent types it may delegate to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<String>,
    /// Inferences at most.
    pub iterations: u32,
    /// Tokens at most; its share of the parent's is the other bound.
    pub tokens: u64,
    /// Tool calls at most.
    pub tool_calls: u32,
    /// Wall time at most, milliseconds; the parent's deadline is the other bound.
    pub deadline_ms: u64,
    /// Its other rules.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
}

/// What an execution may use before it is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Inferences.
    pub iterations: u32,
    /// Prompt and completion tokens over all inferences.
    pub tokens: u64,
    /// Tool calls over all turns.
    pub tool_calls: u32,
    /// The moment at which it ends whatever happens.
    pub deadline: Nanos,
    /// Prompt tokens over all inferences; no limit of its own when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_in: Option<u64>,
    /// Generated tokens over all inferences; no limit of its own when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
    /// Executions it may ask for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub children: u32,
    /// How many levels may stand below the topmost execution.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
}

/// The answer of one inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Tokens read and generated, those of the alternatives included.
    pub usage: Usage,
    /// Prompt tokens that did not have to be computed: found in the prefix cache, or all of them with `cached`.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Where the time went.
    #[serde(default)]
    pub timing: InferenceTiming,
    /// How likely each token was, if that was asked: one entry for each generated token, the end token included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// The other answers, if several were asked for, in the order of their seeds. The conversation goes on with the
    /// first answer, which stands above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// The model did not run: an equal request had been answered before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Messages that were left out of a prompt that did not fit the window.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped_messages: u32,
}

impl InferenceCompleted {
    /// Generated tokens of the first answer.
    #[must_use]
    pub fn answer_tokens(&self) -> u64 {
        let others = self.alternatives.iter().map(|other| other.completion_tokens).sum();
        self.usage.completion_tokens.saturating_sub(others)
    }
}

/// Another answer to the same prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alternative {
    /// The text, tool-call markup removed.
    pub text: String,
    /// The calls the model asked for, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it stopped.
    pub finish: FinishReason,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// How likely each token was, if that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

/// Where the time of an inference went, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InferenceTiming {
    /// From the publishing of the job to the worker that took it.
    pub queue_us: u64,
    /// From taking the job to the first token.
    pub prefill_us: u64,
    /// From the first token to the last.
    pub decode_us: u64,
}

/// Why an inference or a tool failed. The class says what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// It was begun and nobody knows what came of it, and it is not tried again, because once may have been enough.
    OutcomeUnknown,
}

impl FailureClass {
    /// Whether the same effect may succeed when tried again.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(self, Self::Overloaded | Self::Internal)
    }
}

/// An inference that gave no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCompleted {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who did it.
    pub worker: String,
    /// The text the model reads.
    pub result: String,
    /// The whole text, where the model reads only its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Reference>,
    /// Wall time of the call.
    pub duration_us: u64,
    /// How it was confined.
    pub sandbox: Sandbox,
}

/// How a tool call was confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Sandbox {
    /// `docker`, `bubblewrap`, or `none` for a tool that touches nothing.
    pub tier: String,
    /// What was enforced, for example `landlock`, `seccomp`, `no-network`.
    #[serde(default)]
    pub enforced: Vec<String>,
}

/// A tool call that gave no result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelRequested {
    /// Who asked.
    pub by: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How.
    #[serde(default, skip_serializing_if = "CancelMode::is_now")]
    pub mode: CancelMode,
}

/// How an execution is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelMode {
    /// What is open is stopped.
    #[default]
    Now,
    /// What is open may finish; nothing more is asked for.
    Graceful,
}

impl CancelMode {
    fn is_now(&self) -> bool {
        *self == Self::Now
    }
}

/// A moment came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimerFired {
    /// Which timer: `deadline`, or an effect's id.
    pub timer: String,
    /// The moment it was set for.
    pub due: Nanos,
}

/// The holder of an effect is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EffectLost {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who held it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
}

/// Something said while the execution runs. The next inference reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserMessage {
    /// Names it, so that a repeated request says it once.
    pub id: String,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What.
    pub text: String,
    /// The text, where it is too large for a message; `text` is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Reference>,
}

impl UserMessage {
    /// Whether this is its text, wherever it lies.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.object.as_ref().map_or(self.text == text, |object| object.is_of(text.as_bytes()))
    }
}

/// How an execution ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With an answer.
    Completed,
    /// An effect failed for good.
    Failed,
    /// Somebody asked for it.
    Cancelled,
    /// Its time was over.
    TimedOut,
    /// A limit was reached.
    BudgetExhausted,
    /// It could not be carried out.
    Rejected,
}

/// A child's end, as its parent hears of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChildClosed {
    /// The parent's effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// The child.
    pub child: ExecutionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Its answer, or what went wrong.
    pub text: String,
    /// What it used, its own children included.
    pub usage: Usage,
}

/// A summary of a part of the context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompressionCompleted {
    /// Which effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who did it.
    pub worker: String,
    /// The summary.
    pub summary: String,
    /// Tokens read and generated.
    pub usage: Usage,
}

/// A part of the context that was not summarised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompressionFailed {
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

/// What a person decided about a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalDecided {
    /// The effect that waits.
    pub approval: EffectId,
    /// Who decided.
    pub by: String,
    /// What.
    pub verdict: Verdict,
    /// With [`Verdict::Edit`]: the arguments to use instead, JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    /// Why, for the model and for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A person's word about a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Carry it out.
    Allow,
    /// Do not.
    Deny,
    /// Carry it out with other arguments.
    Edit,
}

/// More of something limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetGranted {
    /// Who allows it.
    pub by: String,
    /// `iterations`, `tokens`, `tokens_in`, `tokens_out`, `tool_calls` or `children`.
    pub dimension: String,
    /// How much more.
    pub amount: u64,
}

/// A request to wait: open effects may finish, nothing more is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PauseRequested {
    /// Who asked.
    pub by: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A request to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeRequested {
    /// Who asked.
    pub by: String,
}
