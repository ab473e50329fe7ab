//! Executions as rows, and the questions about many of them at once: lists, tool calls, performance, and the state of
//! the projection that answers them. The log of one execution is asked about in [`crate::rpc`].

use serde::{Deserialize, Serialize};

use crate::api::Status;
use crate::chat::Usage;
use crate::fact::Kind;
use crate::ids::{EffectId, ExecutionId};
use crate::wire::Nanos;

/// One execution, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionRow {
    /// The execution.
    pub execution_id: ExecutionId,
    /// What was asked for.
    pub kind: Kind,
    /// Where it stands.
    pub status: Status,
    /// The agent type's name.
    pub agent_type: String,
    /// The model that serves it; empty when none is needed.
    #[serde(default)]
    pub model: String,
    /// On whose behalf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The workspace of its tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The beginning of what was asked: [`TITLE_CHARACTERS`] at most, on one line.
    pub title: String,
    /// Inferences made.
    pub iterations: u32,
    /// Tokens over all inferences.
    pub usage: Usage,
    /// Tool calls asked for.
    pub tool_calls: u32,
    /// When it was submitted.
    pub created_at: Nanos,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Nanos>,
    /// Why it ended without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The execution that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ExecutionId>,
    /// Messages of its log that were folded.
    #[serde(default)]
    pub messages: u64,
}

impl ExecutionRow {
    /// From the request to the end, milliseconds; none while it goes on.
    #[must_use]
    pub fn duration_ms(&self) -> Option<f64> {
        self.finished_at.map(|end| (end - self.created_at).max(0) as f64 / 1e6)
    }
}

/// Characters of a title at most.
pub const TITLE_CHARACTERS: usize = 200;

/// One tool call of an execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCallRow {
    /// The effect.
    pub effect: EffectId,
    /// Which call of the execution it is, from 0.
    pub position: u32,
    /// The tool; `delegate` where another agent was asked.
    pub tool_name: String,
    /// Its arguments, JSON text, cut at [`TEXT_BYTES_MAX`].
    pub arguments: String,
    /// What the model read, cut likewise; none while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Whether it gave a result; none while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// Wall time of the call, milliseconds, by the worker's clock; none where no worker carried it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// How it was confined; none where no worker carried it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Who carried it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When it was decided.
    pub created_at: Nanos,
}

/// Bytes of a text in a row at most; the log has the whole.
pub const TEXT_BYTES_MAX: usize = 8 << 10;

/// Question on `vl.v1.rpc.executions`; the answer is [`Executions`], or a refusal of code `projection_away`. What is
/// empty or missing is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListExecutions {
    /// Any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<Status>,
    /// What was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The agent type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_type: Option<String>,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// A part of what was asked, answered or went wrong, whatever the case of its letters, or the beginning of an id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Executions at most, 1 to [`LIMIT_MAX`]; more count as that many.
    pub limit: u32,
    /// Only those behind this one, as an earlier answer said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Cursor>,
}

/// Rows of one answer at most.
pub const LIMIT_MAX: u32 = 500;

/// A place in the list, which goes from the newest execution to the oldest: the last row that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// When that execution was submitted.
    pub created_at: Nanos,
    /// Its id.
    pub execution_id: ExecutionId,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_at, self.execution_id)
    }
}

impl std::str::FromStr for Cursor {
    type Err = crate::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (created_at, execution_id) = text.split_once('.')?;
            Some(Self { created_at: created_at.parse().ok()?, execution_id: execution_id.parse().ok()? })
        };
        read().ok_or_else(|| crate::ids::InvalidId {
            expected: "a cursor from an earlier answer",
            found: text.to_owned(),
        })
    }
}

/// Executions, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executions {
    /// Them.
    pub executions: Vec<ExecutionRow>,
    /// Where to go on; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Cursor>,
    /// The tables are being built: executions are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<Rebuilding>,
}

/// How far the tables have been built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebuilding {
    /// Messages of the log that were folded.
    pub done: u64,
    /// Of so many.
    pub of: u64,
}

/// Question on `vl.v1.rpc.tool_calls`; the answer is [`ToolCalls`], or a refusal of code `projection_away`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListToolCalls {
    /// The execution.
    pub execution_id: ExecutionId,
    /// The first position wanted.
    #[serde(default)]
    pub from: u32,
}

/// The tool calls of an execution, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCalls {
    /// Whether the tables know the execution.
    pub is_known: bool,
    /// The calls.
    pub tool_calls: Vec<ToolCallRow>,
    /// The position to go on from; none at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    /// The tables are being built: calls may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<Rebuilding>,
}

/// Question on `vl.v1.rpc.performance`; the answer is [`Performance`], or a refusal of code `projection_away`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskPerformance {
    /// From this moment on.
    pub since: Nanos,
}

/// What was done over a period, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Performance {
    /// Executions submitted, by where they stand.
    pub executions: Vec<StatusCount>,
    /// Inferences, by model.
    pub models: Vec<ModelPerformance>,
    /// Tool calls that a worker carried out, by tool.
    pub tools: Vec<ToolPerformance>,
    /// The tables are being built: something is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<Rebuilding>,
}

/// So many executions stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCount {
    /// Where.
    pub status: Status,
    /// How many.
    pub count: u64,
}

/// Half and nineteen of twenty took at most so long, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half.
    pub p50: f64,
    /// Nineteen of twenty.
    pub p95: f64,
}

/// The inferences of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelPerformance {
    /// The model.
    pub model: String,
    /// Inferences that ended, compressions included.
    pub inferences: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those that an equal request had answered before.
    pub cached: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens read that did not have to be computed.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// From the publishing of the job to the last token; none where no inference ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<Percentiles>,
    /// From the publishing of the job to the worker that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<Percentiles>,
    /// From the publishing of the job to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<Percentiles>,
}

/// The calls of one tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolPerformance {
    /// The tool.
    pub tool: String,
    /// Calls that ended.
    pub calls: u64,
    /// Those without a result.
    pub errors: u64,
    /// Wall time of a call, by its worker's clock; none where no worker carried one out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<Percentiles>,
}

/// Question on `vl.v1.rpc.projection`; the answer is [`Projection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskProjection {
    /// How it is.
    Status,
    /// Empties the tables and builds them anew from the log; the answer comes when that has begun.
    Rebuild,
}

/// How a projection is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// Where the tables are, for people: `SQLite at FILE`, `PostgreSQL at HOST`.
    pub database: String,
    /// In one word.
    pub state: ProjectionState,
    /// Why the database cannot be used, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// How far it has been built, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilding: Option<Rebuilding>,
    /// Messages of the log that are not in the tables yet; none when nobody could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_messages: Option<u64>,
    /// The sequence of each partition up to which the tables hold the log.
    #[serde(default)]
    pub positions: Vec<u64>,
}

/// How a projection is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionState {
    /// It follows the log.
    Following,
    /// It is being built.
    Rebuilding,
    /// The database cannot be used.
    Away,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_as_it_was_written() {
        let execution_id = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id");
        let cursor = Cursor { created_at: 7, execution_id };
        assert_eq!(cursor.to_string().parse::<Cursor>().expect("a cursor"), cursor);
        for wrong in ["", "7", "7.x", "x.0192f0c1-7a3b-7c4d-8e5f-001122334455"] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
