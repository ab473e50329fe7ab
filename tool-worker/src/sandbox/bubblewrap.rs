//! The outer half of the box without an engine: one `bwrap` process a call.
//!
//! A box for one of the built-in tools sees the runner, the libraries it is linked with, and the workspace, all read-only;
//! it has no `/proc`, no `/dev`, no network and no environment. A box for commands has this system's programs besides, a
//! `/proc` of its own processes, a small `/dev` and a `/tmp` in memory; it is made only where a control group bounds it,
//! and never by root. Ending `bwrap` ends the whole process namespace, so nothing outlives a call.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use runtime::Tasks;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use tool_runner::{COMMANDS, NOBODY, RUNNER, WORKSPACE};

use super::made_for::{Access, MadeFor, Surroundings};
use super::program::{LIBRARIES, Program};
use super::running::{Hold, Piece, Running};
use super::spawner::{Spawned, Spawner};
use super::system::System;
use super::user::{self, user_for_access};
use crate::failure::Failure;

/// What the outer half enforces, whatever the kernel.
pub(super) const ENFORCED: [&str; 6] =
    ["user-namespace", "pid-namespace", "no-network", "no-capabilities", "read-only-root", "empty-environment"];

/// How to start a box.
pub(super) struct Bubblewrap {
    bwrap: String,
    program: Program,
    /// The same where a box that is not root can reach it, if it cannot reach the program itself.
    reachable: Option<Reachable>,
    system: System,
    tasks: Tasks,
    /// Started anew when it has died.
    spawner: tokio::sync::Mutex<Option<Arc<Spawner>>>,
    /// What control groups bound, or why they do not.
    bounded: Result<Vec<String>, String>,
}

impl Bubblewrap {
    /// Fails when bubblewrap is not installed.
    pub(super) async fn find(bwrap: &Path, program: &Program, tasks: &Tasks) -> Result<Self, String> {
        if !bwrap.exists() {
            return Err(format!("{} is not installed; install the package `bubblewrap`", bwrap.display()));
        }
        let bwrap = bwrap.to_str().ok_or("the path of bubblewrap is not UTF-8")?.to_owned();
        let is_root = rustix::process::geteuid().is_root();
        let reachable = match is_root && user::barred(&program.file, (NOBODY, NOBODY)).is_some() {
            true => Some(Reachable::copy(program).map_err(|error| format!("copy the runner for boxes: {error}"))?),
            false => None,
        };
        let spawner = Spawner::start(program, tasks).await?;
        let bounded = spawner.bounded.clone();
        Ok(Self {
            bwrap,
            program: program.clone(),
            reachable,
            system: System::find(),
            tasks: tasks.clone(),
            spawner: tokio::sync::Mutex::new(Some(Arc::new(spawner))),
            bounded,
        })
    }

    /// What bounds boxes for commands; why there can be none.
    pub(super) fn bounded(&self) -> Result<&[String], &str> {
        self.bounded.as_deref().map_err(String::as_str)
    }

    /// Starts a box.
    pub(super) async fn prepare(&self, made_for: &MadeFor) -> Result<Running, Failure> {
        let refused = |reason: String| Failure::internal(format!("the sandbox did not start: {reason}"));
        let (command, user, bounds) = match made_for {
            MadeFor::Tool(workspace) => (self.for_tool(workspace.path()), Ok(None), None),
            MadeFor::Command(surroundings) => {
                let user = match &surroundings.workspace {
                    Some((workspace, access)) => may_reach(workspace.path(), *access).map(Some),
                    None => Ok(rustix::process::geteuid().is_root().then_some((NOBODY, NOBODY))),
                };
                (self.for_command(surroundings), user, Some(surroundings.bounds()))
            }
        };
        let spawner = self.spawner().await.map_err(refused)?;
        let command = command?.into_iter().chain(made_for.arguments()).collect();
        let spawned = spawner.spawn(command, user?, bounds).map_err(|error| refused(error.to_string()))?;
        Ok(running(spawned))
    }

    async fn spawner(&self) -> Result<Arc<Spawner>, String> {
        let mut held = self.spawner.lock().await;
        match &*held {
            Some(spawner) if !spawner.is_lost() => Ok(spawner.clone()),
            lost => {
                if lost.is_some() {
                    tracing::warn!("the spawner of boxes was lost; starting another");
                }
                let spawner = Arc::new(Spawner::start(&self.program, &self.tasks).await?);
                *held = Some(spawner.clone());
                Ok(spawner)
            }
        }
    }

    /// Ends every box.
    pub(super) async fn close(&self) {
        let spawner = self.spawner.lock().await.take();
        if let Some(spawner) = spawner.and_then(Arc::into_inner) {
            spawner.close().await;
        }
    }

    fn for_tool(&self, workspace: &Path) -> Result<Vec<String>, Failure> {
        let mut line = self.alone(&self.program.file);
        line.extend(words(["--ro-bind", utf8(workspace)?, WORKSPACE, "--remount-ro", "/", "--chdir", WORKSPACE, "--"]));
        line.extend(self.program.command());
        Ok(line)
    }

    fn for_command(&self, surroundings: &Surroundings) -> Result<Vec<String>, Failure> {
        let Surroundings { workspace, reads, image, limits } = surroundings;
        if let Some(image) = image {
            return Err(Failure::refused(format!(
                "the image {image} needs a Docker engine, and this is a box of bubblewrap"
            )));
        }
        if let Err(reason) = &self.bounded {
            return Err(Failure::refused(format!("a command cannot be bounded here: {reason}")));
        }
        let mut line = self.alone(self.reachable.as_ref().map_or(&self.program.file, |reachable| &reachable.file));
        for path in self.system.shown.iter().chain(reads) {
            line.extend(words(["--ro-bind", utf8(path)?, utf8(path)?]));
        }
        for (name, target) in &self.system.links {
            line.extend(words(["--symlink", utf8(target)?, &format!("/{name}")]));
        }
        line.extend(words(["--proc", "/proc", "--dev", "/dev"]));
        line.extend(words(["--size", &limits.tmp_bytes.to_string(), "--perms", "1777", "--tmpfs", "/tmp"]));
        match workspace {
            Some((place, Access::Read)) => line.extend(words(["--ro-bind", utf8(place.path())?, WORKSPACE])),
            Some((place, Access::Write)) => line.extend(words(["--bind", utf8(place.path())?, WORKSPACE])),
            None => line.extend(words(["--dir", WORKSPACE])),
        }
        line.extend(words(["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKSPACE, "--"]));
        line.extend(self.program.command());
        line.push(COMMANDS.to_owned());
        line.push(serde_json::to_string(&surroundings.allowance()).expect("numbers only"));
        Ok(line)
    }

    /// What every box begins with: nothing, and the runner.
    fn alone(&self, runner: &Path) -> Vec<String> {
        let id = NOBODY.to_string();
        let mut line = vec![self.bwrap.clone()];
        line.extend(words([
            "--unshare-user",
            "--unshare-all",
            "--disable-userns",
            "--die-with-parent",
            "--new-session",
        ]));
        line.extend(words(["--cap-drop", "ALL", "--clearenv", "--hostname", "box", "--uid", &id, "--gid", &id]));
        for (name, path) in &self.program.libraries {
            line.extend(words(["--ro-bind", &path.to_string_lossy(), &format!("{LIBRARIES}/{name}")]));
        }
        line.extend(words(["--ro-bind", &runner.to_string_lossy(), RUNNER]));
        line
    }
}

/// What the directories of copies begin with.
const COPY_PREFIX: &str = "vlinders-runner-";
/// The file in such a directory that its worker holds a lock of.
const COPY_HELD: &str = "held";
/// How old a directory without a holder must be: its worker may be about to take the lock.
const COPY_ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A copy of the runner that everybody can read, in a directory that goes with the worker. What a worker left that was
/// killed, one that starts a minute later or more removes.
struct Reachable {
    file: PathBuf,
    _held: File,
    _directory: tempfile::TempDir,
}

impl Reachable {
    fn copy(program: &Program) -> std::io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let parent = std::env::temp_dir();
        remove_abandoned(&parent, COPY_ABANDONED_AFTER);
        let directory = tempfile::Builder::new().prefix(COPY_PREFIX).tempdir_in(parent)?;
        let held = File::create(directory.path().join(COPY_HELD))?;
        held.lock()?;
        let file = directory.path().join("runner");
        std::fs::copy(&program.file, &file)?;
        for path in [directory.path(), &file] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { file, _held: held, _directory: directory })
    }
}

/// Removes copies of ours that nobody holds. What cannot be looked at or removed stays: it is not ours.
fn remove_abandoned(parent: &Path, after: Duration) {
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_copy = entry.file_name().to_str().is_some_and(|name| name.starts_with(COPY_PREFIX));
        let ours = |found: &std::fs::Metadata| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        // The metadata of a link are the link's own.
        let Some(found) = entry.metadata().ok().filter(|found| is_copy && ours(found)) else { continue };
        let is_old = found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= after));
        let is_free = || File::open(entry.path().join(COPY_HELD)).is_ok_and(|held| held.try_lock().is_ok());
        if is_old && is_free() {
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::info!(directory = %entry.path().display(), "removed what a killed worker left"),
                Err(error) => {
                    tracing::debug!(directory = %entry.path().display(), %error, "what a killed worker left stays");
                }
            }
        }
    }
}

/// Whom a box around a workspace is, who must get there by himself.
fn may_reach(workspace: &Path, access: Access) -> Result<(u32, u32), Failure> {
    let found = user_for_access(workspace, access)?;
    match user::barred(workspace, found) {
        None => Ok(found),
        Some(directory) => Err(Failure::refused(format!(
            "no command runs as root, and the user {} cannot get to the workspace {}: let others through {} (chmod o+x)",
            found.0,
            workspace.display(),
            directory.display()
        ))),
    }
}

fn words<const N: usize>(words: [&str; N]) -> [String; N] {
    words.map(str::to_owned)
}

fn utf8(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::refused(format!("no box shows a path that is not UTF-8: {}", path.display())))
}

fn running(spawned: Spawned) -> Running {
    let Spawned { stdin, stdout, stderr, held } = spawned;
    let output = pieces(stdout, Piece::Output);
    let complaints = pieces(stderr, Piece::Complaint);
    Running {
        input: Box::pin(stdin),
        pieces: futures::stream::select(output, complaints).boxed(),
        hold: Hold::Spawned(held),
    }
}

/// A pipe that breaks has nothing more to say.
fn pieces(
    pipe: impl AsyncRead + Send + 'static,
    piece: fn(bytes::Bytes) -> Piece,
) -> impl futures::Stream<Item = Piece> + Send {
    ReaderStream::with_capacity(pipe, 64 * 1024).filter_map(move |read| std::future::ready(read.ok().map(piece)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_nobody_holds_are_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let directory = |name: &str| {
            let directory = parent.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            (File::create(directory.join(COPY_HELD)).unwrap(), directory)
        };
        let (held, in_use) = directory("vlinders-runner-in-use");
        held.lock().unwrap();
        let (_, left) = directory("vlinders-runner-left");
        let (_, another) = directory("another");
        let unknown = parent.path().join("vlinders-runner-unknown");
        std::fs::create_dir(&unknown).unwrap();
        std::os::unix::fs::symlink(&another, parent.path().join("vlinders-runner-link")).unwrap();

        remove_abandoned(parent.path(), Duration::from_secs(3_600));
        assert!(left.exists(), "its worker may be about to hold it");
        remove_abandoned(parent.path(), Duration::ZERO);
        assert!(!left.exists());
        assert!(in_use.exists() && another.exists() && unknown.exists());
        drop(held);
        remove_abandoned(parent.path(), Duration::ZERO);
        assert!(!in_use.exists());
    }
}
