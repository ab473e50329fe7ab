//! What a server's refusal means: whose fault it is, whether asking again helps, and its own words about it.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde_json::Value;

use crate::engine::Rejection;

/// The longest that a server can make us wait before we ask again.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Characters of a server's words that are passed on.
const WORDS_MAX: usize = 600;

/// What servers say when prompt and answer do not fit the window, in lower case.
const TOO_LONG: [&str; 9] = [
    "context length",
    "context size",
    "context window",
    "context_length_exceeded",
    "maximum context",
    "max_model_len",
    "must have less than",
    "max_new_tokens` must be <=",
    "prompt is too long",
];

/// An answer that is none.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Asking again may help, after this time if the server names one.
    Busy { why: String, after: Option<Duration> },
    /// Prompt and answer together do not fit the window.
    TooLong(String),
    /// It stays as it is.
    Final(Rejection),
}

/// Reads a refusal of the model called `name` here. `text` is the beginning of its body.
pub(super) fn read(name: &str, status: StatusCode, headers: &HeaderMap, text: &str) -> Refusal {
    let said = said(text);
    let why = format!("the server answered {status}: {said}");
    match status.as_u16() {
        401 | 403 => {
            Refusal::Final(Rejection::Refused(format!("{why}; check inference.remote.{name}.api_key or api_key_file")))
        }
        404 | 405 => Refusal::Final(Rejection::Unusable(format!(
            "{why}; check inference.remote.{name}.url (it ends in /v1) and model"
        ))),
        408 | 425 | 429 | 502 | 503 | 504 | 529 => Refusal::Busy { why, after: wait(headers) },
        413 => Refusal::TooLong(why),
        400..=499 if is_too_long(text) => Refusal::TooLong(why),
        400..=499 => Refusal::Final(Rejection::Unusable(why)),
        300..=399 => Refusal::Final(Rejection::Unusable(format!(
            "{why}; it wants to be asked elsewhere: check inference.remote.{name}.url"
        ))),
        // llama.cpp once said so with 500.
        _ if is_too_long(text) => Refusal::TooLong(why),
        _ => Refusal::Final(Rejection::Broken(why)),
    }
}

/// The server's words in what it answered: an error object's message, a short text, or that it was none of these.
pub(super) fn said(text: &str) -> String {
    let words = match serde_json::from_str::<Value>(text) {
        Ok(value) => words(&value).unwrap_or_else(|| value.to_string()),
        Err(_) if text.trim().is_empty() => "nothing more".to_owned(),
        Err(_) if text.trim_start().starts_with('<') => {
            format!("a page for people and no API ({})", title(text).unwrap_or("without a title"))
        }
        Err(_) => text.trim().to_owned(),
    };
    match words.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

/// The message of an error object, wherever a server puts it.
pub(super) fn words(error: &Value) -> Option<String> {
    ["/error/message", "/message", "/error", "/detail", "/detail/0/msg"]
        .iter()
        .filter_map(|place| error.pointer(place))
        .chain([error])
        .find_map(Value::as_str)
        .map(str::to_owned)
}

fn title(page: &str) -> Option<&str> {
    let from = page.find("<title>")? + "<title>".len();
    let to = page[from..].find('<')?;
    Some(page[from..from + to].trim())
}

fn is_too_long(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("exceed_context_size_error") || TOO_LONG.iter().any(|said| text.contains(said))
}

/// The time that a server names, in seconds. A date is as good as no time: clocks differ.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(|wait| wait.min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, text: &str) -> Refusal {
        read("large", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), text)
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_told_from_other_bad_requests() {
        for (status, said) in [
            (
                400,
                r#"{"error":{"code":400,"message":"request (9 tokens) exceeds","type":"exceed_context_size_error"}}"#,
            ),
            (400, r#"{"object":"error","message":"This model's maximum context length is 9 tokens.","code":400}"#),
            (400, r#"{"error":{"message":"too much","code":"context_length_exceeded"}}"#),
            (
                422,
                r#"{"error":"Input validation error: `inputs` must have less than 9 tokens","error_type":"validation"}"#,
            ),
            (413, ""),
            (500, r#"{"error":{"code":500,"message":"the request exceeds the available context size"}}"#),
        ] {
            assert!(matches!(refused(status, said), Refusal::TooLong(_)), "{said}");
        }
        let Refusal::Final(Rejection::Unusable(why)) = refused(400, r#"{"error":{"message":"no such role"}}"#) else {
            panic!("a bad request");
        };
        assert_eq!(why, "the server answered 400 Bad Request: no such role");
    }

    #[test]
    fn who_is_at_fault_decides_what_follows() {
        assert!(
            matches!(refused(401, ""), Refusal::Final(Rejection::Refused(why)) if why.contains("inference.remote.large.api_key"))
        );
        assert!(matches!(refused(404, "{}"), Refusal::Final(Rejection::Unusable(why)) if why.contains("/v1")));
        assert!(matches!(refused(500, "oops"), Refusal::Final(Rejection::Broken(_))));
        assert!(matches!(refused(307, ""), Refusal::Final(Rejection::Unusable(_))));
        assert!(matches!(refused(503, ""), Refusal::Busy { after: None, .. }));
    }

    #[test]
    fn a_named_time_is_waited_for_within_a_bound() {
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            match read("large", StatusCode::TOO_MANY_REQUESTS, &headers, "") {
                Refusal::Busy { after, .. } => after,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after("2"), Some(Duration::from_secs(2)));
        assert_eq!(after("86400"), Some(WAIT_MAX));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(after("-1"), None);
    }

    #[test]
    fn words_are_found_and_bounded() {
        assert_eq!(said(r#"{"detail": [{"msg": "field required"}]}"#), "field required");
        assert_eq!(said("<html><head><title>Sign in</title>"), "a page for people and no API (Sign in)");
        assert_eq!(said(&"é".repeat(700)).chars().count(), 601);
        assert_eq!(said(" \n"), "nothing more");
    }
}
