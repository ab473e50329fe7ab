//! Objects at the edge: content of the log that is too large for a message, by its hash.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use runtime::Bus;
use runtime::bus::ObjectError;
use schemas::Message;
use schemas::object::{self, INLINE_BYTES_MAX, Reference, TEXT};

use crate::problem::Failure;
use crate::service::Gateway;

/// The bytes of an object, all of them or one range.
pub(crate) async fn get(
    State(gateway): State<Arc<Gateway>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    if !object::is_name(&sha256) {
        let detail = format!("{sha256:?} is no object's name");
        return Err(Failure::invalid(detail, "send the SHA-256 of its bytes, 64 lower-case hex digits"));
    }
    let (mut content, media) = gateway.runtime.bus.object(&sha256).await?;
    let size = content.len();
    let media = if media.is_empty() { "application/octet-stream".to_owned() } else { media };
    // Content of others: a browser that is led here must not take it for a page of ours.
    let about = [
        (header::CONTENT_TYPE, media),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{sha256}\"")),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let Some(wanted) = headers.get(header::RANGE).and_then(|v| v.to_str().ok()) else {
        return Ok((about, content).into_response());
    };
    let Some((first, last)) = range(wanted, size) else {
        let detail =
            format!("the range {wanted:?} is outside the {size} bytes of this object, or none this server reads");
        let mut response =
            Failure::new(416, "bad_range", detail, "send bytes=FIRST-LAST, or leave Range out").into_response();
        if let Ok(whole) = format!("bytes */{size}").parse() {
            response.headers_mut().insert(header::CONTENT_RANGE, whole);
        }
        return Ok(response);
    };
    content.truncate(last + 1);
    content.drain(..first);
    let place = [(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"))];
    Ok((StatusCode::PARTIAL_CONTENT, about, place, content).into_response())
}

/// First and last byte of `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT`; none when that is not in the object.
fn range(wanted: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = wanted.strip_prefix("bytes=")?.split_once('-')?;
    let end = size.checked_sub(1)?;
    let (first, last) = match (first.trim(), last.trim()) {
        ("", count) => (size.saturating_sub(count.parse().ok().filter(|count| *count > 0)?), end),
        (first, "") => (first.parse().ok()?, end),
        (first, last) => (first.parse().ok()?, last.parse::<usize>().ok()?.min(end)),
    };
    (first <= last).then_some((first, last))
}

/// Stores what is too large for a message, and leaves references in its place.
pub(crate) async fn move_out(bus: &Bus, messages: &mut [Message]) -> Result<(), Failure> {
    for (_, text) in object::move_out(messages) {
        bus.put_object(text.as_bytes(), TEXT).await?;
    }
    Ok(())
}

/// The same for one text.
pub(crate) async fn move_text_out(bus: &Bus, text: &mut String) -> Result<Option<Reference>, Failure> {
    if text.len() <= INLINE_BYTES_MAX {
        return Ok(None);
    }
    Ok(Some(bus.put_object(std::mem::take(text).as_bytes(), TEXT).await?))
}

impl From<ObjectError> for Failure {
    fn from(error: ObjectError) -> Self {
        let detail = error.to_string();
        match error {
            ObjectError::Missing(_) => {
                Self::new(404, "unknown_object", detail, "`vlinders audit` says which facts need it")
            }
            ObjectError::Damaged(_) => {
                Self::new(502, "damaged_object", detail, "restore the object store from a backup")
            }
            ObjectError::TooLarge(_) => Self::new(413, "request_too_large", detail, "send less at once"),
            ObjectError::Bus(error) => Self::from(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn a_range_is_read_as_http_says() {
        assert_eq!(range("bytes=0-3", 10), Some((0, 3)));
        assert_eq!(range("bytes=4-", 10), Some((4, 9)));
        assert_eq!(range("bytes=-3", 10), Some((7, 9)));
        assert_eq!(range("bytes=-30", 10), Some((0, 9)));
        assert_eq!(range("bytes=8-99", 10), Some((8, 9)));
        for wrong in ["bytes=10-", "bytes=5-4", "bytes=-0", "lines=1-2", "bytes=a-b", "bytes=0-1,3-4"] {
            assert_eq!(range(wrong, 10), None, "{wrong}");
        }
        assert_eq!(range("bytes=0-0", 0), None);
    }
}
