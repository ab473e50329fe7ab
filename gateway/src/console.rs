//! The web console: files that are part of the program, which need no secret. What they show does: the page asks for the
//! secret and sends it with every question.
//!
//! A page of the console runs these files only, and talks to this gateway only: its policy says so to the browser.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use rust_embed::Embed;

use crate::problem::Failure;

#[derive(Embed)]
#[folder = "console/"]
struct Files;

/// What a page may load and do: its own files, this gateway, nothing else, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    // Asked for each time, and sent only when it changed: a new program never shows an old page.
    (header::CACHE_CONTROL, "no-cache"),
];

/// `GET /console`: where the files lie, so that their names are relative to it.
pub(crate) async fn moved() -> Redirect {
    Redirect::permanent("/console/")
}

/// `GET /console/`
pub(crate) async fn index(asked: HeaderMap) -> Result<Response, Failure> {
    answer("index.html", &asked)
}

/// `GET /console/{path}`
pub(crate) async fn file(Path(path): Path<String>, asked: HeaderMap) -> Result<Response, Failure> {
    answer(&path, &asked)
}

fn answer(path: &str, asked: &HeaderMap) -> Result<Response, Failure> {
    let file = Files::get(path).ok_or_else(|| {
        Failure::new(404, "unknown_file", format!("the console has no file {path:?}"), "open /console/")
    })?;
    let tag = format!("\"{}\"", &hex::encode(file.metadata.sha256_hash())[..32]);
    let known = asked.get(header::IF_NONE_MATCH).is_some_and(|given| is_among(given.as_bytes(), tag.as_bytes()));
    let tag = [(header::ETAG, tag)];
    if known {
        return Ok((StatusCode::NOT_MODIFIED, HEADERS, tag).into_response());
    }
    Ok((HEADERS, tag, [(header::CONTENT_TYPE, media(path))], file.data.into_owned()).into_response())
}

/// Whether one of the tags, separated by commas, is this one; a proxy may have made them weak.
fn is_among(tags: &[u8], tag: &[u8]) -> bool {
    tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|one| one.strip_prefix(b"W/").unwrap_or(one) == tag)
}

fn media(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_type_and_names_no_other_server() {
        for path in Files::iter() {
            assert_ne!(media(&path), "application/octet-stream", "{path}");
            let file = Files::get(&path).expect("it is listed");
            let text = std::str::from_utf8(&file.data).expect("text");
            let elsewhere = text
                .match_indices("//")
                .filter(|(at, _)| text[..*at].ends_with("http:") || text[..*at].ends_with("https:"));
            // The name of a vocabulary is no address.
            let elsewhere: Vec<&str> =
                elsewhere.map(|(at, _)| &text[at..]).filter(|t| !t.starts_with("//www.w3.org/")).collect();
            assert!(elsewhere.is_empty(), "{path}: {elsewhere:?}");
        }
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let first = answer("app.js", &HeaderMap::new()).expect("it is there");
        assert_eq!(first.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert!(first.headers()[header::CONTENT_SECURITY_POLICY].to_str().is_ok_and(|p| !p.contains("unsafe")));
        let tag = first.headers()[header::ETAG].clone();
        for given in [tag.clone(), format!("\"x\", W/{}", tag.to_str().expect("text")).parse().expect("a value")] {
            let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, given)]);
            assert_eq!(answer("app.js", &asked).expect("it is there").status(), StatusCode::NOT_MODIFIED);
        }
        let other = HeaderMap::from_iter([(header::IF_NONE_MATCH, "\"x\"".parse().expect("a value"))]);
        assert_eq!(answer("app.js", &other).expect("it is there").status(), StatusCode::OK);
    }

    #[test]
    fn nothing_else_of_the_machine_is_a_file_of_the_console() {
        for path in ["../Cargo.toml", "/etc/passwd", "", "console.rs"] {
            assert!(answer(path, &HeaderMap::new()).is_err(), "{path}");
        }
    }
}
