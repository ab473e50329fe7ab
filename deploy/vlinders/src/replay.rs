//! Reads an execution straight from the log: tells its story, and proves it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use orchestrator::execution::{MACHINE, MACHINE_NEXT, Rules};
use orchestrator::history::History;
use orchestrator::questions;
use runtime::bus::{self, Bus, Kind, Stored};
use schemas::{ExecutionId, Fact, FactBody, Record};
use serde_json::json;

use crate::cli::{Replay, Target};
use crate::settings::{Settings, Usage};
use crate::state;

/// How long a follower waits for a sign before it reads the log.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn connect(target: &Target) -> anyhow::Result<Bus> {
    // Who we are to the server stands in the environment, as for every role.
    let nats = Settings::load(None, Vec::new())?.nats;
    let config = bus::Config { url: target.nats()?, ..nats };
    Ok(Bus::connect(&config, "cli").await?)
}

/// The messages of an execution.
pub(crate) async fn read(bus: &Bus, exec: ExecutionId) -> anyhow::Result<Vec<Stored>> {
    let messages = bus.read_execution(exec, 0).await?;
    if messages.is_empty() {
        bail!("there is no execution {exec} in this log");
    }
    Ok(messages)
}

/// An execution as it stood after message `at`.
pub(crate) fn show(exec: ExecutionId, messages: &[Stored], at: usize, as_json: bool) {
    if as_json {
        println!("{}", questions::state(exec, messages, at));
    } else {
        state::tell(exec, messages, at);
    }
}

/// `vlinders replay`
pub(crate) async fn replay(options: Replay) -> anyhow::Result<ExitCode> {
    let rules = options.machine.as_deref().map(rules).transpose()?;
    let bus = connect(&options.target).await?;
    let exec = options.execution;
    let mut messages = read(&bus, exec).await.with_context(|| format!("replay {exec}"))?;
    if let Some(at) = options.at {
        let last = messages.len() - 1;
        if at > last {
            return Err(
                Usage(format!("the execution has the messages 0 to {last}, there is none of number {at}")).into()
            );
        }
        show(exec, &messages, at, options.json);
        return Ok(ExitCode::SUCCESS);
    }
    if !options.json || options.follow {
        messages.iter().enumerate().for_each(|(n, message)| tell(n, message, options.json));
    }
    if options.follow {
        follow(&bus, exec, &mut messages, options.json).await?;
    }
    if options.verify || rules.is_some() {
        return Ok(verify(exec, &messages, rules, options.json));
    }
    if options.json {
        println!("{}", json!({"execution_id": exec, "events": messages.len()}));
    }
    Ok(ExitCode::SUCCESS)
}

/// The rules of a version of the state machine.
fn rules(version: &str) -> Result<Rules, Usage> {
    let number = if version == "next" { Some(MACHINE_NEXT) } else { version.parse().ok() };
    number.and_then(Rules::of).ok_or_else(|| {
        let known: Vec<String> = (1..=MACHINE.max(MACHINE_NEXT)).map(|n| n.to_string()).collect();
        Usage(format!("--machine {version} is no version this program holds: say next, or one of {}", known.join(", ")))
    })
}

/// Tells what is stored from now on, until the end.
async fn follow(bus: &Bus, exec: ExecutionId, messages: &mut Vec<Stored>, as_json: bool) -> anyhow::Result<()> {
    let mut live = bus.live(exec).await?;
    let mut history = History::new(exec);
    for message in messages.iter() {
        let _ = history.fold(message);
    }
    while !history.execution.is_closed() {
        let more = bus.read_execution(exec, history.sequence).await?;
        if more.is_empty() {
            // What is republished may be lost; a while later the log is read anyway.
            let _ = tokio::time::timeout(FOLLOW_EVERY, live.next()).await;
        }
        for message in more {
            tell(messages.len(), &message, as_json);
            // What cannot be read led to nothing.
            let _ = history.fold(&message);
            messages.push(message);
        }
    }
    Ok(())
}

fn verify(exec: ExecutionId, messages: &[Stored], rules: Option<Rules>, as_json: bool) -> ExitCode {
    let (found, shown) = questions::verification(exec, messages, rules);
    let code = if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(3) };
    if as_json {
        println!("{shown}");
        return code;
    }
    match found {
        Ok(verified) => {
            match rules.map(|rules| rules.version) {
                None => println!(
                    "verified: {} decisions of {} messages came out byte for byte; final hash {}",
                    verified.decisions, verified.events, verified.final_hash
                ),
                Some(by) => println!(
                    "the same: machine {by} would decide all {} decisions of {} messages as they stand",
                    verified.decisions, verified.events
                ),
            }
            for unreadable in verified.unreadable {
                println!("  message {} cannot be read and led to nothing: {}", unreadable.sequence, unreadable.reason);
            }
        }
        Err(difference) => println!("NOT verified: {difference}"),
    }
    code
}

/// One message of the story.
fn tell(n: usize, message: &Stored, as_json: bool) {
    let sequence = message.sequence;
    let (kind, name, detail) = match message.kind {
        Kind::Fact => match Fact::read(&message.payload) {
            Ok(fact) => ("fact", fact.body.name().to_owned(), detail(&fact.body)),
            Err(error) => ("corrupt", String::new(), error.to_string()),
        },
        Kind::Decision => match Record::read(&message.payload) {
            Ok(record) => {
                let names: Vec<&str> = record.events.iter().map(schemas::Event::name).collect();
                (
                    "decision",
                    format!("#{} {}", record.n, record.hash.as_str().get(..12).unwrap_or_default()),
                    names.join(", "),
                )
            }
            Err(error) => ("corrupt", String::new(), error.to_string()),
        },
    };
    if as_json {
        println!("{}", json!({"n": n, "sequence": sequence, "kind": kind, "name": name, "detail": detail}));
    } else {
        println!("{n:>5} {sequence:>8}  {kind:<8}  {name:<22} {detail}");
    }
}

fn detail(body: &FactBody) -> String {
    match body {
        FactBody::ExecutionSubmitted(f) => format!("{} on {}", f.agent, f.model),
        FactBody::ExecutionRequested(f) => format!("{} by a NATS client", f.request.agent()),
        FactBody::ExecutionRefused(f) => format!("{}: {}", f.code, f.detail),
        FactBody::InferenceCompleted(f) if !f.tool_calls.is_empty() => {
            let calls: Vec<String> =
                f.tool_calls.iter().map(|c| format!("{}({})", c.function.name, c.function.arguments)).collect();
            format!("{} attempt {}: {}", f.effect, f.attempt, calls.join(" "))
        }
        FactBody::InferenceCompleted(f) => format!("{} attempt {}: {:?}", f.effect, f.attempt, f.text),
        FactBody::InferenceFailed(f) => format!("{} attempt {}: {}", f.effect, f.attempt, f.detail),
        FactBody::ToolCompleted(f) => {
            format!("{} attempt {} in {} ms, {}", f.effect, f.attempt, f.duration_us / 1_000, f.sandbox.tier)
        }
        FactBody::ToolFailed(f) => format!("{} attempt {}: {}", f.effect, f.attempt, f.detail),
        FactBody::EffectLost(f) => {
            format!("{} attempt {} held by {}", f.effect, f.attempt, f.worker.as_deref().unwrap_or("unknown"))
        }
        FactBody::CancelRequested(f) => format!("by {}", f.by),
        FactBody::UserMessage(f) => format!("{:?}", f.text),
        FactBody::ChildClosed(f) => format!("{} {}: {:?}, {:?}", f.effect, f.child, f.outcome, f.text),
        FactBody::CompressionCompleted(f) => format!("{} attempt {}: {:?}", f.effect, f.attempt, f.summary),
        FactBody::CompressionFailed(f) => format!("{} attempt {}: {}", f.effect, f.attempt, f.detail),
        FactBody::ApprovalDecided(f) => format!("{} {:?} by {}", f.approval, f.verdict, f.by),
        FactBody::BudgetGranted(f) => format!("{} {} by {}", f.amount, f.dimension, f.by),
        FactBody::PauseRequested(f) => format!("by {}", f.by),
        FactBody::ResumeRequested(f) => format!("by {}", f.by),
        FactBody::TimerFired(f) => f.timer.clone(),
    }
}
