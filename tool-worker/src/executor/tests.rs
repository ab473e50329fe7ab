//! Real boxes: calls, limits and escapes.

use super::*;
use crate::registry::Handler;
use schemas::fact::FailureClass;
use std::path::Path;

/// One object, whose name is all `a`.
fn library() -> Library {
    Arc::new(|name| {
        Box::pin(async move {
            match name == "a".repeat(64) {
                true => Ok("first\nsecond\nthird\n".to_owned()),
                false => Err(Failure::bad_request(format!("object {name} is missing"))),
            }
        })
    })
}

/// The runner lies beside this test's own directory, `tests/runner.rs` has it built. Skips where boxes cannot exist.
async fn boxes(workspace: &Path) -> Option<Executor> {
    let test = std::env::current_exe().unwrap();
    let runner = test.parent().and_then(Path::parent).unwrap().join("tool_runner");
    let config = Config {
        workspaces: vec![workspace.to_owned()],
        sandbox: sandbox::Choice::Bubblewrap,
        // A test looks at processes; what is prepared for later would be among them.
        warm_boxes: 0,
        runner: Some(runner),
        runner_arguments: vec![],
        ..Config::default()
    };
    let analyst: Analyst = Arc::new(|path, code| {
        Box::pin(async move {
            if code == "refused" {
                return Err(Failure::bad_request("it looks minified"));
            }
            Ok(Outline {
                language: path,
                lines: u32::try_from(code.lines().count()).unwrap(),
                imports: vec![],
                symbols: vec![],
                note: None,
            })
        })
    });
    let executor = Executor::start(&config, analyst, library()).await.unwrap();
    match executor.sandbox() {
        // Only a machine without the means may skip; a leaking box must fail.
        Err(reason) if reason.contains("not installed") || reason.contains("new namespace") => {
            eprintln!("SKIPPED: {reason}");
            None
        }
        Err(reason) => panic!("{reason}"),
        Ok(_) => Some(executor),
    }
}

fn workspace() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("a.rs"), "use std::fs;\nfn open_store() {}\n").unwrap();
    std::os::unix::fs::symlink("/etc", base.path().join("etc")).unwrap();
    base
}

#[expect(clippy::needless_pass_by_value, reason = "literals read better without a borrow")]
fn call(tool: &str, arguments: Value) -> Call {
    Call { tool: tool.to_owned(), arguments: arguments.to_string(), ..Call::default() }
}

#[tokio::test]
async fn calls_through_a_real_box() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else {
        return;
    };
    let found = executor.execute(&call("search_code", json!({"query": "open_store"}))).await;
    assert_eq!(found.result.unwrap(), "1 matches\na.rs:2: fn open_store() {}");
    assert_eq!(found.sandbox.tier, "bubblewrap");
    assert!(found.sandbox.enforced.contains(&"seccomp".to_owned()), "{:?}", found.sandbox);
    let read = executor.execute(&call("read_file", json!({"path": "a.rs", "start": 2}))).await;
    assert_eq!(read.result.unwrap(), "2: fn open_store() {}");
    let outline = executor.execute(&call("analyze_code", json!({"path": "a.rs"}))).await;
    assert_eq!(outline.result.unwrap(), "2 lines\nimports: none\nsymbols: none");
    std::fs::write(base.path().join("b.min.js"), "refused").unwrap();
    let outline = executor.execute(&call("analyze_code", json!({"path": "."}))).await;
    assert_eq!(outline.result.unwrap(), "2 files, 2 lines\nimports: none\na.rs: none\nb.min.js: it looks minified");
    let missing = executor.execute(&call("read_file", json!({"path": "x"}))).await;
    assert_eq!(missing.result.unwrap_err().as_result(), "error: no such file: x");
    for path in ["../../etc/passwd", "/etc/passwd", "etc/passwd"] {
        let outside = executor.execute(&call("read_file", json!({"path": path}))).await.result.unwrap_err();
        assert_eq!(outside.class, FailureClass::Refused, "{path}: {outside}");
    }
}

#[test]
fn long_lines_leave_room_for_others() {
    assert_eq!(cut_lines("1: short\n2: é and more\n", 8), "1: short\n2: é and…\n");
}

#[tokio::test]
async fn a_small_result_shows_the_beginnings_of_lines() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else {
        return;
    };
    std::fs::write(base.path().join("long.txt"), format!("{}\nend\n", "x".repeat(100))).unwrap();
    let mut read = call("read_file", json!({"path": "long.txt"}));
    assert_eq!(executor.execute(&read).await.result.unwrap(), format!("1: {}\n2: end", "x".repeat(100)));
    read.result_bytes_max = 640;
    assert_eq!(executor.execute(&read).await.result.unwrap(), format!("1: {}…\n2: end", "x".repeat(50)));
}

#[tokio::test]
async fn without_a_sandbox_nothing_runs() {
    let base = workspace();
    let config = Config {
        workspaces: vec![base.path().to_owned()],
        bubblewrap: "/nonexistent/bwrap".into(),
        docker_socket: "/nonexistent/docker.sock".into(),
        ..Config::default()
    };
    let analyst: Analyst = Arc::new(|_, _| Box::pin(async { Err(Failure::internal("not asked")) }));
    let executor = Executor::start(&config, analyst, library()).await.unwrap();
    let outcome = executor.execute(&call("read_file", json!({"path": "a.rs"}))).await;
    let failure = outcome.result.unwrap_err();
    assert_eq!(
        failure.detail,
        "no sandbox: docker: there is no Docker engine at /nonexistent/docker.sock; \
         bubblewrap: /nonexistent/bwrap is not installed; install the package `bubblewrap`"
    );
    assert_eq!((failure.class, outcome.sandbox.tier.as_str()), (FailureClass::Refused, "none"));
}

/// Prints the cost of a call; the bound is loose, machines differ.
#[tokio::test]
async fn a_call_through_the_box_is_cheap() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else {
        return;
    };
    let mut times = Vec::new();
    for _ in 0..40 {
        times.push(executor.execute(&call("search_code", json!({"query": "open_store"}))).await.duration);
    }
    times.sort();
    println!("search_code through the box: p50 {:?}, p95 {:?}", times[20], times[38]);
    assert!(times[20] < Duration::from_millis(500));
}

/// Processes whose command line names the workspace: the box's own, since it is bound by path.
fn processes_of(workspace: &Path) -> usize {
    let name = workspace.to_str().unwrap().as_bytes();
    let named = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.windows(name.len()).any(|window| window == name)
    };
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.map(named).filter(|named| *named).count()
}

#[tokio::test]
async fn an_abandoned_call_leaves_no_process() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else {
        return;
    };
    let call = executor.sandbox().unwrap().probe(base.path(), "loop", Duration::from_secs(10));
    let abandoned = tokio::time::timeout(Duration::from_millis(300), call).await;
    assert!(abandoned.is_err(), "it was still running");
    let gone = async {
        while processes_of(base.path()) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_millis(500), gone).await;
    assert!(in_time.is_ok(), "the box outlived its call");
}

#[tokio::test]
async fn many_calls_at_once_leave_nothing_open() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else {
        return;
    };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let read = call("read_file", json!({"path": "a.rs", "end": 1}));
    executor.execute(&read).await.result.unwrap();
    let before = open();
    let calls = futures::future::join_all((0..40).map(|_| executor.execute(&read))).await;
    for outcome in calls {
        assert_eq!(outcome.result.unwrap(), "1: use std::fs;");
    }
    assert_eq!(open(), before);
}

#[tokio::test]
async fn a_result_beyond_its_limit_is_cut_with_the_name_under_which_the_rest_is_found() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else { return };
    let long: String = (1..=300).map(|n| format!("let line_{n} = {n};\n")).collect();
    std::fs::write(base.path().join("long.rs"), &long).unwrap();
    let of = |result_bytes_max| Call {
        result_bytes_max,
        ..call("read_file", json!({"path": "long.rs", "start": 1, "end": 300}))
    };
    let read = of(1_200);
    let outcome = executor.execute(&read).await;
    let (shown, full) = (outcome.result.unwrap(), outcome.full.expect("more than is shown"));
    assert!(shown.len() <= 1_200 && full.ends_with("300: let line_300 = 300;"), "{shown}");
    let name = Reference::to(full.as_bytes(), object::TEXT).sha256;
    let (lines, mark) = shown.split_once("\n... (cut; ").expect("a mark");
    assert!(full.starts_with(lines), "{shown}");
    let start = lines.lines().count() + 1;
    let said = format!(
        "of {} bytes; read the rest with read_file {{\"path\":\"object:{name}\",\"start\":{start}}})",
        full.len()
    );
    assert!(mark.ends_with(&said), "{mark}");
    let small = executor.execute(&of(600)).await;
    let (text, whole) = (small.result.unwrap(), small.full.expect("more than is shown"));
    assert!(text.len() <= 600 && text.ends_with(";\n... (cut)") && whole == full, "no room for more words: {text}");
    let short = executor.execute(&call("read_file", json!({"path": "long.rs", "start": 1, "end": 2}))).await;
    assert_eq!((short.result.unwrap().as_str(), short.full), ("1: let line_1 = 1;\n2: let line_2 = 2;", None));
}

#[tokio::test]
async fn an_object_is_read_like_a_file_and_a_missing_one_is_said_to_be() {
    let base = workspace();
    let Some(executor) = boxes(base.path()).await else { return };
    let path = |name: &str| json!({"path": format!("object:{name}"), "start": 2});
    let outcome = executor.execute(&call("read_file", path(&"a".repeat(64)))).await;
    assert_eq!((outcome.result.unwrap().as_str(), outcome.full), ("2: second\n3: third", None));
    let missing = executor.execute(&call("read_file", path("b"))).await.result.unwrap_err();
    assert_eq!((missing.class, missing.detail.as_str()), (FailureClass::BadRequest, "object b is missing"));
}

/// Answers with what it was told.
struct Echo;

impl Handler for Echo {
    fn version(&self) -> Option<String> {
        None
    }

    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Sandbox) -> BoxFuture<'a, Result<String, Failure>> {
        "none-needed".clone_into(&mut report.tier);
        Box::pin(async move {
            match order.arguments.get("wait") {
                Some(_) => std::future::pending().await,
                None => Ok(format!("{:?} of {}", order.workspace.map(|w| w.path().to_owned()), order.result_bytes_max)),
            }
        })
    }
}

#[tokio::test]
async fn a_tool_that_was_added_is_carried_out_by_its_handler_within_its_time_and_rights() {
    let base = workspace();
    let config = Config { workspaces: vec![base.path().to_owned()], bubblewrap: "/none".into(), ..Config::default() };
    let config = Config { sandbox: sandbox::Choice::Bubblewrap, ..config };
    let analyst: Analyst = Arc::new(|_, _| Box::pin(async { Err(Failure::internal("not asked")) }));
    let executor = Executor::start(&config, analyst, library()).await.unwrap();
    let like = executor.toolbox().now().tool("read_file").cloned().unwrap();
    let echo = Tool {
        name: "echo".to_owned(),
        parameters: json!({"type": "object"}),
        timeout: Duration::from_millis(50),
        result_bytes_max: 999,
        means: Means::Handler(Arc::new(Echo)),
        ..like
    };
    let blind = Tool { name: "blind".to_owned(), permissions: [].into(), ..echo.clone() };
    executor.toolbox().add(echo).unwrap();
    executor.toolbox().add(blind).unwrap();
    let outcome = executor.execute(&call("echo", json!({}))).await;
    let path = base.path().canonicalize().unwrap();
    assert_eq!(outcome.result.unwrap(), format!("Some({path:?}) of 999"));
    assert_eq!(outcome.sandbox.tier, "none-needed");
    let without = executor.execute(&Call { workspace: Some("/etc".to_owned()), ..call("blind", json!({})) }).await;
    assert_eq!(without.result.unwrap(), "None of 999", "it is told of no workspace, so none is looked for");
    let outside = executor.execute(&Call { workspace: Some("/etc".to_owned()), ..call("echo", json!({})) }).await;
    assert_eq!(outside.result.unwrap_err().class, FailureClass::Refused);
    let late = executor.execute(&call("echo", json!({"wait": true}))).await.result.unwrap_err();
    assert_eq!((late.class, late.detail.as_str()), (FailureClass::Timeout, "echo took longer than 50ms"));
}
