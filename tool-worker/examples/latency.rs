//! How long a call takes through a box of one tier, `read_file` and the command `true`: with a box that waits, without, and
//! many at once; how soon runaways are gone after their limit; and what many calls leave behind. Prints one line of JSON, in
//! milliseconds. Beside it: the runner started by itself (it refuses to run, which is the point), and the same boxes made
//! by hand.
//!
//!     cargo run -p tool-worker --example latency -- docker RUNNER [ROUNDS [RUNAWAYS [CALLS]]]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use runtime::clock;
use serde_json::{Value, json};
use tool_runner::message as boxed;
use tool_worker::sandbox::{Access, Choice, End, Place, Surroundings};
use tool_worker::{Analyst, Call, Config, Executor, Failure, Library, Sandbox};

/// Calls at once, as many as a worker may have slots.
const AT_ONCE: usize = 64;
/// How long a box may take to be prepared on a busy machine.
const PREPARED_WITHIN: Duration = Duration::from_secs(60);
/// A box counts as waiting from its start on. This long it has to get up, while the one before it is being removed.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

/// What is measured, and what with.
struct Bench {
    tier: Choice,
    runner: String,
    workspace: PathBuf,
    here: Surroundings,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = || "usage: latency docker|bubblewrap RUNNER [ROUNDS [RUNAWAYS [CALLS]]]".to_owned();
    let tier = match arguments.first().map(String::as_str) {
        Some("docker") => Choice::Docker,
        Some("bubblewrap") => Choice::Bubblewrap,
        _ => return Err(usage()),
    };
    let runner = arguments.get(1).cloned().ok_or_else(usage)?;
    let number = |place: usize, otherwise: usize| {
        arguments.get(place).map_or(Ok(otherwise), |number| number.parse()).map_err(|_| usage())
    };
    let (rounds, runaways, calls) = (number(2, 30)?, number(3, 20)?, number(4, 200)?);
    let told = |error: std::io::Error| error.to_string();
    let workspace = tempfile::tempdir().map_err(told)?;
    std::fs::set_permissions(workspace.path(), std::fs::Permissions::from_mode(0o755)).map_err(told)?;
    std::fs::write(workspace.path().join("a.rs"), "fn open_store() {}\n").map_err(told)?;
    let config = Config {
        workspaces: vec![workspace.path().to_owned()],
        slots: 64,
        sandbox: tier,
        warm_boxes: 1,
        runner: Some(runner.clone().into()),
        runner_arguments: vec![],
        ..Config::default()
    };
    let here = Surroundings {
        workspace: Some((Place::at(workspace.path()).map_err(told)?, Access::Read)),
        reads: vec![],
        image: None,
        limits: config.commands.limits(),
    };
    let bench = Bench { tier, runner, workspace: workspace.path().to_owned(), here };
    let since = clock::instant();
    let warm = start(&config).await?;
    let ready = since.elapsed();
    let cold = start(&Config { warm_boxes: 0, ..config }).await?;
    let mut result = bench.calls(rounds, &warm, &cold).await?;
    let together = {
        let since = clock::instant();
        let calls = futures::stream::iter(0..AT_ONCE).map(|_| read(&cold)).buffer_unordered(AT_ONCE);
        let failed = calls.filter(|read| std::future::ready(read.is_err())).count().await;
        json!({"ready_ms": milliseconds(ready), "together_ms": milliseconds(since.elapsed()), "together_failed": failed})
    };
    let gone = bench.runaways(runaways, cold.sandbox()?).await?;
    let left = bench.left_behind(calls, &warm).await?;
    for executor in [warm, cold] {
        executor.sandbox()?.close().await;
    }
    for more in [together, gone, left] {
        result.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    }
    println!("{result}");
    Ok(())
}

impl Bench {
    /// The same call with a box that waits, without, and what it is made of, in turn.
    async fn calls(&self, rounds: usize, warm: &Executor, cold: &Executor) -> Result<Value, String> {
        let (mut plain, mut from_cold, mut from_warm, mut by_hand) = (vec![], vec![], vec![], vec![]);
        let (mut command_cold, mut command_warm, mut command_by_hand) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            let since = clock::instant();
            let runner = Command::new(&self.runner).stdin(Stdio::null()).stderr(Stdio::null()).status();
            plain.push(since.elapsed());
            if runner.map_err(|error| error.to_string())?.success() {
                return Err("the runner ran outside a box".to_owned());
            }
            from_cold.push(read(cold).await?);
            // One call makes the pool prepare a box; the next one, when that waits, is measured.
            read(warm).await?;
            prepared(warm, 1).await?;
            from_warm.push(read(warm).await?);
            by_hand.push(self.by_hand(cold, false)?);
            command_cold.push(self.nothing(cold.sandbox()?).await?);
            self.nothing(warm.sandbox()?).await?;
            prepared(warm, 2).await?;
            command_warm.push(self.nothing(warm.sandbox()?).await?);
            command_by_hand.push(self.by_hand(cold, true)?);
        }
        Ok(json!({
            "plain_ms": median(plain), "cold_ms": median(from_cold), "warm_ms": median(from_warm),
            "by_hand_ms": median(by_hand), "command_cold_ms": median(command_cold),
            "command_warm_ms": median(command_warm), "command_by_hand_ms": median(command_by_hand),
        }))
    }

    /// The command `true`.
    async fn nothing(&self, sandbox: &Sandbox) -> Result<Duration, String> {
        let since = clock::instant();
        let command = boxed::Command { argv: vec!["true".to_owned()], ..boxed::Command::default() };
        let finished = sandbox.command(&self.here, command, b"", PREPARED_WITHIN, 1_024).await;
        let took = since.elapsed();
        match finished.map_err(|failure| failure.detail)?.end {
            End::Exited(0) => Ok(took),
            end => Err(format!("true ended with {end:?}")),
        }
    }

    /// Programs that do not end, with daemons below them: how long after their limit the last process is gone.
    async fn runaways(&self, runaways: usize, sandbox: &Sandbox) -> Result<Value, String> {
        let (mut times, limit) = (Vec::new(), Duration::from_millis(200));
        for number in 0..runaways {
            let marker = format!("{}.{number}", 90_000 + std::process::id() % 10_000);
            let script = format!(
                "trap '' TERM; sleep {marker} & setsid sh -c 'sleep {marker} & sleep {marker}' & while :; do :; done"
            );
            let command = boxed::Command { argv: vec!["sh".into(), "-c".into(), script], ..boxed::Command::default() };
            let since = clock::instant();
            let finished = sandbox.command(&self.here, command, b"", limit, 1_024);
            let watched = async {
                // Looked for until the last is gone, from the limit on.
                tokio::time::sleep(limit).await;
                while alive(&marker) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                since.elapsed()
            };
            let (finished, gone) = tokio::join!(finished, watched);
            if finished.map_err(|failure| failure.detail)?.end != End::TimedOut {
                return Err("a runaway ended by itself".to_owned());
            }
            times.push(gone.saturating_sub(limit));
        }
        let slowest = times.iter().max().copied().unwrap_or_default();
        let late = times.iter().filter(|time| **time > Duration::from_millis(500)).count();
        Ok(json!({
            "runaways": runaways, "runaways_late": late, "runaway_gone_ms": median(times),
            "runaway_slowest_ms": milliseconds(slowest),
        }))
    }

    /// Many calls, a fifth of them commands: descriptors, mounts, control groups and containers before and after.
    async fn left_behind(&self, calls: usize, executor: &Executor) -> Result<Value, String> {
        let sandbox = executor.sandbox()?;
        read(executor).await?;
        self.nothing(sandbox).await?;
        prepared(executor, 2).await?;
        let before = self.traces();
        let one = |number: usize| async move {
            if number.is_multiple_of(5) { self.nothing(sandbox).await } else { read(executor).await }
        };
        let done = futures::stream::iter(0..calls).map(one).buffer_unordered(8);
        let failed = done.filter(|call| std::future::ready(call.is_err())).count().await;
        let settled = async {
            prepared(executor, 2).await?;
            while self.traces().iter().zip(&before).any(|(after, before)| after > before) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok::<_, String>(())
        };
        let left = match tokio::time::timeout(Duration::from_secs(30), settled).await {
            Ok(settled) => settled.map(|()| 0)?,
            Err(_) => self.traces().iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).sum(),
        };
        Ok(json!({"calls": calls, "calls_failed": failed, "calls_left": left}))
    }

    /// Descriptors, mounts, control groups, containers, and processes below this one.
    fn traces(&self) -> [usize; 5] {
        let entries = |path: &str| std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
        let groups = ["memory", "pids", "cpu", "unified", ""].iter().map(|hierarchy| {
            let named = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("vlinders-box-");
            entries(&format!("/sys/fs/cgroup/{hierarchy}")).filter(named).count()
        });
        let containers = match self.tier {
            Choice::Docker => {
                let listed = Command::new("docker").args(["ps", "--all", "--quiet"]).output();
                listed.map_or(0, |listed| listed.stdout.iter().filter(|byte| **byte == b'\n').count())
            }
            Choice::Bubblewrap | Choice::Auto => 0,
        };
        let boxes = entries("/proc").filter(|entry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "bwrap")
        });
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().count();
        [entries("/proc/self/fd").count(), mounts, groups.sum(), containers, boxes.count()]
    }

    /// The same box as its own command line program makes it. The runner, given nothing, leaves; a command is `true`.
    fn by_hand(&self, executor: &Executor, of_command: bool) -> Result<Duration, String> {
        let workspace = self.workspace.display();
        let mut command = match self.tier {
            Choice::Docker => {
                let described = executor.sandbox()?.described();
                let image = described.rsplit(' ').nth(usize::from(!of_command)).unwrap_or_default();
                let mut command = Command::new("docker");
                command.args(["run", "--rm", "--interactive", "--network", "none", "--read-only", "--cap-drop", "ALL"]);
                command.args(["--security-opt", "no-new-privileges", "--user", "65534:65534", "--init"]);
                command.args(["--pids-limit", "64", "--memory", "384m", "--log-driver", "none", "--ipc", "none"]);
                command.args(["--workdir", "/workspace"]);
                command.args(["--mount", &format!("type=bind,source={workspace},target=/workspace,readonly")]);
                if of_command {
                    for path in ["/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs"] {
                        command.args(["--mount", &format!("type=bind,source={path},target={path},readonly")]);
                    }
                }
                command.args([image, if of_command { "/usr/bin/true" } else { "/box/runner" }]);
                command
            }
            Choice::Bubblewrap | Choice::Auto => {
                let mut command = Command::new("/usr/bin/bwrap");
                command.args(["--unshare-user", "--unshare-all", "--cap-drop", "ALL", "--clearenv", "--uid", "65534"]);
                command.args(["--gid", "65534", "--ro-bind", &self.runner, "/box/runner"]);
                command.args(["--ro-bind", &workspace.to_string(), "/workspace"]);
                if of_command {
                    for path in ["/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs"] {
                        command.args(["--ro-bind", path, path]);
                    }
                    for (target, link) in [("usr/bin", "/bin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64")] {
                        command.args(["--symlink", target, link]);
                    }
                    command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
                }
                command.args(["--remount-ro", "/", "--chdir", "/workspace", "--"]);
                command.arg(if of_command { "/usr/bin/true" } else { "/box/runner" });
                command
            }
        };
        let since = clock::instant();
        let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output().map_err(|error| error.to_string())?;
        let took = since.elapsed();
        // Docker's own filter lets the runner lock itself up as well; anything else would measure a failure.
        if output.status.success() { Ok(took) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

/// Whether a process has this word on its command line.
fn alive(marker: &str) -> bool {
    std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok).any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
    })
}

async fn start(config: &Config) -> Result<Executor, String> {
    let analyst: Analyst = Arc::new(|_, _| Box::pin(async { Err(Failure::internal("not asked")) }));
    let library: Library = Arc::new(|_| Box::pin(async { Err(Failure::internal("not asked")) }));
    let executor = Executor::start(config, analyst, library).await.map_err(|error| error.to_string())?;
    executor.sandbox()?;
    Ok(executor)
}

async fn read(executor: &Executor) -> Result<Duration, String> {
    let call = Call { tool: "read_file".to_owned(), arguments: r#"{"path": "a.rs"}"#.to_owned(), ..Call::default() };
    let outcome = executor.execute(&call).await;
    outcome.result.map_err(|failure| failure.detail)?;
    Ok(outcome.duration)
}

/// Waits until so many boxes wait, which calls cause.
async fn prepared(executor: &Executor, boxes: usize) -> Result<(), String> {
    let sandbox = executor.sandbox()?;
    let waiting = async {
        while sandbox.waiting() < boxes {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PREPARED_WITHIN, waiting).await.map_err(|_| "no box was prepared".to_owned())?;
    tokio::time::sleep(SETTLED_AFTER).await;
    Ok(())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().map_or(0.0, milliseconds)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
