//! Tools that are programs: real boxes, real programs, and files that come, change, break and go.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]
#![allow(dead_code, reason = "the module is shared by several test programs")]

mod boxes;

use std::path::Path;
use std::time::Duration;

use boxes::{TIERS, call, config, start, workspace};
use runtime::Tasks;
use schemas::agent::Refused;
use schemas::fact::FailureClass;
use schemas::rpc::SideEffect;
use serde_json::json;
use tool_worker::registry::Registry;
use tool_worker::{Config, Executor, Failure, plugins};

/// Longer than any look at a directory takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker with a directory of tools.
struct Worker {
    executor: Executor,
    tools: tempfile::TempDir,
    workspace: tempfile::TempDir,
    tasks: Tasks,
}

impl Worker {
    /// Starts one in every tier that is there and runs commands, with these files.
    async fn all(files: &[(&str, &str)], adjust: impl Fn(&mut Config)) -> Vec<Self> {
        let mut workers = Vec::new();
        for tier in TIERS {
            let (tools, workspace, tasks) = (tempfile::tempdir().unwrap(), workspace(), Tasks::new());
            for (name, text) in files {
                std::fs::write(tools.path().join(name), text).unwrap();
            }
            let mut config = config(tier, workspace.path());
            config.plugins_dir = Some(tools.path().to_owned());
            adjust(&mut config);
            let Some(executor) = start(&config).await else { continue };
            if let Err(reason) = executor.sandbox().unwrap().for_commands() {
                assert!(!boxes::in_ci(), "{tier:?}: {reason}");
                eprintln!("SKIPPED: {tier:?} runs no commands here: {reason}");
                continue;
            }
            plugins::start(&config, &executor, &tasks).await;
            workers.push(Self { executor, tools, workspace, tasks });
        }
        workers
    }

    async fn call(&self, tool: &str, arguments: serde_json::Value) -> Result<String, Failure> {
        self.executor.execute(&call(tool, arguments)).await.result
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.tools.path().join(name), text).unwrap();
    }

    /// Waits until the tools are as wanted.
    async fn until(&self, wanted: impl Fn(&Registry) -> bool) {
        let mut changes = self.executor.toolbox().changes();
        let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|registry| wanted(registry))).await;
        waited.expect("the directory is followed").expect("the toolbox lives");
    }

    async fn end(self) {
        self.tasks.stop();
        assert!(self.tasks.drained(PATIENCE).await);
        self.executor.sandbox().unwrap().close().await;
    }
}

/// A tool of Python that reads `arguments` and does this. `more` stands in its fourth line, a table at the end.
fn python(name: &str, does: &str, more: &str) -> String {
    let (fields, tables) = if more.starts_with('[') { ("", more) } else { (more, "") };
    format!(
        "name = \"{name}\"\ndescription = \"For a test.\"\nparameters = '{{\"type\": \"object\"}}'\n{fields}\n\
         command = [\"python3\", \"-c\", '''import json, sys\narguments = json.load(sys.stdin)\n{does}''']\n{tables}"
    )
}

/// The example of the README, as it stands there.
fn example() -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let lines = readme.lines().skip_while(|line| !line.contains("# word_count.toml"));
    lines.take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", line.trim_start())).collect()
}

#[tokio::test]
async fn the_example_of_the_readme_is_a_tool() {
    for worker in Worker::all(&[("word_count.toml", &example())], |_| {}).await {
        let listing = worker.executor.toolbox().now().listing();
        let tool = listing.iter().find(|tool| tool.name == "word_count").expect("it is there");
        assert_eq!((tool.effect, &tool.unavailable), (Some(SideEffect::Computes), &None));
        let outcome = worker.executor.execute(&call("word_count", json!({"text": "one two three"}))).await;
        assert_eq!(outcome.result.as_deref(), Ok("3"), "{outcome:?}");
        assert_eq!(outcome.sandbox.tier, worker.executor.sandbox().unwrap().tier());
        assert!(outcome.sandbox.enforced.iter().any(|layer| layer == "seccomp"), "{outcome:?}");
        let failure = worker.call("word_count", json!({})).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::BadRequest, "arguments are held against the schema: {failure}");
        worker.end().await;
    }
}

#[tokio::test]
async fn how_a_program_ends_is_told_in_words_to_act_on() {
    let limits = "[limits]\ntimeout_s = 1\nmemory_mib = 64\noutput_kib = 16\nfile_mib = 1\ntmp_mib = 8\n";
    let files = [
        ("fails.toml", python("fails", "print('line 1\\nno such ticket: 7', file=sys.stderr)\nsys.exit(3)", "")),
        ("silent.toml", python("silent", "sys.exit(1)", "")),
        ("sleeps.toml", python("sleeps", "import time\ntime.sleep(60)", limits)),
        ("floods.toml", python("floods", "print('x' * 100_000)", limits)),
        ("grows.toml", python("grows", "x = bytearray(200_000_000)", limits)),
        ("fills.toml", python("fills", "open('/tmp/f', 'wb').write(bytes(4_000_000))", limits)),
        ("missing.toml", "name = \"missing\"\ndescription = \"x\"\ncommand = [\"nothing-of-that-name\"]\n".to_owned()),
        ("quiet.toml", python("quiet", "pass", "")),
        ("json.toml", python("json", "print(json.dumps(arguments['give']))", "result = '{\"type\": \"array\"}'")),
        ("spies.toml", python("spies", SPIES, "environment = { COLOUR = \"blue\" }")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for worker in Worker::all(&files, |_| {}).await {
        let refused = worker.executor.toolbox().now().refused();
        assert_eq!(refused, vec![], "all are taken");
        for (tool, class, says) in [
            ("fails", FailureClass::BadRequest, "fails failed with exit code 3; it says: line 1\nno such ticket: 7"),
            ("silent", FailureClass::BadRequest, "silent failed with exit code 1 and said nothing"),
            ("sleeps", FailureClass::Timeout, "sleeps took longer than 1 s and was stopped"),
            ("floods", FailureClass::Refused, "floods wrote more than 16 KiB and was stopped"),
            (
                "missing",
                FailureClass::Refused,
                "missing cannot be run here; it says: no such program: nothing-of-that-name",
            ),
        ] {
            let failure = worker.call(tool, json!({})).await.unwrap_err();
            assert_eq!((failure.class, failure.detail.as_str()), (class, says), "{tool}");
        }
        let grows = worker.call("grows", json!({})).await.unwrap_err();
        assert!(grows.detail.contains("used more memory than its 64 MiB"), "{grows}");
        let fills = worker.call("fills", json!({})).await.unwrap_err();
        assert!(fills.detail.contains("File too large") || fills.detail.contains("of more than 1 MiB"), "{fills}");
        assert_eq!(worker.call("quiet", json!({})).await.as_deref(), Ok("(no output)"));
        assert_eq!(worker.call("json", json!({"give": [1, "a"]})).await.as_deref(), Ok("[1, \"a\"]"));
        let other = worker.call("json", json!({"give": {}})).await.unwrap_err();
        assert!(other.detail.starts_with("json answered something else than it promises"), "{other}");
        // It has what its file says, and nothing else of this machine.
        let seen = worker.call("spies", json!({})).await.unwrap();
        assert_eq!(seen, "blue [] workspace=[] network=no home=no written=no", "{seen}");
        worker.end().await;
    }
}

/// Says what a program finds around itself.
const SPIES: &str = r#"
import os, socket
known = {"PATH", "HOME", "TMPDIR", "LANG", "COLOUR", "PWD", "LC_CTYPE"}
try:
    socket.create_connection(("1.1.1.1", 53), 1)
    network = "yes"
except OSError:
    network = "no"
try:
    open("/workspace/made", "w")
    written = "yes"
except OSError:
    written = "no"
home = "yes" if os.path.exists("/root/.cache") or os.path.exists("/etc/passwd") else "no"
print(os.environ["COLOUR"], sorted(set(os.environ) - known), f"workspace={os.listdir('/workspace')} network={network} home={home} written={written}")
"#;

#[tokio::test]
async fn a_workspace_is_read_where_the_file_says_so_and_written_where_the_worker_allows_it() {
    let writes = "open('/workspace/made', 'w').write('made')\nprint('written')";
    let files = [
        ("lists.toml", python("lists", "import os\nprint(sorted(os.listdir('.')))", "workspace = \"read\"")),
        ("defies.toml", python("defies", writes, "workspace = \"read\"")),
        ("writes.toml", python("writes", writes, "workspace = \"write\"")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let other = workspace();
    let somebody = |path: &Path| {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(65_533), Some(65_533)).unwrap();
        }
    };
    let workers = Worker::all(&files, |config| {
        // A box is never root: a workspace that it may write to belongs to somebody else.
        somebody(&config.workspaces[0]);
        config.writable = config.workspaces.clone();
        config.workspaces.push(other.path().to_owned());
    });
    for worker in workers.await {
        assert_eq!(worker.call("lists", json!({})).await.as_deref(), Ok("['a.rs', 'canary']"));
        let defied = worker.call("defies", json!({})).await.unwrap_err();
        assert!(defied.detail.contains("Read-only file system") || defied.detail.contains("Permission"), "{defied}");
        assert_eq!(worker.call("writes", json!({})).await.as_deref(), Ok("written"));
        assert_eq!(std::fs::read(worker.workspace.path().join("made")).unwrap(), b"made");
        let mut elsewhere = call("writes", json!({}));
        elsewhere.workspace = Some(other.path().to_str().unwrap().to_owned());
        let refused = worker.executor.execute(&elsewhere).await.result.unwrap_err();
        assert_eq!(refused.class, FailureClass::Refused);
        assert!(refused.detail.contains("may not be written to"), "{refused}");
        worker.end().await;
    }
    for worker in Worker::all(&files, |_| {}).await {
        let refused = worker.call("writes", json!({})).await.unwrap_err();
        assert!(refused.detail.contains("this server lets tools write nowhere"), "{refused}");
        worker.end().await;
    }
}

#[tokio::test]
async fn files_come_change_break_and_go_while_the_worker_runs() {
    let says = |what: &str| python("says", &format!("print('{what}')"), "");
    let files = [("says.toml", says("one")), ("read_file.toml", python("read_file", "pass", ""))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for worker in Worker::all(&files, |_| {}).await {
        assert_eq!(worker.call("says", json!({})).await.as_deref(), Ok("one"));
        let taken = Refused {
            file: "read_file.toml".into(),
            line: Some(1),
            reason: "`name` is \"read_file\", and there is a tool of that name already: choose another, for the file as well"
                .into(),
        };
        assert_eq!(worker.executor.toolbox().now().refused(), vec![taken.clone()]);
        assert!(worker.call("read_file", json!({"path": "a.rs"})).await.unwrap().contains("open_store"));

        // One that breaks serves on as it was, and is named with its line.
        worker.write("says.toml", &format!("{}effekt = \"computes\"\n", says("two")));
        worker.until(|registry| registry.refused().len() == 2).await;
        let refused = worker.executor.toolbox().now().refused();
        let broken = refused.iter().find(|refused| refused.file == "says.toml").unwrap();
        assert!(broken.line.is_some() && broken.reason.contains("unknown field `effekt`"), "{broken:?}");
        assert_eq!(worker.call("says", json!({})).await.as_deref(), Ok("one"));

        // One comes, one is put right; one whose name was taken goes.
        worker.write("says.toml", &says("three"));
        worker.write("more.toml", &python("more", "print('more')", ""));
        std::fs::remove_file(worker.tools.path().join("read_file.toml")).unwrap();
        worker.until(|registry| registry.refused().is_empty() && registry.tool("more").is_some()).await;
        assert_eq!(worker.call("says", json!({})).await.as_deref(), Ok("three"));
        assert_eq!(worker.call("more", json!({})).await.as_deref(), Ok("more"));
        std::fs::remove_file(worker.tools.path().join("more.toml")).unwrap();
        worker.until(|registry| registry.tool("more").is_none()).await;
        assert_eq!(worker.call("more", json!({})).await.unwrap_err().class, FailureClass::Unknown);
        worker.end().await;
    }
}

#[tokio::test]
async fn what_a_box_could_not_have_is_refused_when_the_file_is_read() {
    let files = [
        ("nowhere.toml", python("nowhere", "pass", "reads = [\"/nonexistent/library\"]")),
        ("mine.toml", python("mine", "pass", "reads = [\"/proc/1\"]")),
        ("pictured.toml", python("pictured", "pass", "image = \"nobody/has-this:1\"")),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for worker in Worker::all(&files, |_| {}).await {
        let refused = worker.executor.toolbox().now().refused();
        let reason =
            |file: &str| refused.iter().find(|refused| refused.file == file).map(|r| (r.line, r.reason.clone()));
        let (line, nowhere) = reason("nowhere.toml").expect("it is refused");
        assert_eq!((line, nowhere.contains("/nonexistent/library does not exist")), (Some(4), true), "{nowhere}");
        let (_, mine) = reason("mine.toml").expect("it is refused");
        assert!(mine.contains("cannot be shown in a box"), "{mine}");
        let (line, pictured) = reason("pictured.toml").expect("it is refused");
        assert_eq!((line, pictured.starts_with("`image` is not to be had")), (Some(4), true), "{pictured}");
        worker.end().await;
    }
}
