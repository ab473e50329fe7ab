//! Tools that are programs, each described by a file: a command that runs in a box of its own, reads the arguments as JSON
//! from standard input, and writes the result to standard output.
//!
//! The files are followed while the worker runs ([`directory`]): a file that comes, changes or goes does so for its tool,
//! and one that is wrong is refused by name while the version before it serves on. Nothing here gives a program more than
//! a box for commands gives to any: no network, no environment but what its file says, and only what its file names of
//! this machine's directories.

mod directory;
mod manifest;
mod program;
mod quota;
mod uses;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use runtime::Tasks;
use schemas::fact::{FailureClass, Sandbox as Report};
use serde_json::Value;

pub(crate) use program::{Pinned, Program};
pub use quota::Quota;
pub(crate) use uses::Uses;

use crate::config::Config;
use crate::executor::Executor;
use crate::failure::Failure;
use crate::registry::{Handler, Means, Order, Permission, SideEffect, Tool};
use crate::sandbox::{End, Finished, Sandbox};
use crate::toolbox::Toolbox;
use crate::workspace::Roots;
use manifest::Manifest;

/// Wall time beside the program's own: a box is made and ended.
pub(crate) const MARGIN: Duration = Duration::from_secs(10);
/// Result text; a model's window is the scarce thing.
pub(crate) const RESULT_BYTES_MAX: usize = 32 * 1024;
/// Of what a program says in trouble, the end is shown: so many lines, and so many bytes of them.
const SAID_LINES_MAX: usize = 20;
const SAID_BYTES_MAX: usize = 2 * 1024;

/// Where programs run, or why none does.
pub(crate) type Boxes = Result<Arc<Sandbox>, String>;

/// Takes up the files of the directory, if one is configured, and follows it until the tasks stop.
pub async fn start(config: &Config, executor: &Executor, tasks: &Tasks) {
    let Some(path) = config.plugins_dir.clone() else { return };
    directory::start(path, Shelf::new(config, executor), tasks).await;
}

/// Where tools of files are put, and what it takes to make them.
pub(crate) struct Shelf {
    pub(crate) toolbox: Toolbox,
    pub(crate) boxes: Boxes,
    pub(crate) defaults: crate::config::Commands,
    pub(crate) roots: Roots,
}

impl Shelf {
    pub(crate) fn new(config: &Config, executor: &Executor) -> Self {
        Self {
            toolbox: executor.toolbox().clone(),
            boxes: executor.boxes(),
            defaults: config.commands.clone(),
            roots: executor.roots().clone(),
        }
    }

    /// The tool that a file describes. Where nothing can run it is there all the same, and says why it cannot be used.
    ///
    /// # Errors
    /// The image it names is not there, or a directory; another look may come to another end.
    async fn tool(&self, manifest: Manifest) -> Result<Tool, manifest::Wrong> {
        let Manifest { mut tool, program, uses } = manifest;
        let quota = program.quota.over(&self.defaults);
        tool.timeout = quota.timeout() + MARGIN;
        tool.permissions = uses.permissions();
        tool.unavailable = self.unavailable(uses);
        if tool.unavailable.is_none()
            && let Ok(boxes) = &self.boxes
        {
            let program = program.pinned(boxes, quota).await?;
            let (boxes, roots) = (boxes.clone(), self.roots.clone());
            let (name, effect, is_json) = (tool.name.clone(), tool.effect, tool.result.is_some());
            tool.means = Means::Handler(Arc::new(Plugin { name, effect, is_json, program, uses, boxes, roots }));
        }
        Ok(tool)
    }

    /// Why no program that uses workspaces like this runs here.
    pub(crate) fn unavailable(&self, uses: Uses) -> Option<String> {
        match &self.boxes {
            Err(reason) => Some(format!("no sandbox: {reason}")),
            Ok(boxes) => match boxes.for_commands() {
                Err(reason) => Some(format!("no command runs here: {reason}")),
                Ok(_) if uses == Uses::Write && !self.roots.any_writable() => Some(
                    "this server lets tools write nowhere (whoever runs it can: setting tools.writable)".to_owned(),
                ),
                Ok(_) => None,
            },
        }
    }
}

/// Runs the program of one file.
struct Plugin {
    name: String,
    effect: SideEffect,
    /// Whether what it writes is held against a schema.
    is_json: bool,
    program: Pinned,
    uses: Uses,
    boxes: Arc<Sandbox>,
    roots: Roots,
}

impl Handler for Plugin {
    fn version(&self) -> Option<String> {
        self.program.version()
    }

    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Report) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(self.run(order, report))
    }
}

impl Plugin {
    async fn run(&self, order: Order, report: &mut Report) -> Result<String, Failure> {
        let workspace = match (self.uses.access(), &order.workspace) {
            (Some(wanted), Some(workspace)) => {
                Some((workspace.place().clone(), self.roots.grant(wanted, workspace.path())?))
            }
            _ => None,
        };
        confined(&self.boxes, report);
        let given = Value::Object(order.arguments).to_string();
        let Pinned { quota, .. } = &self.program;
        let (timeout, bytes_max) = (quota.timeout(), quota.output_bytes());
        let surroundings = self.program.surroundings(workspace);
        let run = self.boxes.command(&surroundings, self.program.command(), given.as_bytes(), timeout, bytes_max);
        let finished = run.await.map_err(|failure| match failure.class {
            FailureClass::Internal if !self.effect.is_pure() => unknown(&self.name, &failure.detail),
            _ => failure,
        })?;
        self.told(&finished)
    }

    /// What came of it, for the model.
    fn told(&self, finished: &Finished) -> Result<String, Failure> {
        let (name, quota) = (&self.name, &self.program.quota);
        match finished.end {
            End::Exited(0) => {
                let text = String::from_utf8_lossy(&finished.stdout);
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Ok(if text.is_empty() && !self.is_json { "(no output)".to_owned() } else { text.to_owned() })
            }
            End::Exited(code) => {
                let said = match said(&finished.stderr) {
                    said if said.is_empty() => said_in_words(&finished.stdout),
                    said => format!("; it says: {said}"),
                };
                Err(match code {
                    126 | 127 => Failure::refused(format!("{name} cannot be run here{said}")),
                    153 => Failure::refused(format!(
                        "{name} was stopped: it wrote a file of more than {} MiB{said}",
                        quota.file_mib
                    )),
                    129..=192 => Failure::bad_request(format!("{name} was ended by the signal {}{said}", code - 128)),
                    code => Failure::bad_request(format!("{name} failed with exit code {code}{said}")),
                })
            }
            End::TimedOut => Err(Failure::timeout(format!(
                "{name} took longer than {} s and was stopped",
                quota.timeout().as_secs()
            ))),
            End::TooMuchOutput => Err(Failure::refused(format!(
                "{name} wrote more than {} KiB and was stopped",
                quota.output_bytes() >> 10
            ))),
            End::OutOfMemory => Err(Failure::refused(format!(
                "{name} used more memory than its {} MiB and was stopped",
                quota.limits().memory_bytes >> 20
            ))),
        }
    }
}

fn said_in_words(stdout: &[u8]) -> String {
    match said(stdout) {
        said if said.is_empty() => " and said nothing".to_owned(),
        said => format!("; it says: {said}"),
    }
}

/// The end of what somebody said in trouble.
pub(crate) fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    let lines: Vec<&str> = text.lines().collect();
    let text = lines[lines.len().saturating_sub(SAID_LINES_MAX)..].join("\n");
    text[text.ceil_char_boundary(text.len().saturating_sub(SAID_BYTES_MAX))..].to_owned()
}

/// What holds for a program, before it is started.
pub(crate) fn confined(boxes: &Sandbox, report: &mut Report) {
    boxes.tier().clone_into(&mut report.tier);
    report.enforced = boxes.for_commands().unwrap_or_default().to_owned();
}

/// A call that broke off in the middle and is not worth another try, because once may have been enough.
pub(crate) fn unknown(tool: &str, why: &str) -> Failure {
    let detail = format!("outcome unknown: {tool} broke off ({why}); it may have taken effect");
    Failure { class: FailureClass::OutcomeUnknown, detail }
}

impl Uses {
    /// What a tool is permitted that uses workspaces like this.
    fn permissions(self) -> BTreeSet<Permission> {
        match self {
            Self::None => [].into(),
            Self::Read => [Permission::ReadWorkspace].into(),
            Self::Write => [Permission::ReadWorkspace, Permission::WriteWorkspace].into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_said_in_trouble_the_end_is_shown() {
        let lines: Vec<String> = (1..=100).map(|n| format!("line {n}")).collect();
        let said_of_it = said(lines.join("\n").as_bytes());
        assert!(said_of_it.starts_with("line 81\n") && said_of_it.ends_with("line 100"), "{said_of_it}");
        let long = said("é".repeat(5_000).as_bytes());
        assert!((SAID_BYTES_MAX - 1..=SAID_BYTES_MAX).contains(&long.len()), "{}", long.len());
        assert_eq!(said(b" \n"), "");
    }
}
