//! What is remembered across executions: listed and forgotten here; kept and recalled by tools.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use runtime::bus;
use schemas::memory::{Ask, Remembered, Scope, Told};
use schemas::rpc::Reply;
use schemas::subject;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::code::no_analysis_worker;
use crate::problem::Failure;
use crate::service::Gateway;
use crate::view::rfc3339;

/// Facts that one listing shows unless it asks for fewer.
const LIMIT: u32 = 100;
/// Facts that one listing may ask for.
const LIMIT_MAX: u32 = 1_000;
/// How long the analysis worker may take.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    user_id: Option<String>,
    workspace: Option<String>,
    limit: Option<u32>,
}

/// Facts, newest first.
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let Query(query) =
        query.map_err(|e| Failure::invalid(e.body_text(), "send ?user_id=NAME, workspace=DIR, limit=N (1 to 1000)"))?;
    let limit = query.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Failure::invalid(format!("`limit` is {limit}"), format!("send 1 to {LIMIT_MAX}")));
    }
    let scope = Scope { user_id: query.user_id, workspace: query.workspace };
    match ask(&gateway, &Ask::List { scope, limit }).await? {
        Told::Facts(facts) => Ok(Json(json!({"facts": facts.iter().map(shown).collect::<Vec<_>>()}))),
        other => Err(nonsense(&other)),
    }
}

/// Forgets one fact.
pub(crate) async fn forget(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    match ask(&gateway, &Ask::Forget { ids: vec![id.clone()] }).await? {
        Told::Forgotten(0) => {
            let detail = format!("there is no fact {id}");
            Err(Failure::new(404, "unknown_fact", detail, "see GET /internal/memory for those that there are"))
        }
        Told::Forgotten(forgotten) => Ok(Json(json!({"forgotten": forgotten}))),
        other => Err(nonsense(&other)),
    }
}

async fn ask(gateway: &Gateway, question: &Ask) -> Result<Told, Failure> {
    match gateway.runtime.bus.ask(subject::RPC_MEMORY, question, TIMEOUT).await {
        Ok(Reply::Ok(told)) => Ok(told),
        Ok(Reply::Err(refusal)) => {
            let (status, next) = match refusal.code.as_str() {
                "bad_request" => (400, "correct the request"),
                "no_model" => (503, "start an inference worker that has an embedding model"),
                "unreachable" => (503, "see /health for the vector store, then send it again"),
                _ => (502, "see the analysis worker's log"),
            };
            Err(Failure::new(status, &refusal.code, refusal.detail, next))
        }
        Err(bus::Error::NoResponders(_)) => Err(no_analysis_worker()),
        Err(error) => Err(error.into()),
    }
}

fn nonsense(told: &Told) -> Failure {
    Failure::new(502, "failed", format!("an analysis worker answered {told:?}"), "see the analysis worker's log")
}

fn shown(fact: &Remembered) -> Value {
    json!({
        "id": fact.id, "text": fact.text, "user_id": fact.scope.user_id, "workspace": fact.scope.workspace,
        "source": fact.source, "remembered_at": rfc3339(fact.at),
    })
}
