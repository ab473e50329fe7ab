//! Indexing code, and what is indexed.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use runtime::{bus, clock};
use schemas::api::IndexCodeRequest;
use schemas::code::{IndexRequest, Indexed, PARTS_MAX, PLAN};
use schemas::fact::{ExecutionSubmitted, Kind, Limits};
use schemas::rpc::{EMBED_WITHIN, Reply};
use schemas::wire::Nanos;
use schemas::{ToolCall, subject};
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::requests::{self, Answered, Arrival};
use crate::service::Gateway;
use crate::submission;
use crate::view::rfc3339;

/// Wall time of an index execution unless the request says otherwise: a large repository embeds for hours on a small
/// machine.
const DEADLINE_MS: u64 = 6 * 3_600 * 1_000;
/// Paths that one request may name.
const PATHS_MAX: usize = 10_000;

/// Indexes a workspace, or some paths of it.
pub(crate) async fn index(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (headers, body) = requests::body(request, gateway.config.body_bytes_max).await?;
    let request: IndexCodeRequest = submission::read(&body)?;
    let stream = request.stream;
    let submitted = submission(request, clock::now())?;
    requests::run(&gateway, &Arrival::of(&headers), submitted, stream, |follow, exec| {
        follow.execution.index_answer(exec)
    })
    .await
}

fn submission(request: IndexCodeRequest, now: Nanos) -> Result<ExecutionSubmitted, Failure> {
    if request.workspace.is_empty() {
        return Err(Failure::invalid("`workspace` is empty", "name a directory under an allowed root"));
    }
    if request.paths.len() > PATHS_MAX {
        let detail = format!("`paths` holds {} paths", request.paths.len());
        return Err(Failure::invalid(detail, format!("send at most {PATHS_MAX}, or none to index all that changed")));
    }
    if request.deadline_ms == Some(0) {
        return Err(Failure::invalid("`deadline_ms` is 0", "leave it out or give it at least 1"));
    }
    let deadline = submission::after(now, request.deadline_ms.unwrap_or(DEADLINE_MS));
    let limits = Limits { iterations: 1, tokens: 1, tool_calls: PARTS_MAX as u32 + 2, deadline, ..Limits::default() };
    let IndexCodeRequest { workspace, paths, fresh, .. } = request;
    let plan = IndexRequest { workspace: workspace.clone(), paths, fresh };
    Ok(ExecutionSubmitted {
        call: Some(ToolCall::new("plan", PLAN, json!(plan).to_string())),
        workspace: Some(workspace),
        ..ExecutionSubmitted::new(Kind::Index, "index", limits)
    })
}

/// Workspaces that are indexed.
pub(crate) async fn indexes(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, Failure> {
    let answer = gateway.runtime.bus.ask::<_, Reply<Vec<Indexed>>>(subject::RPC_INDEXES, &(), EMBED_WITHIN).await;
    match answer {
        Ok(Reply::Ok(indexed)) => Ok(Json(json!({"indexes": indexed.iter().map(shown).collect::<Vec<_>>()}))),
        Ok(Reply::Err(refusal)) => {
            Err(Failure::new(502, &refusal.code, refusal.detail, "see the analysis worker's log"))
        }
        Err(bus::Error::NoResponders(_)) => Err(no_analysis_worker()),
        Err(error) => Err(error.into()),
    }
}

fn shown(indexed: &Indexed) -> Value {
    json!({
        "workspace": indexed.workspace, "files": indexed.files, "model": indexed.model,
        "execution_id": indexed.exec, "indexed_at": rfc3339(indexed.at),
    })
}

pub(crate) fn no_analysis_worker() -> Failure {
    let detail = "no analysis worker answers";
    Failure::new(503, "workers_absent", detail, "start one (`vlinders analysis-worker`) or wait")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> IndexCodeRequest {
        let workspace = "/w".to_owned();
        IndexCodeRequest { workspace, paths: vec!["src".into()], fresh: false, deadline_ms: None, stream: false }
    }

    #[test]
    fn a_request_becomes_an_execution_that_plans_first() {
        let submitted = submission(request(), 7).unwrap();
        let call = submitted.call.unwrap();
        assert_eq!((submitted.kind, call.function.name.as_str()), (Kind::Index, "index_plan"));
        assert_eq!(call.function.arguments, r#"{"workspace":"/w","paths":["src"]}"#);
        assert_eq!(submitted.limits.deadline, 7 + 6 * 3_600 * 1_000_000_000);
    }

    #[test]
    fn what_cannot_be_indexed_is_refused_with_the_field() {
        let refused = |request| submission(request, 0).unwrap_err().0.detail;
        assert_eq!(refused(IndexCodeRequest { workspace: String::new(), ..request() }), "`workspace` is empty");
        assert_eq!(refused(IndexCodeRequest { deadline_ms: Some(0), ..request() }), "`deadline_ms` is 0");
        let paths = vec![String::new(); PATHS_MAX + 1];
        assert_eq!(refused(IndexCodeRequest { paths, ..request() }), "`paths` holds 10001 paths");
    }
}
