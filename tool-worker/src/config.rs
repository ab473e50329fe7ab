//! The knobs of the tool worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::permission::User;
use crate::{fetch, web};

/// Section `tools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories under which workspaces may lie. None: every tool that needs one is refused.
    pub workspaces: Vec<PathBuf>,
    /// Calls carried out at once, 1 to 64. A call costs a process and little else.
    pub slots: u32,
    /// The sandbox program.
    pub bubblewrap: PathBuf,
    /// The runner inside the box; this very program when missing.
    pub runner: Option<PathBuf>,
    /// Arguments that make it the runner.
    pub runner_arguments: Vec<String>,
    /// What requests to the web may do, `[tools.fetch]`.
    pub fetch: fetch::Settings,
    /// Tools whose calls by agents a person must allow each time, whatever the agent type says.
    pub approve: Vec<String>,
    /// What users may call, `[tools.users.NAME]`.
    pub users: BTreeMap<String, User>,
    /// Whether results of tools that only read are kept for five minutes, or until a file changes.
    pub cache: bool,
    /// Who answers `web_search`, `[tools.search]`. None: nobody.
    pub search: Option<web::Settings>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workspaces: Vec::new(),
            slots: 4,
            bubblewrap: PathBuf::from("/usr/bin/bwrap"),
            runner: None,
            runner_arguments: vec!["tool-runner".to_owned()],
            fetch: fetch::Settings::default(),
            approve: Vec::new(),
            users: BTreeMap::new(),
            cache: true,
            search: None,
        }
    }
}
