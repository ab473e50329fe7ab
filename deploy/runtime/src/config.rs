//! Configuration in layers: defaults in code, then a TOML file, then the environment, then flags.
//!
//! A file has one table per section (`[gateway]`, `[inference]`, …). The environment names a key as
//! `VLINDERS_<SECTION>__<KEY>`; a flag is given by the program as `section.key`. A key that no section knows is an
//! error, and every value that is not a default can be traced to where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Environment variables that are not `section.key` settings; the program reads them itself.
pub const RESERVED: [&str; 4] = ["VLINDERS_CA_FILE", "VLINDERS_CONFIG", "VLINDERS_SECRET", "VLINDERS_SECRET_FILE"];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command line flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// The configuration is wrong. The text names the file or variable and the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("configuration {path}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A section nobody knows.
    #[error("unknown section [{section}] from {origin}; sections are {known}")]
    UnknownSection {
        /// The section.
        section: String,
        /// Where it stands.
        origin: String,
        /// The sections there are.
        known: String,
    },
    /// A value does not fit, or a key is unknown.
    #[error("section [{section}]{from}: {reason}")]
    Section {
        /// The section.
        section: String,
        /// Which layers set something in it.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A variable that looks like a setting and is none.
    #[error(
        "environment variable {0} is not a setting: expected VLINDERS_<SECTION>__<KEY>, for example VLINDERS_GATEWAY__HTTP"
    )]
    Variable(String),
}

/// All layers, merged.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: BTreeMap<String, Table>,
    origins: BTreeMap<(String, String), Origin>,
}

impl Layers {
    /// Merges a file (if any), environment variables and flags (`(section, key, value)`), the later over the earlier.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or a section is not among `known`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Vec<(&str, &str, Value)>,
        known: &[&str],
    ) -> Result<Self, Error> {
        let mut layers = Self::default();
        if let Some(path) = file {
            layers.add_file(path)?;
        }
        for (name, text) in environment {
            layers.add_variable(&name, &text)?;
        }
        for (section, key, value) in flags {
            layers.set(section, key, value, Origin::Flag);
        }
        layers.check_sections(known)?;
        Ok(layers)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let syntax = |error: toml::de::Error| Error::Syntax { path: path.to_owned(), reason: told(&text, &error) };
        let table: Table = text.parse().map_err(syntax)?;
        for (section, value) in table {
            let Value::Table(keys) = value else {
                return Err(Error::Section {
                    section: section.clone(),
                    from: format!(" (file {})", path.display()),
                    reason: format!("expected a table: write `[{section}]` above its keys"),
                });
            };
            self.values.entry(section.clone()).or_default();
            for (key, value) in keys {
                self.set(&section, &key, value, Origin::File(path.to_owned()));
            }
        }
        Ok(())
    }

    fn add_variable(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let Some(setting) = name.strip_prefix("VLINDERS_") else {
            return Ok(());
        };
        if RESERVED.contains(&name) {
            return Ok(());
        }
        let (section, key) = setting.split_once("__").ok_or_else(|| Error::Variable(name.to_owned()))?;
        // A value that reads as TOML (a number, a list, true) is one; everything else is a text.
        let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
        self.set(&section.to_lowercase(), &key.to_lowercase(), value, Origin::Environment(name.to_owned()));
        Ok(())
    }

    fn set(&mut self, section: &str, key: &str, value: Value, origin: Origin) {
        self.values.entry(section.to_owned()).or_default().insert(key.to_owned(), value);
        self.origins.insert((section.to_owned(), key.to_owned()), origin);
    }

    fn check_sections(&self, known: &[&str]) -> Result<(), Error> {
        match self.values.keys().find(|section| !known.contains(&section.as_str())) {
            None => Ok(()),
            Some(section) => Err(Error::UnknownSection {
                section: section.clone(),
                origin: self.from(section).trim_start_matches(" (").trim_end_matches(')').to_owned(),
                known: known.join(", "),
            }),
        }
    }

    /// One section as the type of its service, which refuses unknown keys.
    ///
    /// # Errors
    /// When a value does not fit or a key is unknown.
    pub fn section<T: DeserializeOwned>(&self, section: &str) -> Result<T, Error> {
        let table = self.values.get(section).cloned().unwrap_or_default();
        Value::Table(table).try_into().map_err(|e: toml::de::Error| Error::Section {
            section: section.to_owned(),
            from: self.from(section),
            reason: e.message().to_owned(),
        })
    }

    fn from(&self, section: &str) -> String {
        let mut from: Vec<String> =
            self.origins.iter().filter(|((s, _), _)| s == section).map(|(_, o)| o.to_string()).collect();
        from.dedup();
        if from.is_empty() { String::new() } else { format!(" ({})", from.join(", ")) }
    }

    /// Every value that is not a default: `section.key`, the value, and where it came from.
    pub fn settings(&self) -> impl Iterator<Item = (String, &Value, &Origin)> {
        self.origins.iter().filter_map(|((section, key), origin)| {
            let value = self.values.get(section)?.get(key)?;
            Some((format!("{section}.{key}"), value, origin))
        })
    }
}

/// What is wrong with a file, and where. The usual error shows its line, which is left out where it may hold a secret.
fn told(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count();
    let secret = text.lines().nth(line).is_some_and(|line| ["password", "key", "://"].iter().any(|w| line.contains(w)));
    if secret { format!("line {}: {}", line + 1, error.message()) } else { error.to_string() }
}

/// A text that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The usual error repeats what it found: a key of digits that lost its quotes would be printed.
        let text = String::deserialize(deserializer);
        text.map(Self).map_err(|_| serde::de::Error::custom("a secret must be a text in quotes (it is not shown here)"))
    }
}

/// It is never written out: what stands in its place says only that there is one.
impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("…")
    }
}

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Gateway {
        http: String,
        body_bytes_max: usize,
    }

    impl Default for Gateway {
        fn default() -> Self {
            Self { http: "127.0.0.1:8080".into(), body_bytes_max: 1 }
        }
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn later_layers_win_and_origins_are_known() {
        let file = std::env::temp_dir().join(format!("vlinders-config-{}.toml", std::process::id()));
        std::fs::write(&file, "[gateway]\nhttp = \"a:1\"\nbody_bytes_max = 5\n").expect("temp file");
        let layers =
            Layers::load(Some(&file), env(&[("VLINDERS_GATEWAY__HTTP", "b:2"), ("PATH", "x")]), vec![], &["gateway"])
                .expect("valid");
        std::fs::remove_file(&file).expect("temp file");
        assert_eq!(
            layers.section::<Gateway>("gateway").expect("valid"),
            Gateway { http: "b:2".into(), body_bytes_max: 5 }
        );
        let origins: Vec<String> = layers.settings().map(|(k, _, o)| format!("{k} {o}")).collect();
        assert_eq!(origins[1], "gateway.http environment VLINDERS_GATEWAY__HTTP");
    }

    #[test]
    fn unknown_keys_sections_and_variables_are_refused() {
        let unknown_key = Layers::load(None, env(&[("VLINDERS_GATEWAY__HTPP", "x")]), vec![], &["gateway"])
            .expect("section is known");
        let error = unknown_key.section::<Gateway>("gateway").expect_err("unknown key").to_string();
        assert!(error.contains("htpp") && error.contains("VLINDERS_GATEWAY__HTPP"), "{error}");
        assert!(Layers::load(None, env(&[("VLINDERS_GATEWY__HTTP", "x")]), vec![], &["gateway"]).is_err());
        assert!(Layers::load(None, env(&[("VLINDERS_HTTP", "x")]), vec![], &["gateway"]).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_shows_no_secret() {
        let file = std::env::temp_dir().join(format!("vlinders-secret-{}.toml", std::process::id()));
        std::fs::write(&file, "[gateway]\nhttp = \"a\"\napi_key = sk-hidden\n").expect("temp file");
        let error = Layers::load(Some(&file), env(&[]), vec![], &["gateway"]).expect_err("no quotes").to_string();
        std::fs::remove_file(&file).expect("temp file");
        assert!(error.contains("line 3") && !error.contains("hidden"), "{error}");
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(…)");
        let layers =
            Layers::load(None, env(&[("VLINDERS_NATS__PASSWORD", "7654321")]), vec![], &["nats"]).expect("known");
        let error = layers.section::<BTreeMap<String, Secret>>("nats").expect_err("a number").to_string();
        assert!(error.contains("text in quotes") && !error.contains("7654321"), "{error}");
    }
}
