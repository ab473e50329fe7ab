//! The worker on a real bus: a job goes in, a fact comes out, and the queue is empty again.
//! Skips, and says so, where there is no `nats-server` on the path.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use runtime::bus::{self, Bus, Kind};
use runtime::{Runtime, Tasks, clock};
use schemas::fact::{Fact, FactBody, FailureClass};
use schemas::ids::EffectId;
use schemas::rpc::{Analyse, Outline, Reply};
use schemas::wire::Schema;
use schemas::{ExecutionId, ToolJob, stream, subject};

/// A private server that ends with the test.
struct Server {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn server() -> Option<Server> {
    let data = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new("nats-server")
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(data.path())
        .stderr(Stdio::null())
        .spawn();
    let Ok(process) = process else {
        eprintln!("SKIPPED: there is no nats-server on the path");
        return None;
    };
    let server = Server { process, url: format!("nats://127.0.0.1:{port}"), _data: data };
    tokio::time::timeout(Duration::from_secs(10), async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the server starts");
    Some(server)
}

fn job(tool: &str, arguments: &str) -> ToolJob {
    ToolJob {
        schema: ToolJob::SCHEMA.to_owned(),
        exec: clock::execution_id(),
        effect: EffectId::tool(1, 0),
        attempt: 1,
        deadline: clock::now() + 30_000_000_000,
        queued_at: clock::now(),
        trace: std::collections::BTreeMap::new(),
        tool: tool.to_owned(),
        arguments: arguments.to_owned(),
        workspace: None,
        user_id: None,
        result_bytes_max: 0,
    }
}

/// Queues a job and waits for the one fact that answers it.
async fn answer(bus: &Bus, job: &ToolJob) -> FactBody {
    let mut live = bus.live(job.exec).await.unwrap();
    bus.queue(job).await.unwrap();
    let stored = tokio::time::timeout(Duration::from_secs(15), live.next())
        .await
        .expect("an answer comes")
        .expect("the connection lives");
    assert_eq!(stored.kind, Kind::Fact);
    Fact::read(&stored.payload).unwrap().body
}

async fn start(server: &Server, workspace: &Path) -> (Bus, Tasks) {
    let config = bus::Config { url: server.url.clone(), ..bus::Config::default() };
    let bus = Bus::connect(&config, "tool").await.unwrap();
    bus::provision(&bus).await.unwrap();
    let tasks = Tasks::new();
    let outlined = |question: Analyse| async move {
        Reply::Ok(Outline {
            language: "rust".to_owned(),
            lines: 1,
            imports: vec![question.path],
            symbols: vec![],
            note: None,
        })
    };
    bus.serve(&tasks, subject::RPC_ANALYSIS, outlined).await.unwrap();
    let runtime = Runtime { bus: bus.clone(), tasks: tasks.clone(), metrics: Default::default() };
    let config = tool_worker::Config {
        workspaces: vec![workspace.to_owned()],
        sandbox: tool_worker::sandbox::Choice::Bubblewrap,
        runner: Some(env!("CARGO_BIN_EXE_tool_runner").into()),
        runner_arguments: vec![],
        ..tool_worker::Config::default()
    };
    tool_worker::serve(config, runtime).await.unwrap();
    (bus, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_becomes_one_fact_and_leaves_the_queue() {
    let Some(server) = server().await else { return };
    let workspace = tempfile::tempdir().unwrap();
    std::fs::write(workspace.path().join("a.rs"), "fn open_store() {}\n").unwrap();
    let (bus, tasks) = start(&server, workspace.path()).await;

    let tools: Vec<schemas::rpc::Tool> = bus.ask(subject::RPC_TOOLS, &(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(tools.len(), 6);

    match answer(&bus, &job("search_code", r#"{"query":"open_store"}"#)).await {
        FactBody::ToolCompleted(fact) => {
            assert_eq!(fact.result, "1 matches\na.rs:1: fn open_store() {}");
            assert_eq!(fact.sandbox.tier, "bubblewrap");
            assert!(fact.worker.starts_with("tool-"));
            let holds = bus.ask_worker(&fact.worker, Duration::from_secs(5)).await;
            assert!(holds.unwrap().is_some(), "the worker lives");
        }
        // A machine without user namespaces refuses, with the reason.
        FactBody::ToolFailed(fact) if fact.detail.contains("new namespace") => {
            eprintln!("SKIPPED: {}", fact.detail);
            return;
        }
        other => panic!("{other:?}"),
    }
    let outlined = answer(&bus, &job("analyze_code", r#"{"path":"a.rs"}"#)).await;
    assert!(
        matches!(&outlined, FactBody::ToolCompleted(fact) if fact.result == "1 lines\nimports: a.rs\nsymbols: none"),
        "{outlined:?}"
    );
    let failed = answer(&bus, &job("read_file", r#"{"path":"../x"}"#)).await;
    assert!(matches!(&failed, FactBody::ToolFailed(fact) if fact.class == FailureClass::Refused), "{failed:?}");
    let progress = bus.job_progress(stream::TOOL_JOBS).await.unwrap();
    assert!((1..=3).all(|job| progress.handed_out("vl.v1.job.tool.read_file.any", job)), "{progress:?}");

    // The same attempt queued again gives no second fact, even if it is carried out again.
    let again = job("read_file", r#"{"path":"a.rs"}"#);
    let exec: ExecutionId = again.exec;
    answer(&bus, &again).await;
    bus.queue(&again).await.unwrap();
    let stored = bus.read_execution(exec, 0).await.unwrap();
    assert_eq!(stored.len(), 1);

    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
}
