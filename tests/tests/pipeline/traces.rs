//! One trace from the request to the last tool call, over all processes: as a collector receives it, and as their logs say
//! it.

use std::collections::BTreeMap;

use anyhow::Context;
use pipeline_tests::otlp::{Receiver, Span};
use pipeline_tests::{PATIENCE, System, read_events};
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn an_agent_is_one_trace_over_all_processes() -> anyhow::Result<()> {
    let mut receiver = Receiver::start().await?;
    let config = format!("[telemetry]\notlp_endpoint = \"{}\"\n", receiver.endpoint);
    let system = System::start_with(&config).await?;
    let ask = json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(), "stream": true});
    let request = system.post("/internal/agent", &ask).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let mut stream = request.send().await?;
    let exec = stream.headers()["x-execution-id"].to_str()?.to_owned();
    read_events(&mut stream, |_| false).await?;
    drop(stream);

    let names = ["POST /internal/agent", "run_agent", "tool_calling_loop", "inference", "execute_tool"];
    let all =
        |spans: &[Span]| names.iter().all(|name| spans.iter().any(|span| span.name == *name && span.trace == TRACE));
    let spans = receiver.until(all).await?;
    let spans: Vec<&Span> = spans.iter().filter(|span| span.trace == TRACE).collect();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).copied().collect::<Vec<_>>();
    let one = |name: &str| {
        let found = named(name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0]
    };
    let (served, agent, turns) = (one("POST /internal/agent"), one("run_agent"), one("tool_calling_loop"));
    assert_eq!(served.parent, CALLER);
    assert_eq!(agent.parent, served.id);
    assert_eq!(turns.parent, agent.id);
    let (inferences, calls) = (named("inference"), named("execute_tool"));
    assert!(inferences.len() >= 2 && !calls.is_empty(), "{spans:?}");
    for below in inferences.iter().chain(&calls) {
        assert_eq!(below.parent, turns.id, "{below:?}");
        assert!(below.from >= agent.from && below.to <= agent.to + 1_000_000_000, "{below:?} outside {agent:?}");
        assert_eq!(below.attributes["vlinders.execution_id"], exec);
    }
    let services: Vec<&str> = [served, agent, inferences[0], calls[0]].map(|span| span.service.as_str()).to_vec();
    let expected = ["vlinders-gateway", "vlinders-orchestrator", "vlinders-inference-worker", "vlinders-tool-worker"];
    assert_eq!(services, expected);
    assert_eq!(served.attributes["http.response.status_code"], "200");
    assert_eq!(agent.attributes["gen_ai.operation.name"], "invoke_agent");
    assert_eq!(agent.attributes["gen_ai.agent.name"], "coder");
    assert_eq!(inferences[0].attributes["gen_ai.request.model"], "tiny");
    let tokens = |span: &Span| span.attributes["gen_ai.usage.output_tokens"].parse::<u64>().expect("a number");
    assert_eq!(inferences.iter().map(|span| tokens(span)).sum::<u64>(), tokens(agent));
    assert_eq!(calls[0].attributes["gen_ai.tool.name"], "search_code");
    assert!(spans.iter().all(|span| !span.failed), "{spans:?}");
    Ok(())
}

#[tokio::test]
async fn a_request_begins_a_trace_of_its_own_and_one_that_fails_says_so() -> anyhow::Result<()> {
    let mut receiver = Receiver::start().await?;
    let config = format!("[telemetry]\notlp_endpoint = \"{}\"\n", receiver.endpoint);
    let system = System::start_with(&config).await?;
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(4_000)}]});
    let (status, _) = system.ask("/internal/chat", &long).await?;
    assert_eq!(status, 413);
    let spans = receiver
        .until(|spans| ["run_chat", "inference"].iter().all(|name| spans.iter().any(|s| s.name == *name)))
        .await?;
    let find = |name: &str| spans.iter().find(|span| span.name == name).expect("it came");
    let (chat, inference) = (find("run_chat"), find("inference"));
    assert!(chat.failed && inference.failed, "{spans:?}");
    assert_eq!((&inference.trace, &inference.parent), (&chat.trace, &chat.id));
    Ok(())
}

#[tokio::test]
async fn every_process_logs_a_request_under_its_trace() -> anyhow::Result<()> {
    let ours = ["gateway", "inference_worker", "orchestrator", "tool_worker"];
    let log = ours.map(|name| format!("{name}=debug")).join(",");
    let system = System::start_with(&format!("[telemetry]\nlog = \"warn,{log}\"\n")).await?;
    let ask =
        json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace()});
    let request = system.post("/internal/agent", &ask).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let answer: Value = request.send().await?.json().await?;
    let exec = answer["execution_id"].as_str().context("an id")?;
    // Another request, which names no trace, is in none.
    let (_, other) = system.ask("/internal/chat", &json!({"messages": [{"role": "user", "content": "hello"}]})).await?;
    let other = other["execution_id"].as_str().context("an id")?;

    // The last line of a process may come behind its answer.
    let all_spoke = |lines: &[Value]| {
        let spoke = |name: &&str| {
            let of_it = |line: &&Value| line["target"].as_str().is_some_and(|target| target.starts_with(*name));
            lines.iter().filter(of_it).any(|line| line["execution_id"] == exec)
        };
        ours.iter().all(spoke)
    };
    let read = || -> anyhow::Result<Vec<Value>> {
        let text = system.log();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    };
    let mut lines = read()?;
    let spoken = async {
        while !all_spoke(&lines) {
            tokio::task::yield_now().await;
            lines = read()?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, spoken).await.context("not every process logged the request")??;

    let mut spans: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in &lines {
        let (trace, execution) = (&line["trace_id"], &line["execution_id"]);
        assert_eq!(trace == TRACE, execution == exec, "{line}");
        assert!(execution != other || trace.is_null(), "{line}");
        if trace == TRACE {
            let target = line["target"].as_str().context("a target")?;
            let name = ours.into_iter().find(|name| target.starts_with(name)).context("one of ours")?;
            spans.entry(name).or_default().push(line["span_id"].as_str().context("a span")?);
        }
    }
    assert_eq!(spans.keys().copied().collect::<Vec<_>>(), ours, "{spans:?}");
    // Nothing is exported, so that the caller's own span is the gateway's; the others have theirs, each call its own.
    assert_eq!(spans["gateway"], vec![CALLER; spans["gateway"].len()]);
    let different: std::collections::BTreeSet<_> = spans.values().flatten().collect();
    assert!(different.len() >= 5, "the gateway's, the agent's, two inferences' and a tool's: {spans:?}");
    Ok(())
}

/// Waits for a line with this message about the effect, and says under which trace and execution it stands.
async fn logged(system: &System, message: &str, attempt: u32) -> anyhow::Result<(Value, Value)> {
    let of = |line: &Value| {
        let fields = &line["fields"];
        let matches = fields["message"] == message && fields["attempt"] == attempt;
        matches.then(|| (line["trace_id"].clone(), line["execution_id"].clone()))
    };
    let found = async {
        loop {
            let lines = system.log();
            let found = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|line| of(&line));
            if let Some(found) = found {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.with_context(|| format!("{message:?}:\n{}", system.log()))
}

#[tokio::test]
async fn the_loss_of_a_worker_is_logged_under_the_trace_of_whom_it_worked_for() -> anyhow::Result<()> {
    let mut system = System::start_with("[telemetry]\nlog = \"warn,orchestrator=debug\"\n").await?;
    let ask = json!({"messages": [{"role": "user", "content": "hello"}], "stream": true, "seed": 7, "temperature": 8,
        "max_tokens": 900});
    let request = system.post("/internal/chat", &ask).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let mut stream = request.send().await?;
    let exec = stream.headers()["x-execution-id"].to_str()?.to_owned();
    let begun = |events: &[(String, Value)]| events.iter().any(|(name, _)| name == "token");
    read_events(&mut stream, begun).await?;

    let ours = (json!(TRACE), json!(exec));
    assert_eq!(logged(&system, "its job is queued", 1).await?, ours);
    system.halt_role("inference-worker").await?;
    assert_eq!(logged(&system, "its worker gave no sign of life in time", 1).await?, ours);
    system.kill_role("inference-worker").await?;
    assert_eq!(logged(&system, "the worker is gone; asking another", 1).await?, ours);
    assert_eq!(logged(&system, "its job is queued", 2).await?, ours);
    Ok(())
}
