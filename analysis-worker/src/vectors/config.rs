//! Where the vectors are.

use std::path::PathBuf;
use std::time::Duration;

use runtime::config::Secret;
use serde::{Deserialize, Serialize};

/// The longest time that one call may be given, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 600_000;

/// Section `analysis.vectors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A Qdrant server's gRPC address, for example `http://qdrant:6334`. Default none: the workers of this machine share
    /// the directory `dir`. Workers of several machines need a server to search the same vectors.
    pub url: Option<String>,
    /// What the server wants to be shown, sent as `api-key`.
    pub api_key: Option<Secret>,
    /// A file that holds it, instead.
    pub api_key_file: Option<PathBuf>,
    /// The directory of the vectors where there is no server; made when it is not there. It must be on a disk of this
    /// machine. Default: `vectors` in the data directory.
    pub dir: Option<PathBuf>,
    /// How long one call may take with all tries, milliseconds, 100 to 600,000. Default 10,000.
    pub timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: None, api_key: None, api_key_file: None, dir: None, timeout_ms: 10_000 }
    }
}

impl Config {
    /// Checks what can be known without the server.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        if let Some(url) = &self.url {
            check_url(url).map_err(|why| format!("analysis.vectors.url: {why}"))?;
        }
        if self.url.is_none() && (self.api_key.is_some() || self.api_key_file.is_some()) {
            return Err("analysis.vectors.api_key: there is no url of a server to show it to".to_owned());
        }
        if self.api_key.is_some() && self.api_key_file.is_some() {
            return Err("analysis.vectors.api_key: say either this or api_key_file".to_owned());
        }
        if !(100..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            let timeout = self.timeout_ms;
            return Err(format!("analysis.vectors.timeout_ms: {timeout} is not within 100 and {TIMEOUT_MS_MAX}"));
        }
        self.key().map(|_| ())
    }

    /// The key to show, if one is configured.
    ///
    /// # Errors
    /// Its file cannot be read, or what it holds cannot be sent.
    pub(super) fn key(&self) -> Result<Option<Secret>, String> {
        let (setting, text) = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => ("api_key", key.expose().to_owned()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                let why = |error| format!("analysis.vectors.api_key_file: read {}: {error}", file.display());
                ("api_key_file", read.map_err(why)?)
            }
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        // What a header can carry; the text itself is never shown.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("analysis.vectors.{setting}: it must be one word of plain characters"));
        }
        Ok(Some(Secret::new(text.to_owned())))
    }

    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let expected = "expected the gRPC address of a Qdrant server, for example http://127.0.0.1:6334";
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    if !matches!(scheme, "http" | "https") || rest.is_empty() || rest.starts_with(['/', ':', '?', '#']) {
        return Err(format!("it has no scheme (http or https) or no host; {expected}"));
    }
    if rest.contains('@') {
        return Err("it holds a user or a password, which would be logged: use api_key".to_owned());
    }
    if rest.trim_end_matches('/').contains(['/', '?', '#', ' ']) {
        return Err(format!("nothing may follow its host and port; {expected}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config { url: Some("http://qdrant:6334".to_owned()), ..Config::default() };
        change(&mut config);
        config.check().expect_err("it is wrong")
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        for url in
            ["", "qdrant:6334", "grpc://qdrant", "http://", "http://:6334", "http://qdrant/a", "http://u:p@qdrant"]
        {
            let why = refused(|config| config.url = Some(url.to_owned()));
            assert!(why.starts_with("analysis.vectors.url: ") && !why.contains("u:p"), "{url}: {why}");
        }
        assert!(refused(|config| config.timeout_ms = 99).contains("timeout_ms: 99"));
        assert!(refused(|config| config.api_key = Some(Secret::new(" ".to_owned()))).contains("api_key: "));
        assert!(refused(|config| config.api_key_file = Some("/nowhere/key".into())).contains("/nowhere/key"));
        let both = refused(|config| {
            config.api_key = Some(Secret::new("a".to_owned()));
            config.api_key_file = Some("/nowhere/key".into());
        });
        assert!(both.contains("either"), "{both}");
        let nobody =
            refused(|config| *config = Config { api_key: Some(Secret::new("a".to_owned())), ..Config::default() });
        assert!(nobody.contains("no url"), "{nobody}");
    }

    #[test]
    fn a_key_comes_from_its_file_and_does_not_print() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("key");
        std::fs::write(&file, "sk-hidden\n").expect("write");
        let url = Some("https://qdrant:6334/".to_owned());
        let config = Config { url, api_key_file: Some(file), ..Config::default() };
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.key(), Ok(Some(Secret::new("sk-hidden".to_owned()))));
        assert!(!format!("{:?}", config.key()).contains("hidden"));
    }
}
