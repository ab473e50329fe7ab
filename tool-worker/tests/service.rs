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
        agent: String::new(),
        approved: false,
        fresh: false,
    }
}

/// Queues a job and waits for the one fact that answers it.
async fn answer(bus: &Bus, job: &ToolJob) -> FactBody {
    let mut live = bus.live(job.exec).await.unwrap();
    // A job goes over another connection; an answer on this one says that the server knows of the interest.
    bus.read_execution(job.exec, 0).await.unwrap();
    bus.queue(job).await.unwrap();
    let stored = tokio::time::timeout(Duration::from_secs(15), live.next())
        .await
        .expect("an answer comes")
        .expect("the connection lives");
    assert_eq!(stored.kind, Kind::Fact);
    Fact::read(&stored.payload).unwrap().body
}

/// Runs one more worker, with another configuration if need be; and what it counts.
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
    let runtime = Runtime { tasks: tasks.clone(), metrics: metrics.clone(), ..Runtime::new(bus.clone()) };
    let mut config = tool_worker::Config {
        workspaces: vec![workspace.to_owned()],
        sandbox: tool_worker::sandbox::Choice::Bubblewrap,
        runner: Some(env!("CARGO_BIN_EXE_tool_runner").into()),
        runner_arguments: vec![],
        ..tool_worker::Config::default()
    };
    change(&mut config);
    tool_worker::serve(config, runtime).await.unwrap();
    (bus, tasks, metrics)
}

async fn start(server: &Server, workspace: &Path) -> (Bus, Tasks) {
    let (bus, tasks, _) = start_with(server, workspace, |_| {}).await;
    (bus, tasks)
}

async fn stopped(tasks: &Tasks) {
    tasks.stop();
    assert!(tasks.drained(Duration::from_secs(10)).await);
}

/// What was counted under these labels.
fn counted(metrics: &prometheus::Registry, name: &str, labels: &[(&str, &str)]) -> u64 {
    let families = metrics.gather();
    let of_name =
        families.iter().filter(|family| family.name() == name).flat_map(prometheus::proto::MetricFamily::get_metric);
    let has = |metric: &prometheus::proto::Metric, (name, value): (&str, &str)| {
        metric.get_label().iter().any(|label| (label.name(), label.value()) == (name, value))
    };
    let found = of_name.filter(|metric| labels.iter().all(|label| has(metric, *label)));
    found.map(|metric| metric.get_counter().get_value() as u64 + metric.get_histogram().get_sample_count()).sum()
}

/// What a job that failed was told; `Err` with the result of one that did not.
async fn refusal(bus: &Bus, job: &ToolJob) -> Result<(FailureClass, String), String> {
    match answer(bus, job).await {
        FactBody::ToolFailed(fact) => Ok((fact.class, fact.detail)),
        FactBody::ToolCompleted(fact) => Err(fact.result),
        other => panic!("{other:?}"),
    }
}

/// Whether calls can be confined on this machine; says so where they cannot.
async fn confined(bus: &Bus) -> bool {
    match refusal(bus, &job("search_code", r#"{"query": "anything"}"#)).await {
        Ok((FailureClass::Refused, why)) if why.contains("not installed") || why.contains("new namespace") => {
            eprintln!("SKIPPED: {why}");
            false
        }
        _ => true,
    }
}

/// A search server that says what it was asked and answers only when it is told to.
struct Searxng {
    url: String,
    asked: tokio::sync::mpsc::UnboundedReceiver<String>,
    answer: tokio::sync::watch::Sender<bool>,
}

impl Searxng {
    async fn start(tasks: &Tasks, answering: bool) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (noted, asked) = tokio::sync::mpsc::unbounded_channel();
        let (answer, answered) = tokio::sync::watch::channel(answering);
        let serving = tasks.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (noted, mut answered) = (noted.clone(), answered.clone());
                serving.spawn(async move {
                    let mut head = vec![0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let _ = noted.send(String::from_utf8_lossy(&head[..read]).into_owned());
                    let _ = answered.wait_for(|answer| *answer).await;
                    let body =
                        r#"{"query": "x", "results": [{"url": "https://example.org/", "title": "a", "content": "b"}]}"#;
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                    let _ = stream
                        .write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
                        .await;
                });
            }
        });
        Self { url, asked, answer }
    }

    fn settings(&self) -> Option<tool_worker::web::Settings> {
        let (provider, url) = (tool_worker::web::Kind::Searxng, Some(self.url.clone()));
        Some(tool_worker::web::Settings { provider, url, api_key: None, api_key_file: None })
    }

    /// Waits until it is asked.
    async fn is_asked(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(15), self.asked.recv()).await.expect("it is asked").unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_answered_in_words_and_counted_and_the_worker_lives() {
    let Some(server) = server().await else { return };
    let base = tempfile::tempdir().unwrap();
    std::fs::File::create(base.path().join("huge.txt")).unwrap().set_len(10 << 30).unwrap();
    std::fs::write(base.path().join("latin1.txt"), b"caf\xe9 \x1b[31mred\xe2\x80\xaetxt.exe").unwrap();
    std::fs::write(base.path().join("long.txt"), "a".repeat(100_000)).unwrap();
    let denied = tool_worker::permission::Rule { allow: None, deny: vec!["read_file".to_owned()] };
    let (bus, tasks, metrics) = start_with(&server, base.path(), |config| {
        config.users = [("ann".to_owned(), denied.clone())].into();
        config.agents = [("reviewer".to_owned(), denied)].into();
        config.approve = vec!["analyze_code".to_owned()];
    })
    .await;
    if !confined(&bus).await {
        return;
    }
    let read = || job("read_file", r#"{"path": "latin1.txt"}"#);
    let elsewhere = ToolJob { workspace: Some("nowhere".to_owned()), ..read() };
    let outside = ToolJob { workspace: Some("/etc".to_owned()), ..read() };
    let of_ann = ToolJob { user_id: Some("ann".to_owned()), ..read() };
    let of_reviewer = ToolJob { agent: "reviewer".to_owned(), ..read() };
    let (bad, refused) = (FailureClass::BadRequest, FailureClass::Refused);
    for (job, class, said, tool, word) in [
        (
            job("raed_file", "{}"),
            FailureClass::Unknown,
            "no such tool: raed_file (available: read_file,",
            "unknown",
            "unknown_tool",
        ),
        (
            job("read_file", "[]"),
            bad,
            "arguments must be a JSON object; usage: read_file(",
            "read_file",
            "bad_arguments",
        ),
        (job("read_file", "{\"path\": "), bad, "arguments are not JSON", "read_file", "bad_arguments"),
        (
            job("read_file", r#"{"path": {"a": [1]}}"#),
            bad,
            "argument `path` is {\"a\":[1]}, expected a string",
            "read_file",
            "bad_arguments",
        ),
        (job("web_search", r#"{"query": "x"}"#), refused, "is not available: ", "web_search", "unavailable"),
        (
            job("read_file", r#"{"path": "huge.txt"}"#),
            bad,
            "huge.txt is a binary file (it holds zero bytes, 10737418240 bytes)",
            "read_file",
            "bad_request",
        ),
        (
            job("search_code", r#"{"query": "((((a{1,100}){1,100}){1,100}){1,100})", "regex": true}"#),
            bad,
            "query is not a valid pattern",
            "search_code",
            "bad_request",
        ),
        (elsewhere, bad, "no such workspace: nowhere (allowed roots: ", "read_file", "bad_workspace"),
        (outside, refused, "workspace /etc is not under an allowed root", "read_file", "bad_workspace"),
        (of_ann, refused, "the user ann may not call read_file", "read_file", "not_permitted"),
        (of_reviewer, refused, "the agent type reviewer may not call read_file", "read_file", "not_permitted"),
        (
            job("analyze_code", r#"{"path": "a.rs"}"#),
            refused,
            "a person must allow each call of analyze_code",
            "analyze_code",
            "not_approved",
        ),
        (
            ToolJob { approved: true, ..job("analyze_code", r#"{"path": "nothing.rs"}"#) },
            bad,
            "no such file: nothing.rs",
            "analyze_code",
            "bad_request",
        ),
    ] {
        let labels = [("tool", tool), ("outcome", word)];
        let before = counted(&metrics, "vlinders_tool_calls_total", &labels);
        let (found, detail) =
            refusal(&bus, &job).await.unwrap_or_else(|result| panic!("{} gave {result}", job.arguments));
        assert_eq!(found, class, "{detail}");
        assert!(detail.contains(said), "{said:?} is missing in {detail:?}");
        assert_eq!(counted(&metrics, "vlinders_tool_calls_total", &labels), before + 1, "{word} of {tool}");
    }
    // Patterns that explode elsewhere are carried out in linear time here.
    let patient = job("search_code", r#"{"query": "(a*)*(a*)*b$", "regex": true, "path": "long.txt"}"#);
    assert_eq!(refusal(&bus, &patient).await.unwrap_err(), "no matches");
    let odd = "1: caf\u{fffd} ␛[31mred\\u{202e}txt.exe\n(some bytes are not UTF-8 and shown as \u{fffd})";
    assert_eq!(refusal(&bus, &read()).await.unwrap_err(), odd);
    let completed = [("tool", "read_file"), ("outcome", "completed")];
    assert_eq!(counted(&metrics, "vlinders_tool_calls_total", &completed), 1);
    assert!(counted(&metrics, "vlinders_tool_call_seconds", &[("tool", "read_file")]) >= 2);
    stopped(&tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equal_call_is_carried_out_once_by_all_workers_until_it_must_be_fresh() {
    let Some(server) = server().await else { return };
    // Files that have been left alone for a while.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (bus, tasks, metrics) = start_with(&server, workspace, |_| {}).await;
    if !confined(&bus).await {
        return;
    }
    let read = || job("read_file", r#"{"path": "Cargo.toml", "end": 2}"#);
    let FactBody::ToolCompleted(first) = answer(&bus, &read()).await else { panic!("it can be read") };
    let again = [
        job("read_file", r#"{"end": 2, "path": "Cargo.toml", "start": null}"#),
        ToolJob { workspace: Some(workspace.display().to_string()), ..read() },
    ];
    let asked = |metrics: &prometheus::Registry, outcome: &str| {
        counted(metrics, "vlinders_tool_cache_total", &[("outcome", outcome)])
    };
    let missed = asked(&metrics, "miss");
    for job in &again {
        let FactBody::ToolCompleted(known) = answer(&bus, job).await else { panic!("it is known") };
        assert_eq!((&known.result, &known.sandbox), (&first.result, &first.sandbox));
    }
    assert_eq!((asked(&metrics, "hit_memory"), asked(&metrics, "miss")), (2, missed));
    answer(&bus, &ToolJob { fresh: true, ..read() }).await;
    assert_eq!((asked(&metrics, "hit_memory"), asked(&metrics, "miss")), (2, missed), "nobody looked");
    answer(&bus, &job("read_file", r#"{"path": "Cargo.toml", "end": 3}"#)).await;
    assert_eq!((asked(&metrics, "hit_memory"), asked(&metrics, "miss")), (2, missed + 1), "another call");
    stopped(&tasks).await;
    // Another worker finds what the first one left.
    let (bus, tasks, metrics) = start_with(&server, workspace, |_| {}).await;
    answer(&bus, &read()).await;
    assert_eq!((asked(&metrics, "hit_store"), asked(&metrics, "miss")), (1, 0));
    stopped(&tasks).await;
    let (bus, tasks, metrics) = start_with(&server, workspace, |config| config.cache = false).await;
    answer(&bus, &read()).await;
    assert_eq!(counted(&metrics, "vlinders_tool_cache_total", &[]), 0);
    stopped(&tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_begun_by_a_worker_that_died_is_not_begun_again() {
    let Some(server) = server().await else { return };
    let base = tempfile::tempdir().unwrap();
    let outside = Tasks::new();
    let mut searxng = Searxng::start(&outside, false).await;
    let (bus, dying, _) = start_with(&server, base.path(), |config| config.search = searxng.settings()).await;
    let search = job("web_search", r#"{"query": "x"}"#);
    let mut live = bus.live(search.exec).await.unwrap();
    // A job goes over another connection; an answer on this one says that the server knows of the interest.
    bus.read_execution(search.exec, 0).await.unwrap();
    bus.queue(&search).await.unwrap();
    searxng.is_asked().await;
    // It dies in the middle: what it was at is dropped, and nothing is acknowledged.
    dying.stop();
    assert!(!dying.drained(Duration::ZERO).await, "it was at work");

    let (bus, tasks, metrics) = start_with(&server, base.path(), |config| config.search = searxng.settings()).await;
    searxng.answer.send_replace(true);
    // The same job comes again, and so does the next attempt.
    let stored = tokio::time::timeout(Duration::from_secs(30), live.next()).await.expect("an answer").unwrap();
    let FactBody::ToolFailed(failed) = Fact::read(&stored.payload).unwrap().body else { panic!("it cannot be known") };
    assert_eq!((failed.class, failed.attempt), (FailureClass::OutcomeUnknown, 1));
    let next = ToolJob { attempt: 2, ..search.clone() };
    let (class, detail) = refusal(&bus, &next).await.unwrap();
    assert_eq!(class, FailureClass::OutcomeUnknown);
    assert!(detail.starts_with("outcome unknown: web_search was begun"), "{detail}");
    assert!(searxng.asked.try_recv().is_err(), "it was asked once");
    assert_eq!(counted(&metrics, "vlinders_tool_calls_total", &[("outcome", "outcome_unknown")]), 2);

    // Another call of the same kind is one of its own, and what came of it is told again.
    let other = job("web_search", r#"{"query": "x"}"#);
    let FactBody::ToolCompleted(first) = answer(&bus, &other).await else { panic!("it answers now") };
    let FactBody::ToolCompleted(second) = answer(&bus, &ToolJob { attempt: 2, ..other }).await else { panic!("known") };
    assert_eq!((first.result, first.sandbox, 2), (second.result, second.sandbox, second.attempt));
    searxng.is_asked().await;
    assert!(searxng.asked.try_recv().is_err(), "it was asked once more");
    assert_eq!(counted(&metrics, "vlinders_tool_calls_total", &[("outcome", "known")]), 1);
    stopped(&tasks).await;
    outside.stop();
    outside.drained(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_becomes_one_fact_and_leaves_the_queue() {
    let Some(server) = server().await else { return };
    let workspace = tempfile::tempdir().unwrap();
    std::fs::write(workspace.path().join("a.rs"), "fn open_store() {}\n").unwrap();
    let (bus, tasks) = start(&server, workspace.path()).await;

    let tools: Vec<schemas::rpc::Tool> = bus.ask(subject::RPC_TOOLS, &(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(tools.len(), 12);

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
