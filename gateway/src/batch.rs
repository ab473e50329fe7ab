//! Several calls of tools at once: each is an execution of its own, and their answers come in the order of the calls.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::Request;
use axum::response::IntoResponse;
use futures::StreamExt;
use schemas::api::{ToolBatch, ToolRequest};
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::requests::{self, Answered, Arrival};
use crate::service::Gateway;
use crate::submission;

/// Calls of one batch.
const CALLS_MAX: usize = 64;
/// Calls of one batch that are under way at the same time; the others wait.
const AT_ONCE: usize = 8;
/// Bytes of one answer, which is shorter than a message of the log.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// `{calls: […]}` becomes `{results: […]}`. A call that is refused does not hold up the others.
pub(crate) async fn tools(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let arrival = Arrival::read(&gateway, request).await?;
    let ToolBatch { calls } = submission::read(&arrival.body)?;
    if calls.is_empty() || calls.len() > CALLS_MAX {
        let detail = format!("`calls` holds {} calls", calls.len());
        return Err(Failure::invalid(detail, format!("send 1 to {CALLS_MAX} at once")));
    }
    let calls = calls.into_iter().enumerate().map(|(n, call)| answer(&gateway, arrival.part(n), call));
    let answers = futures::stream::iter(calls).buffered(AT_ONCE);
    Ok(Json(json!({"results": answers.collect::<Vec<Value>>().await})).into_response())
}

/// The answer of one call, or in its place why there is none, with the problem document it would have had alone.
async fn answer(gateway: &Arc<Gateway>, arrival: Arrival, call: ToolRequest) -> Value {
    let refused =
        |Failure(problem)| json!({"success": false, "result": "", "error": problem.detail, "problem": problem});
    match requests::call(gateway, &arrival, call).await {
        Err(failure) => refused(failure),
        Ok(response) => {
            let bytes = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.unwrap_or_default();
            let unreadable = |_| refused(Failure::new(500, "failed", "the answer is too long", "call it alone"));
            serde_json::from_slice(&bytes).unwrap_or_else(unreadable)
        }
    }
}
