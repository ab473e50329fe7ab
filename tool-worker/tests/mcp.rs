//! Servers that speak the Model Context Protocol: one from elsewhere, as it is, and one that goes wrong in every way.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]
#![allow(dead_code, reason = "the module is shared by several test programs")]

mod boxes;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use boxes::{TIERS, call, config, start, workspace};
use runtime::clock;
use runtime::config::Secret;
use schemas::fact::FailureClass;
use schemas::rpc::SideEffect;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tool_worker::mcp::{self, Servers, Settings};
use tool_worker::plugins::Quota;
use tool_worker::registry::Registry;
use tool_worker::{Executor, Failure};

/// Nothing a test waits for takes longer, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server that goes wrong, as an argument of Python: the box has nothing of it.
const WAYWARD: &str = include_str!("wayward/server.py");

fn wayward(begins: &str) -> Settings {
    let command = ["python3", "-c", WAYWARD, begins].map(str::to_owned).to_vec();
    // Room for a loaded machine where it should start, and a short wait where it never does.
    let start_timeout_s = if begins == "silent" { 2 } else { 60 };
    let limits = Quota { timeout_s: Some(if begins.is_empty() { 2 } else { 20 }), ..Quota::default() };
    Settings { command, limits, start_timeout_s, ..Settings::default() }
}

/// A worker with these servers.
struct Worker {
    executor: Executor,
    servers: Servers,
    _workspace: tempfile::TempDir,
}

impl Worker {
    /// Starts one in every tier that is there and runs commands.
    async fn all(servers: &[(&str, Settings)]) -> Vec<Self> {
        let mut workers = Vec::new();
        for tier in TIERS {
            let workspace = workspace();
            let mut config = config(tier, workspace.path());
            config.mcp = servers.iter().map(|(name, settings)| ((*name).to_owned(), settings.clone())).collect();
            config.check().unwrap();
            let Some(executor) = start(&config).await else { continue };
            if let Err(reason) = executor.sandbox().unwrap().for_commands() {
                assert!(!boxes::in_ci(), "{tier:?}: {reason}");
                eprintln!("SKIPPED: {tier:?} runs no commands here: {reason}");
                continue;
            }
            let servers = mcp::start(&config, &executor).await.unwrap();
            workers.push(Self { executor, servers, _workspace: workspace });
        }
        workers
    }

    async fn call(&self, tool: &str, arguments: Value) -> Result<String, Failure> {
        self.executor.execute(&call(tool, arguments)).await.result
    }

    /// Waits until the tools are as wanted.
    async fn until(&self, wanted: impl Fn(&Registry) -> bool) {
        let mut changes = self.executor.toolbox().changes();
        let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|registry| wanted(registry))).await;
        waited.expect("the server is followed").expect("the toolbox lives");
    }

    /// Waits until this tool can be used.
    async fn usable(&self, tool: &str) {
        self.until(|registry| registry.tool(tool).is_some_and(|tool| tool.unavailable.is_none())).await;
    }

    fn refused(&self) -> BTreeMap<String, String> {
        let refused = self.executor.toolbox().now().refused();
        refused.into_iter().map(|refused| (refused.file, refused.reason)).collect()
    }

    async fn end(self) {
        self.servers.close().await;
        self.executor.sandbox().unwrap().close().await;
    }
}

/// Where the time server of PyPI is installed, copied to where boxes can read it: a cache lies in a home, which nobody
/// else may enter, and `/tmp` is a box's own. None where it is not installed, which is said; in CI that is an error.
#[expect(clippy::disallowed_methods, reason = "where deploy/test puts it stands in the environment")]
fn time_server() -> Option<tempfile::TempDir> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    let installed = cache.join("vlinders/mcp-servers");
    if !installed.join("mcp_server_time").is_dir() {
        let why = format!("the time server is not installed in {}: deploy/test installs it", installed.display());
        assert!(!boxes::in_ci(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let copy = tempfile::Builder::new().prefix("vlinders-mcp-").tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copied = std::process::Command::new("cp").arg("-R").arg(installed.join(".")).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let readable = std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(copy.path()).status();
    assert!(readable.unwrap().success());
    Some(copy)
}

fn python_path(site: &Path) -> BTreeMap<String, Secret> {
    [("PYTHONPATH".to_owned(), Secret::new(site.to_str().unwrap().to_owned()))].into()
}

/// The system's own Python: the one that boxes show.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_from_elsewhere_serves_from_a_box() {
    let Some(site) = time_server() else { return };
    let settings = Settings {
        command: [PYTHON, "-m", "mcp_server_time", "--local-timezone", "UTC"].map(str::to_owned).to_vec(),
        reads: vec![site.path().to_owned()],
        environment: python_path(site.path()),
        start_timeout_s: 120,
        ..Settings::default()
    };
    for worker in Worker::all(&[("time", settings)]).await {
        worker.usable("time_convert_time").await;
        assert_eq!(worker.refused(), BTreeMap::new());
        let now = worker.executor.toolbox().now();
        let tool = now.tool("time_convert_time").unwrap();
        assert_eq!((tool.effect, tool.result.is_some()), (SideEffect::ReachesNetwork, true));
        serves(&worker).await;
        let asked = json!({"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"});
        let outcome = worker.executor.execute(&call("time_convert_time", asked)).await;
        assert_eq!(outcome.sandbox.tier, worker.executor.sandbox().unwrap().tier());
        assert!(outcome.sandbox.enforced.iter().any(|layer| layer == "seccomp"), "{outcome:?}");
        worker.end().await;
    }
}

/// What the time server does, however it is reached.
async fn serves(worker: &Worker) {
    let convert = |time: &str| json!({"source_timezone": "UTC", "time": time, "target_timezone": "Asia/Tokyo"});
    let answer = worker.call("time_convert_time", convert("12:00")).await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["time_difference"], "+9.0h", "{answer}");
    let failed = worker.call("time_convert_time", convert("25:00")).await.unwrap_err();
    assert_eq!(failed.class, FailureClass::BadRequest);
    assert!(failed.detail.starts_with("time_convert_time failed: ") && failed.detail.contains("HH:MM"), "{failed}");
    let wrong = worker.call("time_convert_time", json!({"time": 12})).await.unwrap_err();
    assert!(wrong.detail.contains("usage: time_convert_time("), "held against the server's schema: {wrong}");
}

/// The time server over HTTP, as a process of its own.
struct Served {
    process: tokio::process::Child,
    port: u16,
}

impl Served {
    async fn start(site: &Path, port: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/mcp-servers/serve_http.py");
        let mut process = tokio::process::Command::new(PYTHON)
            .arg(script)
            .arg(port.to_string())
            .env("PYTHONPATH", site)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // Who waits for it may ask before it says that it is there.
        let ready = async { while lines.next_line().await.unwrap().expect("it goes on") != "ready" {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("it starts");
        Self { process, port }
    }

    fn settings(&self) -> Settings {
        Settings { url: Some(format!("http://127.0.0.1:{}/mcp", self.port)), ..Settings::default() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_elsewhere_serves_over_http_and_comes_back_when_it_was_away() {
    let Some(site) = time_server() else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut served = Served::start(site.path(), port).await;
    for worker in Worker::all(&[("time", served.settings())]).await {
        worker.usable("time_convert_time").await;
        serves(&worker).await;
        let asked = json!({"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"});
        let outcome = worker.executor.execute(&call("time_convert_time", asked.clone())).await;
        assert_eq!((outcome.sandbox.tier.as_str(), outcome.result.is_ok()), ("remote", true), "{outcome:?}");

        served.process.kill().await.unwrap();
        let away = worker.call("time_convert_time", asked).await.unwrap_err();
        assert_eq!(away.class, FailureClass::Overloaded, "nothing was asked: {away}");
        assert!(away.detail.contains("cannot be reached"), "{away}");
        worker
            .until(|registry| registry.tool("time_convert_time").is_some_and(|tool| tool.unavailable.is_some()))
            .await;
        let refused = worker.refused();
        assert!(refused["tools.mcp.time"].contains("cannot be reached"), "{refused:?}");
        let unavailable = worker.call("time_convert_time", json!({})).await.unwrap_err();
        assert!(unavailable.detail.starts_with("time_convert_time is not available: the server time"), "{unavailable}");

        served = Served::start(site.path(), port).await;
        worker.usable("time_convert_time").await;
        serves(&worker).await;
        assert_eq!(worker.refused(), BTreeMap::new());
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_becomes_text_or_a_failure_in_words() {
    for worker in Worker::all(&[("wayward", wayward("greets"))]).await {
        worker.usable("wayward_echo").await;
        let says = async |tool: &str, arguments: Value| worker.call(&format!("wayward_{tool}"), arguments).await;
        assert_eq!(says("echo", json!({"text": "one"})).await.as_deref(), Ok("one"));
        assert_eq!(says("picture", json!({})).await.as_deref(), Ok("[image, image/png, 4 bytes: not shown]"));
        assert_eq!(says("promise", json!({"keep": true})).await.as_deref(), Ok("{\"kept\":1}"));
        let broken = says("promise", json!({})).await.unwrap_err();
        assert!(broken.detail.starts_with("wayward_promise answered something else than it promises"), "{broken}");
        let failed = says("fail", json!({})).await.unwrap_err();
        assert_eq!(failed, Failure::bad_request("wayward_fail failed: the ticket 7 is closed"));
        let refused = says("protocol_error", json!({})).await.unwrap_err();
        assert_eq!(refused.detail, "wayward_protocol_error was refused by its server: no such ticket (-32602)");
        // More than is shown is kept, and more than may be is cut.
        let mut big = call("wayward_big", json!({"bytes": 3_000_000}));
        big.result_bytes_max = 2_000;
        let outcome = worker.executor.execute(&big).await;
        assert!(outcome.result.unwrap().len() <= 2_000);
        let full = outcome.full.unwrap();
        assert!(full.ends_with("... (cut; 1048576 of 3000000 bytes were kept)"), "{}", &full[full.len() - 80..]);
        let here: Value = serde_json::from_str(&says("environment", json!({})).await.unwrap()).unwrap();
        assert_eq!((&here["variables"], &here["workspace"]), (&json!([]), &json!([])), "{here}");
        assert_ne!(here["uid"], 0);
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_a_call_is_started_again_and_the_call_says_what_is_known() {
    for worker in Worker::all(&[("wayward", wayward("greets"))]).await {
        worker.usable("wayward_echo").await;
        assert_eq!(worker.call("wayward_calls", json!({})).await.as_deref(), Ok("1"));
        let died = worker.call("wayward_die", json!({})).await.unwrap_err();
        assert_eq!(died.class, FailureClass::OutcomeUnknown, "{died}");
        let why = "outcome unknown: wayward_die broke off (the server wayward ended with exit code 3; it says: so long); \
                   it may have taken effect";
        assert_eq!(died.detail, why);
        // The next call waits for the next server, which knows nothing of the one before.
        assert_eq!(worker.call("wayward_calls", json!({})).await.as_deref(), Ok("1"));
        let died = worker.call("wayward_die_reading", json!({})).await.unwrap_err();
        assert_eq!(died.class, FailureClass::Overloaded, "a call that only reads may be made again: {died}");
        worker.usable("wayward_exhaust").await;
        let exhausted = worker.call("wayward_exhaust", json!({})).await.unwrap_err();
        let memory =
            exhausted.detail.contains("used more memory than it may") || exhausted.detail.contains("MemoryError");
        assert!(memory, "{exhausted}");
        worker.usable("wayward_echo").await;
        assert_eq!(worker.call("wayward_echo", json!({"text": "here"})).await.as_deref(), Ok("here"));
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_has_a_time_limit_and_a_server_that_is_frozen_is_started_again() {
    for worker in Worker::all(&[("wayward", wayward(""))]).await {
        worker.usable("wayward_echo").await;
        assert_eq!(worker.call("wayward_calls", json!({})).await.as_deref(), Ok("1"));
        let began = clock::instant();
        let late = worker.call("wayward_hang", json!({})).await.unwrap_err();
        assert_eq!(late, Failure::timeout("wayward_hang took longer than 2 s and was given up"));
        assert!(clock::instant().duration_since(began) < Duration::from_secs(20));
        // It lives, and is left alone: it counts on.
        assert_eq!(worker.call("wayward_calls", json!({})).await.as_deref(), Ok("3"));
        let frozen = worker.call("wayward_freeze", json!({})).await.unwrap_err();
        assert_eq!(frozen.class, FailureClass::Timeout, "{frozen}");
        let again = async {
            while worker.call("wayward_calls", json!({})).await.as_deref() != Ok("1") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.expect("it is started again");
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_floods_or_writes_garbage_is_cut_off() {
    for worker in Worker::all(&[("wayward", wayward("greets"))]).await {
        for (tool, why) in [
            ("flood", "said more than it may"),
            ("garbage", "wrote line after line that is no message"),
            ("complain", "said more than it may"),
        ] {
            worker.usable("wayward_echo").await;
            let cut = worker.call(&format!("wayward_{tool}"), json!({})).await.unwrap_err();
            assert_eq!(cut.class, FailureClass::OutcomeUnknown, "{tool}: {cut}");
            assert!(cut.detail.contains(why), "{tool}: {cut}");
        }
        worker.usable("wayward_echo").await;
        assert_eq!(worker.call("wayward_echo", json!({"text": "here"})).await.as_deref(), Ok("here"));
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_start_is_named_with_the_reason_and_harms_no_other() {
    let missing = Settings { command: vec!["no-such-server".to_owned()], ..Settings::default() };
    let elsewhere = Settings { url: Some("http://127.0.0.1:1/mcp".to_owned()), ..Settings::default() };
    let begins = ["dies", "silent", "garbage", "floods"];
    let mut servers: Vec<(&str, Settings)> = begins.iter().map(|begins| (*begins, wayward(begins))).collect();
    servers.extend([("missing", missing), ("elsewhere", elsewhere), ("good", wayward("greets"))]);
    for worker in Worker::all(&servers).await {
        worker.usable("good_echo").await;
        worker.until(|registry| registry.refused().len() == 6).await;
        let refused = worker.refused();
        for (name, why) in [
            ("dies", "ended with exit code 2; it says: there is no database"),
            ("silent", "did not say what its tools are within 2 s; it says: waiting for nothing"),
            ("garbage", "wrote line after line that is no message (the first: \"lorem ipsum\") and was cut off"),
            ("floods", "said more than it may"),
            ("missing", "cannot be run here; it says: no such program: no-such-server"),
            ("elsewhere", "cannot be reached: "),
        ] {
            let reason = &refused[&format!("tools.mcp.{name}")];
            assert!(reason.contains(why), "{name}: {reason}");
        }
        assert_eq!(worker.call("good_echo", json!({"text": "here"})).await.as_deref(), Ok("here"));
        assert!(worker.call("read_file", json!({"path": "a.rs"})).await.is_ok());
        worker.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_come_change_and_go_as_their_server_says() {
    for worker in Worker::all(&[("wayward", wayward("greets"))]).await {
        worker.usable("wayward_change").await;
        let change = async |to: Value| worker.call("wayward_change", json!({"to": to})).await.unwrap();
        let extra = |schema: Value| json!({"name": "extra", "description": "More.", "inputSchema": schema});
        change(extra(json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}))).await;
        worker.until(|registry| registry.tool("wayward_extra").is_some()).await;
        let wrong = worker.call("wayward_extra", json!({})).await.unwrap_err();
        assert!(wrong.detail.starts_with("argument `a` is missing"), "{wrong}");

        change(extra(json!({"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}))).await;
        let renewed = |registry: &Registry| {
            registry.tool("wayward_extra").is_some_and(|t| t.parameters["required"] == json!(["b"]))
        };
        worker.until(renewed).await;
        assert_eq!(worker.call("wayward_extra", json!({"b": 1})).await.as_deref(), Ok("nothing"));

        // One that cannot be is refused by name, and the others stay.
        change(extra(json!({"type": "array"}))).await;
        worker.until(|registry| registry.tool("wayward_extra").is_none()).await;
        assert!(worker.refused()["tools.mcp.wayward"].starts_with("extra: "), "{:?}", worker.refused());
        change(json!({"name": "ECHO", "inputSchema": {}})).await;
        let clash =
            |registry: &Registry| registry.refused().iter().any(|refused| refused.reason.contains("ECHO would be"));
        worker.until(clash).await;
        change(json!({})).await;
        worker.until(|registry| registry.refused().is_empty()).await;
        assert_eq!(worker.call("wayward_echo", json!({"text": "here"})).await.as_deref(), Ok("here"));
        worker.end().await;
    }
}

/// Stands before the time server and knows no handshake, as servers of the newest kind need not.
const NEWEST: &str = r#"
import json, subprocess, sys
server = subprocess.Popen([sys.executable, "-m", "mcp_server_time", "--local-timezone", "UTC"], stdin=subprocess.PIPE, text=True)
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        error = {"code": -32601, "message": "there is no handshake here"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
    else:
        server.stdin.write(line)
        server.stdin.flush()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_knows_no_handshake_is_asked_what_it_is() {
    let Some(site) = time_server() else { return };
    let settings = Settings {
        command: [PYTHON, "-c", NEWEST].map(str::to_owned).to_vec(),
        reads: vec![site.path().to_owned()],
        environment: python_path(site.path()),
        start_timeout_s: 120,
        ..Settings::default()
    };
    for worker in Worker::all(&[("time", settings), ("neither", wayward("modern"))]).await {
        worker.usable("time_convert_time").await;
        serves(&worker).await;
        worker.until(|registry| registry.refused().len() == 1).await;
        assert_eq!(worker.refused()["tools.mcp.neither"], "refused to begin: no method initialize");
        worker.end().await;
    }
}
