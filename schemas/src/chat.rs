//! Messages, tools and sampling, in the shape of OpenAI's chat API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::object::Reference;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the agent type or the caller.
    System,
    /// The person or program that asked.
    User,
    /// The model.
    Assistant,
    /// The result of one tool call.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text; empty when an assistant message only calls tools.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// Tool calls of an assistant message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// For a tool message: the call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Optional name of the speaker or tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The beginning of the text, where it is too large for a message: what stands in `content` follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Reference>,
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None, name: None, object: None }
    }

    /// The result of the tool call `call_id`.
    pub fn tool_result(call_id: impl Into<String>, name: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: Role::Tool,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: Some(call_id.into()),
            name: Some(name.into()),
            object: None,
        }
    }

    /// Bytes of the whole text, wherever it lies.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        self.content.len() as u64 + self.object.as_ref().map_or(0, |object| object.bytes)
    }
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// The name under which a call that could not be read stands in an answer; its arguments are the model's own text.
pub const MALFORMED_CALL: &str = "malformed_tool_call";

/// The name of the tool that hands a task to another agent: the orchestrator carries it out, no worker does.
pub const DELEGATE: &str = "delegate";
/// The tool that finds what earlier executions left; an agent type may say that it is called at the start.
pub const RECALL: &str = "recall";
/// The tool that keeps what later executions may want to know; an agent type may say that it is called at the end.
pub const REMEMBER: &str = "remember";

/// A function the model asked to be called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct ToolCall {
    /// Unique within the execution.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// Name and arguments.
    pub function: FunctionCall,
}

impl ToolCall {
    /// A call of `name` with `arguments` (JSON text).
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind: function(),
            function: FunctionCall { name: name.into(), arguments: arguments.into() },
        }
    }
}

/// Name and arguments of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct FunctionCall {
    /// The tool's name.
    pub name: String,
    /// JSON text, as the model wrote it. It may be invalid: the tool worker says so to the model.
    pub arguments: String,
}

/// A tool offered to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct ToolSpec {
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// Name, description and parameters.
    pub function: FunctionSpec,
}

impl ToolSpec {
    /// A tool with a JSON schema of its arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
        Self {
            kind: function(),
            function: FunctionSpec { name: name.into(), description: description.into(), parameters },
        }
    }
}

/// Name, description and parameters of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct FunctionSpec {
    /// The tool's name.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// JSON schema of the arguments object.
    #[serde(default)]
    pub parameters: Value,
}

fn function() -> String {
    "function".to_owned()
}

/// How tokens are drawn. A missing value means the model's own default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sampling {
    /// 0 is greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus mass, `(0, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Tokens to generate at most, per inference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Set by the edge when the caller gave none, so that a second attempt draws the same tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Texts that end the answer; not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Only this many of the likeliest tokens; 0 for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Only tokens at least this fraction as likely as the likeliest, `[0, 1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that stand in prompt or answer (multiplies negative ones), `(0, 2]`; 1 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Taken once from the logits of tokens that stand in the answer, `[-2, 2]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Taken from the logits of tokens of the answer for each time they stand there, `[-2, 2]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Whether the answer says how likely each of its tokens was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// And how likely this many others were in its place, 0 to 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// What form the text must have; any when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// Whether tools may or must be called; the model chooses when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// False: an answer has one call at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// Answers to the one prompt, 1 to [`ANSWERS_MAX`]; one when missing. Answer `i`, from 0, draws with `seed + i`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
}

/// Answers to one request at most: each takes a place beside those of others.
pub const ANSWERS_MAX: u32 = 16;

impl Sampling {
    /// Answers to the one prompt.
    #[must_use]
    pub fn answers(&self) -> u32 {
        self.n.unwrap_or(1).clamp(1, ANSWERS_MAX)
    }

    /// Whether the likeliest token is always taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature.is_none_or(|temperature| temperature <= 0.0)
    }
}

/// Who goes first where there is no room for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// What nobody waits for.
    Low,
    /// Everything else.
    #[default]
    Normal,
    /// What somebody waits for.
    High,
}

impl Priority {
    pub(crate) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// What becomes of a prompt that does not fit the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// It is refused.
    #[default]
    Disabled,
    /// The oldest exchanges behind the instructions are left out until it fits.
    Auto,
}

impl Truncation {
    pub(crate) fn is_disabled(&self) -> bool {
        *self == Self::Disabled
    }
}

/// What form a text must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// A JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema, within the bounds of [`crate::json_schema`].
        schema: Value,
    },
}

/// Whether tools may or must be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoice {
    /// None may.
    None,
    /// One or more must.
    Required,
    /// This one must.
    Function {
        /// The tool's name.
        name: String,
    },
}

/// How likely the model found a token, before temperature, penalties, filters and constraints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct TokenLogprob {
    /// Its text, as far as it is one; markup and the end token are shown by name.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens in its place, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have stood in another's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text was met.
    Stop,
    /// `max_tokens` or the window was reached.
    Length,
    /// The model asked for tool calls.
    ToolCalls,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Both together.
    pub tokens: u64,
}

impl Usage {
    /// Counts with their sum.
    #[must_use]
    pub const fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, tokens: prompt_tokens + completion_tokens }
    }

    /// The sum of two counts.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self::new(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)
    }
}
