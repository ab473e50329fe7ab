//! Tools from outside: several calls at once, the command line, a person asked before a call, and a worker that dies in
//! the middle of one that must not be carried out twice.

use anyhow::Context;
use pipeline_tests::{PATIENCE, System, conversation, events, read_events};
use runtime::Tasks;
use runtime::bus::Stored;
use schemas::chat::Role;
use schemas::rpc::{Model, Reply};
use schemas::{Event, ExecutionId, subject};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// A system whose tool worker has this configuration, and whose model is played by the test.
async fn system(tools: &str) -> anyhow::Result<(System, Tasks)> {
    let mut system = System::start_without(&["inference-worker", "tool-worker"]).await?;
    std::fs::write(system.workspace().join("src/three.rs"), "one\ntwo\nthree\n")?;
    let file = system.directory().join("tools.toml");
    std::fs::write(&file, tools)?;
    system.config = Some(file);
    system.start_role("tool-worker").await?;
    let (bus, tasks) = (system.bus().await?, Tasks::new());
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;
    Ok((system, tasks))
}

/// What the model read of its calls.
fn results(exec: ExecutionId, log: &[Stored]) -> Vec<String> {
    conversation(exec, log).into_iter().filter(|m| m.role == Role::Tool).map(|m| m.content).collect()
}

fn joined(log: &[Stored]) -> bool {
    events(log).iter().flatten().any(|event| matches!(event, Event::ToolsJoined(_)))
}

fn coder(system: &System) -> Value {
    json!({"agent_type": "coder", "instruction": "go", "workspace": system.workspace()})
}

/// A SearXNG that says when it is asked, and answers when it is told to.
async fn searxng(tasks: &Tasks) -> anyhow::Result<(String, mpsc::UnboundedReceiver<()>, watch::Sender<bool>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (noted, asked) = mpsc::unbounded_channel();
    let (answer, answered) = watch::channel(false);
    let serving = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (noted, mut answered) = (noted.clone(), answered.clone());
            serving.spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = noted.send(());
                let _ = answered.wait_for(|answer| *answer).await;
                let body = r#"{"query": "x", "results": [{"url": "https://example.org/", "title": "An example"}]}"#;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    Ok((url, asked, answer))
}

#[tokio::test]
async fn a_batch_is_answered_in_its_order_and_a_bad_call_holds_up_no_other() -> anyhow::Result<()> {
    let (system, _tasks) = system("").await?;
    let read = |line: u32| {
        let arguments = json!({"path": "src/three.rs", "start": line, "end": line});
        json!({"tool_name": "read_file", "arguments": arguments, "workspace": system.workspace()})
    };
    let mut calls: Vec<Value> = (1..=3).map(read).collect();
    calls.insert(1, json!({"tool_name": "raed_file", "arguments": {}}));
    calls.push(json!({"tool_name": "read_file", "arguments": {"path": "nowhere"}}));
    let (status, answer) = system.ask("/internal/tools/execute_batch", &json!({"calls": calls})).await?;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().context("a list")?;
    let texts: Vec<&str> = results.iter().map(|r| r["result"].as_str().unwrap_or_default()).collect();
    assert_eq!(texts, ["1: one", "", "2: two", "3: three", ""], "{answer}");
    assert_eq!(results[1]["problem"]["code"], "unknown_tool");
    assert!(results[1]["problem"]["next_step"].as_str().is_some_and(|next| next.contains("read_file")), "{answer}");
    assert!(results[4]["error"].as_str().is_some_and(|error| error.contains("no such file: nowhere")), "{answer}");
    for calls in [json!([]), json!(vec![read(1); 65])] {
        let (status, problem) = system.ask("/internal/tools/execute_batch", &json!({"calls": calls})).await?;
        assert_eq!((status, problem["next_step"].as_str()), (400, Some("send 1 to 64 at once")));
    }
    Ok(())
}

#[tokio::test]
async fn the_command_line_lists_and_calls_tools() -> anyhow::Result<()> {
    let (system, _tasks) = system("").await?;
    let (code, listed) = system.client(&["tools", "ls"]).await?;
    let tools = listed["tools"].as_array().context("a list")?;
    let of = |name: &str| tools.iter().find(|tool| tool["name"] == name).cloned().unwrap_or_default();
    assert_eq!((code, tools.len()), (Some(0), 12));
    let (read, web) = (of("read_file"), of("web_search"));
    assert_eq!((&read["effect"], &read["permissions"]), (&json!("reads_workspace"), &json!(["workspace:read"])));
    assert_eq!((&read["approval"], &read["timeout_ms"]), (&json!("agent_type"), &json!(10_000)));
    assert_eq!((&web["effect"], web["unavailable"].is_string()), (&json!("reaches_network"), true));
    let workspace = system.workspace().display().to_string();
    let run = ["tools", "run", "read_file", "--workspace", &workspace, "--arguments"];
    let arguments = r#"{"path": "src/three.rs", "start": 2, "end": 2}"#;
    let (code, answer) = system.client(&[&run[..], &[arguments]].concat()).await?;
    assert_eq!((code, &answer["result"], &answer["success"]), (Some(0), &json!("2: two"), &json!(true)));
    let (code, answer) = system.client(&[&run[..], &["{}"]].concat()).await?;
    assert_eq!((code, &answer["success"]), (Some(1), &json!(false)));
    let ended = system.plain_client(&[&run[..], &["{"]].concat()).await?;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--arguments is no JSON"), "{}", ended.stderr);
    let ended = system.plain_client(&["tools", "ls"]).await?;
    assert!(
        ended.stdout.contains("read_file(path, start, end)  Read a file, or some of its lines."),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("not here: no search provider is configured"), "{}", ended.stdout);
    Ok(())
}

#[tokio::test]
async fn a_call_in_the_middle_of_which_its_worker_is_killed_is_not_made_again() -> anyhow::Result<()> {
    let outside = Tasks::new();
    let (url, mut asked, answer) = searxng(&outside).await?;
    let (mut system, _tasks) = system(&format!("[tools.search]\nprovider = \"searxng\"\nurl = {url:?}\n")).await?;
    let (exec, _stream) = system.open("/internal/agent", coder(&system)).await?;
    system.answer(exec, 1, "", &[("web_search", json!({"query": "x"}))]).await?;
    tokio::time::timeout(PATIENCE, asked.recv()).await.context("the search goes out")?;
    system.kill_role("tool-worker").await?;
    answer.send_replace(true);
    system.start_role("tool-worker").await?;
    let log = system.log_until(exec, joined).await?;
    let read = results(exec, &log);
    assert!(read[0].starts_with("error: outcome unknown: web_search was begun"), "{read:?}");
    assert!(asked.try_recv().is_err(), "it was asked once");
    // The model decides what follows: another call is another one.
    system.answer(exec, 2, "", &[("web_search", json!({"query": "x"}))]).await?;
    tokio::time::timeout(PATIENCE, asked.recv()).await.context("the next search goes out")?;
    system.answer(exec, 3, "Done.", &[]).await?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    let read = results(exec, &system.prove(exec).await?);
    assert!(read[1].starts_with("1 results for \"x\""), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn a_tool_that_its_worker_wants_asked_about_waits_for_a_person_and_the_log_says_so() -> anyhow::Result<()> {
    let (system, _tasks) = system("[tools]\napprove = [\"read_file\"]\n").await?;
    let (exec, mut stream) = system.open("/internal/agent", coder(&system)).await?;
    let read = ("read_file", json!({"path": "src/three.rs", "end": 1}));
    system.answer(exec, 1, "", std::slice::from_ref(&read)).await?;
    let asked = read_events(&mut stream, |events| events.iter().any(|(name, _)| name == "approval")).await?;
    let (_, asked) = asked.last().context("a person is asked")?;
    assert_eq!((&asked["effect"], &asked["name"]), (&json!("1-tool-0"), &json!("read_file")));
    let allow = json!({"effect": "1-tool-0", "verdict": "allow", "by": "ann"});
    assert_eq!(system.ask(&format!("/internal/executions/{exec}/approve"), &allow).await?.0, 202);
    system.log_until(exec, joined).await?;
    system.answer(exec, 2, "Done.", &[]).await?;
    system.ended(exec).await?;
    // Every decision follows from the log alone.
    assert_eq!(results(exec, &system.prove(exec).await?), ["1: one"]);

    // Whoever writes a request without that into the log is refused at the call.
    let bare = runtime::clock::execution_id();
    system.bus().await?.append_fact(&system.request(bare, "go", &["read_file"])).await?;
    system.answer(bare, 1, "", &[read]).await?;
    let read = results(bare, &system.log_until(bare, joined).await?);
    assert!(read[0].starts_with("error: a person must allow each call of read_file"), "{read:?}");
    Ok(())
}
