//! Models at the edge: what is loaded and what could be, and changes, which workers make. A change is answered with 202
//! as soon as it has begun; with `?wait=true` when it has ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use runtime::bus;
use schemas::api::{ModelRequest, SwitchRequest};
use schemas::models::{Change, ChangeModels, KnownModel, ModelState, Operation, OperationState};
use schemas::presence::Worker;
use schemas::rpc::{Model, Refusal, Reply};
use schemas::subject;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::service::Gateway;
use crate::view::{Execution, rfc3339};
use crate::{requests, submission};

/// How long workers may take to begin: one asks others in turn.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end of a change is waited for: reading the largest model from a slow disk.
const END_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How often a change that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Answered = Result<Response, Failure>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    #[serde(default)]
    wait: bool,
}

type Waits = Result<Query<Wait>, QueryRejection>;

/// The loaded models, and what each worker knows, holds and does.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>) -> Answered {
    // People look at what has just changed.
    gateway.directory.forget_models();
    let models = gateway.directory.models().await?;
    let workers = gateway.directory.workers().await?;
    let shown: Vec<Value> = models.iter().map(|model| loaded(model, &workers)).collect();
    let workers = workers.iter().filter_map(of_worker).collect::<Vec<_>>();
    Ok(Json(json!({"models": shown, "workers": workers})).into_response())
}

/// `POST /internal/models/{name}/load`
pub(crate) async fn load(
    State(gateway): State<Arc<Gateway>>,
    Path(model): Path<String>,
    wait: Waits,
    request: Request<Body>,
) -> Answered {
    let ModelRequest { worker, force } = body(&gateway, request).await?;
    if force {
        return Err(Failure::invalid("`force` means nothing for a load", "leave it out"));
    }
    change(&gateway, ChangeModels { change: Change::Load { model }, worker }, wait).await
}

/// `POST /internal/models/{name}/unload`
pub(crate) async fn unload(
    State(gateway): State<Arc<Gateway>>,
    Path(model): Path<String>,
    wait: Waits,
    request: Request<Body>,
) -> Answered {
    let ModelRequest { worker, force } = body(&gateway, request).await?;
    change(&gateway, ChangeModels { change: Change::Unload { model, force }, worker }, wait).await
}

/// `POST /internal/models/switch`
pub(crate) async fn switch(State(gateway): State<Arc<Gateway>>, wait: Waits, request: Request<Body>) -> Answered {
    let SwitchRequest { from, to, worker, force } = body(&gateway, request).await?;
    change(&gateway, ChangeModels { change: Change::Switch { from, to, force }, worker }, wait).await
}

/// `GET /internal/model-operations/{id}`
pub(crate) async fn operation(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answered {
    let workers = gateway.directory.workers_now().await?;
    let operation = find(&workers, &id).ok_or_else(|| {
        let detail = format!("no worker knows an operation {id}: it has gone, or was too long ago");
        Failure::new(404, "unknown_operation", detail, "see what there is: GET /internal/models")
    })?;
    Ok(Json(shown(operation, &workers)).into_response())
}

/// A request that waited in vain for a model says so, and what is loaded.
pub(crate) async fn explained(gateway: &Gateway, execution: &Execution, mut failure: Failure) -> Failure {
    let Some(model) = execution.asked_in_vain() else { return failure };
    // Who cannot be asked now says nothing about the model.
    let Ok(loaded) = gateway.directory.models().await else { return failure };
    if loaded.iter().any(|there| there.name == model) {
        return failure;
    }
    let loaded = names(loaded.iter().filter(|m| m.kind != "embedding").map(|m| m.name.as_str()));
    failure.0.detail = format!(
        "the deadline passed while the request waited for the model {model}, which no worker has loaded; loaded are: {loaded}"
    );
    failure.0.next_step = format!(
        "`vlinders models ls` says what is with it, `vlinders models load {model}` loads what lies in a worker's directories; or name one that is loaded"
    );
    failure
}

/// The body, which may be missing where every field may.
async fn body<T: serde::de::DeserializeOwned>(gateway: &Gateway, request: Request<Body>) -> Result<T, Failure> {
    let (_, bytes) = requests::body(gateway, request).await?;
    submission::read(if bytes.is_empty() { b"{}" } else { &bytes })
}

async fn change(gateway: &Arc<Gateway>, question: ChangeModels, wait: Waits) -> Answered {
    let Query(Wait { wait }) = wait.map_err(|e| Failure::invalid(e.body_text(), "send ?wait=true or leave it out"))?;
    let answer = gateway.runtime.bus.ask(subject::RPC_MODELS_CHANGE, &question, BEGIN_TIMEOUT).await;
    let begun: Vec<Operation> = match answer {
        Ok(Reply::Ok(operations)) => operations,
        Ok(Reply::Err(refusal)) => return Err(refused(refusal)),
        Err(bus::Error::NoResponders(_)) => {
            let detail = "no inference worker answers";
            return Err(Failure::new(503, "workers_absent", detail, "start one (`vlinders inference-worker`) or wait"));
        }
        Err(error) => return Err(error.into()),
    };
    gateway.directory.forget_models();
    if !wait {
        let workers = gateway.directory.workers_now().await?;
        let operations: Vec<Value> = begun.iter().map(|operation| shown(operation, &workers)).collect();
        return Ok((StatusCode::ACCEPTED, Json(json!({"operations": operations}))).into_response());
    }
    let ended = tokio::time::timeout(END_TIMEOUT, end(gateway, begun)).await.map_err(|_| {
        let detail = format!("it goes on after {} minutes", END_TIMEOUT.as_secs() / 60);
        Failure::new(504, "operation_running", detail, "see how far it is: GET /internal/models")
    })??;
    gateway.directory.forget_models();
    let reason = |operation: &Operation| match &operation.state {
        OperationState::Failed { reason } => Some(format!("{}: {reason}", operation.worker)),
        OperationState::Running | OperationState::Done => None,
    };
    let reasons: Vec<String> = ended.iter().filter_map(reason).collect();
    if !reasons.is_empty() {
        let change = &question.change;
        let detail = format!("{} {}: {}", change.verb(), change.model(), reasons.join("; "));
        return Err(Failure::new(409, "operation_failed", detail, "correct that and send it again"));
    }
    let workers = gateway.directory.workers_now().await?;
    let operations: Vec<Value> = ended.iter().map(|operation| shown(operation, &workers)).collect();
    Ok(Json(json!({"operations": operations})).into_response())
}

/// The operations when all of them have ended.
async fn end(gateway: &Gateway, mut operations: Vec<Operation>) -> Result<Vec<Operation>, Failure> {
    loop {
        if operations.iter().all(|operation| operation.state != OperationState::Running) {
            return Ok(operations);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let workers = gateway.directory.workers_now().await?;
        for operation in operations.iter_mut().filter(|operation| operation.state == OperationState::Running) {
            match find(&workers, &operation.id) {
                Some(now) => *operation = now.clone(),
                None if workers.iter().all(|worker| worker.id != operation.worker) => {
                    operation.state = OperationState::Failed { reason: "the worker has gone".to_owned() };
                }
                // Its entry is about to be renewed.
                None => {}
            }
        }
    }
}

fn refused(refusal: Refusal) -> Failure {
    let (status, next) = match refusal.code.as_str() {
        "unknown_model" => {
            (404, "put the model into a directory of `inference.models_dirs`, or name one that is there")
        }
        "unknown_worker" => (404, "leave `worker` out, or name one that is there"),
        "same_model" => (400, "name two models"),
        "not_loaded" => (409, "see what is loaded: GET /internal/models"),
        "no_room" => (409, "unload a model, or raise inference.memory_bytes_max"),
        "name_taken" => (409, "rename the directory or file of one of them"),
        "fixed_model" => (409, "start the worker without it"),
        "model_busy" => (409, "see how far it is (GET /internal/models), and send it again"),
        _ => (503, "send it again"),
    };
    Failure::new(status, &refusal.code, refusal.detail, next)
}

fn find<'a>(workers: &'a [Worker], id: &str) -> Option<&'a Operation> {
    let operations = workers.iter().filter_map(|worker| worker.inference.as_ref()).flat_map(|state| &state.operations);
    operations.into_iter().find(|operation| operation.id == id)
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { Vec::from_iter(names).join(", ") }
}

/// A loaded model, with the memory it takes and the workers that have it, where they say so.
fn loaded(model: &Model, workers: &[Worker]) -> Value {
    let mut shown = json!(model);
    let mut holders = Vec::new();
    for worker in workers {
        let known = worker.inference.iter().flat_map(|state| &state.models);
        let held = known.into_iter().find(|known| known.name == model.name && known.state == ModelState::Ready);
        if let Some(held) = held {
            holders.push(worker.id.as_str());
            shown["weights_bytes"] = json!(held.weights_bytes);
            shown["cache_bytes_max"] = json!(held.cache_bytes_max);
        }
    }
    if !holders.is_empty() {
        shown["workers"] = json!(holders);
    }
    shown
}

fn of_worker(worker: &Worker) -> Option<Value> {
    let state = worker.inference.as_ref()?;
    let models: Vec<Value> = state.models.iter().map(known).collect();
    let operations: Vec<Value> =
        state.operations.iter().map(|operation| shown(operation, std::slice::from_ref(worker))).collect();
    let memory = state.memory;
    Some(json!({
        "id": worker.id, "slots": worker.slots, "models": models, "operations": operations, "memory": memory,
        "gpus": state.gpus,
    }))
}

fn known(model: &KnownModel) -> Value {
    let mut shown = json!({
        "name": model.name, "kind": model.kind, "window": model.window, "state": model.state.name(),
        "weights_bytes": model.weights_bytes, "cache_bytes_max": model.cache_bytes_max,
    });
    if let Some(device) = &model.device {
        shown["device"] = json!(device);
    }
    match &model.state {
        ModelState::Loading { progress } => shown["progress"] = json!(progress),
        ModelState::Failed { reason } => shown["reason"] = json!(reason),
        ModelState::Known | ModelState::Ready | ModelState::Draining => {}
    }
    shown
}

/// An operation as people follow it: what it does, how far it is, and why it came to nothing.
fn shown(operation: &Operation, workers: &[Worker]) -> Value {
    let (verb, model) = (operation.change.verb(), operation.change.model());
    let mut shown = json!({
        "id": operation.id, "what": verb, "model": model, "worker": operation.worker,
        "started_at": rfc3339(operation.started_at), "ended_at": operation.ended_at.map(rfc3339),
    });
    if let Change::Switch { from, .. } = &operation.change {
        shown["from"] = json!(from);
    }
    shown["state"] = match &operation.state {
        OperationState::Done => json!("done"),
        OperationState::Failed { reason } => {
            shown["reason"] = json!(reason);
            json!("failed")
        }
        OperationState::Running => {
            let state = |name: &str| {
                let of_it = workers.iter().filter(|worker| worker.id == operation.worker);
                let mut known = of_it.filter_map(|worker| worker.inference.as_ref()).flat_map(|state| &state.models);
                known.find(|known| known.name == name).map(|known| &known.state)
            };
            let leaving = match &operation.change {
                Change::Switch { from, .. } => state(from) == Some(&ModelState::Draining),
                Change::Unload { .. } => true,
                Change::Load { .. } => false,
            };
            if let Some(ModelState::Loading { progress }) = state(model) {
                shown["progress"] = json!(progress);
            }
            json!(if leaving { "draining" } else { "loading" })
        }
    };
    shown
}

#[cfg(test)]
mod tests {
    use schemas::models::{HostMemory, InferenceState};

    use super::*;

    fn worker(id: &str, models: Vec<(&str, ModelState)>, operations: Vec<Operation>) -> Worker {
        let known = |(name, state): (&str, ModelState)| KnownModel {
            name: name.into(),
            kind: "chat".into(),
            window: 512,
            state,
            weights_bytes: 7,
            cache_bytes_max: 9,
            device: None,
        };
        let models = models.into_iter().map(known).collect();
        Worker {
            id: id.into(),
            role: "inference".into(),
            version: String::new(),
            slots: 1,
            models: vec![],
            tools: vec![],
            sandbox: None,
            refused: Vec::new(),
            vectors: None,
            cache: None,
            inference: Some(InferenceState { models, operations, memory: HostMemory::default(), gpus: vec![] }),
        }
    }

    #[test]
    fn a_model_says_where_it_lies_where_its_worker_does() {
        let told = |device: Option<&str>| {
            let mut worker = worker("w", vec![("a", ModelState::Ready)], vec![]);
            let state = worker.inference.as_mut().expect("it is an inference worker");
            state.models[0].device = device.map(str::to_owned);
            of_worker(&worker).expect("it describes its models")["models"][0]["device"].clone()
        };
        assert_eq!(told(Some("gpus 0,1")), json!("gpus 0,1"));
        assert_eq!(told(None), Value::Null);
    }

    #[test]
    fn an_operation_tells_how_far_it_is() {
        let change = Change::Switch { from: "a".into(), to: "b".into(), force: false };
        let state = OperationState::Running;
        let operation =
            Operation { id: "w.1".into(), worker: "w".into(), change, state, started_at: 0, ended_at: None };
        let while_in = |a, b| {
            let workers = [worker("w", vec![("a", a), ("b", b)], vec![operation.clone()])];
            let shown = shown(find(&workers, "w.1").expect("it is told"), &workers);
            (shown["state"].clone(), shown["progress"].clone())
        };
        let loading = while_in(ModelState::Ready, ModelState::Loading { progress: 0.5 });
        assert_eq!(loading, (json!("loading"), json!(0.5)));
        assert_eq!(while_in(ModelState::Draining, ModelState::Ready), (json!("draining"), Value::Null));
    }

    #[test]
    fn a_loaded_model_names_its_workers_and_one_nobody_describes_is_as_it_was() {
        let workers =
            [worker("w", vec![("a", ModelState::Ready)], vec![]), worker("v", vec![("a", ModelState::Known)], vec![])];
        let model = |name: &str| Model { name: name.into(), kind: "chat".into(), window: 512 };
        assert_eq!(
            loaded(&model("a"), &workers),
            json!({"name": "a", "kind": "chat", "window": 512, "weights_bytes": 7, "cache_bytes_max": 9, "workers": ["w"]})
        );
        assert_eq!(loaded(&model("b"), &workers), json!({"name": "b", "kind": "chat", "window": 512}));
    }
}
