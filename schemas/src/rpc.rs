//! Stateless questions between services: NATS requests in queue groups, never recorded as executions.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::Problem;
use crate::chat::Usage;
use crate::fact::{ExecutionSubmitted, Policy, Request};
use crate::ids::ExecutionId;

/// What a service answers: a value, or why not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reply<T> {
    /// The answer.
    Ok(T),
    /// Why there is none.
    Err(Refusal),
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Stable code: `unknown_model`, `bad_request`, `internal`, …
    pub code: String,
    /// For people.
    pub detail: String,
}

/// Question on `vl.v1.rpc.submission`: what a plain client's request comes to. Gateways answer with [`Completion`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Complete {
    /// The request as it came.
    pub request: Request,
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Completion {
    /// This, and nothing more is needed to carry it out.
    Submission(Box<ExecutionSubmitted>),
    /// Nothing, and why. With the status 503 it may come to something later.
    Refused(Box<Problem>),
}

/// Question on `vl.v1.rpc.embed`; the answer is [`Embeddings`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embed {
    /// The embedding model; the first loaded one when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Texts to embed.
    pub input: Vec<String>,
}

/// Texts of one request at most: their vectors must fit one message.
pub const EMBED_TEXTS_MAX: usize = 1_024;
/// Bytes of the texts of one request together at most; they travel as one message, too.
pub const EMBED_BYTES_MAX: usize = 4 << 20;
/// How long an answer is waited for.
pub const EMBED_WITHIN: Duration = Duration::from_secs(30);

impl Embed {
    /// Holds the request against the bounds.
    ///
    /// # Errors
    /// It has too many texts, or too long ones; the text says which and how many are allowed.
    pub fn check(&self) -> Result<(), String> {
        let texts = self.input.len();
        if texts > EMBED_TEXTS_MAX {
            return Err(format!("`input` holds {texts} texts, at most {EMBED_TEXTS_MAX} are embedded at once"));
        }
        let bytes: usize = self.input.iter().map(String::len).sum();
        if bytes > EMBED_BYTES_MAX {
            return Err(format!("the texts have {bytes} bytes, at most {EMBED_BYTES_MAX} are embedded at once"));
        }
        Ok(())
    }
}

/// One vector for each text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embeddings {
    /// The model that made them.
    pub model: String,
    /// Vectors in the order of the texts, each of the same length.
    pub embeddings: Vec<Vec<f32>>,
    /// Tokens read.
    pub usage: Usage,
    /// The texts, by index, of which the model read only the beginning: they are longer than its window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<u32>,
}

/// A loaded model. Question `vl.v1.rpc.models` (empty body) answers `Vec<Model>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// `chat` or `embedding`.
    pub kind: String,
    /// Context window, tokens.
    pub window: u32,
}

/// The keyword, `true` in an argument's schema, of one that few calls need: a model with a small window is not told of it,
/// and may give it all the same. In the schema of all arguments it marks a tool that few tasks need.
pub const RARE_ARGUMENT: &str = "x-rare";

/// A registered tool. Question `vl.v1.rpc.tools` (empty body) answers `Vec<Tool>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON schema of its arguments. Those that few calls need may be marked with [`RARE_ARGUMENT`].
    pub parameters: Value,
    /// Why it cannot be used here; none when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// JSON schema of its result, where that is JSON; without one it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// What a call changes or reaches beyond its own answer; unknown when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<SideEffect>,
    /// Who must allow a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    /// What a call is permitted, for example `workspace:read`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<String>,
    /// Wall time of one call at most, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// What a call of a tool changes or reaches beyond its own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SideEffect {
    /// Nothing: the answer follows from the arguments.
    Computes,
    /// Reads the workspace: the same call gives the same answer until a file changes.
    ReadsWorkspace,
    /// Asks others over the network.
    ReachesNetwork,
    /// Changes files of the workspace.
    ChangesWorkspace,
    /// Acts on something else, or on nobody knows what. A class that this version does not know counts as this one.
    #[serde(other)]
    ActsElsewhere,
}

impl SideEffect {
    /// Whether a repeated call does no harm and gives the same answer as long as what it reads is the same.
    #[must_use]
    pub const fn is_pure(self) -> bool {
        matches!(self, Self::Computes | Self::ReadsWorkspace)
    }
}

/// Who must allow a call of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Nobody, unless the agent type or the request says so.
    AgentType,
    /// A person, each time an agent calls it. A policy that this version does not know counts as this one.
    #[serde(other)]
    Always,
}

/// Question on `vl.v1.rpc.workspace`, answered by a tool worker; the answer is [`Workspace`], or a refusal of code
/// `unknown_workspace`, `workspace_outside` or `workspaces_absent`. The edge asks, so that a request that no tool
/// could carry out is refused before it is in the log; the worker looks again at each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FindWorkspace {
    /// The workspace as the caller named it.
    pub name: String,
}

/// A workspace in which tools may work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Workspace {
    /// The directory on the tool worker's machine, absolute and without symbolic links.
    pub path: String,
}

/// Question on `vl.v1.rpc.fork`, answered by an orchestrator; the answer is [`Forked`], or a refusal of code
/// `unknown_execution`, `out_of_range` or `no_context`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fork {
    /// The execution.
    pub exec: ExecutionId,
    /// The number of its message after which another one should begin, from 0.
    pub at: u64,
}

/// The beginning of another execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Forked {
    /// The old execution's request, with everything its model would read after that message.
    pub request: ExecutionSubmitted,
    /// The wall time the old one had, milliseconds.
    pub duration_ms: u64,
}

/// Question on `vl.v1.rpc.state`, answered by an orchestrator; the answer is the state as JSON, or a refusal of code
/// `unknown_execution`, `out_of_range`, `too_large` or `log_unavailable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskState {
    /// The execution.
    pub exec: ExecutionId,
    /// The number of the message after which it is asked for, from 0; the newest when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
}

/// Question on `vl.v1.rpc.verify`, answered by an orchestrator; the answer is what `vlinders replay --verify --json`
/// prints, or a refusal of code `unknown_execution` or `log_unavailable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskVerification {
    /// The execution.
    pub exec: ExecutionId,
}

/// Question on `vl.v1.rpc.analysis`; the answer is [`Outline`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Analyse {
    /// The file's path, for its language.
    pub path: String,
    /// The file's text.
    pub code: String,
}

/// What a file defines and imports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outline {
    /// The language, lower case; `text` when unknown.
    pub language: String,
    /// Number of lines.
    pub lines: u32,
    /// Imported modules, in order, each once.
    pub imports: Vec<String>,
    /// Definitions, in order.
    pub symbols: Vec<Symbol>,
    /// Why the outline is not complete, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Symbol {
    /// `function`, `struct`, `class`, …
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The definition that contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The line that declares it, trimmed.
    pub signature: String,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, from 1.
    pub end_line: u32,
}

/// An agent type: data, not code. Stored in the KV bucket `vl_config`, see [`crate::agent`]; the manifests in the
/// directory of agent types have the same fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentType {
    /// Its name, a subject token; where the path of a request says it, a body may leave it out.
    #[schema(required = false)]
    pub name: String,
    /// What it is for, one sentence.
    pub description: String,
    /// The system prompt.
    pub system: String,
    /// Preferred models, best first; empty means any loaded one.
    #[serde(default)]
    pub models: Vec<String>,
    /// Tools it may use.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Inferences at most.
    #[serde(default = "iterations")]
    pub max_iterations: u32,
    /// Tokens at most, over all inferences.
    #[serde(default = "tokens")]
    pub max_tokens: u64,
    /// Tool calls at most.
    #[serde(default = "tool_calls")]
    pub max_tool_calls: u32,
    /// Wall time at most, milliseconds.
    #[serde(default = "deadline")]
    pub deadline_ms: u64,
    /// Agent types it may delegate to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<String>,
    /// Executions it may ask for.
    #[serde(default)]
    pub max_children: u32,
    /// How many levels of agents may stand below it.
    #[serde(default)]
    pub max_depth: u32,
    /// Its rules that are no limits.
    #[serde(default)]
    pub policy: Policy,
}

// What an agent type may use when it does not say: enough for a dozen questions about a workspace.

const fn iterations() -> u32 {
    12
}

const fn tokens() -> u64 {
    200_000
}

const fn tool_calls() -> u32 {
    96
}

const fn deadline() -> u64 {
    300_000
}
