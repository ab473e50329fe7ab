//! The knobs of the tool worker.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::Choice;
use crate::{fetch, permission, web};

/// Section `tools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories under which workspaces may lie. None: every tool that needs one is refused.
    pub workspaces: Vec<PathBuf>,
    /// Calls carried out at once, 1 to 64. A call costs a process and little else.
    pub slots: u32,
    /// The kind of sandbox: `auto`, `docker` or `bubblewrap`.
    pub sandbox: Choice,
    /// Boxes that wait for calls, for each workspace in use; 0 to 16. One takes a few megabytes.
    pub warm_boxes: u32,
    /// The sandbox program of bubblewrap.
    pub bubblewrap: PathBuf,
    /// The socket of the Docker engine.
    pub docker_socket: PathBuf,
    /// The engine's runtime for containers, for example `runsc`; its default when missing.
    pub docker_runtime: Option<String>,
    /// The runner inside the box; `vlinders-tool-runner` beside this program, or this very program, when missing.
    pub runner: Option<PathBuf>,
    /// Arguments that make it the runner.
    pub runner_arguments: Vec<String>,
    /// Tools whose calls by agents a person must allow each time, whatever the agent type says.
    pub approve: Vec<String>,
    /// What users may call, `[tools.users.NAME]`; `*` is whoever has no entry.
    pub users: permission::Rules,
    /// What agent types may call beside what they say themselves, `[tools.agents.NAME]`; `*` likewise.
    pub agents: permission::Rules,
    /// Whether results of tools that only read are kept for five minutes, or until a file changes.
    pub cache: bool,
    /// What requests to the web may do, `[tools.fetch]`.
    pub fetch: fetch::Settings,
    /// Who answers `web_search`, `[tools.search]`. None: nobody.
    pub search: Option<web::Settings>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workspaces: Vec::new(),
            slots: 4,
            sandbox: Choice::Auto,
            warm_boxes: 2,
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            docker_runtime: None,
            bubblewrap: PathBuf::from("/usr/bin/bwrap"),
            runner: None,
            runner_arguments: vec!["tool-runner".to_owned()],
            approve: Vec::new(),
            users: permission::Rules::new(),
            agents: permission::Rules::new(),
            cache: true,
            fetch: fetch::Settings::default(),
            search: None,
        }
    }
}
