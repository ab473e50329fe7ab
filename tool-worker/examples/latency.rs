//! How long `read_file` takes through a box of one tier: with a box that waits, without, and many at once. Prints one line
//! of JSON, in milliseconds. Beside it: the runner started by itself (it refuses to run, which is the point), and the
//! same box made by hand.
//!
//!     cargo run -p tool-worker --example latency -- docker RUNNER [ROUNDS]

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use runtime::clock;
use serde_json::json;
use tool_worker::sandbox::Choice;
use tool_worker::{Analyst, Call, Config, Executor, Failure, Library};

/// Calls at once, as many as a worker may have slots.
const AT_ONCE: usize = 64;
/// How long a box may take to be prepared on a busy machine.
const PREPARED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let usage = || "usage: latency docker|bubblewrap RUNNER [ROUNDS]".to_owned();
    let tier = match arguments.next().as_deref() {
        Some("docker") => Choice::Docker,
        Some("bubblewrap") => Choice::Bubblewrap,
        _ => return Err(usage()),
    };
    let runner = arguments.next().ok_or_else(usage)?;
    let rounds = arguments.next().map_or(Ok(30), |rounds| rounds.parse::<usize>()).map_err(|_| usage())?;
    let workspace = tempfile::tempdir().map_err(|error| error.to_string())?;
    let told = |error: std::io::Error| error.to_string();
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
    let since = clock::instant();
    let warm = start(&config).await?;
    let ready = since.elapsed();
    let cold = start(&Config { warm_boxes: 0, ..config }).await?;
    let (mut plain, mut from_cold, mut from_warm, mut by_hand) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let since = clock::instant();
        let status = Command::new(&runner).stdin(Stdio::null()).stderr(Stdio::null()).status().map_err(told)?;
        plain.push(since.elapsed());
        if status.success() {
            return Err("the runner ran outside a box".to_owned());
        }
        from_cold.push(read(&cold).await?);
        // One call makes the pool prepare a box; the next one, when that waits, is measured.
        prepared(&warm).await?;
        from_warm.push(read(&warm).await?);
        let since = clock::instant();
        by_hand_once(tier, &runner, workspace.path(), &cold)?;
        by_hand.push(since.elapsed());
    }
    let since = clock::instant();
    let calls = futures::stream::iter(0..AT_ONCE).map(|_| read(&cold)).buffer_unordered(AT_ONCE);
    let failed = calls.filter(|read| std::future::ready(read.is_err())).count().await;
    let together = since.elapsed();
    for executor in [warm, cold] {
        executor.sandbox()?.close().await;
    }
    let result = json!({
        "ready_ms": milliseconds(ready), "plain_ms": median(plain), "cold_ms": median(from_cold),
        "warm_ms": median(from_warm), "by_hand_ms": median(by_hand),
        "together_ms": milliseconds(together), "together_failed": failed,
    });
    println!("{result}");
    Ok(())
}

async fn start(config: &Config) -> Result<Executor, String> {
    let analyst: Analyst = Arc::new(|_, _| Box::pin(async { Err(Failure::internal("not asked")) }));
    let library: Library = Arc::new(|_| Box::pin(async { Err(Failure::internal("not asked")) }));
    let executor = Executor::start(config, analyst, library).await.map_err(|error| error.to_string())?;
    executor.sandbox()?;
    Ok(executor)
}

async fn read(executor: &Executor) -> Result<Duration, String> {
    let call = Call {
        tool: "read_file".to_owned(),
        arguments: r#"{"path": "a.rs"}"#.to_owned(),
        workspace: None,
        result_bytes_max: 0,
    };
    let outcome = executor.execute(&call).await;
    outcome.result.map_err(|failure| failure.detail)?;
    Ok(outcome.duration)
}

/// Waits until a box waits, which the first call causes.
async fn prepared(executor: &Executor) -> Result<(), String> {
    let sandbox = executor.sandbox()?;
    if sandbox.waiting() == 0 {
        read(executor).await?;
    }
    let waiting = async {
        while sandbox.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PREPARED_WITHIN, waiting).await.map_err(|_| "no box was prepared".to_owned())
}

/// The same box as its own command line program makes it, with an empty call. The runner answers with an error or leaves.
fn by_hand_once(tier: Choice, runner: &str, workspace: &std::path::Path, executor: &Executor) -> Result<(), String> {
    let workspace = workspace.display();
    let mut command = match tier {
        Choice::Docker => {
            let described = executor.sandbox()?.described();
            let image = described.rsplit(' ').next().unwrap_or_default();
            let mut command = Command::new("docker");
            command.args(["run", "--rm", "--interactive", "--network", "none", "--read-only", "--cap-drop", "ALL"]);
            command.args(["--security-opt", "no-new-privileges", "--user", "65534:65534", "--init"]);
            command.args(["--pids-limit", "64", "--memory", "384m", "--log-driver", "none", "--ipc", "none"]);
            command.args(["--mount", &format!("type=bind,source={workspace},target=/workspace,readonly")]);
            command.args([image, "/runner"]);
            command
        }
        Choice::Bubblewrap | Choice::Auto => {
            let mut command = Command::new("/usr/bin/bwrap");
            command.args(["--unshare-user", "--unshare-all", "--cap-drop", "ALL", "--clearenv", "--uid", "65534"]);
            command.args(["--gid", "65534", "--ro-bind", runner, "/runner"]);
            command.args(["--ro-bind", &workspace.to_string(), "/workspace", "--remount-ro", "/", "--", "/runner"]);
            command
        }
    };
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output().map_err(|error| error.to_string())?;
    // Docker's own filter lets the runner lock itself up as well; anything else would measure a failure.
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().map_or(0.0, milliseconds)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
