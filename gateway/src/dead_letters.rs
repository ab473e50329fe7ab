//! Dead letters at the edge: lists them, shows one, sends its message again, removes it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use runtime::bus::{KeptLetter, LetterError};
use schemas::api::RedriveRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::service::Gateway;
use crate::view::rfc3339;
use crate::{requests, submission};

type Answered = Result<Response, Failure>;

/// Letters that one listing shows unless it asks for fewer.
const LIMIT: usize = 100;
/// Letters that one listing may ask for.
const LIMIT_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only letters behind this `position`.
    #[serde(default)]
    after: u64,
    #[serde(default)]
    limit: Option<usize>,
    /// Also those that were settled.
    #[serde(default)]
    settled: bool,
}

/// The letters that wait, oldest first, and how many there are.
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answered {
    let Query(query) = query.map_err(|e| {
        Failure::invalid(e.body_text(), "send ?after=POSITION, limit=N (1 to 1000), settled=true or false")
    })?;
    let limit = query.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Failure::invalid(format!("`limit` is {limit}"), format!("send 1 to {LIMIT_MAX}")));
    }
    let bus = &gateway.runtime.bus;
    let (waiting, letters) =
        tokio::try_join!(bus.dead_letters_waiting(), bus.dead_letters(query.after, limit, query.settled))?;
    let letters: Vec<Value> = letters.iter().map(shown).collect();
    Ok(Json(json!({"waiting": waiting, "dead_letters": letters})).into_response())
}

/// One letter with its message.
pub(crate) async fn show(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answered {
    let found = gateway.runtime.bus.dead_letter(&id).await?;
    let kept = found.ok_or_else(|| Failure::from(LetterError::Unknown(id)))?;
    let mut letter = shown(&kept);
    letter["headers"] = json!(kept.letter.headers);
    if let Some(payload) = &kept.letter.payload {
        // Whoever reads it wants to see what it says; whoever repairs it needs the bytes.
        letter["message"] = schemas::wire::decode(payload).ok().filter(Value::is_object).unwrap_or(Value::Null);
        letter["payload_hex"] = json!(hex::encode(payload));
    }
    Ok(Json(letter).into_response())
}

/// Publishes the message again; the letter is settled once the server has it.
pub(crate) async fn redrive(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    request: Request<Body>,
) -> Answered {
    let (_, body) = requests::body(&gateway, request).await?;
    let request = if body.is_empty() { RedriveRequest::default() } else { submission::read(&body)? };
    let by = request.by.as_deref().unwrap_or("gateway");
    Ok(Json(shown(&gateway.runtime.bus.redrive(&id, request.force, by).await?)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveQuery {
    #[serde(default)]
    by: Option<String>,
}

/// Removes the copy of the message; what remains says who removed it.
pub(crate) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Answered {
    let Query(query) = query.map_err(|e| Failure::invalid(e.body_text(), "send ?by=NAME, or nothing"))?;
    let by = query.by.as_deref().unwrap_or("gateway");
    Ok(Json(shown(&gateway.runtime.bus.remove_dead_letter(&id, by).await?)).into_response())
}

impl From<LetterError> for Failure {
    fn from(error: LetterError) -> Self {
        let detail = error.to_string();
        match error {
            LetterError::Unknown(_) => {
                Self::new(404, "unknown_dead_letter", detail, "GET /internal/dead-letters lists them")
            }
            LetterError::Settled { .. } => {
                Self::new(409, "dead_letter_settled", detail, "nothing is left to do about it")
            }
            LetterError::StillDead { .. } => {
                let next = "remove the cause first, or redrive it with `force`";
                Self::new(409, "still_dead", detail, next)
            }
            LetterError::Never { .. } => Self::new(409, "not_redrivable", detail, "remove the letter"),
            LetterError::Bus(error) => Self::from(error),
        }
    }
}

/// A letter without its message.
fn shown(kept: &KeptLetter) -> Value {
    let letter = &kept.letter;
    let mut shown = json!({
        "id": letter.id(), "position": kept.sequence, "reason": letter.reason, "detail": letter.detail,
        "next_step": letter.next_step, "stream": letter.stream, "sequence": letter.sequence,
        "subject": letter.subject, "execution_id": letter.exec, "stored_at": rfc3339(letter.stored_at),
        "at": rfc3339(letter.at), "by": letter.by, "bytes": letter.payload.as_ref().map(Vec::len),
    });
    if let Some(settled) = &letter.settled {
        shown["settled"] = json!({
            "how": settled.how, "at": rfc3339(settled.at), "by": settled.by, "sequence": settled.sequence,
        });
    }
    shown
}
