//! Decisions: what the orchestrator made of the facts. One decision is one message, appended with the expected last
//! sequence of its execution, and chained by hashes, so that one execution's stream proves itself.

use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::chat::{FinishReason, Usage};
use crate::fact::{FailureClass, Limits, Verdict};
use crate::ids::{EffectId, ExecutionId};
use crate::wire::{DecodeError, Nanos, Schema, encode, read};

/// One decision in its envelope: the events that followed from the facts up to `facts_upto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// `decision/2.0`, or `decision/1.0` from machines before the third.
    pub schema: String,
    /// The execution.
    pub exec: ExecutionId,
    /// Index of this decision within the execution, from 0.
    pub n: u64,
    /// The time of the newest fact it rests on. A decision reads no clock.
    pub at: Nanos,
    /// What [`Record::commit`] gives, written out; machines before the third did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Version of the state machine that decided.
    pub machine: u32,
    /// Log sequence of the last fact that was folded before deciding.
    pub facts_upto: u64,
    /// What was decided, in order.
    pub events: Vec<Event>,
    /// Hash of the previous decision; empty for the first.
    pub prev_hash: Hash,
    /// SHA-256 over the previous hash, the facts consumed since, and everything above.
    pub hash: Hash,
}

impl Schema for Record {
    const SCHEMA: &'static str = "decision/2.0";

    fn reads(found: &str) -> bool {
        found.starts_with("decision/1.") || found.starts_with("decision/2.")
    }
}

/// What earlier machines write: hashes as text, and the commit id beside them.
const FIRST_SCHEMA: &str = "decision/1.0";
/// The first machine that writes hashes as bytes and leaves out what follows from them: 93 bytes less a decision.
const COMPACT_SINCE: u32 = 3;

/// A SHA-256, or nothing, where there is no decision before. People read it in hexadecimal.
///
/// In the log machines before the third wrote that text, later ones write the 32 bytes. A hash remembers how it stood, so that
/// a decision that is read and written again has the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hash {
    hex: String,
    text: bool,
}

impl Hash {
    /// A hash as a machine of this version writes it.
    fn of(hex: &str, machine: u32) -> Self {
        Self { hex: hex.to_owned(), text: machine < COMPACT_SINCE }
    }

    /// In hexadecimal; empty when there is none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.hex
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.hex)
    }
}

impl JsonSchema for Hash {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hash".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A SHA-256: MessagePack's type bin, or hexadecimal text; empty where there is no decision before.",
            "type": "string", "format": "binary",
        })
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.text || serializer.is_human_readable() {
            return serializer.serialize_str(&self.hex);
        }
        serializer.serialize_bytes(&hex::decode(&self.hex).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Hash;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a hash: bytes, or hexadecimal text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Hash, E> {
                Ok(Hash { hex: text.to_owned(), text: true })
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Hash, E> {
                Ok(Hash { hex: hex::encode(bytes), text: false })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Running digest over the facts a decision consumes.
#[derive(Clone, Debug, Default)]
pub struct FactsDigest {
    digest: Sha256,
    count: u64,
}

impl FactsDigest {
    /// Adds one fact's bytes as they stand in the log at `sequence`.
    pub fn add(&mut self, sequence: u64, payload: &[u8]) {
        self.digest.update(sequence.to_be_bytes());
        self.digest.update((payload.len() as u64).to_be_bytes());
        self.digest.update(payload);
        self.count += 1;
    }

    /// Whether no fact has been added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn finish(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }
}

/// Everything that goes into a decision before it is sealed.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// The execution.
    pub exec: ExecutionId,
    /// Index within the execution.
    pub n: u64,
    /// Time of the newest fact.
    pub at: Nanos,
    /// Machine version.
    pub machine: u32,
    /// Log sequence of the last fact folded.
    pub facts_upto: u64,
    /// Facts consumed since the previous decision.
    pub facts: &'a FactsDigest,
    /// Hash of the previous decision, in hexadecimal; empty for the first.
    pub prev_hash: &'a str,
}

impl Record {
    /// Seals a decision: computes its hash and its commit id. The same draft and events give the same bytes.
    #[must_use]
    pub fn seal(draft: &Draft<'_>, events: Vec<Event>) -> Self {
        let mut digest = Sha256::new();
        digest.update(draft.prev_hash.as_bytes());
        digest.update(draft.exec.to_string());
        digest.update(draft.n.to_be_bytes());
        digest.update(draft.at.to_be_bytes());
        digest.update(draft.machine.to_be_bytes());
        digest.update(draft.facts_upto.to_be_bytes());
        digest.update(draft.facts.finish());
        digest.update(encode(&events));
        let hash = hex::encode(digest.finalize());
        Self {
            schema: if draft.machine < COMPACT_SINCE { FIRST_SCHEMA } else { Self::SCHEMA }.to_owned(),
            exec: draft.exec,
            n: draft.n,
            at: draft.at,
            commit: (draft.machine < COMPACT_SINCE).then(|| commit(draft.n, &hash)),
            machine: draft.machine,
            facts_upto: draft.facts_upto,
            events,
            prev_hash: Hash::of(draft.prev_hash, draft.machine),
            hash: Hash::of(&hash, draft.machine),
        }
    }

    /// Names this commit: its number and the beginning of its hash, so that the same decision has the same name.
    #[must_use]
    pub fn commit(&self) -> String {
        commit(self.n, self.hash.as_str())
    }

    /// Reads a decision and checks its version.
    ///
    /// # Errors
    /// When the bytes are no decision, or one of a version this code does not know.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        read(bytes, |record: &Self| &record.schema)
    }

    /// The id under which this decision is published: its number, so that a second one of that number is recognised even
    /// by a server to which the sequence seems right.
    #[must_use]
    pub fn message_id(&self) -> String {
        format!("{}/{}", self.exec, self.n)
    }
}

fn commit(n: u64, hash: &str) -> String {
    format!("{n}-{}", hash.get(..16).unwrap_or(hash))
}

/// What can be decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// The request was taken up.
    #[serde(rename = "execution.started")]
    ExecutionStarted(ExecutionStarted),
    /// The request cannot be carried out.
    #[serde(rename = "execution.rejected")]
    ExecutionRejected(Ended),
    /// The model is asked.
    #[serde(rename = "inference.requested")]
    InferenceRequested(InferenceRequested),
    /// Tools are asked, all at once.
    #[serde(rename = "tools.requested")]
    ToolsRequested(ToolsRequested),
    /// Every call of a turn has an outcome.
    #[serde(rename = "tools.joined")]
    ToolsJoined(ToolsJoined),
    /// Another execution is asked to do a part of the work.
    #[serde(rename = "child.requested")]
    ChildRequested(ChildRequested),
    /// A person is asked about a tool call.
    #[serde(rename = "approval.requested")]
    ApprovalRequested(ApprovalRequested),
    /// The person's word, or the end of waiting for it, takes effect.
    #[serde(rename = "approval.resolved")]
    ApprovalResolved(ApprovalResolved),
    /// How full the window is.
    #[serde(rename = "context.measured")]
    ContextMeasured(ContextMeasured),
    /// A part of the context is to be summarised.
    #[serde(rename = "compression.requested")]
    CompressionRequested(CompressionRequested),
    /// A part of the context was replaced.
    #[serde(rename = "context.replaced")]
    ContextReplaced(ContextReplaced),
    /// An effect may use this much.
    #[serde(rename = "budget.reserved")]
    BudgetReserved(BudgetReserved),
    /// An effect has used this much; the rest of what was reserved is free again.
    #[serde(rename = "budget.settled")]
    BudgetSettled(BudgetSettled),
    /// The execution wants to be woken.
    #[serde(rename = "timer.set")]
    TimerSet(TimerSet),
    /// It no longer does.
    #[serde(rename = "timer.cancelled")]
    TimerCancelled(TimerCancelled),
    /// Nothing more is asked for until somebody says so.
    #[serde(rename = "execution.paused")]
    ExecutionPaused(ExecutionPaused),
    /// It goes on.
    #[serde(rename = "execution.resumed")]
    ExecutionResumed(ExecutionResumed),
    /// The execution repeats itself.
    #[serde(rename = "stuck.detected")]
    StuckDetected(StuckDetected),
    /// An effect failed and will be tried again.
    #[serde(rename = "retry.scheduled")]
    RetryScheduled(RetryScheduled),
    /// An effect is no longer wanted; a late result is ignored.
    #[serde(rename = "effect.cancelled")]
    EffectCancelled(EffectCancelled),
    /// A limit was reached.
    #[serde(rename = "budget.exceeded")]
    BudgetExceeded(BudgetExceeded),
    /// The end: an answer.
    #[serde(rename = "execution.completed")]
    ExecutionCompleted(ExecutionCompleted),
    /// The end: an effect failed for good.
    #[serde(rename = "execution.failed")]
    ExecutionFailed(Ended),
    /// The end: somebody asked for it.
    #[serde(rename = "execution.cancelled")]
    ExecutionCancelled(Ended),
    /// The end: the deadline passed.
    #[serde(rename = "execution.timed_out")]
    ExecutionTimedOut(Ended),
    /// The end: a limit was reached before the answer.
    #[serde(rename = "execution.budget_exhausted")]
    ExecutionBudgetExhausted(Ended),
}

impl Event {
    /// The event's name, as on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ExecutionStarted(_) => "execution.started",
            Self::ExecutionRejected(_) => "execution.rejected",
            Self::InferenceRequested(_) => "inference.requested",
            Self::ToolsRequested(_) => "tools.requested",
            Self::ToolsJoined(_) => "tools.joined",
            Self::ChildRequested(_) => "child.requested",
            Self::ApprovalRequested(_) => "approval.requested",
            Self::ApprovalResolved(_) => "approval.resolved",
            Self::ContextMeasured(_) => "context.measured",
            Self::CompressionRequested(_) => "compression.requested",
            Self::ContextReplaced(_) => "context.replaced",
            Self::BudgetReserved(_) => "budget.reserved",
            Self::BudgetSettled(_) => "budget.settled",
            Self::TimerSet(_) => "timer.set",
            Self::TimerCancelled(_) => "timer.cancelled",
            Self::ExecutionPaused(_) => "execution.paused",
            Self::ExecutionResumed(_) => "execution.resumed",
            Self::StuckDetected(_) => "stuck.detected",
            Self::RetryScheduled(_) => "retry.scheduled",
            Self::EffectCancelled(_) => "effect.cancelled",
            Self::BudgetExceeded(_) => "budget.exceeded",
            Self::ExecutionCompleted(_) => "execution.completed",
            Self::ExecutionFailed(_) => "execution.failed",
            Self::ExecutionCancelled(_) => "execution.cancelled",
            Self::ExecutionTimedOut(_) => "execution.timed_out",
            Self::ExecutionBudgetExhausted(_) => "execution.budget_exhausted",
        }
    }

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::ExecutionRejected(_)
                | Self::ExecutionCompleted(_)
                | Self::ExecutionFailed(_)
                | Self::ExecutionCancelled(_)
                | Self::ExecutionTimedOut(_)
                | Self::ExecutionBudgetExhausted(_)
        )
    }
}

/// The request was taken up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionStarted {
    /// The model that serves it; empty when none is needed.
    pub model: String,
}

/// The model is asked. The prompt is named, not repeated: it is what the log holds up to `context`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferenceRequested {
    /// The effect.
    pub effect: EffectId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The turn it belongs to, from 1.
    pub turn: u32,
    /// How many messages of the execution's context the prompt holds.
    pub context: u64,
    /// Tokens to generate at most; 0 means as many as the window leaves.
    pub tokens_max: u64,
    /// The moment at which it is given up.
    pub deadline: Nanos,
}

/// Tools are asked, all at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsRequested {
    /// The turn whose answer asked for them.
    pub turn: u32,
    /// The calls.
    pub calls: Vec<ToolRequested>,
}

/// One call of a turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolRequested {
    /// The effect.
    pub effect: EffectId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// Position of the call in the model's answer, or in the request.
    pub ordinal: u32,
    /// The tool's name.
    pub name: String,
    /// The moment at which it is given up.
    pub deadline: Nanos,
    /// Why it is not carried out: no such tool, not granted, or a limit. The model reads it as the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Another execution is asked to do a part of the work. Its request is derived from this one's; its id from the effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChildRequested {
    /// The effect.
    pub effect: EffectId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The turn whose answer asked for it.
    pub turn: u32,
    /// Position of the call in the model's answer.
    pub ordinal: u32,
    /// The child's id.
    pub child: ExecutionId,
    /// Its agent type.
    pub agent: String,
    /// Its part of what this execution may still use.
    pub limits: Limits,
}

/// A person is asked whether a call may be carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRequested {
    /// The effect that waits.
    pub approval: EffectId,
    /// The tool.
    pub name: String,
    /// When waiting counts as a denial.
    pub expires: Nanos,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalResolved {
    /// The effect that waited.
    pub approval: EffectId,
    /// What counts now.
    pub verdict: Verdict,
    /// `person` or `expiry`.
    pub via: String,
    /// When the call is given up, if it is carried out.
    pub deadline: Nanos,
}

/// How full the window is: exact up to the newest answer, from the model's own count; what came after is estimated from
/// its length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextMeasured {
    /// Tokens of the whole prompt.
    pub tokens: u64,
    /// What the window holds.
    pub window: u32,
    /// How many messages were measured.
    pub messages: u64,
}

/// A part of the context is to be summarised, beside the work that goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompressionRequested {
    /// The effect.
    pub effect: EffectId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The first message that is summarised, counted from the start of the context as it is now.
    pub from: u64,
    /// The first that is not any more.
    pub to: u64,
    /// Tokens the summary may have.
    pub tokens_max: u64,
    /// The moment at which it is given up.
    pub deadline: Nanos,
}

/// A part of the context was replaced. The messages themselves stand in the log for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContextReplaced {
    /// The first message that went.
    pub from: u64,
    /// The first that stayed.
    pub to: u64,
    /// The compression whose summary stands there now; none when only the outputs of tools were dropped, each one
    /// replaced by a note of its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<EffectId>,
    /// Tokens of the whole prompt afterwards, estimated.
    pub tokens: u64,
}

/// An effect may use this much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetReserved {
    /// The effect.
    pub effect: EffectId,
    /// Tokens.
    pub tokens: u64,
}

/// An effect has used this much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetSettled {
    /// The effect.
    pub effect: EffectId,
    /// Tokens.
    pub tokens: u64,
}

/// The execution wants to be woken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimerSet {
    /// `deadline`, or the effect it is about.
    pub timer: String,
    /// When.
    pub at: Nanos,
}

/// It no longer does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimerCancelled {
    /// Which timer.
    pub timer: String,
}

/// Nothing more is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionPaused {
    /// Who wants it; `budget` when a limit does.
    pub by: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// It goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionResumed {
    /// Who wants it.
    pub by: String,
}

/// The execution repeats itself: the same calls with the same results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StuckDetected {
    /// `repeat` (the same turn) or `alternate` (the same two turns).
    pub pattern: String,
    /// The turns that show it.
    pub turns: Vec<u32>,
}

/// Every call of a turn has an outcome; the results stand in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsJoined {
    /// The turn.
    pub turn: u32,
    /// How each call ended, in the order of the calls.
    pub outcomes: Vec<ToolOutcome>,
}

/// How one call ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolOutcome {
    /// The effect.
    pub effect: EffectId,
    /// Whether it gave a result.
    pub success: bool,
}

/// An effect failed and will be tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetryScheduled {
    /// The effect.
    pub effect: EffectId,
    /// The attempt that comes.
    pub attempt: u32,
    /// When.
    pub at: Nanos,
    /// Why: the class of the failure, or `lost`.
    pub reason: String,
}

/// An effect is no longer wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EffectCancelled {
    /// The effect.
    pub effect: EffectId,
    /// The attempt that was open.
    pub attempt: u32,
}

/// A limit was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetExceeded {
    /// `iterations`, `tokens`, `tokens_in`, `tokens_out` or `tool_calls`.
    pub dimension: String,
    /// The limit.
    pub limit: u64,
    /// What was used, or would have been.
    pub used: u64,
}

/// The end with an answer. The text stands in the fact of `result`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionCompleted {
    /// The effect whose result is the answer.
    pub result: EffectId,
    /// Why the model stopped; none for a single tool call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
    /// Inferences made.
    pub iterations: u32,
    /// Tokens over all inferences.
    pub usage: Usage,
}

/// The end without an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// A stable code, for example `overflow`, `unknown_model`, `deadline`.
    pub code: String,
    /// For people: what happened and what would help.
    pub detail: String,
    /// Inferences made.
    pub iterations: u32,
    /// Tokens over all inferences.
    pub usage: Usage,
}

/// The class of a failure as a stable code.
#[must_use]
pub const fn failure_code(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Overloaded => "overloaded",
        FailureClass::Internal => "internal",
        FailureClass::Overflow => "overflow",
        FailureClass::BadRequest => "bad_request",
        FailureClass::Unknown => "unknown",
        FailureClass::Timeout => "timeout",
        FailureClass::Refused => "refused",
        FailureClass::Cancelled => "cancelled",
        FailureClass::OutcomeUnknown => "outcome_unknown",
    }
}
