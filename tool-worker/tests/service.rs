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
        fresh: false,
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
    let (bus, tasks, _) = start_with(server, workspace, |_| {}).await;
    (bus, tasks)
}

/// With another configuration, and what it counts.
async fn start_with(
    server: &Server,
    workspace: &Path,
    change: impl FnOnce(&mut tool_worker::Config),
) -> (Bus, Tasks, prometheus::Registry) {
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
    let metrics = prometheus::Registry::new();
    let runtime = Runtime { bus: bus.clone(), tasks: tasks.clone(), metrics: metrics.clone() };
    let mut config = tool_worker::Config {
        workspaces: vec![workspace.to_owned()],
        runner: Some(env!("CARGO_BIN_EXE_tool_runner").into()),
        runner_arguments: vec![],
        ..tool_worker::Config::default()
    };
    change(&mut config);
    tool_worker::serve(config, runtime).await.unwrap();
    (bus, tasks, metrics)
}

/// What was counted under these labels.
fn counted(metrics: &prometheus::Registry, name: &str, labels: &[(&str, &str)]) -> u64 {
    let families = metrics.gather();
    let of_name = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    let has = |metric: &prometheus::proto::Metric, (name, value): (&str, &str)| {
        metric.get_label().iter().any(|label| (label.name(), label.value()) == (name, value))
    };
    let found = of_name.filter(|metric| labels.iter().all(|label| has(metric, *label)));
    found.map(|metric| metric.get_counter().value() as u64).sum()
}

/// What a job that failed was told; `Err` with the result of one that did not.
async fn refusal(bus: &Bus, job: &ToolJob) -> Result<(FailureClass, String), String> {
    match answer(bus, job).await {
        FactBody::ToolFailed(fact) => Ok((fact.class, fact.detail)),
        FactBody::ToolCompleted(fact) => Err(fact.result),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_answered_in_words_and_counted_and_the_worker_lives() {
    let Some(server) = server().await else { return };
    let base = tempfile::tempdir().unwrap();
    std::fs::File::create(base.path().join("huge.txt")).unwrap().set_len(10 << 30).unwrap();
    std::fs::write(base.path().join("latin1.txt"), b"caf\xe9 \x1b[31mred\xe2\x80\xaetxt.exe").unwrap();
    std::fs::write(base.path().join("long.txt"), "a".repeat(100_000)).unwrap();
    let user = tool_worker::permission::User { allow: None, deny: vec!["read_file".to_owned()] };
    let users = [("ann".to_owned(), user)].into();
    let (bus, tasks, metrics) = start_with(&server, base.path(), |config| config.users = users).await;
    if let Ok((FailureClass::Refused, why)) = refusal(&bus, &job("read_file", r#"{"path": "latin1.txt"}"#)).await {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let elsewhere = ToolJob { workspace: Some("nowhere".to_owned()), ..job("read_file", r#"{"path": "a"}"#) };
    let of_ann = ToolJob { user_id: Some("ann".to_owned()), ..job("read_file", r#"{"path": "latin1.txt"}"#) };
    let bad = FailureClass::BadRequest;
    for (job, class, said) in [
        (job("raed_file", "{}"), FailureClass::Unknown, "no such tool: raed_file (available: read_file,"),
        (job("read_file", "[]"), bad, "arguments must be a JSON object; usage: read_file("),
        (job("read_file", "{\"path\": "), bad, "arguments are not JSON"),
        (job("read_file", r#"{"path": {"a": [1]}}"#), bad, "argument `path` is {\"a\":[1]}, expected a string"),
        (job("read_file", r#"{"path": "huge.txt"}"#), bad, "huge.txt is 10737418240 bytes, more than the limit"),
        (job("analyze_code", r#"{"path": "huge.txt"}"#), bad, "more than the limit"),
        (
            job("search_code", r#"{"query": "((((a{1,100}){1,100}){1,100}){1,100})", "regex": true}"#),
            bad,
            "query is not a valid pattern",
        ),
        (job("search_code", r#"{"query": "(", "regex": true}"#), bad, "query is not a valid pattern"),
        (elsewhere, bad, "no such workspace: nowhere (allowed roots: "),
        (of_ann, FailureClass::Refused, "ann may not call read_file"),
    ] {
        let (found, detail) =
            refusal(&bus, &job).await.unwrap_or_else(|result| panic!("{} gave {result}", job.arguments));
        assert_eq!(found, class, "{detail}");
        assert!(detail.contains(said), "{said:?} is missing in {detail:?}");
    }
    // Patterns that explode elsewhere are carried out in linear time here.
    let patient = job("search_code", r#"{"query": "(a*)*(a*)*b$", "regex": true, "path": "long.txt"}"#);
    assert_eq!(refusal(&bus, &patient).await.unwrap_err(), "no matches");
    let shown =
        refusal(&bus, &ToolJob { exec: clock::execution_id(), ..job("read_file", r#"{"path": "latin1.txt"}"#) }).await;
    assert_eq!(shown.unwrap_err(), "1: caf\u{fffd} ␛[31mred\\u{202e}txt.exe");
    let count = |tool: &str, outcome: &str| {
        counted(&metrics, "vlinders_tool_calls_total", &[("tool", tool), ("outcome", outcome)])
    };
    assert_eq!((count("unknown", "unknown"), count("search_code", "bad_request")), (1, 2));
    assert_eq!((count("read_file", "completed"), count("read_file", "refused")), (2, 1));
    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_call_is_carried_out_once_by_all_workers_until_it_must_be_fresh() {
    let Some(server) = server().await else { return };
    // Files that have been left alone for a while.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (bus, tasks, metrics) = start_with(&server, workspace, |_| {}).await;
    let read = || job("read_file", r#"{"path": "Cargo.toml", "end": 2}"#);
    let first = answer(&bus, &read()).await;
    let FactBody::ToolCompleted(first) = first else {
        eprintln!("SKIPPED: {first:?}");
        return;
    };
    let again = [
        job("read_file", r#"{"end": 2, "path": "Cargo.toml", "start": null}"#),
        ToolJob { workspace: Some(workspace.display().to_string()), ..read() },
    ];
    for job in &again {
        let FactBody::ToolCompleted(known) = answer(&bus, job).await else { panic!("it is known") };
        assert_eq!((&known.result, &known.sandbox), (&first.result, &first.sandbox));
    }
    answer(&bus, &ToolJob { fresh: true, ..read() }).await;
    answer(&bus, &job("read_file", r#"{"path": "Cargo.toml", "end": 3}"#)).await;
    let asked = |metrics: &prometheus::Registry, outcome: &str| {
        counted(metrics, "vlinders_tool_cache_total", &[("outcome", outcome)])
    };
    assert_eq!((asked(&metrics, "hit_memory"), asked(&metrics, "miss"), asked(&metrics, "off")), (2, 2, 0));
    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
    // Another worker finds what the first one left.
    let (bus, tasks, metrics) = start_with(&server, workspace, |_| {}).await;
    answer(&bus, &read()).await;
    assert_eq!((asked(&metrics, "hit_bucket"), asked(&metrics, "miss")), (1, 0));
    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
    let (bus, tasks, metrics) = start_with(&server, workspace, |config| config.cache = false).await;
    answer(&bus, &read()).await;
    assert_eq!(counted(&metrics, "vlinders_tool_cache_total", &[]), 0);
    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
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
