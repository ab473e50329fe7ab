//! The outer half of the box: one `bwrap` process a call.
//!
//! The box sees the runner, the libraries it is linked with, and the workspace, all read-only; it has no `/proc`, no
//! `/dev`, no network and no environment. Killing `bwrap` kills the whole process namespace, so nothing outlives a call.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tool_runner::message::{BoxedAnswer, BoxedCall};
use tool_runner::{NOBODY, WORKSPACE};

use super::ending::{self, STDERR_BYTES_MAX, STDOUT_BYTES_MAX};
use super::program::{LIBRARIES, Program, RUNNER};
use crate::failure::Failure;

/// What the outer half enforces, whatever the kernel.
pub(crate) const ENFORCED: [&str; 6] =
    ["user-namespace", "pid-namespace", "no-network", "no-capabilities", "read-only-root", "empty-environment"];

/// How to start a box.
#[derive(Debug, Clone)]
pub(crate) struct Bubblewrap {
    bwrap: PathBuf,
    program: Program,
}

/// A box that waits for its call.
#[derive(Debug)]
pub(crate) struct Waiting {
    child: Child,
}

impl Bubblewrap {
    /// Fails when bubblewrap is not installed.
    pub(crate) fn find(bwrap: &Path, program: &Program) -> Result<Self, String> {
        if !bwrap.exists() {
            return Err(format!("{} is not installed; install the package `bubblewrap`", bwrap.display()));
        }
        Ok(Self { bwrap: bwrap.to_owned(), program: program.clone() })
    }

    /// Starts a box.
    pub(crate) fn prepare(&self, workspace: &Path) -> Result<Waiting, Failure> {
        let child = self.command(workspace).spawn();
        let child = child.map_err(|error| Failure::internal(format!("the sandbox did not start: {error}")))?;
        Ok(Waiting { child })
    }

    fn command(&self, workspace: &Path) -> Command {
        let mut command = Command::new(&self.bwrap);
        let id = NOBODY.to_string();
        command.args(["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"]);
        command.args(["--cap-drop", "ALL", "--clearenv", "--hostname", "box", "--uid", &id, "--gid", &id]);
        for (name, path) in &self.program.libraries {
            command.arg("--ro-bind").arg(path).arg(format!("{LIBRARIES}/{name}"));
        }
        command.arg("--ro-bind").arg(&self.program.file).arg(RUNNER);
        command.arg("--ro-bind").arg(workspace).arg(WORKSPACE);
        command.args(["--remount-ro", "/", "--chdir", WORKSPACE, "--"]);
        command.args(self.program.command());
        command.env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Waiting {
    /// Whether it can still take a call.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Hands the call in and waits for the answer. Dropping the future kills the box.
    pub(crate) async fn carry_out(mut self, call: &BoxedCall, timeout: Duration) -> Result<BoxedAnswer, Failure> {
        let child = &mut self.child;
        let mut stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let call = call.line();
        let work = async {
            let write = async {
                // A runner that died early does not read; its exit code says why.
                let _ = stdin.write_all(&call).await;
                drop(stdin);
                Ok(())
            };
            let ((), stdout, stderr) =
                tokio::try_join!(write, read_all(stdout, STDOUT_BYTES_MAX), read_all(stderr, STDERR_BYTES_MAX))?;
            let status =
                child.wait().await.map_err(|error| Failure::internal(format!("the sandbox was lost: {error}")))?;
            Ok::<_, Failure>((status, stdout, stderr))
        };
        let outcome = tokio::time::timeout(timeout, work).await;
        let (status, stdout, stderr) = match outcome {
            Ok(Ok(finished)) => finished,
            Ok(Err(failure)) => {
                end(child).await;
                return Err(failure);
            }
            Err(_) => {
                end(child).await;
                return Err(ending::too_long(timeout));
            }
        };
        if status.success() { BoxedAnswer::read(&stdout) } else { Err(in_words(status, &stderr)) }
    }
}

/// Kills the box and waits until it is gone.
async fn end(child: &mut Child) {
    // It may have ended by itself meanwhile, which is as good.
    let _ = child.kill().await;
}

async fn read_all(stream: impl AsyncRead + Unpin, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = stream.take(bytes_max + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| Failure::internal(format!("the sandbox was lost: {error}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(ending::too_much(bytes_max));
    }
    Ok(bytes)
}

/// `bwrap` reports a signal of the runner as 128 and its number.
fn in_words(status: ExitStatus, stderr: &[u8]) -> Failure {
    ending::in_words(status.code().map(i64::from), &String::from_utf8_lossy(stderr))
}
