//! What people tell an execution while it runs: pause, resume, cancel, a word about a call that waits for one, a message,
//! more of something limited. Each becomes a fact, if the execution can still make something of it.
//!
//! What is checked here is a courtesy: between the look and the append the execution may move on, and then the fact
//! changes nothing, because the orchestrator looks again.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use runtime::clock;
use schemas::api::{ApproveRequest, CancelRequest, GrantRequest, MessageRequest, PauseRequest, ResumeRequest};
use schemas::fact::{
    ApprovalDecided, BudgetGranted, CancelMode, CancelRequested, PauseRequested, ResumeRequested, UserMessage, Verdict,
};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Fact, FactBody};
use serde::de::DeserializeOwned;

use crate::problem::Failure;
use crate::service::{self, Gateway};
use crate::traced::Traced;
use crate::view::{Execution, rfc3339};
use crate::{objects, requests, submission};

/// Who speaks when nobody is named.
const GATEWAY: &str = "gateway";
/// What can be granted.
const DIMENSIONS: [&str; 6] = ["iterations", "tokens", "tokens_in", "tokens_out", "tool_calls", "children"];
/// More than this at once is a slip of the finger.
const GRANT_MAX: u64 = 1_000_000_000;
/// Longest id of a message: it becomes part of a header.
const MESSAGE_ID_MAX: usize = 128;

type Answered = Result<Response, Failure>;
/// What is to be told; none when it was told already.
type Told = Result<Option<FactBody>, Failure>;

pub(crate) async fn pause(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, |execution, said: PauseRequest, _| {
        going_on(execution)?;
        Ok(Some(FactBody::PauseRequested(PauseRequested { by: by(said.by), reason: said.reason })))
    })
    .await
}

pub(crate) async fn resume(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, |execution, said: ResumeRequest, _| resumed(execution, said)).await
}

pub(crate) async fn approve(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, approved).await
}

pub(crate) async fn messages(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, |execution, said: MessageRequest, _| said_to(execution, said)).await
}

pub(crate) async fn grant(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, |execution, said: GrantRequest, _| granted(execution, said)).await
}

pub(crate) async fn cancel(gateway: State<Arc<Gateway>>, id: Path<String>, request: Request<Body>) -> Answered {
    tell(gateway, id, request, |execution, said: CancelRequest, _| {
        let CancelRequest { mode, reason, by: who } = said;
        // What has ended is what the caller wants.
        let ended = execution.is_ended();
        Ok((!ended).then(|| FactBody::CancelRequested(CancelRequested { by: by(who), reason, mode })))
    })
    .await
}

/// Reads what is said, looks whether it still matters, and appends it. 202 with the view before it takes effect; 200
/// when there was nothing left to say.
async fn tell<T: DeserializeOwned>(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    request: Request<Body>,
    fact: impl FnOnce(&Execution, T, Nanos) -> Told,
) -> Answered {
    let traced = Traced::of(&request);
    let (headers, body) = requests::body(&gateway, request).await?;
    let exec = service::parse(&id)?;
    let said: T = submission::read(if body.is_empty() { b"{}" } else { &body })?;
    let execution = service::fold(&service::read(&gateway, exec).await?);
    let view = execution.view(exec).ok_or_else(|| Failure::no_execution(exec))?;
    match fact(&execution, said, clock::now()).map_err(|failure| failure.about(exec))? {
        None => Ok((StatusCode::OK, Json(view)).into_response()),
        Some(body) => {
            traced.began(exec);
            append(&gateway, &headers, exec, body).await.map_err(|failure| failure.about(exec))?;
            Ok((StatusCode::ACCEPTED, Json(view)).into_response())
        }
    }
}

async fn append(gateway: &Gateway, headers: &HeaderMap, exec: ExecutionId, mut body: FactBody) -> Result<(), Failure> {
    if let FactBody::UserMessage(said) = &mut body {
        said.object = objects::move_text_out(&gateway.runtime.bus, &mut said.text).await?;
    }
    let at_once = matches!(&body, FactBody::CancelRequested(c) if c.mode == CancelMode::Now);
    let mut fact = Fact::new(exec, clock::now(), body);
    fact.cause = requests::cause(headers);
    gateway.runtime.bus.append_fact(&fact).await?;
    if at_once {
        // The fact counts, the announcement makes it fast.
        gateway.runtime.bus.announce_cancel(exec).await?;
    }
    Ok(())
}

fn by(named: Option<String>) -> String {
    named.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| GATEWAY.to_owned())
}

fn conflict(code: &str, detail: impl Into<String>, next: impl Into<String>) -> Failure {
    Failure::new(409, code, detail, next)
}

/// Refuses to speak to what has ended or is about to.
fn going_on(execution: &Execution) -> Result<(), Failure> {
    if let Some(status) = execution.ended_as() {
        let detail = format!("the execution has ended: {status}");
        let next = "continue its conversation in a new request (`conversation_id`), or fork it";
        return Err(conflict("execution_ended", detail, next));
    }
    if execution.waiting().is_cancelling() {
        let detail = "the execution is being cancelled";
        return Err(conflict("execution_cancelling", detail, "fork it to go on from where it stands"));
    }
    Ok(())
}

fn resumed(execution: &Execution, said: ResumeRequest) -> Told {
    going_on(execution)?;
    let waiting = execution.waiting();
    if let Some(why) = waiting.limit_reached() {
        let next = "grant more: POST …/grant {\"dimension\": …, \"amount\": …}";
        return Err(conflict("limit_reached", format!("it waits for a limit to be raised: {why}"), next));
    }
    if !waiting.is_paused() {
        let detail = "the execution is not paused";
        return Err(conflict("not_paused", detail, "read `waiting_for` in GET /internal/executions/{id}"));
    }
    Ok(Some(FactBody::ResumeRequested(ResumeRequested { by: by(said.by) })))
}

fn approved(execution: &Execution, said: ApproveRequest, now: Nanos) -> Told {
    going_on(execution)?;
    let arguments = match (said.verdict, said.arguments) {
        (Verdict::Edit, Some(arguments)) if arguments.is_object() => Some(arguments.to_string()),
        (Verdict::Edit, _) => {
            let detail = "the verdict `edit` needs `arguments`, an object";
            return Err(Failure::invalid(detail, "send the arguments to use instead, all of them"));
        }
        (_, None) => None,
        (_, Some(_)) => {
            let detail = "`arguments` goes with the verdict `edit` only";
            return Err(Failure::invalid(detail, "leave it out, or send the verdict `edit`"));
        }
    };
    let waiting: Vec<_> = execution.waiting().approvals().collect();
    let Some((approval, word)) = waiting.iter().find(|(a, _)| a.effect == said.effect) else {
        let names: Vec<String> = waiting.iter().map(|(a, _)| format!("{} ({})", a.effect, a.name)).collect();
        let next = if names.is_empty() {
            "no call waits for one".to_owned()
        } else {
            format!("these do: {}", names.join(", "))
        };
        return Err(conflict("not_awaiting_approval", format!("{} does not wait for approval", said.effect), next));
    };
    if let Some(word) = word {
        let detail = format!("{} said {} about {} already", word.by, spoken(word.verdict), said.effect);
        return Err(conflict("approval_decided", detail, "the first word counts; cancel the execution if it is wrong"));
    }
    if approval.expires <= now {
        let detail = format!("the wait for {} was over at {}", said.effect, rfc3339(approval.expires));
        return Err(conflict("approval_expired", detail, "it counts as denied; the model may ask for the call again"));
    }
    let (approval, by) = (said.effect, by(said.by));
    let decided = ApprovalDecided { approval, by, verdict: said.verdict, arguments, reason: said.reason };
    Ok(Some(FactBody::ApprovalDecided(decided)))
}

const fn spoken(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Edit => "edit",
    }
}

fn said_to(execution: &Execution, said: MessageRequest) -> Told {
    if said.text.trim().is_empty() {
        return Err(Failure::invalid("`text` is empty", "say something"));
    }
    let id = said.id.unwrap_or_else(clock::process_token);
    if id.is_empty() || id.len() > MESSAGE_ID_MAX || !id.bytes().all(|b| b.is_ascii_graphic()) {
        let detail = format!("`id` is not 1 to {MESSAGE_ID_MAX} visible ASCII characters");
        return Err(Failure::invalid(detail, "shorten it, or leave it out"));
    }
    match execution.waiting().said(&id) {
        Some(known) if known.says(&said.text) => return Ok(None),
        Some(_) => {
            let detail = format!("a message of the id {id:?} was said already, and it was another one");
            return Err(conflict("message_id_taken", detail, "give each message an id of its own"));
        }
        None => {}
    }
    going_on(execution)?;
    if let Some(why) = execution.waiting().is_deaf() {
        let next = "grant iterations (POST …/grant), or continue the conversation afterwards with `conversation_id`";
        return Err(conflict("nobody_reads_it", format!("no inference will read it: {why}"), next));
    }
    Ok(Some(FactBody::UserMessage(UserMessage { object: None, id, by: said.by, text: said.text })))
}

fn granted(execution: &Execution, said: GrantRequest) -> Told {
    let GrantRequest { dimension, amount, by: who } = said;
    if !DIMENSIONS.contains(&dimension.as_str()) {
        let detail = format!("`dimension` {dimension:?} is nothing that can be granted");
        return Err(Failure::invalid(detail, format!("name one of: {}", DIMENSIONS.join(", "))));
    }
    if !(1..=GRANT_MAX).contains(&amount) {
        let detail = format!("`amount` is {amount}");
        return Err(Failure::invalid(detail, format!("grant 1 to {GRANT_MAX}")));
    }
    going_on(execution)?;
    let limits = execution.waiting().limits();
    let unlimited = match dimension.as_str() {
        "tokens_in" => limits.tokens_in.is_none(),
        "tokens_out" => limits.tokens_out.is_none(),
        _ => false,
    };
    if unlimited {
        let next = "grant `tokens`, or nothing";
        return Err(conflict("no_such_limit", format!("the execution has no limit of {dimension}"), next));
    }
    Ok(Some(FactBody::BudgetGranted(BudgetGranted { by: by(who), dimension, amount })))
}

#[cfg(test)]
mod tests;
