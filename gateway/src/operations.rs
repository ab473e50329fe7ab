//! What those who run the system look at: who works, what each worker holds, and what waits where.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use runtime::bus::{Bus, ConsumerState, StreamState};
use schemas::presence::{Hold, Worker};
use schemas::stream;
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::service::Gateway;
use crate::view::rfc3339;

/// How long a worker may take to say what it holds: one that takes longer is shown without it.
const HOLDS_TIMEOUT: Duration = Duration::from_millis(500);

/// `GET /internal/workers`
pub(crate) async fn workers(State(gateway): State<Arc<Gateway>>) -> Result<Response, Failure> {
    let workers = gateway.directory.workers_now().await?;
    let bus = &gateway.runtime.bus;
    let holds = futures::future::join_all(workers.iter().map(|worker| holds(bus, &worker.id))).await;
    let shown: Vec<Value> = workers.iter().zip(holds).map(|(worker, holds)| shown(worker, holds)).collect();
    Ok(Json(json!({"workers": shown})).into_response())
}

/// What a worker holds; none when it does not say, because it has just gone.
async fn holds(bus: &Bus, id: &str) -> Option<Vec<Hold>> {
    match bus.ask_worker(id, HOLDS_TIMEOUT).await {
        Ok(holds) => holds.map(|holds| holds.effects),
        Err(error) => {
            tracing::debug!(%error, worker = id, "a worker does not say what it holds");
            None
        }
    }
}

fn shown(worker: &Worker, holds: Option<Vec<Hold>>) -> Value {
    let holds = holds.map(|holds| {
        let hold = |hold: &Hold| json!({"execution_id": hold.exec, "effect": hold.effect, "attempt": hold.attempt});
        holds.iter().map(hold).collect::<Vec<_>>()
    });
    json!({
        "id": worker.id, "role": worker.role, "version": worker.version, "slots": worker.slots, "holds": holds,
        "models": worker.models, "tools": worker.tools.iter().map(|tool| &tool.name).collect::<Vec<_>>(),
        "memory": worker.inference.as_ref().map(|state| state.memory),
        "gpus": worker.inference.as_ref().map(|state| &state.gpus),
        "sandbox": worker.sandbox, "vectors": worker.vectors, "refused": worker.refused,
    })
}

/// `GET /internal/queues`
pub(crate) async fn queues(State(gateway): State<Arc<Gateway>>) -> Result<Response, Failure> {
    let streams = gateway.runtime.bus.queues().await?;
    Ok(Json(json!({"streams": streams.iter().map(queue).collect::<Vec<_>>()})).into_response())
}

fn queue(state: &StreamState) -> Value {
    let (group, purpose) = purpose(&state.name);
    json!({
        "name": state.name, "group": group, "purpose": purpose,
        "storage": if state.in_memory { "memory" } else { "file" },
        "messages": state.messages, "bytes": state.bytes,
        "messages_max": state.messages_max, "bytes_max": state.bytes_max,
        "age_max_s": state.age_max.map(|age| age.as_secs()),
        "first_at": state.first_at.map(rfc3339), "last_at": state.last_at.map(rfc3339),
        "consumers": state.consumers.iter().map(|consumer| consumer_of(group, consumer)).collect::<Vec<_>>(),
    })
}

fn consumer_of(group: &str, state: &ConsumerState) -> Value {
    let purpose = match group {
        "log" => "hands facts to the partition's owner, which decides",
        "jobs" => "hands a job to one worker, and to another when that one falls silent",
        "dead_letters" => "turns what the server says it has given up into letters",
        _ => "reads along",
    };
    json!({
        "name": state.name, "purpose": purpose, "pending": state.pending, "ack_pending": state.ack_pending,
        "redelivered": state.redelivered, "waiting": state.waiting, "oldest_at": state.oldest_at.map(rfc3339),
    })
}

/// What a stream belongs to, and what it is for, in words.
fn purpose(name: &str) -> (&'static str, &'static str) {
    match name {
        stream::INFERENCE_JOBS => {
            ("jobs", "inferences that wait for a worker; made again from the log if they are lost")
        }
        stream::TOOL_JOBS => ("jobs", "tool calls that wait for a worker; made again from the log if they are lost"),
        stream::ANALYSIS_JOBS => {
            ("jobs", "parts of code that wait to be indexed; made again from the log if they are lost")
        }
        stream::TOKENS => ("tokens", "token frames of the last minutes, for readers who missed some"),
        stream::DEAD_LETTERS => ("dead_letters", "messages that were given up, each with its reason"),
        name if name.starts_with("VL_LOG_") => ("log", "facts and decisions, for ever: the truth"),
        name => ("bucket", bucket(name.trim_start_matches("KV_").trim_start_matches("OBJ_"))),
    }
}

fn bucket(name: &str) -> &'static str {
    match name {
        stream::BUCKET_OPEN => {
            "where each open execution stands, and how far each partition is: where an owner goes on"
        }
        stream::BUCKET_WORKERS => "workers that are there",
        stream::BUCKET_CONFIG => "agent types",
        stream::BUCKET_RESULTS => "answers kept for equal requests",
        stream::BUCKET_TOOL_RESULTS => "tool results kept for equal calls",
        stream::BUCKET_LEASES => "who is at work whose result will be kept for others",
        stream::BUCKET_TOOL_CALLS => "calls that must not be carried out twice",
        stream::BUCKET_REQUESTS => "which execution each Idempotency-Key of the last day began",
        stream::BUCKET_CODE => "indexed code",
        stream::BUCKET_OBJECTS => "texts of the log that are too large for a message",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_and_bucket_says_what_it_is_for() {
        let streams = stream::streams().into_iter().map(|definition| definition.name);
        let buckets = stream::BUCKETS.iter().map(|bucket| format!("KV_{}", bucket.name));
        for name in streams.chain(buckets).chain([format!("OBJ_{}", stream::BUCKET_OBJECTS)]) {
            let (group, purpose) = purpose(&name);
            assert!(!purpose.is_empty(), "{name}");
            assert_eq!(group == "bucket", !name.starts_with("VL_"), "{name}");
        }
    }

    #[test]
    fn a_queue_tells_moments_as_people_read_them_and_leaves_out_limits_that_it_has_not() {
        let consumer = ConsumerState {
            name: "tools".into(),
            pending: 3,
            ack_pending: 2,
            redelivered: 1,
            waiting: 0,
            oldest_at: Some(1_000_000_000),
        };
        let state = StreamState {
            name: stream::TOOL_JOBS.into(),
            in_memory: true,
            messages: 5,
            bytes: 50,
            messages_max: Some(20_000),
            bytes_max: None,
            age_max: Some(Duration::from_secs(60)),
            first_at: Some(0),
            last_at: None,
            consumers: vec![consumer],
        };
        let shown = queue(&state);
        assert_eq!(
            (&shown["group"], &shown["storage"], &shown["age_max_s"]),
            (&json!("jobs"), &json!("memory"), &json!(60))
        );
        assert_eq!((&shown["first_at"], &shown["last_at"]), (&json!("1970-01-01T00:00:00.000000Z"), &Value::Null));
        assert_eq!((&shown["messages_max"], &shown["bytes_max"]), (&json!(20_000), &Value::Null));
        let consumer = &shown["consumers"][0];
        assert_eq!(
            (&consumer["oldest_at"], &consumer["redelivered"]),
            (&json!("1970-01-01T00:00:01.000000Z"), &json!(1))
        );
    }
}
