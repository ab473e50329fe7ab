//! Shows what the shipped model is too small for, or what needs a long conversation, on a real system: real processes, a
//! real nats-server, the log as `vlinders replay` prints it, each decision made again and compared.
//!
//!     stories children       a planner asks three others at once and answers from what they found (the model is played)
//!     stories compression    a conversation beyond the window: the shipped model summarises, and the chat goes on

use anyhow::{Context, bail, ensure};
use pipeline_tests::{System, events, run};
use runtime::Tasks;
use schemas::rpc::{Model, Reply};
use schemas::{Event, ExecutionId, subject};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("children") => children().await,
        Some("compression") => compression().await,
        _ => bail!("usage: stories children | compression"),
    }
}

async fn children() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let (bus, tasks) = (system.bus().await?, Tasks::new());
    let models = vec![Model { name: "tiny".into(), kind: "chat".into(), window: 1_024 }];
    bus.serve(&tasks, subject::RPC_MODELS, move |(): ()| std::future::ready(Reply::Ok(models.clone()))).await?;

    let ask = json!({"agent_type": "planner", "instruction": "Explain TokenReader.", "workspace": system.workspace()});
    let (exec, _stream) = system.open("/internal/agent", ask).await?;
    let part = |agent: &str, task: &str| ("delegate", json!({"agent": agent, "task": task}));
    let parts = [
        part("coder", "Where is TokenReader defined?"),
        part("coder", "Who uses TokenReader?"),
        part("researcher", "What is it for?"),
    ];
    system.answer(exec, 1, "", &parts).await?;
    let log = system.log_until(exec, |log| asked(&events(log)).len() == 3).await?;
    let found = ["It is in src/reader.rs:3.", "src/main.rs uses it.", "It reads tokens."];
    // The last one is asked first: they work side by side, and their answers stand in the order of the calls.
    for (child, text) in asked(&events(&log)).into_iter().zip(found).rev() {
        system.answer(child, 1, text, &[]).await?;
        system.ended(child).await?;
    }
    system.answer(exec, 2, "TokenReader (src/reader.rs:3) reads tokens for src/main.rs.", &[]).await?;
    let view = system.ended(exec).await?;
    ensure!(view["status"] == "completed", "{view}");
    println!("the planner, execution {exec}");
    show(&system, exec).await?;
    for child in asked(&events(&log)) {
        println!("one of those it asked, execution {child}");
        show(&system, child).await?;
    }
    println!("answer: {}", view["response"].as_str().unwrap_or_default());
    Ok(())
}

fn asked(decided: &[Vec<Event>]) -> Vec<ExecutionId> {
    let child = |event: &Event| match event {
        Event::ChildRequested(asked) => Some(asked.child),
        _ => None,
    };
    decided.iter().flatten().filter_map(child).collect()
}

async fn compression() -> anyhow::Result<()> {
    let system = System::start().await?;
    let said = |n: usize| {
        let name = ["Scheduler", "Partition", "Liveness", "Gateway", "Template", "Registry"][n % 6];
        let question = json!({"role": "user", "content": format!("Where is {name} defined?")});
        let answer = format!("{name} is defined in src/part_{n}.rs:{}.", 10 + n);
        [question, json!({"role": "assistant", "content": answer})]
    };
    let mut messages: Vec<Value> = (0..32).flat_map(said).collect();
    messages.push(json!({"role": "user", "content": "hello"}));
    let (status, answer) = system.ask("/internal/chat", &json!({"messages": messages, "temperature": 0})).await?;
    ensure!(status == 200, "{answer}");
    let exec: ExecutionId = answer["execution_id"].as_str().context("an id")?.parse()?;
    println!("a conversation of {} messages for a window of 1,024 tokens, execution {exec}", messages.len());
    show(&system, exec).await?;
    let log = system.prove(exec).await?;
    println!("what was replaced, and what the model reads since:");
    for event in events(&log).iter().flatten() {
        if let Event::ContextReplaced(replaced) = event {
            println!("  messages {} to {}, now {} tokens in all", replaced.from, replaced.to, replaced.tokens);
        }
    }
    for message in pipeline_tests::conversation(exec, &log) {
        println!("  {:?}: {}", message.role, message.content.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// Its log as `vlinders replay --verify` tells it.
async fn show(system: &System, exec: ExecutionId) -> anyhow::Result<()> {
    let ended = run(&["replay", &exec.to_string(), "--verify", "--nats", &system.nats_url()]).await?;
    ensure!(ended.code == Some(0), "{}{}", ended.stdout, ended.stderr);
    println!("{}", ended.stdout);
    Ok(())
}
