//! Boxes of every tier that this machine has, for tests that try them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use schemas::rpc::Outline;
use serde_json::Value;
use tool_worker::sandbox::Choice;
use tool_worker::{Analyst, Call, Config, Executor, Failure, Library};

/// Where the engine of this machine listens.
pub const ENGINE: &str = "/var/run/docker.sock";

/// Both tiers.
pub const TIERS: [Choice; 2] = [Choice::Bubblewrap, Choice::Docker];

/// A workspace that others may read, as boxes of a worker that is root need it.
pub fn workspace() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(base.path().join("a.rs"), "use std::fs;\nfn open_store() {}\n").unwrap();
    std::fs::write(base.path().join("canary"), "canary").unwrap();
    base
}

/// The configuration of a tier. The static runner, where it has been built, makes a small image; the tests' own does.
pub fn config(tier: Choice, workspace: &Path) -> Config {
    let built = Path::new(env!("CARGO_BIN_EXE_tool_runner"));
    let linked = built.with_file_name("vlinders-tool-runner");
    Config {
        workspaces: vec![workspace.to_owned()],
        slots: 64,
        sandbox: tier,
        runner: Some(if linked.is_file() { linked } else { built.to_owned() }),
        runner_arguments: vec![],
        ..Config::default()
    }
}

/// Starts a tier. Skips, and says so, where the machine lacks it; a tier that leaks fails, and so does a missing Docker
/// engine where `CI` says that everything is there.
pub async fn start(config: &Config) -> Option<Executor> {
    let analyst: Analyst = Arc::new(|language, _| {
        Box::pin(async { Ok(Outline { language, lines: 0, imports: vec![], symbols: vec![], note: None }) })
    });
    let library: Library = Arc::new(|name| Box::pin(async move { Err(Failure::bad_request(name)) }));
    let executor = Executor::start(config, analyst, library).await.unwrap();
    match executor.sandbox() {
        Ok(_) => Some(executor),
        Err(reason) => {
            let bubblewrap = reason.contains("not installed") || reason.contains("new namespace");
            let docker = reason.contains("Docker engine at") && !in_ci();
            assert!(bubblewrap || docker, "{reason}");
            eprintln!("SKIPPED: {reason}");
            None
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "whether a machine must have everything is said in its environment")]
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

/// A call with arguments as JSON.
#[expect(clippy::needless_pass_by_value, reason = "literals read better without a borrow")]
pub fn call(tool: &str, arguments: Value) -> Call {
    Call { tool: tool.to_owned(), arguments: arguments.to_string(), ..Call::default() }
}

/// What a worker may leave behind: descriptors and children of this process, and containers that it made.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    descriptors: usize,
    mounts: usize,
    children: usize,
    containers: Vec<String>,
}

/// Counts them.
pub async fn traces() -> Traces {
    let this = std::process::id().to_string();
    let entries = |path: &str| std::fs::read_dir(path).unwrap().filter_map(Result::ok);
    let is_child = |entry: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace());
        fields.and_then(|mut fields| fields.nth(1)).is_some_and(|parent| parent == this)
    };
    Traces {
        descriptors: entries("/proc/self/fd").count(),
        // Of this process's temporary directories; those of others come and go.
        mounts: std::fs::read_to_string("/proc/self/mountinfo").unwrap().matches("/workspace").count(),
        children: entries("/proc").filter(is_child).count(),
        containers: containers(&format!(" {this} ")).await,
    }
}

impl Traces {
    fn beyond(&self, before: &Self) -> bool {
        self.descriptors > before.descriptors
            || self.mounts > before.mounts
            || self.children > before.children
            || self.containers.iter().any(|container| !before.containers.contains(container))
    }
}

/// Waits until there are no more than before: connections to an engine close a moment after their last use.
pub async fn no_traces_but(before: &Traces) {
    let gone = async {
        while traces().await.beyond(before) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), gone).await.is_err() {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
        let open: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        let after = traces().await;
        assert!(!after.beyond(before), "{after:?} after {before:?}: {open:?}");
    }
}

/// Containers whose owner's label holds this text.
pub async fn containers(owner: &str) -> Vec<String> {
    let Ok(engine) = bollard::Docker::connect_with_unix(ENGINE, 30, bollard::API_DEFAULT_VERSION) else {
        return Vec::new();
    };
    let engine = engine.negotiate_version().await.unwrap();
    let options = bollard::query_parameters::ListContainersOptions { all: true, ..Default::default() };
    let found = engine.list_containers(Some(options)).await.unwrap().into_iter();
    let label = |c: &bollard::models::ContainerSummary| c.labels.as_ref()?.get("org.vlinders.owner").cloned();
    found.filter(|c| label(c).is_some_and(|label| label.contains(owner))).filter_map(|c| c.id).collect()
}
