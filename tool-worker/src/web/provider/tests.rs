//! Each provider, played by a server that answers as the real one does.

use super::*;
use crate::fetch;
use crate::scripted::{Scripted, answer};

const SEARXNG: &str = r#"{"query": "rust", "number_of_results": 0, "answers": [], "unresponsive_engines": [["x", "timeout"]],
 "results": [
  {"url": "https://www.rust-lang.org/", "title": "Rust  Programming\nLanguage", "content": "A language empowering everyone.",
   "engine": "duckduckgo", "score": 2.5, "category": "general", "parsed_url": ["https", "www.rust-lang.org", "/", "", "", ""]},
  {"url": "javascript:alert(1)", "title": "no address", "content": "x"},
  {"url": "https://doc.rust-lang.org/", "title": "Docs", "content": null}]}"#;

const BRAVE: &str = r#"{"type": "search", "query": {"original": "rust", "more_results_available": true}, "web": {"type": "search",
 "results": [{"title": "Rust &amp; friends", "url": "https://www.rust-lang.org/", "is_source_local": false, "language": "en",
  "description": "A <strong>language</strong> where 1 &lt; 2 &#x27;always&#x27;", "profile": {"name": "Rust"}}]}}"#;

const TAVILY: &str = r#"{"query": "rust", "follow_up_questions": null, "answer": null, "images": [], "response_time": 1.09,
 "results": [{"title": "Rust", "url": "https://www.rust-lang.org/", "content": "Reliable software.", "score": 0.99,
  "raw_content": null}]}"#;

fn settings(provider: Kind, server: &Scripted, path: &str) -> Settings {
    let key = (provider != Kind::Searxng).then(|| Secret::new("key-7".to_owned()));
    Settings { provider, url: Some(server.url(path)), api_key: key, api_key_file: None }
}

fn json(body: &str) -> Vec<u8> {
    answer("200 OK", "content-type: application/json\r\n", body)
}

fn found(title: &str, url: &str, snippet: &str) -> Found {
    Found { title: title.to_owned(), url: url.to_owned(), snippet: snippet.to_owned() }
}

async fn searched(kind: Kind, server: &Scripted, path: &str) -> Result<Vec<Found>, Failure> {
    searched_with(fetch::Settings::default(), kind, server, path).await
}

async fn searched_with(
    settings_of_fetch: fetch::Settings,
    kind: Kind,
    server: &Scripted,
    path: &str,
) -> Result<Vec<Found>, Failure> {
    let fetcher = Fetcher::new(&fetch::Settings { timeout_ms: 2_000, ..settings_of_fetch });
    Provider::new(&settings(kind, server, path)).unwrap().search(&fetcher, "rust \"a&b\"", 5).await
}

#[tokio::test]
async fn searxng_is_asked_for_json_and_read() {
    for path in ["", "/", "/searx/", "/searx/search"] {
        let server = Scripted::saying(json(SEARXNG));
        let expected = [
            found("Rust Programming Language", "https://www.rust-lang.org/", "A language empowering everyone."),
            found("Docs", "https://doc.rust-lang.org/", ""),
        ];
        assert_eq!(searched(Kind::Searxng, &server, path).await.unwrap(), expected);
        let below = if path.starts_with("/searx") { "/searx" } else { "" };
        let asked = &server.asked()[0];
        let begins = format!("GET {below}/search?q=rust+%22a%26b%22&format=json HTTP/1.1\r\n");
        assert!(asked.starts_with(&begins) && !asked.contains("authorization"), "{asked}");
    }
}

#[tokio::test]
async fn brave_is_shown_its_token_and_read_without_tags() {
    let server = Scripted::saying(json(BRAVE));
    let expected = [found("Rust & friends", "https://www.rust-lang.org/", "A language where 1 < 2 'always'")];
    assert_eq!(searched(Kind::Brave, &server, "/res/v1/web/search").await.unwrap(), expected);
    let asked = &server.asked()[0];
    assert!(asked.starts_with("GET /res/v1/web/search?q=rust+%22a%26b%22&count=5 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("x-subscription-token: key-7\r\n"), "{asked}");
    let nothing = Scripted::saying(json(r#"{"type": "search", "query": {"original": "x"}}"#));
    assert_eq!(searched(Kind::Brave, &nothing, "/").await.unwrap(), []);
}

#[tokio::test]
async fn tavily_is_posted_to_and_read() {
    let server = Scripted::saying(json(TAVILY));
    let expected = [found("Rust", "https://www.rust-lang.org/", "Reliable software.")];
    assert_eq!(searched(Kind::Tavily, &server, "/search").await.unwrap(), expected);
    let asked = &server.asked()[0];
    assert!(
        asked.starts_with("POST /search HTTP/1.1\r\n") && asked.contains("authorization: Bearer key-7\r\n"),
        "{asked}"
    );
    let body: Value = serde_json::from_str(asked.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body, json!({"query": "rust \"a&b\"", "max_results": 5}));
}

#[tokio::test]
async fn an_unhappy_answer_says_who_can_do_something() {
    let as_json = "content-type: application/json\r\n";
    let html = "content-type: text/html\r\n";
    for (kind, status, headers, body, class, said) in [
        (
            Kind::Tavily,
            "401 Unauthorized",
            as_json,
            r#"{"detail": {"error": "Unauthorized: invalid API key key-7."}}"#,
            FailureClass::Refused,
            "tavily does not accept this server's key (401 Unauthorized), saying: Unauthorized: invalid API key ….: whoever",
        ),
        (
            Kind::Brave,
            "422 Unprocessable Entity",
            as_json,
            r#"{"type": "ErrorResponse", "error": {"status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "The provided subscription token is invalid."}}"#,
            FailureClass::Refused,
            "brave refused the search (422 Unprocessable Entity), saying: The provided subscription token is invalid.",
        ),
        (
            Kind::Brave,
            "429 Too Many Requests",
            "content-type: application/json\r\nretry-after: 7\r\n",
            "{}",
            FailureClass::Overloaded,
            "brave was asked too often (429 Too Many Requests): try again in 7 s",
        ),
        (
            Kind::Searxng,
            "403 Forbidden",
            html,
            "<h1>Forbidden</h1>",
            FailureClass::Refused,
            "add `json` to `search.formats`",
        ),
        (
            Kind::Searxng,
            "502 Bad Gateway",
            html,
            "<h1>nginx</h1>",
            FailureClass::Refused,
            "has trouble of its own (502",
        ),
        (
            Kind::Searxng,
            "200 OK",
            html,
            "<html>results</html>",
            FailureClass::Refused,
            "answered with text/html that is no",
        ),
        (
            Kind::Tavily,
            "200 OK",
            as_json,
            r#"{"answer": "no list"}"#,
            FailureClass::Refused,
            "that is no list of results",
        ),
        (Kind::Tavily, "200 OK", as_json, r#"{"results": "#, FailureClass::Refused, "that is no list of results"),
        (Kind::Searxng, "302 Found", "location: /login\r\n", "", FailureClass::BadRequest, "is no"),
    ] {
        let server = Scripted::saying(answer(status, headers, body));
        let outcome = searched(kind, &server, "/").await;
        if status.starts_with("302") {
            // It redirects to itself until that is enough; with a key not even once.
            assert!(outcome.unwrap_err().detail.contains("redirects"), "{status}");
            continue;
        }
        let failure = outcome.unwrap_err();
        assert!(failure.detail.contains(said), "{status}: {failure}");
        assert_eq!(failure.class, class, "{failure}");
        assert!(!failure.detail.contains("key-7"), "{failure}");
    }
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_given_up() {
    let server = Scripted::start(|_, stream| drop(std::io::Read::read(stream, &mut [0])));
    let fetcher = Fetcher::new(&fetch::Settings { timeout_ms: 200, ..fetch::Settings::default() });
    let provider = Provider::new(&settings(Kind::Searxng, &server, "")).unwrap();
    let failure = provider.search(&fetcher, "x", 5).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Timeout);
    assert!(failure.detail.starts_with("searxng gave no answer: http://127.0.0.1:"), "{failure}");
}

#[tokio::test]
async fn a_provider_may_be_anywhere_if_its_url_was_named_and_may_send_us_nowhere() {
    let secret = Scripted::saying(json(SEARXNG));
    let elsewhere = format!("location: {}\r\n", secret.url("/search"));
    let server = Scripted::saying(answer("302 Found", &elsewhere, ""));
    // Its port is usual here, so that nothing but the address speaks against it.
    let ports = fetch::Settings { ports: vec![secret.address.port()], ..fetch::Settings::default() };
    let failure = searched_with(ports, Kind::Searxng, &server, "").await.unwrap_err();
    assert!(failure.detail.contains("only public addresses"), "{failure}");
    let failure = searched(Kind::Tavily, &server, "").await.unwrap_err();
    assert!(failure.detail.contains("which is not followed"), "a key is shown to nobody else: {failure}");
    assert!(secret.asked().is_empty());
}

#[test]
fn a_wrong_setting_is_named_and_no_key_is_shown() {
    let base = Settings { provider: Kind::Brave, url: None, api_key: None, api_key_file: None };
    let wrong = |settings: Settings| Provider::new(&settings).map(|_| ()).unwrap_err();
    assert_eq!(wrong(base.clone()), "tools.search.api_key: brave wants one (or api_key_file)");
    assert!(wrong(Settings { provider: Kind::Searxng, ..base.clone() }).starts_with("tools.search.url: it is missing"));
    let key = Some(Secret::new("two words".to_owned()));
    let failure = wrong(Settings { api_key: key, ..base.clone() });
    assert_eq!(failure, "tools.search.api_key: it must be one word of plain characters");
    let missing = wrong(Settings { api_key_file: Some("/nonexistent/key".into()), ..base.clone() });
    assert!(missing.starts_with("tools.search.api_key_file: read /nonexistent/key: "), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "key-9\n").unwrap();
    let provider = Provider::new(&Settings { api_key_file: Some(file.path().to_owned()), ..base.clone() }).unwrap();
    assert_eq!(provider.key.as_ref().unwrap().expose(), "key-9");
    assert!(!format!("{provider:?} {base:?}").contains("key-9"));
    let question = provider.question("x", 1);
    assert!(!format!("{question:?}").contains("key-9"), "{question:?}");
}
