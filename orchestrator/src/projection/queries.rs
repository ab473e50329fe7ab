//! What is asked of the tables.

use schemas::api::Status;
use schemas::executions::{
    Cursor, ExecutionRow, Executions, LIMIT_MAX, ListExecutions, ListToolCalls, ModelPerformance, Percentiles,
    Performance, StatusCount, TEXT_BYTES_MAX, ToolCallRow, ToolCalls, ToolPerformance,
};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Usage};
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

use super::store::{Error, Statement, Store, Value, name, rebuilding};

/// Tool calls of one answer at most, so that it fits a message whatever they hold.
const CALLS: usize = (4 << 20) / (2 * TEXT_BYTES_MAX);

const ROW: &str = "SELECT execution_id, kind, status, agent_type, model, user_id, workspace, title, iterations, \
                   prompt_tokens, completion_tokens, total_tokens, tool_calls, created_at, finished_at, error, \
                   parent_execution_id, messages FROM agent_executions WHERE 1 = 1";

impl Store {
    /// Executions, newest first.
    pub(super) async fn executions(&self, asked: &ListExecutions) -> Result<Executions, Error> {
        let limit = asked.limit.clamp(1, LIMIT_MAX);
        let mut rows = list(asked, limit).query().fetch_all(&self.pool).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let executions: Vec<ExecutionRow> = rows.iter().map(execution).collect::<Result<_, _>>()?;
        let next = executions.last().filter(|_| more);
        let next = next.map(|row| Cursor { created_at: row.created_at, execution_id: row.execution_id });
        Ok(Executions { executions, next, rebuilding: rebuilding(&self.positions().await?) })
    }

    /// The tool calls of an execution, in order.
    pub(super) async fn tool_calls(&self, asked: ListToolCalls) -> Result<ToolCalls, Error> {
        let exec = asked.execution_id.to_string();
        let known = sqlx::query("SELECT messages FROM agent_executions WHERE execution_id = $1").bind(&exec);
        let is_known = known.fetch_optional(&self.pool).await?.is_some();
        let calls = "SELECT effect, position, tool_name, arguments, result, success, duration_ms, sandbox, worker, \
                     created_at FROM tool_calls WHERE execution_id = $1 AND position >= $2 ORDER BY position LIMIT $3";
        let limit = i64::try_from(CALLS + 1).unwrap_or(i64::MAX);
        let mut rows =
            sqlx::query(calls).bind(&exec).bind(i64::from(asked.from)).bind(limit).fetch_all(&self.pool).await?;
        let more = rows.len() > CALLS;
        rows.truncate(CALLS);
        let tool_calls: Vec<ToolCallRow> = rows.iter().map(tool_call).collect::<Result<_, _>>()?;
        let next = tool_calls.last().filter(|_| more).map(|call| call.position + 1);
        Ok(ToolCalls { is_known, tool_calls, next, rebuilding: rebuilding(&self.positions().await?) })
    }

    /// What was done since then, and how fast.
    pub(super) async fn performance(&self, since: Nanos) -> Result<Performance, Error> {
        let pool = &self.pool;
        let statuses =
            "SELECT status, COUNT(*) FROM agent_executions WHERE created_at >= $1 GROUP BY status ORDER BY status";
        let mut executions = Vec::new();
        for row in sqlx::query(statuses).bind(since).fetch_all(pool).await? {
            executions.push(StatusCount { status: named(&row, 0)?, count: count(&row, 1)? });
        }
        let counted = "SELECT model, COUNT(*), CAST(SUM(CASE WHEN error IS NULL THEN 0 ELSE 1 END) AS BIGINT), \
                       CAST(SUM(cached) AS BIGINT), CAST(SUM(prompt_tokens) AS BIGINT), \
                       CAST(SUM(cached_tokens) AS BIGINT), CAST(SUM(completion_tokens) AS BIGINT) \
                       FROM inference_performance WHERE created_at >= $1 GROUP BY model ORDER BY model";
        let mut models = Vec::new();
        for row in sqlx::query(counted).bind(since).fetch_all(pool).await? {
            models.push(ModelPerformance {
                model: row.try_get(0)?,
                inferences: count(&row, 1)?,
                errors: count(&row, 2)?,
                cached: count(&row, 3)?,
                prompt_tokens: count(&row, 4)?,
                cached_tokens: count(&row, 5)?,
                completion_tokens: count(&row, 6)?,
                duration_ms: None,
                queue_ms: None,
                ttft_ms: None,
            });
        }
        for (model, times) in percentiles(pool, DURATIONS, since).await? {
            set(&mut models, &model, |of| of.duration_ms = Some(times));
        }
        for (model, times) in percentiles(pool, QUEUES, since).await? {
            set(&mut models, &model, |of| of.queue_ms = Some(times));
        }
        for (model, times) in percentiles(pool, FIRST_TOKENS, since).await? {
            set(&mut models, &model, |of| of.ttft_ms = Some(times));
        }
        let counted = "SELECT tool_name, COUNT(*), CAST(SUM(1 - success) AS BIGINT) FROM tool_calls \
                       WHERE created_at >= $1 AND success IS NOT NULL GROUP BY tool_name ORDER BY tool_name";
        let mut tools = Vec::new();
        for row in sqlx::query(counted).bind(since).fetch_all(pool).await? {
            tools.push(ToolPerformance {
                tool: row.try_get(0)?,
                calls: count(&row, 1)?,
                errors: count(&row, 2)?,
                duration_ms: None,
            });
        }
        for (tool, times) in percentiles(pool, CALLS_OF_TOOLS, since).await? {
            if let Some(of) = tools.iter_mut().find(|of| of.tool == tool) {
                of.duration_ms = Some(times);
            }
        }
        Ok(Performance { executions, models, tools, rebuilding: rebuilding(&self.positions().await?) })
    }
}

fn set(models: &mut [ModelPerformance], model: &str, set: impl FnOnce(&mut ModelPerformance)) {
    if let Some(of) = models.iter_mut().find(|of| of.model == model) {
        set(of);
    }
}

/// The nearest ranks, which both databases can count: PostgreSQL alone has percentiles of its own.
macro_rules! ranked {
    ($of:literal, $time:literal, $table:literal) => {
        concat!(
            "SELECT name, MAX(CASE WHEN rank = (among + 1) / 2 THEN took END), ",
            "MAX(CASE WHEN rank = (among * 95 + 99) / 100 THEN took END) FROM (SELECT ",
            $of,
            " AS name, ",
            $time,
            " AS took, ROW_NUMBER() OVER (PARTITION BY ",
            $of,
            " ORDER BY ",
            $time,
            ") AS rank, COUNT(*) OVER (PARTITION BY ",
            $of,
            ") AS among FROM ",
            $table,
            " WHERE created_at >= $1 AND ",
            $time,
            " IS NOT NULL) AS ranked GROUP BY name"
        )
    };
}

const DURATIONS: &str = ranked!("model", "duration_ms", "inference_performance");
const QUEUES: &str = ranked!("model", "queue_ms", "inference_performance");
const FIRST_TOKENS: &str = ranked!("model", "ttft_ms", "inference_performance");
const CALLS_OF_TOOLS: &str = ranked!("tool_name", "duration_ms", "tool_calls");

async fn percentiles(pool: &AnyPool, ranked: &'static str, since: Nanos) -> Result<Vec<(String, Percentiles)>, Error> {
    let rows = sqlx::query(ranked).bind(since).fetch_all(pool).await?;
    rows.iter().map(ranks).collect()
}

fn ranks(row: &AnyRow) -> Result<(String, Percentiles), Error> {
    Ok((row.try_get(0)?, Percentiles { p50: row.try_get(1)?, p95: row.try_get(2)? }))
}

fn list(asked: &ListExecutions, limit: u32) -> Statement {
    let mut list = Statement::new(ROW);
    if !asked.statuses.is_empty() {
        let statuses: Vec<String> = asked.statuses.iter().map(name::<Status>).collect();
        list.push(" AND status IN ").row(statuses.iter().map(Value::from));
    }
    let kind = asked.kind.as_ref().map(name);
    let exact = [
        (" AND kind = ", kind.as_ref()),
        (" AND agent_type = ", asked.agent_type.as_ref()),
        (" AND user_id = ", asked.user_id.as_ref()),
        (" AND workspace = ", asked.workspace.as_ref()),
    ];
    for (column, value) in exact {
        if let Some(value) = value {
            list.push(column).value(value);
        }
    }
    if let Some(text) = &asked.text {
        let escaped = text.to_lowercase().replace('!', "!!").replace('%', "!%").replace('_', "!_");
        let (within, beginning) = (format!("%{escaped}%"), format!("{escaped}%"));
        list.push(" AND (LOWER(instruction) LIKE ").value(&within).push(" ESCAPE '!'");
        list.push(" OR LOWER(COALESCE(response, '')) LIKE ").value(&within).push(" ESCAPE '!'");
        list.push(" OR LOWER(COALESCE(error, '')) LIKE ").value(&within).push(" ESCAPE '!'");
        list.push(" OR execution_id LIKE ").value(&beginning).push(" ESCAPE '!')");
    }
    if let Some(Cursor { created_at, execution_id }) = asked.before {
        let id = execution_id.to_string();
        list.push(" AND (created_at < ").value(created_at);
        list.push(" OR (created_at = ").value(created_at).push(" AND execution_id < ").value(&id).push("))");
    }
    list.push(" ORDER BY created_at DESC, execution_id DESC LIMIT ").value(i64::from(limit) + 1);
    list
}

fn execution(row: &AnyRow) -> Result<ExecutionRow, Error> {
    let parent: Option<String> = row.try_get(16)?;
    Ok(ExecutionRow {
        execution_id: id(row, 0)?,
        kind: named(row, 1)?,
        status: named(row, 2)?,
        agent_type: row.try_get(3)?,
        model: row.try_get(4)?,
        user_id: row.try_get(5)?,
        workspace: row.try_get(6)?,
        title: row.try_get(7)?,
        iterations: small(row, 8)?,
        usage: Usage { prompt_tokens: count(row, 9)?, completion_tokens: count(row, 10)?, tokens: count(row, 11)? },
        tool_calls: small(row, 12)?,
        created_at: row.try_get(13)?,
        finished_at: row.try_get(14)?,
        error: row.try_get(15)?,
        parent: parent.and_then(|id| id.parse().ok()),
        messages: count(row, 17)?,
    })
}

fn tool_call(row: &AnyRow) -> Result<ToolCallRow, Error> {
    let effect: String = row.try_get(0)?;
    let success: Option<i64> = row.try_get(5)?;
    Ok(ToolCallRow {
        effect: effect.parse().map_err(|e| unreadable(0, e))?,
        position: small(row, 1)?,
        tool_name: row.try_get(2)?,
        arguments: row.try_get(3)?,
        result: row.try_get(4)?,
        success: success.map(|success| success != 0),
        duration_ms: row.try_get(6)?,
        sandbox: row.try_get(7)?,
        worker: row.try_get(8)?,
        created_at: row.try_get(9)?,
    })
}

fn id(row: &AnyRow, column: usize) -> Result<ExecutionId, Error> {
    let id: String = row.try_get(column)?;
    id.parse().map_err(|e| unreadable(column, e))
}

/// A state by its name on the wire.
fn named<T: DeserializeOwned>(row: &AnyRow, column: usize) -> Result<T, Error> {
    let name: String = row.try_get(column)?;
    serde_json::from_value(serde_json::Value::String(name)).map_err(|e| unreadable(column, e))
}

fn count(row: &AnyRow, column: usize) -> Result<u64, Error> {
    Ok(row.try_get::<i64, _>(column)?.unsigned_abs())
}

fn small(row: &AnyRow, column: usize) -> Result<u32, Error> {
    Ok(u32::try_from(row.try_get::<i64, _>(column)?).unwrap_or(u32::MAX))
}

/// Somebody else has written into the tables.
fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Database(sqlx::Error::ColumnDecode { index: column.to_string(), source: error.into() })
}
