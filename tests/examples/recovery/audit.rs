//! A long log proven, and one changed byte in it found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use futures::StreamExt;
use pipeline_tests::{System, run};
use runtime::bus::Bus;
use runtime::clock;
use schemas::chat::{FinishReason, ToolCall, Usage};
use schemas::fact::{InferenceCompleted, Sandbox, ToolCompleted};
use schemas::job::Job;
use schemas::{EffectId, ExecutionId, Fact, FactBody, Partition};
use serde_json::{Value, json};

use crate::ms;
use crate::played::patiently;

/// Messages of one execution: request, decision, answer, decision, result, decision, answer, decision.
const MESSAGES: usize = 8;
/// Executions at once.
const AT_ONCE: usize = 128;
/// Pullers of each kind of job.
const PULLERS: usize = 4;

pub(crate) async fn proven(messages: usize) -> anyhow::Result<Value> {
    let mut system = System::start_without(&["inference-worker", "tool-worker", "analysis-worker", "gateway"]).await?;
    let bus = Arc::new(system.bus().await?);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..PULLERS {
        workers.spawn(play_model(bus.clone()));
        workers.spawn(play_tools(bus.clone()));
    }
    let executions = messages.div_ceil(MESSAGES);
    let ended = futures::stream::iter(0..executions).map(|_| one(&system, &bus));
    let ended: Vec<anyhow::Result<ExecutionId>> = ended.buffer_unordered(AT_ONCE).collect().await;
    for exec in ended {
        exec?;
    }
    workers.shutdown().await;

    let url = system.nats_url();
    let began = clock::instant();
    let honest = audit(&url).await?;
    let honest_time = clock::instant() - began;
    ensure!(honest.0 == Some(0) && honest.1["verified"] == true, "{:?}", honest.1);
    let stored = honest.1["events"].as_u64().context("a count")?;

    system.kill_role("orchestrator").await?;
    drop(bus);
    system.stop_nats().await?;
    let (block, place) = change_a_byte(&system.store)?;
    system.start_nats().await?;
    let began = clock::instant();
    let damaged = audit(&url).await?;
    let damaged_time = clock::instant() - began;
    Ok(json!({
        "executions": honest.1["executions"],
        "events": stored,
        "proven_ms": ms(honest_time),
        "events_per_second": stored as f64 / honest_time.as_secs_f64(),
        "changed_byte": format!("byte {place} of {block}"),
        "found": damaged.0 == Some(3) && damaged.1["verified"] == false,
        "found_ms": ms(damaged_time),
        "broken": damaged.1["broken"].as_array().map(|broken| broken.iter().take(3).collect::<Vec<_>>()),
        "broken_count": damaged.1["broken"].as_array().map(Vec::len),
    }))
}

async fn audit(url: &str) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = run(&["audit", "--json", "--nats", url]).await?;
    let json = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
    Ok((ended.code, json))
}

/// One execution from its request to its end.
async fn one(system: &System, bus: &Bus) -> anyhow::Result<ExecutionId> {
    let exec = clock::execution_id();
    let mut live = bus.live(exec).await?;
    bus.append_fact(&system.request(exec, "go", &["read_file"])).await?;
    patiently("the end", async {
        while bus.read_execution(exec, 0).await?.len() < MESSAGES {
            // What is republished may be lost; the log is read anyway.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), live.next()).await;
        }
        Ok(())
    })
    .await?;
    Ok(exec)
}

async fn play_model(bus: Arc<Bus>) -> anyhow::Result<()> {
    let mut jobs = bus.inference_jobs("tiny").await?;
    loop {
        let Some(delivery) = jobs.next().await? else { continue };
        let job = &delivery.job;
        let first = job.effect == EffectId::inference(1);
        let call = ToolCall::new("call-1", "read_file", json!({"path": "src/main.rs"}).to_string());
        let body = FactBody::InferenceCompleted(InferenceCompleted {
            effect: job.effect.clone(),
            attempt: job.attempt,
            worker: "played".into(),
            text: if first { String::new() } else { "It defines main.".into() },
            tool_calls: first.then_some(call).into_iter().collect(),
            finish: if first { FinishReason::ToolCalls } else { FinishReason::Stop },
            usage: Usage::new(100, 10),
            cached_tokens: 0,
            timing: Default::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        });
        bus.append_fact(&Fact::new(job.exec(), clock::now(), body)).await?;
        delivery.done().await?;
    }
}

async fn play_tools(bus: Arc<Bus>) -> anyhow::Result<()> {
    let mut jobs = bus.tool_jobs().await?;
    loop {
        let Some(delivery) = jobs.next().await? else { continue };
        let job = &delivery.job;
        let body = FactBody::ToolCompleted(ToolCompleted {
            effect: job.effect.clone(),
            attempt: job.attempt,
            worker: "played".into(),
            result: "1: use crate::reader::TokenReader;\n2: \n3: fn main() {}".into(),
            full: None,
            duration_us: 10,
            sandbox: Sandbox::default(),
        });
        bus.append_fact(&Fact::new(job.exec(), clock::now(), body)).await?;
        delivery.done().await?;
    }
}

/// Changes one bit in the middle of the newest file of a partition drawn by the clock.
fn change_a_byte(store: &Path) -> anyhow::Result<(String, usize)> {
    let drawn = u8::from_str_radix(&clock::random_hex()[..1], 16)?;
    let partition = Partition::all().find(|p| p.number() == drawn).context("sixteen partitions")?;
    let stream = schemas::subject::log_stream(partition);
    let mut found = blocks(store, &format!("/{stream}/"))?;
    found.sort();
    let block = found.last().with_context(|| format!("{stream} has a file"))?;
    let mut bytes = std::fs::read(block)?;
    let place = bytes.len() / 2;
    bytes[place] ^= 1;
    std::fs::write(block, bytes)?;
    let name = block.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    Ok((format!("{stream}/{name}"), place))
}

fn blocks(directory: &Path, within: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(blocks(&path, within)?);
        } else if path.extension().is_some_and(|e| e == "blk") && path.to_string_lossy().contains(within) {
            found.push(path);
        }
    }
    Ok(found)
}
