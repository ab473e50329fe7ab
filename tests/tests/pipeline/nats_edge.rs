//! The edge over NATS: a plain client publishes a request and reads on the bus what comes of it.

use anyhow::Context;
use async_nats::{Client, HeaderMap, Subscriber};
use futures::StreamExt;
use pipeline_tests::{PATIENCE, System, Up, events, python, repository, secret_of};
use runtime::bus::{self, Bus};
use schemas::{Event, ExecutionId, Fact, subject};
use serde_json::{Value, json};

/// A client that knows nothing but the subjects.
struct Plain {
    client: Client,
    /// Where its answers come: a subject of its own, or below those to which roles may answer where they may not to any.
    answers: &'static str,
}

impl Plain {
    async fn connect(system: &System) -> anyhow::Result<Self> {
        let answers = if system.deployed.is_some() { "vl.v1.reply" } else { "answer" };
        Ok(Self { client: system.nats().await?, answers })
    }

    /// Publishes a request in JSON, and returns the server's word that it is stored. The partition is computed, because
    /// this server has no mapping.
    async fn submit(&self, exec: ExecutionId, data: &Value) -> anyhow::Result<Value> {
        let body = json!({"type": "execution.requested", "data": data});
        let fact = json!({"schema": "fact/1.0", "exec": exec, "at": runtime::clock::now(), "body": body});
        self.publish(exec, fact.to_string()).await
    }

    async fn publish(&self, exec: ExecutionId, payload: String) -> anyhow::Result<Value> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{exec}/requested"));
        let stored = self.client.request_with_headers(subject::fact(exec), headers, payload.into()).await?;
        Ok(serde_json::from_slice(&stored.payload)?)
    }

    async fn answers(&self, exec: ExecutionId) -> anyhow::Result<Subscriber> {
        let answers = self.client.subscribe(self.reply(exec)).await?;
        self.client.flush().await?;
        Ok(answers)
    }

    fn reply(&self, exec: ExecutionId) -> String {
        format!("{}.{exec}", self.answers)
    }
}

async fn next(answers: &mut Subscriber) -> anyhow::Result<Value> {
    let message = tokio::time::timeout(PATIENCE, answers.next()).await.context("no answer")?.context("closed")?;
    Ok(serde_json::from_slice(&message.payload)?)
}

#[tokio::test]
async fn the_example_in_the_readme_prints_tokens_and_the_answer() -> anyhow::Result<()> {
    let Some(python) = python("python-clients")? else { return Ok(()) };
    let (data, system) = (tempfile::tempdir()?, System::new()?);
    let workspace = system.workspace().display().to_string();
    let up = Up::start_with(data.path(), &["--workspace", &workspace]).await?;
    let nats = up.ready["nats"].as_str().context("the ready line names NATS")?.to_owned();
    let mut example = tokio::process::Command::new(python);
    example.arg(repository().join("tests/examples/nats_client.py"));
    example.args([&nats, &workspace, "Where is TokenReader defined?"]).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, example.output()).await.context("the example did not end")??;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = printed.trim_end().lines().collect();
    let [.., exec] = lines[..] else { panic!("{printed}") };
    let (tokens, answer) = printed.split_once("\ncompleted: ").with_context(|| printed.to_string())?;
    let answer = answer.trim_end().strip_suffix(exec).context("the id comes last")?.trim_end();
    assert!(!answer.is_empty() && tokens.ends_with(answer), "{printed}");

    let exec: ExecutionId = exec.parse()?;
    let bus = Bus::connect(&bus::Config { url: nats, ..bus::Config::default() }, "test").await?;
    let log = bus.read_execution(exec, 0).await?;
    orchestrator::history::verify(exec, &log)?;
    // What anybody who watches over HTTP sees of it.
    let http = up.ready["http"].as_str().context("HTTP")?;
    let view = reqwest::Client::new().get(format!("{http}/internal/executions/{exec}"));
    let view: Value = view.header("X-Internal-Auth", secret_of(&up)?).send().await?.json().await?;
    assert_eq!((&view["status"], &view["agent_type"]), (&json!("completed"), &json!("coder")), "{view}");
    assert_eq!(up.stop().await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_request_is_safe_while_there_is_no_gateway_and_stored_once() -> anyhow::Result<()> {
    let mut system = System::start_without(&["gateway"]).await?;
    let plain = Plain::connect(&system).await?;
    let exec = runtime::clock::execution_id();
    let mut answers = plain.answers(exec).await?;
    let chat = json!({"messages": [{"role": "user", "content": "hello"}]});
    let data = json!({"request": {"chat": chat}, "reply": plain.reply(exec)});
    assert!(plain.submit(exec, &data).await?["seq"].as_u64().is_some_and(|n| n > 0));
    assert_eq!(plain.submit(exec, &data).await?["duplicate"], true);
    // Whoever owned it may die before anybody says what it comes to.
    system.kill_role("orchestrator").await?;
    system.start_role("orchestrator").await?;
    system.start_role("gateway").await?;
    let answer = next(&mut answers).await?;
    assert_eq!((&answer["status"], &answer["execution_id"]), (&json!("completed"), &json!(exec)), "{answer}");
    assert_eq!(answer["response"], "Hello! Ask me about the code in this workspace.");
    let log = system.prove(exec).await?;
    let names: Vec<&str> = log.iter().filter_map(|m| Fact::read(&m.payload).ok()).map(|f| f.body.name()).collect();
    assert_eq!(names[..2], ["execution.requested", "execution.submitted"], "{names:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_told_on_the_reply_subject_and_stands_in_the_log() -> anyhow::Result<()> {
    let system = System::start().await?;
    let plain = Plain::connect(&system).await?;
    let wrong = [
        (json!({"agent": {"agent_type": "codr", "instruction": "go"}}), 404, "unknown_agent", "coder"),
        (json!({"agent": {"agent_type": "coder", "instruktion": "go"}}), 400, "unknown_field", "instruktion"),
        (json!({"chat": {"messages": []}}), 400, "invalid_request", "messages"),
        (json!({"tool": {"tool_name": "nothing", "arguments": {}}}), 404, "unknown_tool", "nothing"),
    ];
    for (request, status, code, names) in wrong {
        let exec = runtime::clock::execution_id();
        let mut answers = plain.answers(exec).await?;
        plain.submit(exec, &json!({"request": request, "reply": plain.reply(exec)})).await?;
        let answer = next(&mut answers).await?;
        assert_eq!(answer["status"], "rejected", "{answer}");
        let problem = &answer["problem"];
        assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{answer}");
        assert_eq!(problem["execution_id"], json!(exec), "{answer}");
        assert!(problem.to_string().contains(names), "{answer}");
        let log = system.prove(exec).await?;
        let decided = events(&log).concat();
        let [Event::ExecutionRejected(ended)] = &decided[..] else { panic!("{decided:?}") };
        assert_eq!(ended.code, code);
        assert_eq!(system.ended(exec).await?["status"], "rejected");
    }
    // Fire and forget: nobody is told, and the log says it all the same.
    let exec = runtime::clock::execution_id();
    plain.submit(exec, &json!({"request": {"agent": {"agent_type": "nobody", "instruction": "go"}}})).await?;
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "rejected", "{view}");
    assert!(view["error"].as_str().is_some_and(|e| e.starts_with("unknown_agent: ")), "{view}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_request_becomes_a_dead_letter_that_says_where_it_is_wrong() -> anyhow::Result<()> {
    let system = System::start().await?;
    let plain = Plain::connect(&system).await?;
    let exec = runtime::clock::execution_id();
    let named = json!({"schema": "fact/1.0", "exec": exec, "at": 1, "body": {"type": "execution.requested", "data": {"request": {"agent": {}}, "answer": "x"}}});
    plain.publish(exec, named.to_string()).await?;
    let letter = async {
        loop {
            let letters: Value = system.get("/internal/dead-letters").send().await?.json().await?;
            if letters.to_string().contains(&exec.to_string()) {
                return anyhow::Ok(letters);
            }
            tokio::task::yield_now().await;
        }
    };
    let letters = tokio::time::timeout(PATIENCE, letter).await.context("no letter")??.to_string();
    assert!(letters.contains("malformed") && letters.contains("unknown field `answer`"), "{letters}");
    Ok(())
}
