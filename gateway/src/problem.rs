//! Errors as problem documents: a stable code, what happened, and what to do next.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use runtime::bus;
use schemas::ExecutionId;
use schemas::api::Problem;

/// JetStream's code for a message that its stream does not take.
const MESSAGE_TOO_LARGE: u64 = 10054;
/// Seconds after which it is worth asking again, where nothing better is known.
const RETRY_AFTER_S: u64 = 1;

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

impl Failure {
    pub(crate) fn new(status: u16, code: &str, detail: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self(Box::new(Problem {
            kind: format!("urn:vlinders:problem:{code}"),
            title: code.replace('_', " "),
            status,
            code: code.to_owned(),
            detail: detail.into(),
            next_step: next_step.into(),
            execution_id: None,
            retry_after_s: None,
        }))
    }

    pub(crate) fn invalid(detail: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(400, "invalid_request", detail, next_step)
    }

    /// Nothing has that name: says which names come near, and all there are.
    pub(crate) fn unknown(what: &str, name: &str, known: &[String]) -> Self {
        let near = nearest(name, known);
        let meant = if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) };
        let all = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let code = format!("unknown_{}", what.replace(' ', "_"));
        Self::new(404, &code, format!("there is no {what} {name:?}"), format!("{meant}there are: {all}"))
    }

    pub(crate) fn no_execution(exec: ExecutionId) -> Self {
        Self::new(404, "unknown_execution", format!("there is no execution {exec}"), "check the id")
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn about(mut self, exec: ExecutionId) -> Self {
        self.0.execution_id = Some(exec);
        self
    }
}

impl From<bus::Error> for Failure {
    fn from(error: bus::Error) -> Self {
        let detail = error.to_string();
        match error {
            bus::Error::Full(_) => {
                Self::new(507, "log_full", detail, "free disk space where NATS keeps its data, then send it again")
            }
            // A server whose disk was full does not answer for the stream that met it, until it is started anew.
            bus::Error::Timeout(_) | bus::Error::NoResponders(_) => {
                let next = "look into the log of nats-server: where its disk was full, free disk space and restart it; then send the request again";
                Self::new(503, "log_unavailable", detail, next)
            }
            bus::Error::Refused { code: MESSAGE_TOO_LARGE, .. } => {
                let next = "send shorter arguments, or fewer tools and messages: only long texts of messages are kept beside the log";
                Self::new(413, "request_too_large", detail, next)
            }
            bus::Error::Broken(_) if detail.contains("payload") => {
                Self::new(413, "request_too_large", detail, "send less, or raise max_payload of the NATS server")
            }
            _ => Self::new(503, "log_unavailable", detail, "check that nats-server runs, then send it again"),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&*self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.0.status, 429 | 503) {
            headers.insert(header::RETRY_AFTER, self.0.retry_after_s.unwrap_or(RETRY_AFTER_S).into());
        }
        if let Some(id) = self.0.execution_id.and_then(|e| HeaderValue::from_str(&e.to_string()).ok()) {
            headers.insert("x-execution-id", id);
        }
        response
    }
}

/// Up to three names that may have been meant, nearest first.
fn nearest(name: &str, known: &[String]) -> Vec<String> {
    let mut near: Vec<(usize, &String)> = known.iter().map(|k| (strsim::damerau_levenshtein(name, k), k)).collect();
    near.retain(|(distance, k)| *distance <= 1 + k.len() / 3);
    near.sort();
    near.into_iter().take(3).map(|(_, k)| k.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_and_all() {
        let known = ["coder".to_owned(), "researcher".to_owned()];
        let problem = Failure::unknown("agent", "codr", &known).0;
        assert_eq!((problem.status, problem.code.as_str()), (404, "unknown_agent"));
        assert_eq!(problem.next_step, "did you mean coder? there are: coder, researcher");
    }

    #[test]
    fn a_full_log_and_an_absent_one_differ() {
        assert_eq!(Failure::from(bus::Error::Full("x".into())).0.status, 507);
        assert_eq!(Failure::from(bus::Error::NoResponders("x".into())).into_response().headers()["retry-after"], "1");
    }
}
