//! What a box is made for: all that is known before its call. Boxes made for the same are alike, and any of them will do.

use std::path::PathBuf;

use tool_runner::IDENTITY;
use tool_runner::message::Allowance;
use tool_runner::spawner::Bounds;

use super::place::Place;

/// What a box is made for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MadeFor {
    /// One of the built-in tools, which reads a workspace.
    Tool(Place),
    /// A command.
    Command(Surroundings),
}

/// What a command finds around itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Surroundings {
    /// The workspace, if it has one, and whether it may write there.
    pub workspace: Option<(Place, Access)>,
    /// Other directories that it may read, at the paths they have here.
    pub reads: Vec<PathBuf>,
    /// The image whose programs it has, instead of this system's; only containers have images.
    pub image: Option<String>,
    /// What it may use.
    pub limits: Limits,
}

/// What may be done with a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read it, and run its programs.
    Read,
    /// Write to it, too.
    Write,
}

/// What a command and all its processes together may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limits {
    /// Memory, files in memory included.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u32,
    /// Processor time, in thousandths of one processor.
    pub processor_milli: u32,
    /// Files in `/tmp`.
    pub tmp_bytes: u64,
    /// One file.
    pub file_bytes: u64,
}

/// Memory and processes of the runner, its box's init process and bubblewrap, beside those of the command.
const BOX_MEMORY_BYTES: u64 = 16 << 20;
const BOX_PROCESSES: u32 = 6;

impl MadeFor {
    /// The workspace, if there is one.
    pub(super) fn workspace(&self) -> Option<&Place> {
        match self {
            Self::Tool(workspace) => Some(workspace),
            Self::Command(surroundings) => surroundings.workspace.as_ref().map(|(place, _)| place),
        }
    }

    /// What the runner is told of it, beside what is only for commands.
    pub(super) fn arguments(&self) -> Vec<String> {
        self.workspace().map(|place| [IDENTITY.to_owned(), place.identity()]).into_iter().flatten().collect()
    }
}

impl Surroundings {
    /// What the runner is told.
    pub(super) fn allowance(&self) -> Allowance {
        let writes = matches!(self.workspace, Some((_, Access::Write)));
        Allowance { writes, processes: self.limits.processes, file_bytes: self.limits.file_bytes }
    }

    /// What the control group is told.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            memory_bytes: self.limits.memory_bytes + BOX_MEMORY_BYTES,
            processes: self.limits.processes + BOX_PROCESSES,
            processor_milli: self.limits.processor_milli,
        }
    }
}
