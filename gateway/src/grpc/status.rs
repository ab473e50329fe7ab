//! Problems as gRPC tells them: a canonical code, what happened, and in the details the code, the next step and the
//! execution.

use std::time::Duration;

use schemas::api::Problem;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::problem::Failure;

/// Whose codes they are.
const DOMAIN: &str = "vlinders";
/// After this long it is worth asking again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<Failure> for Status {
    fn from(Failure(problem): Failure) -> Self {
        let code = code(&problem);
        let id = problem.execution_id.map(|exec| exec.to_string());
        let about =
            [("code", Some(&problem.code)), ("next_step", Some(&problem.next_step)), ("execution_id", id.as_ref())];
        let about = about.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
        #[expect(clippy::disallowed_types, reason = "the type of tonic; nothing is decided by its order")]
        let about: std::collections::HashMap<String, String> = about.collect();
        let mut details = ErrorDetails::with_error_info(problem.code.to_ascii_uppercase(), DOMAIN, about);
        if matches!(problem.status, 429 | 503) {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        let mut metadata = MetadataMap::new();
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            metadata.insert("x-execution-id", id);
        }
        Self::with_error_details_and_metadata(code, problem.detail.clone(), details, metadata)
    }
}

/// The canonical code that is nearest to a problem's status in HTTP.
fn code(problem: &Problem) -> Code {
    match (problem.status, problem.code.as_str()) {
        (403, "forbidden") => Code::Unauthenticated,
        (403, _) => Code::PermissionDenied,
        (409, "cancelled") => Code::Cancelled,
        (409, "idempotency_key_reused") => Code::AlreadyExists,
        // It fits no window, however often it is sent.
        (413, "overflow") | (400, _) => Code::InvalidArgument,
        (404, _) => Code::NotFound,
        (409 | 422, _) => Code::FailedPrecondition,
        (413 | 429 | 507, _) => Code::ResourceExhausted,
        (503, _) => Code::Unavailable,
        (504, _) => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_code_its_next_step_and_its_execution() {
        let exec: schemas::ExecutionId = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical");
        let status = Status::from(Failure::new(503, "workers_absent", "nobody is there", "start one").about(exec));
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "nobody is there"));
        let details = status.get_error_details();
        let info = details.error_info().expect("it says what");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("WORKERS_ABSENT", "vlinders"));
        assert_eq!(
            (info.metadata["code"].as_str(), info.metadata["next_step"].as_str()),
            ("workers_absent", "start one")
        );
        assert_eq!(info.metadata["execution_id"], exec.to_string());
        assert_eq!(details.retry_info().and_then(|retry| retry.retry_delay), Some(RETRY_AFTER));
        assert_eq!(status.metadata().get("x-execution-id").expect("it is named"), &exec.to_string());
    }

    #[test]
    fn who_should_not_ask_again_is_not_told_to() {
        let of = |status, code: &str| Status::from(Failure::new(status, code, "", ""));
        assert_eq!(of(413, "overflow").code(), Code::InvalidArgument);
        assert_eq!(of(413, "body_too_large").code(), Code::ResourceExhausted);
        assert_eq!(of(504, "deadline").code(), Code::DeadlineExceeded);
        assert_eq!(of(403, "forbidden").code(), Code::Unauthenticated);
        assert_eq!(of(409, "idempotency_key_reused").code(), Code::AlreadyExists);
        assert_eq!(of(409, "finished").code(), Code::FailedPrecondition);
        assert!(of(400, "invalid_request").get_error_details().retry_info().is_none());
    }
}
