//! Writes rows, many in one statement.

use schemas::ExecutionId;
use schemas::executions::{ExecutionRow, ToolCallRow};
use schemas::summary::InferenceRow;
use serde::Serialize;
use sqlx::AnyConnection;

use super::super::fold::{Changes, Execution};
use super::Error;
use super::statement::{Statement, Value};

/// Rows written in one statement: with it, no statement has more values than SQLite takes (32,766).
const ROWS: usize = 500;

/// Writes everything that changed.
pub(super) async fn write(connection: &mut AnyConnection, changes: &Changes) -> Result<(), Error> {
    let rows: Vec<Row> = changes.executions.values().map(Row::of).collect();
    let (begun, known): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.execution.begun.is_some());
    for some in begun.chunks(ROWS) {
        insert(some).query().execute(&mut *connection).await?;
    }
    for some in known.chunks(ROWS) {
        update(some).query().execute(&mut *connection).await?;
    }
    let calls: Vec<_> = changes.calls.iter().collect();
    for some in calls.chunks(ROWS) {
        write_calls(some.iter().map(|((exec, _), call)| (*exec, *call))).query().execute(&mut *connection).await?;
    }
    let inferences: Vec<_> = changes.inferences.iter().collect();
    for some in inferences.chunks(ROWS) {
        write_inferences(some.iter().map(|((exec, _, _), row)| (*exec, *row)))
            .query()
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// An execution with what must be written out first.
struct Row<'a> {
    execution: &'a Execution,
    id: String,
    kind: String,
    status: String,
    parent: Option<String>,
    state: Option<String>,
}

impl<'a> Row<'a> {
    fn of(execution: &'a Execution) -> Self {
        let summary = &execution.summary;
        let state = || serde_json::to_string(summary).expect("a summary holds only names, texts and numbers");
        Self {
            execution,
            id: summary.row.execution_id.to_string(),
            kind: name(&summary.row.kind),
            status: name(&summary.row.status),
            parent: summary.row.parent.as_ref().map(ToString::to_string),
            state: (!summary.is_ended()).then(state),
        }
    }

    /// What changes while an execution goes on, in the order of [`CHANGING`].
    fn changing(&self) -> [Value<'_>; 14] {
        let row: &ExecutionRow = &self.execution.summary.row;
        [
            (&self.status).into(),
            self.execution.response.as_ref().into(),
            row.error.as_ref().into(),
            (&row.model).into(),
            row.iterations.into(),
            row.usage.prompt_tokens.into(),
            row.usage.completion_tokens.into(),
            row.usage.tokens.into(),
            row.tool_calls.into(),
            row.messages.into(),
            row.finished_at.into(),
            row.duration_ms().into(),
            self.state.as_ref().into(),
            (&self.id).into(),
        ]
    }
}

fn insert(rows: &[&Row<'_>]) -> Statement {
    let mut insert = Statement::new(
        "INSERT INTO agent_executions (status, response, error, model, iterations, prompt_tokens, completion_tokens, \
         total_tokens, tool_calls, messages, finished_at, duration_ms, state, execution_id, id, kind, agent_type, title, \
         instruction, user_id, workspace, parent_execution_id, created_at) VALUES ",
    );
    for (n, row) in rows.iter().enumerate() {
        let it = &row.execution.summary.row;
        let (place, instruction) =
            row.execution.begun.as_ref().map_or((0, ""), |(place, asked)| (*place, asked.as_str()));
        let constant: [Value<'_>; 9] = [
            place.into(),
            (&row.kind).into(),
            (&it.agent_type).into(),
            (&it.title).into(),
            instruction.into(),
            it.user_id.as_ref().into(),
            it.workspace.as_ref().into(),
            row.parent.as_ref().into(),
            it.created_at.into(),
        ];
        insert.push(separator(n)).row(row.changing().into_iter().chain(constant));
    }
    insert
}

/// Both databases call the columns of such a list `column1`, `column2`, ….
fn update(rows: &[&Row<'_>]) -> Statement {
    let mut update = Statement::new(
        "UPDATE agent_executions SET status = v.column1, response = COALESCE(v.column2, response), error = v.column3, \
         model = v.column4, iterations = v.column5, prompt_tokens = v.column6, completion_tokens = v.column7, \
         total_tokens = v.column8, tool_calls = v.column9, messages = v.column10, finished_at = v.column11, \
         duration_ms = v.column12, state = v.column13 FROM (VALUES ",
    );
    for (n, row) in rows.iter().enumerate() {
        update.push(separator(n)).row(row.changing().into_iter());
    }
    update.push(") AS v WHERE agent_executions.execution_id = v.column14");
    update
}

fn write_calls<'a>(calls: impl Iterator<Item = (ExecutionId, &'a ToolCallRow)>) -> Statement {
    let mut write = Statement::new(
        "INSERT INTO tool_calls (id, execution_id, effect, position, tool_name, arguments, result, success, duration_ms, \
         sandbox, worker, created_at) VALUES ",
    );
    for (n, (exec, call)) in calls.enumerate() {
        let (exec, effect) = (exec.to_string(), call.effect.as_str());
        let id = format!("{exec}/{effect}");
        let values: [Value<'_>; 12] = [
            (&id).into(),
            (&exec).into(),
            effect.into(),
            call.position.into(),
            (&call.tool_name).into(),
            (&call.arguments).into(),
            call.result.as_ref().into(),
            call.success.map(i64::from).into(),
            call.duration_ms.into(),
            call.sandbox.as_ref().into(),
            call.worker.as_ref().into(),
            call.created_at.into(),
        ];
        write.push(separator(n)).row(values.into_iter());
    }
    write.push(
        " ON CONFLICT (id) DO UPDATE SET arguments = excluded.arguments, result = excluded.result, \
         success = excluded.success, duration_ms = excluded.duration_ms, sandbox = excluded.sandbox, \
         worker = excluded.worker",
    );
    write
}

fn write_inferences<'a>(inferences: impl Iterator<Item = (ExecutionId, &'a InferenceRow)>) -> Statement {
    let mut write = Statement::new(
        "INSERT INTO inference_performance (id, execution_id, effect, attempt, purpose, model, worker, error, \
         finish_reason, queue_ms, prefill_ms, decode_ms, ttft_ms, duration_ms, prompt_tokens, cached_tokens, \
         completion_tokens, cached, created_at) VALUES ",
    );
    let ms = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
    for (n, (exec, row)) in inferences.enumerate() {
        let (exec, effect, attempt) = (exec.to_string(), row.effect.as_str(), row.attempt);
        let id = format!("{exec}/{effect}/{attempt}");
        let time = |which: usize| ms(row.timing_us.map(|timing| timing[which]));
        let values: [Value<'_>; 19] = [
            (&id).into(),
            (&exec).into(),
            effect.into(),
            attempt.into(),
            row.purpose.into(),
            (&row.model).into(),
            (&row.worker).into(),
            Value::Text(row.error),
            row.finish.as_ref().into(),
            time(0).into(),
            time(1).into(),
            time(2).into(),
            ms(row.ttft_us()).into(),
            ms(row.timing_us.map(|timing| timing.iter().sum())).into(),
            row.usage.prompt_tokens.into(),
            row.cached_tokens.into(),
            row.usage.completion_tokens.into(),
            i64::from(row.cached).into(),
            row.at.into(),
        ];
        write.push(separator(n)).row(values.into_iter());
    }
    // The same attempt again is the same inference.
    write.push(" ON CONFLICT (id) DO NOTHING");
    write
}

const fn separator(n: usize) -> &'static str {
    if n == 0 { "" } else { ", " }
}

/// A state's name, as on the wire.
pub(in crate::projection) fn name<T: Serialize>(state: &T) -> String {
    let name = serde_json::to_value(state).ok();
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}
