//! An execution as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use runtime::{bus, clock};
use schemas::ExecutionId;
use schemas::chat::TokenLogprob;
use serde_json::{Value, json};

use crate::admission::Admitted;
use crate::follow::Follow;
use crate::metrics::Metrics;
use crate::models;
use crate::problem::Failure;
use crate::requests::{self, CancelOnDrop, GRACE};
use crate::service::Gateway;
use crate::traced::Traced;
use crate::transcript::Update;
use crate::view::rfc3339;

/// A stream under way: dropped with the client's connection, and with it its subscriptions.
pub(crate) struct Streamed {
    pub(crate) exec: ExecutionId,
    pub(crate) follow: Follow,
    pub(crate) cancel: Option<CancelOnDrop>,
    /// When the request came and where to count its first token; none for a stream taken up later.
    pub(crate) first_token: Option<(Instant, Metrics)>,
    pub(crate) gateway: Arc<Gateway>,
    /// Counts it among the open requests while it lives.
    pub(crate) _permit: Option<Admitted>,
    /// Its span ends with it.
    pub(crate) traced: Option<Arc<Traced>>,
}

impl Streamed {
    /// What happens next.
    pub(crate) async fn update(&mut self) -> Result<Option<Update>, bus::Error> {
        match self.traced.clone() {
            Some(traced) => traced.within(self.follow.next()).await,
            None => self.follow.next().await,
        }
    }

    /// A token goes to the client.
    pub(crate) fn sent_token(&mut self) {
        if let Some((since, metrics)) = self.first_token.take() {
            metrics.first_token(clock::instant().duration_since(since));
        }
    }

    /// The client has all of it: nothing is left to cancel.
    pub(crate) fn disarm(&mut self) {
        if let Some(cancel) = &mut self.cancel {
            cancel.disarm();
        }
    }
}

/// Sends each update as soon as it exists.
pub(crate) fn respond(streamed: Streamed, keep_alive: Duration) -> Response {
    let exec = streamed.exec;
    let stream = events(streamed);
    let sse = Sse::new(stream).keep_alive(KeepAlive::new().interval(keep_alive));
    let headers = [("x-execution-id", exec.to_string()), ("x-accel-buffering", "no".to_owned())];
    (headers, sse).into_response()
}

fn events(streamed: Streamed) -> impl Stream<Item = Result<Event, Infallible>> {
    enum At {
        Start(Box<Streamed>),
        Middle(Box<Streamed>),
        End,
    }
    futures::stream::unfold(At::Start(Box::new(streamed)), |at| async move {
        match at {
            At::Start(s) => {
                let started = event("started", None, &json!({"execution_id": s.exec}));
                Some((Ok(started), At::Middle(s)))
            }
            At::Middle(mut s) => match next(&mut s).await {
                Ok(Some(Update::Ended)) => {
                    s.disarm();
                    Some((Ok(last(&s).await), At::End))
                }
                Ok(Some(update)) => {
                    if matches!(update, Update::Token { .. }) {
                        s.sent_token();
                    }
                    Some((Ok(shown(&update)), At::Middle(s)))
                }
                Ok(None) => None,
                Err(failure) => Some((Ok(event("error", None, &json!(failure.about(s.exec).0))), At::End)),
            },
            At::End => None,
        }
    })
}

/// What comes next, waited for until the execution must have ended.
pub(crate) async fn next(streamed: &mut Streamed) -> Result<Option<Update>, Failure> {
    let Some(deadline) = streamed.follow.execution.deadline() else {
        return Ok(streamed.update().await?);
    };
    match tokio::time::timeout(clock::until(deadline) + GRACE, streamed.update()).await {
        Ok(update) => Ok(update?),
        Err(_) => Err(requests::not_ended(streamed.exec)),
    }
}

async fn last(streamed: &Streamed) -> Event {
    let execution = &streamed.follow.execution;
    match execution.any_answer(streamed.exec) {
        Ok(answer) => event("done", None, &answer),
        Err(failure) => {
            let failure = models::explained(&streamed.gateway, execution, failure).await;
            event("error", None, &json!(failure.0))
        }
    }
}

fn shown(update: &Update) -> Event {
    match update {
        Update::Token { id, text, logprobs } => event("token", Some(id), &words(text, logprobs)),
        Update::Restart { id, text, logprobs } => event("restart", Some(id), &words(text, logprobs)),
        Update::ToolCall(call) => {
            let data = json!({"call_id": call.call_id, "name": call.name, "arguments": call.arguments});
            event("tool_call", None, &data)
        }
        Update::Approval(asked) => {
            let (effect, expires) = (&asked.effect, rfc3339(asked.expires));
            let data = json!({"effect": effect, "name": asked.name, "arguments": asked.arguments, "expires": expires});
            event("approval", None, &data)
        }
        Update::ToolResult(call) => {
            let data = json!({"call_id": call.call_id, "success": call.success, "result": call.result});
            event("tool_result", None, &data)
        }
        Update::Ended => event("done", None, &Value::Null),
    }
}

fn words(text: &str, logprobs: &[TokenLogprob]) -> Value {
    let mut data = json!({"text": text});
    if !logprobs.is_empty() {
        data["logprobs"] = json!({"content": logprobs});
    }
    data
}

/// One event. JSON is written on one line, as the format wants it.
pub(crate) fn event(name: &str, id: Option<&str>, data: &Value) -> Event {
    let event = Event::default().event(name).data(data.to_string());
    match id {
        Some(id) => event.id(id),
        None => event,
    }
}
