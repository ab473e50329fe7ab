//! What is configured about one remote model: where it is, what it may cost us, and how long we wait for it.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use runtime::config::Secret;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};

/// The longest time that a connection may be given, in milliseconds.
const CONNECT_TIMEOUT_MS_MAX: u64 = 60_000;
/// The longest silence that may be allowed, in milliseconds: an hour is more than any prompt takes.
const SILENCE_TIMEOUT_MS_MAX: u64 = 3_600_000;
/// More requests at once than one server answers.
const SLOTS_MAX: usize = 4_096;

/// One model of an OpenAI-compatible server, under `[inference.remote.NAME]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteConfig {
    /// Where the server's API begins, with its `/v1`: `http://gpu-7:8000/v1`. Needed.
    pub url: String,
    /// The server's name for the model. Default: the one it serves, if it is one; else the name it has here.
    pub model: Option<String>,
    /// What the server wants to be shown, sent as `Authorization: Bearer`.
    pub api_key: Option<Secret>,
    /// A file that holds it, instead.
    pub api_key_file: Option<PathBuf>,
    /// Certificates (PEM) that are trusted beside the system's, for a server with a certificate of one's own.
    pub ca_file: Option<PathBuf>,
    /// Requests that run at the same time, 1 to 4,096. Default 32.
    pub slots: usize,
    /// Tokens of prompt and answer together that the model holds, 1 or more. Default: what the server says; needed where
    /// it says nothing.
    pub window: Option<u32>,
    /// How long a connection may take, milliseconds, 1 to 60,000. Default 5,000.
    pub connect_timeout_ms: u64,
    /// How long the server may say nothing, before its first byte and between any two, milliseconds, 1 to 3,600,000.
    /// Default 120,000: a long prompt behind others takes its time.
    pub silence_timeout_ms: u64,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: None,
            api_key: None,
            api_key_file: None,
            ca_file: None,
            slots: 32,
            window: None,
            connect_timeout_ms: 5_000,
            silence_timeout_ms: 120_000,
        }
    }
}

impl RemoteConfig {
    /// Checks what can be known without the server.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let wrong = |key: &str, why: String| Err(format!("inference.remote.{name}.{key}: {why}"));
        if name.is_empty() {
            return Err("inference.remote: a model needs a name: write [inference.remote.NAME]".to_owned());
        }
        if let Err(why) = check_url(&self.url) {
            return wrong("url", why);
        }
        if self.api_key.is_some() && self.api_key_file.is_some() {
            return wrong("api_key", "say either this or api_key_file".to_owned());
        }
        let within = |value: u64, max: u64| (1..=max).contains(&value);
        if !within(self.slots as u64, SLOTS_MAX as u64) {
            return wrong("slots", format!("{} is not within 1 and {SLOTS_MAX}", self.slots));
        }
        if self.window == Some(0) {
            return wrong("window", "a window of no tokens holds nothing; leave it out to ask the server".to_owned());
        }
        for (key, value, max) in [
            ("connect_timeout_ms", self.connect_timeout_ms, CONNECT_TIMEOUT_MS_MAX),
            ("silence_timeout_ms", self.silence_timeout_ms, SILENCE_TIMEOUT_MS_MAX),
        ] {
            if !within(value, max) {
                return wrong(key, format!("{value} is not within 1 and {max}"));
            }
        }
        self.key(name).map(|_| ())
    }

    /// The key to show, if one is configured.
    ///
    /// # Errors
    /// Its file cannot be read, or holds none.
    pub(super) fn key(&self, name: &str) -> Result<Option<Secret>, String> {
        let (setting, text) = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => ("api_key", key.expose().to_owned()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                let why = |error| format!("inference.remote.{name}.api_key_file: read {}: {error}", file.display());
                ("api_key_file", read.map_err(why)?)
            }
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        // What a header can carry; the text itself is never shown.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("inference.remote.{name}.{setting}: it must be one word of plain characters"));
        }
        Ok(Some(Secret::new(text.to_owned())))
    }

    /// The base of all addresses, without a slash at its end.
    pub(super) fn base(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn silence_timeout(&self) -> Duration {
        Duration::from_millis(self.silence_timeout_ms)
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let expected = "expected the base of an OpenAI-compatible API, for example http://127.0.0.1:8000/v1";
    if url.is_empty() {
        return Err(format!("it is missing: {expected}"));
    }
    // What cannot be read is not repeated: it may hold a password.
    let parsed: http::Uri = url.parse().map_err(|error| format!("{error}; {expected}"))?;
    let host = parsed.authority().is_some_and(|authority| !authority.host().is_empty());
    if !host || !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err(format!("it has no scheme (http or https) or no host; {expected}"));
    }
    if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("it holds a user or a password, which would be logged: use api_key".to_owned());
    }
    if parsed.query().is_some() || url.contains('#') {
        return Err(format!("nothing may follow its path; {expected}"));
    }
    Ok(())
}

/// Reads the table of remote models. A text in its place is not repeated in the error: it may hold keys.
///
/// # Errors
/// It is no table, or an entry is wrong.
pub(crate) fn table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, RemoteConfig>, D::Error> {
    struct Table;
    impl<'de> Visitor<'de> for Table {
        type Value = BTreeMap<String, RemoteConfig>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a table of remote models by name: [inference.remote.NAME]")
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom("inference.remote is no TOML table: write { NAME = { url = \"http://…/v1\" } }"))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut remotes = BTreeMap::new();
            while let Some((name, remote)) = map.next_entry()? {
                remotes.insert(name, remote);
            }
            Ok(remotes)
        }
    }
    deserializer.deserialize_any(Table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut RemoteConfig)) -> Result<(), String> {
        let mut config = RemoteConfig { url: "http://127.0.0.1:8000/v1".to_owned(), ..RemoteConfig::default() };
        change(&mut config);
        config.check("large")
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_with_its_key() {
        assert_eq!(check(|_| {}), Ok(()));
        let refused = |key: &str, change: fn(&mut RemoteConfig)| {
            let why = check(change).expect_err(key);
            assert!(why.starts_with(&format!("inference.remote.large.{key}: ")), "{why}");
        };
        refused("slots", |config| config.slots = 0);
        refused("slots", |config| config.slots = 4_097);
        refused("window", |config| config.window = Some(0));
        refused("connect_timeout_ms", |config| config.connect_timeout_ms = 60_001);
        refused("silence_timeout_ms", |config| config.silence_timeout_ms = 0);
        refused("api_key_file", |config| config.api_key_file = Some("/nowhere/key".into()));
        refused("api_key", |config| config.api_key = Some(Secret::new(" \n".to_owned())));
        refused("api_key", |config| {
            config.api_key = Some(Secret::new("a".to_owned()));
            config.api_key_file = Some("/nowhere/key".into());
        });
        for url in ["", "127.0.0.1:8000", "ftp://host/v1", "http:///v1", "http://u:p@host/v1", "http://host/v1?a=b"] {
            let why = check(|config| config.url = url.to_owned()).expect_err(url);
            assert!(why.starts_with("inference.remote.large.url: ") && !why.contains("u:p"), "{why}");
        }
    }

    #[test]
    fn a_key_shows_in_no_text() {
        let config = RemoteConfig { api_key: Some(Secret::new("sk-hidden".to_owned())), ..RemoteConfig::default() };
        assert!(!format!("{config:?}").contains("sk-hidden"));
        let why = config.check("large").expect_err("it has no url");
        assert!(!why.contains("sk-hidden"), "{why}");
    }
}
