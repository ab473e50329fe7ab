//! Reads executions straight from the log: lists them, tells the story of one, and proves it.

use std::process::ExitCode;

use anyhow::{Context, bail};
use orchestrator::history;
use runtime::bus::{self, Bus, Kind, Stored};
use schemas::{ExecutionId, Fact, FactBody, Record};
use serde_json::json;

use crate::cli::{Executions, Replay, Target};

pub(crate) async fn connect(target: &Target) -> anyhow::Result<Bus> {
    let config = bus::Config { url: target.nats()?, ..bus::Config::default() };
    Ok(Bus::connect(&config, "cli").await?)
}

async fn read(bus: &Bus, exec: ExecutionId) -> anyhow::Result<Vec<Stored>> {
    let messages = bus.read_execution(exec, 0).await?;
    if messages.is_empty() {
        bail!("there is no execution {exec} in this log");
    }
    Ok(messages)
}

/// `vlinders executions`
pub(crate) async fn executions(options: Executions) -> anyhow::Result<ExitCode> {
    let bus = connect(&options.target).await?;
    let ids = match options.execution {
        Some(exec) => vec![exec],
        None => bus.newest_executions(options.limit).await?,
    };
    for exec in ids {
        let messages = read(&bus, exec).await?;
        let (agent, status) = summary(&messages);
        if options.json {
            println!(
                "{}",
                json!({"execution_id": exec, "agent_type": agent, "status": status, "events": messages.len()})
            );
        } else {
            println!("{exec}  {status:<26}  {agent:<10}  {} messages", messages.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent type and the newest event's name.
fn summary(messages: &[Stored]) -> (String, String) {
    let mut agent = String::new();
    let mut status = "execution.submitted".to_owned();
    for message in messages {
        match message.kind {
            Kind::Fact => {
                if let Ok(Fact { body: FactBody::ExecutionSubmitted(request), .. }) = Fact::read(&message.payload) {
                    agent = request.agent;
                }
            }
            Kind::Decision => {
                if let Some(event) =
                    Record::read(&message.payload).ok().and_then(|r| r.events.last().map(schemas::Event::name))
                {
                    status = event.to_owned();
                }
            }
        }
    }
    (agent, status)
}

/// `vlinders replay`
pub(crate) async fn replay(options: Replay) -> anyhow::Result<ExitCode> {
    let bus = connect(&options.target).await?;
    let exec = options.execution;
    let messages = read(&bus, exec).await.with_context(|| format!("replay {exec}"))?;
    if !options.json {
        messages.iter().for_each(tell);
    }
    if !options.verify {
        if options.json {
            println!("{}", json!({"execution_id": exec, "events": messages.len()}));
        }
        return Ok(ExitCode::SUCCESS);
    }
    match history::verify(exec, &messages) {
        Ok(verified) => {
            if options.json {
                println!(
                    "{}",
                    json!({"execution_id": exec, "events": verified.events, "decisions": verified.decisions, "verified": true, "final_hash": verified.final_hash})
                );
            } else {
                println!(
                    "verified: {} decisions of {} messages came out byte for byte; final hash {}",
                    verified.decisions, verified.events, verified.final_hash
                );
                for unreadable in verified.unreadable {
                    println!(
                        "  message {} cannot be read and led to nothing: {}",
                        unreadable.sequence, unreadable.reason
                    );
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(difference) => {
            if options.json {
                println!(
                    "{}",
                    json!({"execution_id": exec, "events": messages.len(), "verified": false, "decision": difference.n, "sequence": difference.sequence, "difference": difference.difference})
                );
            } else {
                println!("NOT verified: {difference}");
            }
            Ok(ExitCode::from(3))
        }
    }
}

/// One message of the story.
fn tell(message: &Stored) {
    let sequence = message.sequence;
    match message.kind {
        Kind::Fact => match Fact::read(&message.payload) {
            Ok(fact) => println!("{sequence:>8}  fact      {:<22} {}", fact.body.name(), detail(&fact.body)),
            Err(error) => println!("{sequence:>8}  corrupt   {error}"),
        },
        Kind::Decision => match Record::read(&message.payload) {
            Ok(record) => {
                let names: Vec<&str> = record.events.iter().map(schemas::Event::name).collect();
                println!(
                    "{sequence:>8}  decision  {:<22} {}",
                    format!("#{} {}", record.n, &record.hash[..12]),
                    names.join(", ")
                );
            }
            Err(error) => println!("{sequence:>8}  corrupt   {error}"),
        },
    }
}

fn detail(body: &FactBody) -> String {
    match body {
        FactBody::ExecutionSubmitted(f) => format!("{} on {}", f.agent, f.model),
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
