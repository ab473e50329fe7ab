//! A program that somebody configured, and what a box is told about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tool_runner::message::{Command, Order};

use super::manifest::Wrong;
use super::quota::{Granted, Quota};
use crate::sandbox::{self, Access, Place, Sandbox, Surroundings};

/// As it is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// The program and its arguments; no shell reads them.
    pub(crate) command: Vec<String>,
    /// The image whose programs it has, instead of this system's.
    pub(crate) image: Option<String>,
    /// Directories that it reads, beside what every box shows.
    pub(crate) reads: Vec<PathBuf>,
    /// Variables that it has.
    pub(crate) environment: BTreeMap<String, String>,
    /// What it may use.
    pub(crate) quota: Quota,
}

/// As it is run: its image is the one that was found, whatever is called so later.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    command: Command,
    image: Option<String>,
    reads: Vec<PathBuf>,
    pub(crate) quota: Granted,
}

impl Program {
    /// Finds what no box could be told.
    pub(crate) fn check(&self) -> Result<(), Wrong> {
        let wrong = |field: &str, reason: String| Err(Wrong { field: field.to_owned(), reason });
        if self.command.first().is_none_or(String::is_empty) {
            return wrong("command", "names no program: expected a list, for example [\"python3\", \"-V\"]".to_owned());
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return wrong("command", "holds a byte that no argument can have".to_owned());
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return wrong("environment", format!("has no variable that could be called {name:?}"));
            }
        }
        if Order::Run(self.plain()).bytes().len() > Order::BYTES_MAX {
            let most = Order::BYTES_MAX >> 10;
            return wrong("command", format!("and `environment` are more than {most} KiB, which no program is given"));
        }
        self.quota.check().or_else(|(name, reason)| wrong(&format!("limits.{name}"), reason))
    }

    /// Finds its image and its directories.
    ///
    /// # Errors
    /// One of them is not there, or cannot be shown.
    pub(crate) async fn pinned(self, boxes: &Sandbox, quota: Granted) -> Result<Pinned, Wrong> {
        if let Some(reason) = self.reads.iter().find_map(|path| sandbox::unfit(path)) {
            return Err(Wrong { field: "reads".to_owned(), reason: format!("names what no box shows: {reason}") });
        }
        let mut command = self.plain();
        let image = match &self.image {
            None => None,
            Some(name) => {
                let found = boxes.image(name).await;
                let (id, variables) = found.map_err(|reason| Wrong {
                    field: "image".to_owned(),
                    reason: format!("is not to be had: {reason}"),
                })?;
                for (name, value) in variables.iter().filter_map(|variable| variable.split_once('=')) {
                    command.environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
                }
                Some(id)
            }
        };
        Ok(Pinned { command, image, reads: self.reads, quota })
    }

    fn plain(&self) -> Command {
        let (argv, environment) = (self.command.clone(), self.environment.clone());
        Command { argv, directory: String::new(), environment }
    }
}

impl Pinned {
    /// What its box is told to run.
    pub(crate) fn command(&self) -> Command {
        self.command.clone()
    }

    /// Everything that decides what it answers, beside its arguments and the workspace; none where it may look at more.
    pub(crate) fn version(&self) -> Option<String> {
        self.reads.is_empty().then(|| format!("{:?} {:?}", self.command, self.image))
    }

    /// What it finds around itself.
    pub(crate) fn surroundings(&self, workspace: Option<(Place, Access)>) -> Surroundings {
        let (reads, image, limits) = (self.reads.clone(), self.image.clone(), self.quota.limits());
        Surroundings { workspace, reads, image, limits }
    }
}
