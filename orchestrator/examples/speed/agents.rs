//! Agents of five steps: one model call, three parallel tools, one model call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use runtime::bus::{Kind, Live, Stored};
use runtime::{Runtime, clock};
use schemas::chat::{Message, Role, Sampling, ToolSpec};
use schemas::fact::{self, ExecutionSubmitted, Limits};
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Record};
use serde_json::{Value, json};

use crate::spread;
use crate::stub::{MODEL, Said, Steps, Stub};

/// Steps of one agent.
const STEPS: usize = 5;
/// Before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// Live messages may be lost; after this long without one the log is read.
const SILENCE: Duration = Duration::from_secs(1);

/// One agent that has ended.
struct Ended {
    submitted: Instant,
    ended: Instant,
    steps: Steps,
}

fn say(turn: u32) -> Said {
    let calls = if turn == 1 { 3 } else { 0 };
    Said { text: "a stub's answer".to_owned(), calls, result: "a stub's result".to_owned() }
}

pub(crate) async fn run(runtime: Runtime, concurrent: usize, duration: Duration) -> anyhow::Result<Value> {
    let stub = Stub::start(runtime.clone(), say).await?;
    let all = Arc::new(Mutex::new(Vec::new()));
    let from = clock::instant() + WARM_UP;
    let until = from + duration;
    let clients = (0..concurrent).map(|_| async {
        while clock::instant() < until {
            let ended = one(&runtime, &stub).await?;
            all.lock().expect("no panic").push(ended);
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(clients).await?;
    let all = std::mem::take(&mut *all.lock().expect("no panic"));
    let counted: Vec<&Ended> = all.iter().filter(|a| (from..until).contains(&a.ended)).collect();
    ensure!(!counted.is_empty(), "no agent ended in {duration:?}");
    let mut whole: Vec<Duration> = counted.iter().map(|a| a.ended - a.submitted).collect();
    let mut hops: Vec<Duration> = counted.iter().flat_map(|a| hops(&a.steps)).collect();
    Ok(json!({
        "agents": counted.len(),
        "steps_per_second": (counted.len() * STEPS) as f64 / duration.as_secs_f64(),
        "hop_ms": spread(&mut hops),
        "agent_ms": spread(&mut whole),
    }))
}

/// From the end of each step to the beginning of those that waited for it.
fn hops(steps: &Steps) -> Vec<Duration> {
    let step = |id: EffectId| steps.get(&id).copied();
    let Some(((_, first), (last, _))) = step(EffectId::inference(1)).zip(step(EffectId::inference(2))) else {
        return Vec::new();
    };
    let tools: Vec<_> = (0..3).filter_map(|i| step(EffectId::tool(1, i))).collect();
    let joined = tools.iter().map(|(_, end)| *end).max();
    tools.iter().map(|(began, _)| *began - first).chain(joined.map(|joined| last - joined)).collect()
}

async fn one(runtime: &Runtime, stub: &Stub) -> anyhow::Result<Ended> {
    let exec = clock::execution_id();
    let mut live = runtime.bus.live(exec).await?;
    let tools = (0..3).map(|i| ToolSpec::new(format!("tool_{i}"), "", json!({}))).collect();
    let submitted = clock::instant();
    submit(runtime, exec, tools).await?;
    end(runtime, exec, &mut live).await?;
    Ok(Ended { submitted, ended: clock::instant(), steps: stub.take(exec) })
}

/// Appends the request of an agent.
pub(crate) async fn submit(runtime: &Runtime, exec: ExecutionId, tools: Vec<ToolSpec>) -> anyhow::Result<()> {
    let now = clock::now();
    let deadline = now + 600_000_000_000;
    let limits = Limits { iterations: 1_000, tokens: u64::MAX, tool_calls: 10_000, deadline, ..Limits::default() };
    let request = ExecutionSubmitted {
        model: MODEL.to_owned(),
        window: 1_000_000,
        messages: vec![Message::text(Role::System, "Use tools."), Message::text(Role::User, "Do something.")],
        tools,
        sampling: Sampling { seed: Some(1), ..Sampling::default() },
        ..ExecutionSubmitted::new(fact::Kind::Agent, "bench", limits)
    };
    let fact = Fact::new(exec, now, FactBody::ExecutionSubmitted(Box::new(request)));
    runtime.bus.append_fact(&fact).await?;
    Ok(())
}

/// Waits until the decision that ends an execution is seen.
pub(crate) async fn end(runtime: &Runtime, exec: ExecutionId, live: &mut Live) -> anyhow::Result<()> {
    loop {
        let seen = match tokio::time::timeout(SILENCE, live.next()).await {
            Ok(stored) => vec![stored.context("the connection closed")?],
            Err(_) => runtime.bus.read_execution(exec, 0).await?,
        };
        if seen.iter().any(is_end) {
            return Ok(());
        }
    }
}

fn is_end(stored: &Stored) -> bool {
    stored.kind == Kind::Decision
        && Record::read(&stored.payload).is_ok_and(|r| r.events.iter().any(Event::is_terminal))
}
