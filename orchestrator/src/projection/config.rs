//! Every knob of the projection.

use std::path::{Path, PathBuf};

use runtime::config::Secret;
use serde::{Deserialize, Serialize};

/// Section `projection`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether executions are projected into tables at all.
    pub enabled: bool,
    /// A PostgreSQL server: `postgres://USER:PASSWORD@HOST/DATABASE`. A file of SQLite when missing.
    pub url: Option<Secret>,
    /// A file that holds it, instead.
    pub url_file: Option<PathBuf>,
    /// The file of SQLite. When missing, one in the data directory, named after the log.
    pub file: Option<PathBuf>,
    /// Where that is; set by the program.
    #[serde(skip)]
    pub data: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, url: None, url_file: None, file: None, data: None }
    }
}

/// Where the tables are.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Secret),
}

impl Config {
    /// Checks what can be known without the database.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there; never the URL, which may hold a password.
    pub fn check(&self) -> Result<(), String> {
        if self.url.is_some() && self.url_file.is_some() {
            return Err("projection.url: say either this or url_file".to_owned());
        }
        if self.file.is_some() && (self.url.is_some() || self.url_file.is_some()) {
            return Err("projection.file: say either this or url".to_owned());
        }
        self.server().map(|_| ())
    }

    fn server(&self) -> Result<Option<Secret>, String> {
        let (setting, text) = match (&self.url, &self.url_file) {
            (Some(url), _) => ("url", url.expose().to_owned()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                let why = |error| format!("projection.url_file: read {}: {error}", file.display());
                ("url_file", read.map_err(why)?)
            }
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        let expected = "expected postgres://USER:PASSWORD@HOST/DATABASE (for SQLite, name a file with `file`)";
        let parsed = text.parse::<url::Url>().ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql"));
        match parsed {
            Some(_) => Ok(Some(Secret::new(text.to_owned()))),
            None => Err(format!("projection.{setting}: {expected}")),
        }
    }

    /// Where the tables of this log are.
    pub(crate) fn target(&self, log: &str) -> Result<Target, String> {
        if let Some(url) = self.server()? {
            return Ok(Target::Postgres(url));
        }
        let beside = || self.data.as_deref().unwrap_or(Path::new(".")).join(format!("projection-{log}.db"));
        Ok(Target::Sqlite(self.file.clone().unwrap_or_else(beside)))
    }
}

impl Target {
    /// For people, without what is secret.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sqlite(file) => format!("SQLite at {}", file.display()),
            Self::Postgres(url) => {
                let parsed = url.expose().parse::<url::Url>().ok();
                let place = parsed.map(|url| {
                    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                    format!("{}{port}{}", url.host_str().unwrap_or("localhost"), url.path())
                });
                format!("PostgreSQL at {}", place.unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_refused_and_no_url_is_shown() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let refused = |config: Config| config.check().expect_err("wrong");
        assert_eq!(Config::default().check(), Ok(()));
        let why = refused(Config { url: secret("mysql://u:hidden@h/d"), ..Config::default() });
        assert!(why.contains("projection.url: expected postgres://") && !why.contains("hidden"), "{why}");
        let both = Config { url: secret("postgres://h/d"), file: Some("f".into()), ..Config::default() };
        assert!(refused(both).contains("either"));
        let missing = Config { url_file: Some("/nowhere/url".into()), ..Config::default() };
        assert!(refused(missing).contains("/nowhere/url"));
    }

    #[test]
    fn a_place_is_named_without_its_password() {
        let url = Some(Secret::new("postgres://user:hidden@db:5433/vlinders".to_owned()));
        let server = Config { url, ..Config::default() }.target("1").expect("valid");
        assert_eq!(server.name(), "PostgreSQL at db:5433/vlinders");
        let file = Config { data: Some("/data".into()), ..Config::default() }.target("18a").expect("valid");
        assert_eq!(file.name(), "SQLite at /data/projection-18a.db");
    }
}
