//! Forks: a new execution that begins where another one stood after one of its messages.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use runtime::{bus, clock};
use schemas::api::ForkRequest;
use schemas::fact::ExecutionSubmitted;
use schemas::rpc::{Fork, Forked, Model, Refusal, Reply};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Fact, FactBody, Message, Role, subject};

use crate::problem::Failure;
use crate::service::{self, Gateway};
use crate::traced::Traced;
use crate::view::{Entry, Execution};
use crate::{objects, requests, submission};

/// How long the orchestrator may take to fold an execution.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `POST /internal/executions/{id}/fork`: 202 with the view of the new execution.
pub(crate) async fn fork(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let traced = Traced::of(&request);
    let (_, body) = requests::body(&gateway, request).await?;
    let from = service::parse(&id)?;
    let wanted: ForkRequest = submission::read(&body)?;
    let at = wanted.at;
    let question = Fork { exec: from, at };
    let forked = match gateway.runtime.bus.ask(subject::RPC_FORK, &question, TIMEOUT).await {
        Ok(Reply::Ok(forked)) => forked,
        Ok(Reply::Err(refusal)) => return Err(refused(refusal).about(from)),
        Err(bus::Error::NoResponders(_)) => {
            let detail = "no orchestrator answers, which knows what the execution had read";
            return Err(Failure::new(503, "orchestrator_absent", detail, "start one: `vlinders orchestrator`"));
        }
        Err(error) => return Err(error.into()),
    };
    let models = gateway.directory.models().await?;
    let loadable = gateway.directory.loadable(&models).await;
    let now = clock::now();
    let mut submitted = submitted(forked, wanted, &models, &loadable, now).map_err(|failure| failure.about(from))?;
    objects::move_out(&gateway.runtime.bus, &mut submitted.messages).await?;
    let exec = clock::execution_id();
    let mut fact = Fact::new(exec, now, FactBody::ExecutionSubmitted(Box::new(submitted)));
    fact.cause = Some(format!("fork of {from} after message {at}"));
    traced.began(exec);
    fact.trace = traced.carrier();
    gateway.runtime.bus.append_fact(&fact).await?;
    answer(exec, fact)
}

fn answer(exec: ExecutionId, fact: Fact) -> Result<Response, Failure> {
    let mut execution = Execution::default();
    execution.apply(&Entry::Fact(Box::new(fact)));
    let view = execution.view(exec).ok_or_else(|| Failure::no_execution(exec))?;
    Ok((StatusCode::ACCEPTED, [("x-execution-id", exec.to_string())], Json(view)).into_response())
}

fn refused(refusal: Refusal) -> Failure {
    let (status, next) = match refusal.code.as_str() {
        "unknown_execution" => (404, "check the id"),
        "out_of_range" => (400, "see the numbers (`n`) in GET /internal/executions/{id}/events"),
        "no_context" => (409, "POST /internal/tools/execute"),
        _ => (503, "send it again"),
    };
    Failure::new(status, &refusal.code, refusal.detail, next)
}

/// The new request: the old one's context and limits, from now on, with another model or something more to say.
fn submitted(
    forked: Forked,
    wanted: ForkRequest,
    models: &[Model],
    loadable: &[Model],
    now: Nanos,
) -> Result<ExecutionSubmitted, Failure> {
    let mut request = forked.request;
    match wanted.message {
        Some(text) if text.trim().is_empty() => {
            return Err(Failure::invalid("`message` is empty", "say something, or leave it out"));
        }
        Some(text) => request.messages.push(Message::text(Role::User, text)),
        None if request.messages.last().is_some_and(|m| m.role == Role::Assistant) => {
            let detail = format!("after message {} the model had answered: there is nothing to answer", wanted.at);
            return Err(Failure::invalid(detail, "say more with `message`, or fork at an earlier message"));
        }
        None => {}
    }
    if let Some(name) = wanted.model {
        let model = submission::models::find(&name, models, loadable)?;
        (request.model, request.window) = (model.name.clone(), model.window);
    }
    request.limits.deadline = submission::after(now, forked.duration_ms);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use schemas::fact::{Kind, Limits};
    use serde_json::json;

    use super::*;

    fn fork_with(last: Role, body: serde_json::Value) -> Result<ExecutionSubmitted, Failure> {
        let request = ExecutionSubmitted {
            model: "tiny".into(),
            messages: vec![Message::text(Role::User, "hi"), Message::text(last, "x")],
            ..ExecutionSubmitted::new(Kind::Chat, "chat", Limits::default())
        };
        let models = [Model { name: "large".into(), kind: "chat".into(), window: 9 }];
        let wanted = serde_json::from_value(body).expect("well formed");
        submitted(Forked { request, duration_ms: 2 }, wanted, &models, &[], 5)
    }

    #[test]
    fn a_fork_goes_on_with_another_model_and_more_to_say() {
        let fork = fork_with(Role::Assistant, json!({"at": 3, "model": "large", "message": "more"})).expect("valid");
        assert_eq!((fork.model.as_str(), fork.window, fork.limits.deadline), ("large", 9, 2_000_005));
        assert_eq!(fork.messages[2], Message::text(Role::User, "more"));
        assert!(fork_with(Role::Tool, json!({"at": 3})).is_ok());
    }

    #[test]
    fn what_cannot_be_forked_is_said() {
        let code = |last, body| fork_with(last, body).map_err(|f| (f.0.status, f.0.code)).expect_err("refused");
        assert_eq!(code(Role::Assistant, json!({"at": 3})), (400, "invalid_request".into()));
        assert_eq!(code(Role::User, json!({"at": 3, "message": " "})), (400, "invalid_request".into()));
        assert_eq!(code(Role::User, json!({"at": 3, "model": "lagre"})), (404, "unknown_model".into()));
    }
}
