//! The outer half of the box: one `bwrap` process a call.
//!
//! The box sees the runner, the libraries it is linked with, and the workspace, all read-only; it has no `/proc`, no
//! `/dev`, no network and no environment. Killing `bwrap` kills the whole process namespace, so nothing outlives a call.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{BoxedAnswer, BoxedCall, WORKSPACE};
use crate::failure::Failure;

/// User and group inside the box: nobody.
pub(crate) const UID: u32 = 65534;
/// What the outer half enforces, whatever the kernel.
pub(crate) const ENFORCED: [&str; 6] =
    ["user-namespace", "pid-namespace", "no-network", "no-capabilities", "read-only-root", "empty-environment"];
/// Bytes read of an answer: the largest source handed out, escaped as JSON, and some more.
const STDOUT_BYTES_MAX: u64 = 4 << 20;
/// Bytes read of what a runner says in trouble.
const STDERR_BYTES_MAX: u64 = 8 << 10;

/// How to start a box.
#[derive(Debug, Clone)]
pub(crate) struct Bubblewrap {
    program: PathBuf,
    runner: PathBuf,
    runner_arguments: Vec<String>,
    /// The loader and the libraries of the runner: name in the box, path here.
    libraries: Vec<(String, PathBuf)>,
    loader: Option<String>,
}

impl Bubblewrap {
    /// Finds out what the runner needs. Fails when bubblewrap is not installed.
    pub(crate) async fn find(program: &Path, runner: &Path, runner_arguments: &[String]) -> Result<Self, String> {
        if !program.exists() {
            return Err(format!("{} is not installed; install the package `bubblewrap`", program.display()));
        }
        let loader = loader().map_err(|error| format!("read the loaded libraries: {error}"))?;
        let mut libraries = Vec::new();
        if let Some(loader) = &loader {
            libraries = libraries_of(loader, runner).await?;
            libraries.push(("loader.so".to_owned(), loader.clone()));
        }
        Ok(Self {
            program: program.to_owned(),
            runner: runner.to_owned(),
            runner_arguments: runner_arguments.to_vec(),
            libraries,
            loader: loader.map(|_| "/lib/loader.so".to_owned()),
        })
    }

    /// Runs one call in a fresh box.
    pub(crate) async fn run(
        &self,
        workspace: &Path,
        call: &BoxedCall,
        timeout: Duration,
    ) -> Result<BoxedAnswer, Failure> {
        let mut command = self.command(workspace);
        let mut child =
            command.spawn().map_err(|error| Failure::internal(format!("the sandbox did not start: {error}")))?;
        let mut stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let call = serde_json::to_vec(call).expect("strings only");
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
                end(&mut child).await;
                return Err(failure);
            }
            Err(_) => {
                end(&mut child).await;
                return Err(Failure::timeout(format!(
                    "the tool took longer than {} s and was stopped",
                    timeout.as_secs_f64()
                )));
            }
        };
        if status.success() {
            return serde_json::from_slice(&stdout)
                .map_err(|error| Failure::internal(format!("the sandbox answered nonsense: {error}")));
        }
        Err(in_words(status.code(), &String::from_utf8_lossy(&stderr)))
    }

    fn command(&self, workspace: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let id = UID.to_string();
        command.args(["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"]);
        command.args(["--cap-drop", "ALL", "--clearenv", "--hostname", "box", "--uid", &id, "--gid", &id]);
        for (name, path) in &self.libraries {
            command.arg("--ro-bind").arg(path).arg(format!("/lib/{name}"));
        }
        command.arg("--ro-bind").arg(&self.runner).arg("/runner");
        command.arg("--ro-bind").arg(workspace).arg(WORKSPACE);
        command.args(["--remount-ro", "/", "--chdir", WORKSPACE, "--"]);
        if let Some(loader) = &self.loader {
            command.args([loader, "--library-path", "/lib"]);
        }
        command.arg("/runner").args(&self.runner_arguments);
        command.env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Kills the box and waits until it is gone.
async fn end(child: &mut tokio::process::Child) {
    // It may have ended by itself meanwhile, which is as good.
    let _ = child.kill().await;
}

async fn read_all(stream: impl AsyncRead + Unpin, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = stream.take(bytes_max + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| Failure::internal(format!("the sandbox was lost: {error}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::refused(format!("the tool wrote more than {bytes_max} bytes and was stopped")));
    }
    Ok(bytes)
}

/// What an unhappy end means. `bwrap` reports a signal as 128 and its number.
fn in_words(code: Option<i32>, stderr: &str) -> Failure {
    let said: String = stderr.trim().chars().take(300).collect();
    match code {
        Some(134) if stderr.contains("memory allocation") => {
            Failure::refused("the tool used more memory than it may and was stopped")
        }
        Some(152 | 137) => Failure::timeout("the tool used more processor time than it may and was stopped"),
        _ => Failure::internal(format!("the sandbox ended with code {}: {said}", code.unwrap_or(-1))),
    }
}

/// The dynamic loader of this very process; none when it is linked statically.
fn loader() -> io::Result<Option<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    let is_loader = |path: &&Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("ld-") || name.starts_with("ld."))
    };
    Ok(files.filter(|path| path.is_absolute()).find(is_loader).map(Path::to_owned))
}

/// Asks the loader what it would load: `libc.so.6 => /lib/libc.so.6 (0x…)`.
async fn libraries_of(loader: &Path, runner: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let output = Command::new(loader).arg("--list").arg(runner).env_clear().output().await;
    let output = output.map_err(|error| format!("list the runner's libraries: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "list the libraries of {}: {}",
            runner.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut libraries = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let path = rest.split(" (").next().unwrap_or(rest).trim();
        if !path.starts_with('/') {
            return Err(format!("the runner needs {name}, which is not found"));
        }
        if !name.starts_with('/') {
            libraries.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(libraries)
}
