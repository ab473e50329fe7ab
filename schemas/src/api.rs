//! Bodies of the HTTP edge. Unknown fields are refused, so that a misspelt option is never silently ignored.

#![allow(unused_qualifications, reason = "what `ToSchema` is derived to names types by their whole path")]

mod control;

pub use control::{
    ApproveRequest, CancelRequest, ForkRequest, GrantRequest, MessageRequest, PauseRequest, ResumeRequest,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::chat::{FinishReason, Message, Priority, TokenLogprob, ToolCall, ToolSpec, Truncation, Usage};
use crate::fact::{Outcome, Sandbox};
use crate::ids::ExecutionId;

/// `POST /internal/chat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The model; the first loaded one when missing.
    #[serde(default)]
    pub model: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// An earlier execution to continue.
    #[serde(default)]
    pub conversation_id: Option<ExecutionId>,
    /// Tools the model may ask for; the caller carries them out.
    #[serde(default)]
    pub tools: Vec<ToolSpec>,
    /// On whose behalf.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Server-sent events instead of one JSON answer.
    #[serde(default)]
    pub stream: bool,
    /// 0 is greedy; at most 10.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub temperature: Option<Number>,
    /// Nucleus mass, `(0, 1]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub top_p: Option<Number>,
    /// Only this many of the likeliest tokens; 0 for all.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub top_k: Option<Number>,
    /// Only tokens at least this fraction as likely as the likeliest, `[0, 1]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub min_p: Option<Number>,
    /// Makes tokens of prompt and answer less likely above 1, `(0, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub repetition_penalty: Option<Number>,
    /// Makes tokens of the answer less likely above 0, `[-2, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub presence_penalty: Option<Number>,
    /// The same for each time they stand there, `[-2, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub frequency_penalty: Option<Number>,
    /// Tokens to generate at most.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub max_tokens: Option<Number>,
    /// Seed of the draws: the same seed gives the same text. Drawn and recorded when missing.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub seed: Option<Number>,
    /// Whether to say how likely each token was.
    #[serde(default)]
    pub logprobs: bool,
    /// And how likely this many others were in its place, 0 to 20.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub top_logprobs: Option<Number>,
    /// One text or several that end the answer.
    #[serde(default)]
    pub stop: Option<OneOrMany>,
    /// `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": …}}`.
    #[serde(default)]
    pub response_format: Option<Value>,
    /// `"auto"`, `"none"`, `"required"`, or `{"type": "function", "function": {"name": …}}`.
    #[serde(default)]
    pub tool_choice: Option<Value>,
    /// False: the answer has one call at most.
    #[serde(default)]
    pub parallel_tool_calls: Option<bool>,
    /// Answers, 1 to 16; the conversation goes on with the first.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub n: Option<Number>,
    /// Who goes first where there is no room for all.
    #[serde(default)]
    pub priority: Priority,
    /// What becomes of a prompt that does not fit the window.
    #[serde(default)]
    pub truncation: Truncation,
    /// False: the answer is neither kept nor taken from what was kept.
    #[serde(default)]
    pub cache: Option<bool>,
}

/// `POST /internal/agent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentRequest {
    /// The agent type's name.
    pub agent_type: String,
    /// What it should do.
    pub instruction: String,
    /// A path under an allowed root.
    #[serde(default)]
    pub workspace: Option<String>,
    /// On whose behalf.
    #[serde(default)]
    pub user_id: Option<String>,
    /// Anything worth knowing: a text, or JSON that is shown to the model as text.
    #[serde(default)]
    pub context: Option<Value>,
    /// Overrides of the agent type.
    #[serde(default)]
    pub config: AgentConfig,
    /// Server-sent events instead of one JSON answer.
    #[serde(default)]
    pub stream: bool,
}

/// Overrides of the agent type, within its limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The model.
    #[serde(default)]
    pub model: Option<String>,
    /// Inferences at most.
    #[serde(default)]
    pub max_iterations: Option<u32>,
    /// Tokens at most, over all inferences.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Prompt tokens at most, over all inferences; no limit of its own when missing.
    #[serde(default)]
    pub max_tokens_in: Option<u64>,
    /// Generated tokens at most, over all inferences; no limit of its own when missing.
    #[serde(default)]
    pub max_tokens_out: Option<u64>,
    /// Agents it may ask at most; 0 means that it works alone.
    #[serde(default)]
    pub max_children: Option<u32>,
    /// Wall time at most.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Tools it may use, out of the agent type's.
    #[serde(default)]
    pub tools: Option<Vec<String>>,
    /// Tools that a person must allow, call by call, beside those of the agent type; for the agents below it, too.
    #[serde(default)]
    pub approve: Vec<String>,
    /// 0 is greedy; at most 10.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub temperature: Option<Number>,
    /// Nucleus mass, `(0, 1]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub top_p: Option<Number>,
    /// Only this many of the likeliest tokens; 0 for all.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub top_k: Option<Number>,
    /// Only tokens at least this fraction as likely as the likeliest, `[0, 1]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub min_p: Option<Number>,
    /// Makes tokens of prompt and answer less likely above 1, `(0, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub repetition_penalty: Option<Number>,
    /// Makes tokens of the answer less likely above 0, `[-2, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub presence_penalty: Option<Number>,
    /// The same for each time they stand there, `[-2, 2]`.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub frequency_penalty: Option<Number>,
    /// Seed of the draws.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub seed: Option<Number>,
    /// Refused but for 1: an agent goes on with its answer, and can go on with one only.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub n: Option<Number>,
    /// Who goes first where there is no room for all; for the agents below it, too.
    #[serde(default)]
    pub priority: Priority,
    /// False: answers are neither kept nor taken from what was kept; for the agents below it, too.
    #[serde(default)]
    pub cache: Option<bool>,
}

/// Body of `POST /internal/models/{name}/load` and `/unload`; it may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRequest {
    /// The worker that should do it.
    #[serde(default)]
    pub worker: Option<String>,
    /// Unload: only what is in hand is finished; what is queued waits for another worker.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /internal/models/switch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The model that goes.
    pub from: String,
    /// The model that comes.
    pub to: String,
    /// The worker that should do it; all that have `from` when missing.
    #[serde(default)]
    pub worker: Option<String>,
    /// Of the one that goes only what is in hand is finished.
    #[serde(default)]
    pub force: bool,
}

/// The answer of chat and agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Answer {
    /// The execution; its log says how the answer came about.
    pub execution_id: ExecutionId,
    /// The text.
    pub response: String,
    /// For chat: calls the caller should carry out. For an agent: every call that was made, in order.
    pub tool_calls: Vec<ToolCallReport>,
    /// Inferences made.
    pub iterations: u32,
    /// Why the model stopped.
    pub finish_reason: Option<FinishReason>,
    /// Tokens.
    pub usage: AnswerUsage,
    /// How likely each token of the last inference was, if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// All answers, if several were asked for; the first is the one above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// The last inference's model did not run: an equal request had been answered before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Messages that the last inference's prompt was left without, because it did not fit the window.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped_messages: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct AnswerUsage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated, those of all answers.
    pub completion_tokens: u64,
    /// Both together.
    pub tokens: u64,
    /// What is known of the tokens read.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
}

impl AnswerUsage {
    /// Counts, with how many of the tokens read did not have to be computed.
    #[must_use]
    pub fn new(usage: Usage, cached_tokens: u64) -> Self {
        let Usage { prompt_tokens, completion_tokens, tokens } = usage;
        let prompt_tokens_details = PromptTokensDetails { cached_tokens };
        Self { prompt_tokens, completion_tokens, tokens, prompt_tokens_details }
    }
}

/// What is known of tokens read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct PromptTokensDetails {
    /// How many did not have to be computed, because they had been before.
    pub cached_tokens: u64,
}

/// One of several answers, as OpenAI's API has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Choice {
    /// Which, from 0.
    pub index: u32,
    /// Text and calls.
    pub message: Message,
    /// Why the model stopped.
    pub finish_reason: FinishReason,
    /// How likely each of its tokens was, if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
}

/// How likely the tokens were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Logprobs {
    /// One entry for each generated token, in order; the end token is included.
    pub content: Vec<TokenLogprob>,
}

/// A call and, where it was carried out here, how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct ToolCallReport {
    /// The call's id.
    pub call_id: String,
    /// The tool.
    pub name: String,
    /// Its arguments; a string when the model wrote no valid JSON.
    pub arguments: Value,
    /// Whether it gave a result; missing when it was not carried out here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// What the model read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}

impl ToolCallReport {
    /// A call that was not carried out (yet).
    #[must_use]
    pub fn asked(call: &ToolCall) -> Self {
        let text = &call.function.arguments;
        Self {
            call_id: call.id.clone(),
            name: call.function.name.clone(),
            arguments: serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
            success: None,
            result: None,
        }
    }
}

/// `POST /internal/tools/execute`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolRequest {
    /// The tool.
    pub tool_name: String,
    /// An object that fits the tool's schema.
    pub arguments: Value,
    /// A path under an allowed root.
    #[serde(default)]
    pub workspace: Option<String>,
    /// On whose behalf.
    #[serde(default)]
    pub user_id: Option<String>,
    /// False: the call is carried out even where its result is known.
    #[serde(default)]
    pub cache: Option<bool>,
}

/// `POST /internal/tools/execute_batch`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolBatch {
    /// The calls; they do not wait for one another.
    pub calls: Vec<ToolRequest>,
}

/// `POST /internal/index`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexCodeRequest {
    /// A path under an allowed root.
    pub workspace: String,
    /// Files and directories below it; all of it when missing.
    #[serde(default)]
    pub paths: Vec<String>,
    /// True: what is unchanged is read and embedded again, too.
    #[serde(default)]
    pub fresh: bool,
    /// Wall time at most, milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Server-sent events instead of one JSON answer.
    #[serde(default)]
    pub stream: bool,
}

/// The answer of `POST /internal/index`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct IndexAnswer {
    /// The execution.
    pub execution_id: ExecutionId,
    /// What was done.
    pub report: crate::code::IndexReport,
    /// From the request to the end.
    pub duration_ms: f64,
}

/// The answer of a single tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct ToolAnswer {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Whether it gave a result.
    pub success: bool,
    /// The result; empty on failure.
    pub result: String,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Wall time of the call, milliseconds.
    pub duration_ms: f64,
    /// How it was confined.
    pub sandbox: Sandbox,
}

/// `POST /internal/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    /// The embedding model; the first loaded one when missing.
    #[serde(default)]
    pub model: Option<String>,
    /// One text or several.
    pub input: OneOrMany,
}

/// One text or a list of texts, as JSON clients write them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneOrMany(pub Vec<String>);

impl PartialSchema for OneOrMany {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        OneOfBuilder::new().item(text()).item(text().to_array_builder()).into()
    }
}

impl ToSchema for OneOrMany {}

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let text = || serde_json::json!({"type": "string"});
        schemars::json_schema!({
            "description": "One text or a list of texts.", "anyOf": [text(), {"type": "array", "items": text()}],
        })
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(vec![text])),
            value @ Value::Array(_) => serde_json::from_value(value)
                .map(Self)
                .map_err(|_| serde::de::Error::custom("expected a string or a list of strings")),
            _ => Err(serde::de::Error::custom("expected a string or a list of strings")),
        }
    }
}

/// The answer of `POST /internal/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct EmbeddingsAnswer {
    /// The model.
    pub model: String,
    /// Vectors in the order of the texts.
    pub embeddings: Vec<Vec<f32>>,
    /// Length of each vector.
    pub dimensions: usize,
    /// Tokens read.
    pub usage: Usage,
    /// The texts, by index, of which the model read only the beginning: they are longer than its window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<u32>,
}

/// `POST /internal/dead-letters/{id}/redrive`; the body may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedriveRequest {
    /// Publish the message although it would be given up again.
    pub force: bool,
    /// Who.
    pub by: Option<String>,
}

/// `GET /internal/executions/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct ExecutionView {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Where it stands.
    pub status: Status,
    /// The agent type's name.
    pub agent_type: String,
    /// Inferences made.
    pub iterations: u32,
    /// Tokens.
    pub usage: Usage,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// What it waits for, in words: `<effect>: <what>` for each open effect, `resume: …` or `grant: …` while paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// The answer so far.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub response: String,
    /// Why it ended without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where an execution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, not taken up yet.
    Submitted,
    /// Under way.
    Running,
    /// Waits for somebody to let it go on.
    Paused,
    /// Ended with an answer.
    Completed,
    /// Refused before it began.
    Rejected,
    /// An effect failed for good.
    Failed,
    /// Somebody ended it.
    Cancelled,
    /// The deadline passed.
    TimedOut,
    /// A limit was reached.
    BudgetExhausted,
}

/// The end of an execution, as a plain NATS client is told of it on the reply subject of its request; in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionEnd {
    /// The execution.
    pub execution_id: ExecutionId,
    /// How it ended.
    pub status: Outcome,
    /// The answer, or what went wrong.
    pub response: String,
    /// Inferences made.
    pub iterations: u32,
    /// Tokens.
    pub usage: Usage,
    /// Why it was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// An error as an RFC 9457 problem document (`application/problem+json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Problem {
    /// `urn:vlinders:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's short text.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code for programs.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do next.
    pub next_step: String,
    /// The execution it is about, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// Seconds after which it is worth asking again, as in the header `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}
