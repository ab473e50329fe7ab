//! The knobs of the tool worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::{Choice, Limits};
use crate::{fetch, mcp, permission, web};

/// Section `tools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories under which workspaces may lie. None: every tool that needs one is refused.
    pub workspaces: Vec<PathBuf>,
    /// Those of them, or directories below, in which tools may write that ask for it. None: all are read-only.
    pub writable: Vec<PathBuf>,
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
    /// What commands may use.
    pub commands: Commands,
    /// Tools whose calls by agents a person must allow each time, whatever the agent type says.
    pub approve: Vec<String>,
    /// What users may call, `[tools.users.NAME]`; `*` is whoever has no entry.
    pub users: permission::Rules,
    /// What agent types may call beside what they say themselves, `[tools.agents.NAME]`; `*` likewise.
    pub agents: permission::Rules,
    /// Whether results of tools that only read are kept for five minutes, or until a file changes.
    pub cache: bool,
    /// A directory of tools, one TOML file each, taken up again whenever it changes; none when missing.
    pub plugins_dir: Option<PathBuf>,
    /// Servers that speak the Model Context Protocol and whose tools are offered, `[tools.mcp.NAME]`.
    pub mcp: BTreeMap<String, mcp::Settings>,
    /// What requests to the web may do, `[tools.fetch]`.
    pub fetch: fetch::Settings,
    /// Who answers `web_search`, `[tools.search]`. None: nobody.
    pub search: Option<web::Settings>,
}

/// Section `tools.commands`: what a command and all its processes together may use, unless a tool says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Commands {
    /// Whether `run_command` is there for agent types that name it.
    pub allowed: bool,
    /// Memory in MiB, files in memory included; 16 to 65,536.
    pub memory_mib: u32,
    /// Processes and threads at once, 1 to 4,096.
    pub processes: u32,
    /// Processor time in thousandths of one processor, 100 to 64,000.
    pub processor_milli: u32,
    /// Files in `/tmp`, in MiB; 1 to 65,536. They count as memory.
    pub tmp_mib: u32,
    /// One file, in MiB; 1 to 65,536.
    pub file_mib: u32,
    /// Wall time of one command in seconds, 1 to 3,600.
    pub timeout_s: u32,
    /// Output that is kept, in KiB; a command that writes more is stopped. 1 to 16,384.
    pub output_kib: u32,
    /// Directories that commands may read beside the workspace and this system's programs, at the paths they have here.
    pub reads: Vec<PathBuf>,
    /// The image whose programs commands have, instead of this system's. It must be on the engine: nothing is pulled.
    pub image: Option<String>,
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            allowed: true,
            memory_mib: 512,
            processes: 128,
            processor_milli: 1_000,
            tmp_mib: 64,
            file_mib: 64,
            timeout_s: 60,
            output_kib: 1_024,
            reads: Vec::new(),
            image: None,
        }
    }
}

impl Commands {
    /// As boxes take them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let bytes = |mib: u32| u64::from(mib.clamp(1, 65_536)) << 20;
        Limits {
            memory_bytes: bytes(self.memory_mib.max(16)),
            processes: self.processes.clamp(1, 4_096),
            processor_milli: self.processor_milli.clamp(100, 64_000),
            tmp_bytes: bytes(self.tmp_mib),
            file_bytes: bytes(self.file_mib),
        }
    }

    /// Wall time of one command, in seconds.
    #[must_use]
    pub fn timeout_s(&self) -> u32 {
        self.timeout_s.clamp(1, 3_600)
    }

    /// Output that is kept.
    #[must_use]
    pub fn output_bytes(&self) -> usize {
        (self.output_kib.clamp(1, 16_384) as usize) << 10
    }
}

impl Config {
    /// Checks what can be known before anything is started.
    ///
    /// # Errors
    /// A text that names the setting and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        match &self.plugins_dir {
            Some(directory) if !directory.is_dir() => Err(format!(
                "tools.plugins_dir is {}, which is no directory: create it, or name another one",
                directory.display()
            )),
            _ => self.mcp.iter().try_for_each(|(name, settings)| settings.check(name)),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workspaces: Vec::new(),
            writable: Vec::new(),
            slots: 4,
            sandbox: Choice::Auto,
            warm_boxes: 2,
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            docker_runtime: None,
            bubblewrap: PathBuf::from("/usr/bin/bwrap"),
            runner: None,
            runner_arguments: vec!["tool-runner".to_owned()],
            commands: Commands::default(),
            approve: Vec::new(),
            users: permission::Rules::new(),
            agents: permission::Rules::new(),
            cache: true,
            plugins_dir: None,
            mcp: BTreeMap::new(),
            fetch: fetch::Settings::default(),
            search: None,
        }
    }
}
