//! Search providers: how each is asked, and how its answers are read.

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use runtime::config::Secret;
use schemas::fact::FailureClass;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use crate::failure::Failure;
use crate::fetch::{Accept, Fault, Fetcher, Page, Question};

/// Characters of a title.
const TITLE_CHARS_MAX: usize = 160;
/// Characters of an excerpt.
const SNIPPET_CHARS_MAX: usize = 400;
/// Longer addresses are no use to anybody.
const URL_BYTES_MAX: usize = 500;
/// Characters of what a provider says of an error.
const SAID_CHARS_MAX: usize = 200;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A SearXNG of one's own, with `json` among its `search.formats`.
    Searxng,
    /// Brave's Search API.
    Brave,
    /// Tavily.
    Tavily,
}

/// Section `tools.search`: who answers `web_search`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `searxng`, `brave` or `tavily`.
    pub provider: Kind,
    /// Where it is; needed for SearXNG, which may be anywhere.
    #[serde(default)]
    pub url: Option<String>,
    /// The key to show; needed for Brave and Tavily.
    #[serde(default, skip_serializing)]
    pub api_key: Option<Secret>,
    /// A file that holds it, instead.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
}

/// A configured provider.
#[derive(Debug)]
pub(super) struct Provider {
    kind: Kind,
    base: Url,
    /// Whoever runs this server named it, so it need not be public.
    named_by_owner: bool,
    key: Option<Secret>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) title: String,
    pub(super) url: String,
    pub(super) snippet: String,
}

impl Provider {
    /// # Errors
    /// The text names the setting and what belongs there.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let kind = settings.provider;
        let default = match kind {
            Kind::Searxng => None,
            Kind::Brave => Some("https://api.search.brave.com/res/v1/web/search"),
            Kind::Tavily => Some("https://api.tavily.com/search"),
        };
        let url = settings.url.as_deref().or(default).ok_or(
            "tools.search.url: it is missing: expected the base of your SearXNG, for example http://127.0.0.1:8888",
        )?;
        // What cannot be read is not repeated: it may hold a password.
        let base = Url::parse(url).map_err(|error| format!("tools.search.url: {error}; expected http(s)://host/…"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.username().is_empty() || base.password().is_some() {
            return Err("tools.search.url: expected http or https, and no user or password in it".to_owned());
        }
        let key = key(settings)?;
        if key.is_none() && kind != Kind::Searxng {
            return Err(format!("tools.search.api_key: {} wants one (or api_key_file)", kind.name()));
        }
        Ok(Self { kind, base, named_by_owner: settings.url.is_some(), key })
    }

    /// Asks for so many results at most.
    pub(super) async fn search(&self, fetcher: &Fetcher, query: &str, max: usize) -> Result<Vec<Found>, Failure> {
        let page = fetcher.fetch(&self.question(query, max)).await.map_err(|fault| self.failed(fault))?;
        if !page.status.is_success() {
            return Err(self.refused(&page));
        }
        let answer: Value = serde_json::from_str(&page.text).map_err(|_| self.no_json(&page))?;
        let found = self.read(&answer).ok_or_else(|| self.no_json(&page))?;
        Ok(found.into_iter().take(max).collect())
    }

    fn question(&self, query: &str, max: usize) -> Question {
        let mut url = self.base.clone();
        let (mut body, mut headers) = (None, HeaderMap::new());
        match self.kind {
            Kind::Searxng => {
                let path = format!("{}/search", url.path().trim_end_matches('/').trim_end_matches("/search"));
                url.set_path(&path);
                url.query_pairs_mut().append_pair("q", query).append_pair("format", "json");
            }
            Kind::Brave => {
                url.query_pairs_mut().append_pair("q", query).append_pair("count", &max.to_string());
                self.show_key(&mut headers, HeaderName::from_static("x-subscription-token"), "");
            }
            Kind::Tavily => {
                body = Some(Bytes::from(json!({"query": query, "max_results": max}).to_string()));
            }
        }
        if self.kind != Kind::Brave {
            self.show_key(&mut headers, http::header::AUTHORIZATION, "Bearer ");
        }
        let named_by_owner = self.named_by_owner;
        Question { url: url.to_string(), body, headers, accept: Accept::Json, named_by_owner }
    }

    fn show_key(&self, headers: &mut HeaderMap, name: HeaderName, scheme: &str) {
        if let Some(key) = &self.key {
            let text = format!("{scheme}{}", key.expose());
            let mut value = HeaderValue::from_str(&text).expect("the key was checked to be plain characters");
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }

    /// The results in an answer; none where it is no such answer.
    fn read(&self, answer: &Value) -> Option<Vec<Found>> {
        let (list, snippet) = match self.kind {
            Kind::Searxng | Kind::Tavily => (answer.get("results")?, "content"),
            // Where nothing was found, Brave leaves this part out.
            Kind::Brave => match answer.get("web") {
                Some(web) => (web.get("results")?, "description"),
                None if answer.get("query").is_some() => return Some(Vec::new()),
                None => return None,
            },
        };
        let text = |result: &Value, field: &str| plain(result.get(field).and_then(Value::as_str).unwrap_or_default());
        let found = |result: &Value| {
            let url = result.get("url")?.as_str()?.to_owned();
            let of_the_web = url.starts_with("http://") || url.starts_with("https://");
            let title = cut(&text(result, "title"), TITLE_CHARS_MAX);
            let snippet = cut(&text(result, snippet), SNIPPET_CHARS_MAX);
            (of_the_web && url.len() <= URL_BYTES_MAX).then_some(Found { title, url, snippet })
        };
        Some(list.as_array()?.iter().filter_map(found).collect())
    }

    fn failed(&self, fault: Fault) -> Failure {
        let failure = Failure::from(fault);
        Failure { class: failure.class, detail: format!("{} gave no answer: {}", self.kind.name(), failure.detail) }
    }

    /// What an unhappy status means, in words that say who can do something about it.
    fn refused(&self, page: &Page) -> Failure {
        let (name, status) = (self.kind.name(), page.status);
        let said = self.said(page);
        match status {
            StatusCode::FORBIDDEN if self.kind == Kind::Searxng => Failure::refused(format!(
                "searxng does not give JSON ({status}): whoever runs it must add `json` to `search.formats` in its settings"
            )),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::refused(format!(
                "{name} does not accept this server's key ({status}){said}: whoever runs this server must correct tools.search.api_key"
            )),
            StatusCode::TOO_MANY_REQUESTS => {
                let when = match page.retry_after {
                    Some(after) => format!("in {} s", after.as_secs()),
                    None => "later".to_owned(),
                };
                let detail = format!("{name} was asked too often ({status}){said}: try again {when}");
                Failure { class: FailureClass::Overloaded, detail }
            }
            status if status.is_server_error() => {
                // It may have done its part, and been paid for it, so that nobody asks again by himself.
                Failure::refused(format!("{name} has trouble of its own ({status}){said}: try again later"))
            }
            status => Failure::refused(format!("{name} refused the search ({status}){said}")),
        }
    }

    /// What a provider says in JSON of an error; pages of HTML say nothing of use. It may repeat the key, which is cut.
    fn said(&self, page: &Page) -> String {
        let answer: Value = serde_json::from_str(&page.text).unwrap_or_default();
        let places = ["/detail/error", "/error/detail", "/error/message", "/message", "/error", "/detail"];
        let said = places.iter().find_map(|place| answer.pointer(place)?.as_str());
        let Some(said) = said.filter(|said| !said.is_empty()) else { return String::new() };
        let said = match &self.key {
            Some(key) => said.replace(key.expose(), "…"),
            None => said.to_owned(),
        };
        format!(", saying: {}", cut(&plain(&said), SAID_CHARS_MAX))
    }

    fn no_json(&self, page: &Page) -> Failure {
        let what = if page.media.is_empty() { "something" } else { page.media.as_str() };
        Failure::refused(format!(
            "{} answered with {what} that is no list of results: whoever runs this server must look at tools.search.url",
            self.kind.name()
        ))
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Searxng => "searxng",
            Self::Brave => "brave",
            Self::Tavily => "tavily",
        }
    }
}

/// The key, from the setting or its file.
fn key(settings: &Settings) -> Result<Option<Secret>, String> {
    let (setting, text) = match (&settings.api_key, &settings.api_key_file) {
        (Some(_), Some(_)) => return Err("tools.search.api_key: say either this or api_key_file".to_owned()),
        (Some(key), None) => ("api_key", key.expose().to_owned()),
        (None, Some(file)) => {
            let read = std::fs::read_to_string(file);
            let why = |error| format!("tools.search.api_key_file: read {}: {error}", file.display());
            ("api_key_file", read.map_err(why)?)
        }
        (None, None) => return Ok(None),
    };
    let text = text.trim();
    // What a header can carry; the text itself is never shown.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("tools.search.{setting}: it must be one word of plain characters"));
    }
    Ok(Some(Secret::new(text.to_owned())))
}

/// One line without tags, as providers mark what matched; entities are what they stand for.
fn plain(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        bare.push_str(&rest[..at]);
        rest = &rest[at..];
        let is_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        match rest.find('>').filter(|_| is_tag) {
            Some(end) => rest = &rest[end + 1..],
            None => {
                bare.push('<');
                rest = &rest[1..];
            }
        }
    }
    bare.push_str(rest);
    for (entity, meant) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#x27;", "'"),
        ("&#39;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ] {
        bare = bare.replace(entity, meant);
    }
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
