//! What is configured about one server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use runtime::config::Secret;
use serde::{Deserialize, Serialize};

use crate::plugins::{Program, Quota};

/// Longest name of a server: with a tool's behind it there must be room in 64 characters.
const NAME_CHARS_MAX: usize = 24;
/// Longest time that a start may be given.
const START_TIMEOUT_S_MAX: u32 = 600;

/// One server, `[tools.mcp.NAME]`: either a program (`command`) or a server elsewhere (`url`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The program and its arguments, run in a box and spoken to over its standard input and output.
    pub command: Vec<String>,
    /// The image whose programs it has, instead of this system's.
    pub image: Option<String>,
    /// Directories that it reads.
    pub reads: Vec<PathBuf>,
    /// Variables that it has. They are never logged.
    #[serde(skip_serializing)]
    pub environment: BTreeMap<String, Secret>,
    /// A directory that it finds at `/workspace`; it is the same for all calls. None: it has an empty one.
    pub workspace: Option<PathBuf>,
    /// Whether it may write there, which `tools.writable` must allow.
    pub writes: bool,
    /// What it may use; of these `timeout_s` and `output_kib` hold for one call, also of a server elsewhere.
    pub limits: Quota,
    /// Where the server is, for one that is reached over HTTP. Nothing else is reached, wherever it points.
    pub url: Option<String>,
    /// What that wants to be shown, sent as `Authorization: Bearer`.
    #[serde(skip_serializing)]
    pub api_key: Option<Secret>,
    /// A file that holds it, instead.
    pub api_key_file: Option<PathBuf>,
    /// The header in which it is sent as it is, instead.
    pub api_key_header: Option<String>,
    /// Certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long it may take until it has said what its tools are, in seconds, 1 to 600.
    pub start_timeout_s: u32,
    /// Of its tools only these, by the names that it gives them. None: all.
    pub tools: Option<Vec<String>>,
    /// Whether a person must allow each call of its tools by an agent.
    pub approve: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            image: None,
            reads: Vec::new(),
            environment: BTreeMap::new(),
            workspace: None,
            writes: false,
            limits: Quota::default(),
            url: None,
            api_key: None,
            api_key_file: None,
            api_key_header: None,
            ca_file: None,
            start_timeout_s: 30,
            tools: None,
            approve: false,
        }
    }
}

/// How a server is shown the key it wants.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) header: HeaderName,
    /// The value of the header.
    pub(super) value: Secret,
}

impl Settings {
    /// Checks what can be known without the server.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let wrong = |key: &str, why: &str| Err(format!("tools.mcp.{name}.{key}: {why}"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(plain) {
            return Err(format!(
                "tools.mcp.{name}: a server's name has 1 to {NAME_CHARS_MAX} lower-case letters, digits, `-` or `_`"
            ));
        }
        if !(1..=START_TIMEOUT_S_MAX).contains(&self.start_timeout_s) {
            return wrong("start_timeout_s", &format!("it must be 1 to {START_TIMEOUT_S_MAX}"));
        }
        if let Err((key, why)) = self.limits.check() {
            return wrong(&format!("limits.{key}"), &format!("it {why}"));
        }
        match &self.url {
            None => {
                if let Err(wrong) = self.program().check() {
                    return Err(format!("tools.mcp.{name}.{}: it {} (or say `url`)", wrong.field, wrong.reason));
                }
                let of_url = [
                    ("api_key", self.api_key.is_some()),
                    ("api_key_file", self.api_key_file.is_some()),
                    ("api_key_header", self.api_key_header.is_some()),
                    ("ca_file", self.ca_file.is_some()),
                ];
                match of_url.iter().find(|(_, said)| *said) {
                    Some((key, _)) => wrong(key, "it belongs to a server with `url`, and this one has none"),
                    None => Ok(()),
                }
            }
            Some(url) => {
                let of_program = [
                    ("command", !self.command.is_empty()),
                    ("image", self.image.is_some()),
                    ("reads", !self.reads.is_empty()),
                    ("environment", !self.environment.is_empty()),
                    ("workspace", self.workspace.is_some()),
                    ("writes", self.writes),
                ];
                if let Some((key, _)) = of_program.iter().find(|(_, said)| *said) {
                    return wrong(key, "it belongs to a server with `command`, and this one has `url`");
                }
                if let Err(why) = check_url(url) {
                    return wrong("url", &why);
                }
                self.key(name).map(drop)
            }
        }
    }

    /// The program, for a server that is one.
    pub(super) fn program(&self) -> Program {
        let plain = |(name, value): (&String, &Secret)| (name.clone(), value.expose().to_owned());
        Program {
            command: self.command.clone(),
            image: self.image.clone(),
            reads: self.reads.clone(),
            environment: self.environment.iter().map(plain).collect(),
            quota: self.limits.clone(),
        }
    }

    /// The key to show, if one is configured.
    ///
    /// # Errors
    /// Its file cannot be read, or holds none.
    pub(super) fn key(&self, name: &str) -> Result<Option<Key>, String> {
        let (setting, text) = match (&self.api_key, &self.api_key_file) {
            (Some(_), Some(_)) => return Err(format!("tools.mcp.{name}.api_key: say either this or api_key_file")),
            (Some(key), None) => ("api_key", key.expose().to_owned()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                let why = |error| format!("tools.mcp.{name}.api_key_file: read {}: {error}", file.display());
                ("api_key_file", read.map_err(why)?)
            }
            (None, None) => match &self.api_key_header {
                Some(_) => return Err(format!("tools.mcp.{name}.api_key_header: there is no key to send in it")),
                None => return Ok(None),
            },
        };
        let text = text.trim();
        // What a header can carry; the text itself is never shown.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("tools.mcp.{name}.{setting}: it must be one word of plain characters"));
        }
        let key = match &self.api_key_header {
            None => Key { header: http::header::AUTHORIZATION, value: Secret::new(format!("Bearer {text}")) },
            Some(header) => {
                let header = header.parse();
                let header =
                    header.map_err(|_| format!("tools.mcp.{name}.api_key_header: it is no name of a header"))?;
                Key { header, value: Secret::new(text.to_owned()) }
            }
        };
        Ok(Some(key))
    }

    /// How long a start may take.
    pub(super) fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout_s.into())
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let expected = "expected the address of a server, for example https://tools.example/mcp";
    // What cannot be read is not repeated: it may hold a password.
    let parsed = url::Url::parse(url).map_err(|error| format!("{error}; {expected}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none_or(str::is_empty) {
        return Err(format!("it has no scheme (http or https) or no host; {expected}"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("it holds a user or a password: use api_key or api_key_file".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_server_is_a_program_or_an_address_and_never_something_between() {
        let checked = |text: &str| read(text).check("time");
        assert_eq!(checked("command = [\"python3\"]\nenvironment = { A = \"b\" }\n[limits]\ntimeout_s = 5"), Ok(()));
        assert_eq!(checked("url = \"http://127.0.0.1:1/mcp\"\napi_key = \"k\"\napi_key_header = \"x-key\""), Ok(()));
        for (text, why) in [
            ("", "tools.mcp.time.command: it names no program"),
            ("command = [\"a\"]\nurl = \"http://a\"", "tools.mcp.time.command: it belongs to a server with `command`"),
            ("command = [\"a\"]\napi_key = \"k\"", "tools.mcp.time.api_key: it belongs to a server with `url`"),
            ("url = \"ftp://a\"", "tools.mcp.time.url: it has no scheme"),
            ("url = \"https://u:p@a\"", "tools.mcp.time.url: it holds a user or a password"),
            ("url = \"http://a\"\napi_key = \"a b\"", "tools.mcp.time.api_key: it must be one word"),
            ("url = \"http://a\"\napi_key_header = \"x\"", "tools.mcp.time.api_key_header: there is no key"),
            ("url = \"http://a\"\nwrites = true", "tools.mcp.time.writes: it belongs"),
            ("url = \"http://a\"\nstart_timeout_s = 0", "tools.mcp.time.start_timeout_s: it must be 1 to 600"),
            (
                "command = [\"a\"]\n[limits]\nprocesses = 0",
                "tools.mcp.time.limits.processes: it is 0, must be 1 to 4096",
            ),
        ] {
            let refused = checked(text).unwrap_err();
            assert!(refused.starts_with(why), "{text}: {refused}");
        }
        assert!(read("command = [\"a\"]").check("Time").is_err());
    }

    #[test]
    fn keys_and_variables_do_not_print() {
        let settings = read("url = \"http://a\"\napi_key = \"hunter2\"\nenvironment = { TOKEN = \"hunter3\" }");
        let shown = format!("{settings:?} {}", serde_json::to_string(&settings).unwrap());
        assert!(!shown.contains("hunter"), "{shown}");
        let key = settings.key("a").unwrap().unwrap();
        assert!(!format!("{key:?}").contains("hunter") && key.value.expose() == "Bearer hunter2");
    }
}
