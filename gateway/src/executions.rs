//! Questions about executions: which there are, what they called, how fast they were, and of one its state and its proof.
//! Orchestrators answer them, from tables or from the log.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use runtime::{Bus, bus, clock};
use schemas::api::Status;
use schemas::executions::{
    AskPerformance, AskProjection, ExecutionRow, Executions, LIMIT_MAX, ListExecutions, ListToolCalls,
    ModelPerformance, Performance, Projection, Rebuilding, ToolCallRow, ToolCalls, ToolPerformance,
};
use schemas::fact::Kind;
use schemas::rpc::{AskState, AskVerification, Refusal, Reply};
use schemas::{ExecutionId, subject};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::service::{self, Gateway};
use crate::view::rfc3339;

/// Executions that one listing shows unless it asks for another number.
const LIMIT: u32 = 50;
/// How long the tables may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long the tables may take to say how they are.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to fold a long log, or to decide everything in it again.
const FOLD_TIMEOUT: Duration = Duration::from_secs(60);
/// The period of which the performance is told unless another is asked for.
const SINCE: &str = "1h";

const STATUSES: &str =
    "submitted, running, paused, completed, rejected, failed, cancelled, timed_out, budget_exhausted";
const KINDS: &str = "chat, agent, tool, index";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ListQuery {
    status: Option<String>,
    kind: Option<String>,
    agent_type: Option<String>,
    user_id: Option<String>,
    workspace: Option<String>,
    q: Option<String>,
    limit: Option<String>,
    before: Option<String>,
}

/// Executions, newest first.
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let Query(query) = query.map_err(|e| {
        let known = "status, kind, agent_type, user_id, workspace, q, limit, before";
        Failure::invalid(e.body_text(), format!("these can be asked for, each once: {known}"))
    })?;
    let listed: Executions = ask(&gateway, subject::RPC_EXECUTIONS, &question(query)?, TIMEOUT).await?;
    let executions: Vec<Value> = listed.executions.iter().map(row).collect();
    let next = listed.next.map(|cursor| cursor.to_string());
    Ok(Json(with(json!({"executions": executions, "next": next}), listed.rebuilding)))
}

fn question(query: ListQuery) -> Result<ListExecutions, Failure> {
    let limit = query.limit.as_deref().map_or(Some(LIMIT), |limit| limit.parse().ok());
    let limit = limit.filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
        let limit = query.limit.clone().unwrap_or_default();
        Failure::invalid(format!("`limit` is {limit:?}"), format!("send 1 to {LIMIT_MAX}"))
    })?;
    let statuses = query.status.as_deref().map_or_else(Vec::new, |names| names.split(',').collect());
    Ok(ListExecutions {
        statuses: statuses
            .into_iter()
            .map(|name| named::<Status>("status", name, STATUSES))
            .collect::<Result<_, _>>()?,
        kind: query.kind.as_deref().map(|name| named::<Kind>("kind", name, KINDS)).transpose()?,
        agent_type: query.agent_type,
        user_id: query.user_id,
        workspace: query.workspace,
        text: query.q.filter(|text| !text.is_empty()),
        limit,
        before: query.before.map(|cursor| cursor.parse()).transpose().map_err(|e: schemas::ids::InvalidId| {
            Failure::invalid(format!("`before` is {e}"), "send `next` of an earlier answer")
        })?,
    })
}

/// A state by its name on the wire.
fn named<T: DeserializeOwned>(parameter: &str, name: &str, known: &str) -> Result<T, Failure> {
    serde_json::from_value(json!(name))
        .map_err(|_| Failure::invalid(format!("`{parameter}` is {name:?}"), format!("send one of {known}")))
}

/// An execution as a row, as lists and the live stream have it.
pub(crate) fn row(row: &ExecutionRow) -> Value {
    json!({
        "execution_id": row.execution_id,
        "kind": row.kind,
        "status": row.status,
        "agent_type": row.agent_type,
        "model": row.model,
        "user_id": row.user_id,
        "workspace": row.workspace,
        "title": row.title,
        "iterations": row.iterations,
        "usage": row.usage,
        "tool_calls": row.tool_calls,
        "created_at": rfc3339(row.created_at),
        "finished_at": row.finished_at.map(rfc3339),
        "duration_ms": row.duration_ms(),
        "error": row.error,
        "parent": row.parent,
    })
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CallsQuery {
    from: u32,
}

/// The tool calls of an execution, in order.
pub(crate) async fn tool_calls(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    query: Result<Query<CallsQuery>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let execution_id = service::parse(&id)?;
    let Query(query) = query.map_err(|e| Failure::invalid(e.body_text(), "send ?from=POSITION, or nothing"))?;
    let question = ListToolCalls { execution_id, from: query.from };
    let listed: ToolCalls = ask(&gateway, subject::RPC_TOOL_CALLS, &question, TIMEOUT).await?;
    if !listed.is_known {
        // It may be too new for the tables, and then it has called nothing that they could tell of.
        service::read(&gateway, execution_id).await?;
    }
    let calls: Vec<Value> = listed.tool_calls.iter().map(call).collect();
    Ok(Json(with(json!({"tool_calls": calls, "next": listed.next}), listed.rebuilding)))
}

fn call(call: &ToolCallRow) -> Value {
    let arguments = serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::String(call.arguments.clone()));
    json!({
        "effect": call.effect,
        "position": call.position,
        "tool_name": call.tool_name,
        "arguments": arguments,
        "result": call.result,
        "success": call.success,
        "duration_ms": call.duration_ms,
        "sandbox": call.sandbox,
        "worker": call.worker,
        "created_at": rfc3339(call.created_at),
    })
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PerformanceQuery {
    since: Option<String>,
}

/// What was done over a period, and how fast.
pub(crate) async fn performance(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<PerformanceQuery>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let next = "send ?since=2026-01-31T12:00:00Z, or a time before now such as 90s, 15m, 2h, 7d";
    let Query(query) = query.map_err(|e| Failure::invalid(e.body_text(), next))?;
    let text = query.since.as_deref().unwrap_or(SINCE);
    let since = clock::moment(text, clock::now());
    let since = since.ok_or_else(|| Failure::invalid(format!("`since` is {text:?}, which is no moment"), next))?;
    let told: Performance = ask(&gateway, subject::RPC_PERFORMANCE, &AskPerformance { since }, TIMEOUT).await?;
    let statuses: serde_json::Map<String, Value> = told
        .executions
        .iter()
        .filter_map(|of| Some((json!(of.status).as_str()?.to_owned(), json!(of.count))))
        .collect();
    let models: Vec<Value> = told.models.iter().map(model).collect();
    let tools: Vec<Value> = told.tools.iter().map(tool).collect();
    let shown = json!({"since": rfc3339(since), "executions": statuses, "models": models, "tools": tools});
    Ok(Json(with(shown, told.rebuilding)))
}

fn model(of: &ModelPerformance) -> Value {
    json!({
        "model": of.model, "inferences": of.inferences, "errors": of.errors, "cached": of.cached,
        "prompt_tokens": of.prompt_tokens, "cached_tokens": of.cached_tokens,
        "completion_tokens": of.completion_tokens, "duration_ms": of.duration_ms, "queue_ms": of.queue_ms,
        "ttft_ms": of.ttft_ms,
    })
}

fn tool(of: &ToolPerformance) -> Value {
    json!({"tool_name": of.tool, "calls": of.calls, "errors": of.errors, "duration_ms": of.duration_ms})
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StateQuery {
    at: Option<u64>,
}

/// An execution as it stood after one of its messages.
pub(crate) async fn state(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    query: Result<Query<StateQuery>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let exec = service::parse(&id)?;
    let Query(query) = query.map_err(|e| Failure::invalid(e.body_text(), "send ?at=N, or nothing for the newest"))?;
    ask_about(&gateway, exec, subject::RPC_STATE, &AskState { exec, at: query.at }).await
}

/// Whether its decisions come out again.
pub(crate) async fn verify(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let exec = service::parse(&id)?;
    ask_about(&gateway, exec, subject::RPC_VERIFY, &AskVerification { exec }).await
}

/// How the projection is; none when nobody says.
pub(crate) async fn projection(bus: &Bus) -> Option<Value> {
    let asked = bus.ask::<_, Reply<Projection>>(subject::RPC_PROJECTION, &AskProjection::Status, STATUS_TIMEOUT).await;
    let Ok(Reply::Ok(told)) = asked else { return None };
    let Projection { database, state, trouble, rebuilding, lag_messages, .. } = told;
    Some(json!({
        "state": state, "database": database, "trouble": trouble, "rebuilding": rebuilding,
        "lag_messages": lag_messages,
    }))
}

async fn ask_about<Q: Serialize>(
    gateway: &Gateway,
    exec: ExecutionId,
    subject: &str,
    question: &Q,
) -> Result<Json<Value>, Failure> {
    ask(gateway, subject, question, FOLD_TIMEOUT).await.map(Json).map_err(|failure: Failure| failure.about(exec))
}

async fn ask<Q: Serialize, A: DeserializeOwned>(
    gateway: &Gateway,
    subject: &str,
    question: &Q,
    timeout: Duration,
) -> Result<A, Failure> {
    match gateway.runtime.bus.ask(subject, question, timeout).await {
        Ok(Reply::Ok(answer)) => Ok(answer),
        Ok(Reply::Err(refusal)) => Err(refused(refusal)),
        Err(bus::Error::NoResponders(_)) => {
            let detail = "no orchestrator answers that";
            let next = "start one: `vlinders orchestrator`; for tables of executions, with `projection.enabled`";
            Err(Failure::new(503, "orchestrator_absent", detail, next))
        }
        Err(error) => Err(error.into()),
    }
}

fn refused(refusal: Refusal) -> Failure {
    let (status, next) = match refusal.code.as_str() {
        "unknown_execution" => (404, "check the id"),
        "out_of_range" => (400, "see the numbers (`n`) in GET /internal/executions/{id}/events"),
        "too_large" => (413, "`vlinders replay ID --at N` has no such bound"),
        "projection_away" => (
            503,
            "see `vlinders projection status`, and that the database runs; each execution can be asked for by its id",
        ),
        _ => (503, "send it again"),
    };
    Failure::new(status, &refusal.code, refusal.detail, next)
}

/// An answer from tables that are being built says so.
fn with(mut answer: Value, rebuilding: Option<Rebuilding>) -> Value {
    if let Some(rebuilding) = rebuilding {
        answer["rebuilding"] = json!(rebuilding);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_refused_by_its_name() {
        let wrong = |query: ListQuery| question(query).expect_err("wrong").0.detail;
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(wrong(ListQuery { status: some("running,ended"), ..Default::default() }), "`status` is \"ended\"");
        assert_eq!(wrong(ListQuery { kind: some("batch"), ..Default::default() }), "`kind` is \"batch\"");
        assert_eq!(wrong(ListQuery { limit: some("0"), ..Default::default() }), "`limit` is \"0\"");
        assert_eq!(wrong(ListQuery { limit: some("many"), ..Default::default() }), "`limit` is \"many\"");
        assert!(wrong(ListQuery { before: some("7"), ..Default::default() }).starts_with("`before` is not a cursor"));
        let unknown = serde_json::from_value::<ListQuery>(json!({"agent": "coder"})).err().expect("unknown");
        assert!(unknown.to_string().contains("unknown field `agent`"), "{unknown}");
    }

    #[test]
    fn what_is_asked_for_becomes_the_question() {
        let some = |text: &str| Some(text.to_owned());
        let query = ListQuery { status: some("running,timed_out"), kind: some("agent"), ..Default::default() };
        let asked = question(query).expect("right");
        assert_eq!(asked.statuses, [Status::Running, Status::TimedOut]);
        assert_eq!((asked.kind, asked.limit, asked.before), (Some(Kind::Agent), LIMIT, None));
    }
}
