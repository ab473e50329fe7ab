//! OpenAI's API over the same pipeline, so that every client of it works unchanged: what comes and goes is in OpenAI's
//! shape, what happens in between is an ordinary execution, which `X-Execution-Id` names.

mod answer;
mod request;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Request, header};
use axum::middleware::Next;
use axum::response::{AppendHeaders, IntoResponse, Response};
use schemas::api::{EmbeddingsRequest, OneOrMany};
use serde_json::json;

use self::answer::Head;
pub(crate) use self::request::{ChatCompletion, Embeddings};
use crate::models;
use crate::problem::Failure;
use crate::requests::{self, Arrival};
use crate::service::Gateway;
use crate::submission;

/// Where this API lies.
pub(crate) const PREFIX: &str = "/v1/";

/// A refused or failed request, answered as OpenAI's API would.
pub(crate) struct Refused(pub(crate) Failure);

type Answered = Result<Response, Refused>;

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = error(&self.0);
        // Status, `Retry-After` and the execution's id are those of the problem document.
        let mut response = self.0.into_response();
        *response.body_mut() = Body::from(body.to_string());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response
    }
}

/// The error object: the parameter is what the text begins with in backticks.
fn error(Failure(problem): &Failure) -> serde_json::Value {
    let param = problem.detail.strip_prefix('`').and_then(|rest| rest.split_once('`')).map(|(param, _)| param);
    let kind = match problem.status {
        429 => "rate_limit_error",
        status if status < 500 => "invalid_request_error",
        _ => "server_error",
    };
    let code = if problem.code == "unknown_model" { "model_not_found" } else { &problem.code };
    let message = format!("{}: {}", problem.detail, problem.next_step);
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

/// The server's secret as bearer key, or in the header of the other endpoints.
pub(crate) async fn authorise(State(gateway): State<Arc<Gateway>>, request: Request<Body>, next: Next) -> Response {
    let bearer = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
    let (scheme, key) = bearer.split_at_checked(7).unwrap_or_default();
    let bearer_fits = scheme.eq_ignore_ascii_case(b"bearer ") && gateway.secrets.hold(key);
    if bearer_fits || gateway.knows(&request) {
        return next.run(request).await;
    }
    let next = "send the secret of this server as API key (`Authorization: Bearer …`)";
    Refused(Failure::new(401, "invalid_api_key", "the API key is missing or wrong", next)).into_response()
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat_completions(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let arrival = Arrival::read(&gateway, request).await?;
    let (chat, wanted) = submission::read::<ChatCompletion>(&arrival.body)?.into_chat()?;
    // The conversation is the caller's: nothing is said that it does not say.
    let submitted = requests::chat_submission(&gateway, chat, Some("")).await?;
    let model = submitted.model.clone();
    let mut begun = requests::begin(&gateway, &arrival, submitted, wanted.stream).await?;
    let head = Head { exec: begun.exec, created: begun.exec.made_at(), model };
    let replayed = begun.again.then_some([(requests::REPLAYED, "true")]);
    if wanted.stream {
        let response = stream::respond(head, begun.streamed(&gateway), wanted.usage);
        return Ok((replayed.map(AppendHeaders), response).into_response());
    }
    begun.end().await?;
    let execution = &begun.follow.execution;
    let answer = match execution.answer(begun.exec) {
        Ok(answer) => answer,
        Err(failure) => return Err(models::explained(&gateway, execution, failure).await.into()),
    };
    let named = [("x-execution-id", begun.exec.to_string())];
    Ok((replayed.map(AppendHeaders), named, Json(head.completion(&answer))).into_response())
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (_, body) = requests::body(&gateway, request).await?;
    let request: Embeddings = submission::read(&body)?;
    let (texts, base64) = request.texts()?;
    let answer = requests::embed(&gateway, EmbeddingsRequest { model: request.model, input: OneOrMany(texts) }).await?;
    if let Some(wanted) = request.dimensions.filter(|wanted| *wanted != answer.dimensions as u64) {
        let detail = format!("`dimensions` is {wanted}; the vectors of {} have {}", answer.model, answer.dimensions);
        return Err(Failure::invalid(detail, "leave it out, or name another model").into());
    }
    if let Some(first) = answer.truncated.first() {
        let detail = format!("`input[{first}]` is longer than the window of {}", answer.model);
        return Err(Failure::new(400, "context_length_exceeded", detail, "send shorter texts").into());
    }
    Ok(Json(answer::embeddings(&answer, base64)).into_response())
}

/// `GET /v1/models`
pub(crate) async fn models(State(gateway): State<Arc<Gateway>>) -> Answered {
    let models = gateway.directory.models().await?;
    let data: Vec<_> = models.iter().map(answer::model).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// `GET /v1/models/{id}`
pub(crate) async fn model(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answered {
    let models = gateway.directory.models().await?;
    let found = models.iter().find(|model| model.name == id);
    let known = || models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    let found = found.ok_or_else(|| Failure::unknown("model", &id, &known()))?;
    Ok(Json(answer::model(found)).into_response())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn errors_have_openais_shape_and_keep_their_headers() {
        let failure = Failure::invalid("`temperature` is 11; it must be 0 to 10", "correct it");
        let shown = error(&failure);
        assert_eq!(shown["error"]["param"], "temperature");
        assert_eq!(shown["error"]["type"], "invalid_request_error");
        assert_eq!(error(&Failure::unknown("model", "x", &[]))["error"]["code"], "model_not_found");

        let full = Refused(Failure::new(429, "queue_full", "full", "wait")).into_response();
        assert_eq!(
            (full.status(), &full.headers()["retry-after"]),
            (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
        );
        let body = axum::body::to_bytes(full.into_body(), 4_096).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "rate_limit_error");
    }
}
