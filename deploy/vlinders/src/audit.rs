//! `vlinders audit`: proves the whole log, its partitions side by side, while it is read.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use orchestrator::audit::{Audit as Auditor, Broken, Found};
use runtime::bus::{Bus, ObjectError, Stored};
use runtime::clock;
use schemas::object::references;
use schemas::wire::Nanos;
use schemas::{Fact, Partition};
use serde_json::json;
use tokio::task::JoinSet;

use crate::cli::Audit;
use crate::replay;
use crate::settings::Usage;

/// How often the progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// How much has been read of how much.
#[derive(Default)]
struct Progress {
    read: AtomicU64,
    whole: AtomicU64,
}

/// Audits and reports; exit code 3 when something is broken.
pub(crate) async fn run(options: Audit) -> anyhow::Result<ExitCode> {
    let since = options.since.as_deref().map(|text| moment(text, clock::now())).transpose()?;
    let bus = replay::connect(&options.target).await?;
    let progress = Arc::new(Progress::default());
    let mut partitions = JoinSet::new();
    for partition in Partition::all() {
        partitions.spawn(audit(bus.clone(), partition, since, progress.clone()));
    }
    let mut found = Found::default();
    let mut shown = tokio::time::interval(SHOWN_EVERY);
    let on_terminal = std::io::stderr().is_terminal();
    loop {
        tokio::select! {
            ended = partitions.join_next() => match ended {
                Some(ended) => found.add(ended.context("audit a partition")??),
                None => break,
            },
            _ = shown.tick() => if on_terminal { progress.show() },
        }
    }
    if on_terminal {
        progress.show();
        eprintln!();
    }
    found.broken.sort_by_key(|b| (b.execution_id, b.sequence));
    let verified = found.broken.is_empty();
    if options.json {
        println!(
            "{}",
            json!({
                "executions": found.executions, "events": found.events, "decisions": found.decisions,
                "unreadable": found.unreadable, "verified": verified, "broken": found.broken,
            })
        );
    } else {
        tell(&found);
    }
    Ok(ExitCode::from(if verified { 0 } else { 3 }))
}

fn tell(found: &Found) {
    for broken in &found.broken {
        let place = match (broken.execution_id, broken.decision) {
            (Some(exec), Some(n)) => format!("{exec} decision {n} at sequence {}", broken.sequence),
            _ => format!("the log at sequence {}", broken.sequence),
        };
        println!("BROKEN {place}: {}", broken.difference);
    }
    let Found { executions, events, decisions, unreadable, broken } = found;
    if broken.is_empty() {
        println!(
            "verified: {decisions} decisions of {executions} executions came out byte for byte ({events} messages)"
        );
    } else {
        println!("NOT verified: {} breaks in {executions} executions ({events} messages)", broken.len());
    }
    if *unreadable > 0 {
        println!("  {unreadable} messages cannot be read and led to nothing");
    }
}

impl Progress {
    fn show(&self) {
        let (read, whole) = (self.read.load(Ordering::Relaxed), self.whole.load(Ordering::Relaxed));
        eprint!("\r{read} of {whole} messages");
    }
}

/// Reads one partition in order, from `since` on, and verifies each execution as its messages come by. An execution
/// that began earlier is read from its beginning when its first message comes.
async fn audit(bus: Bus, partition: Partition, since: Option<Nanos>, progress: Arc<Progress>) -> anyhow::Result<Found> {
    let last = bus.last_sequence(partition).await?;
    let first = match since {
        None => 1,
        Some(at) => bus.first_since(partition, at, last).await?,
    };
    progress.whole.fetch_add((last + 1).saturating_sub(first), Ordering::Relaxed);
    let mut auditor = Auditor::from(first);
    let mut objects = Objects::default();
    let mut from = first;
    while from <= last {
        let batch = bus.read_partition(partition, from, last).await?;
        let Some((newest, _)) = batch.last() else { break };
        from = newest + 1;
        progress.read.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for (sequence, message) in batch {
            let Some(message) = message else {
                auditor.pass(sequence);
                continue;
            };
            if first > 1 && !auditor.knows(message.exec) {
                for earlier in bus.read_execution(message.exec, 0).await?.iter().filter(|m| m.sequence < first) {
                    auditor.catch_up(earlier);
                }
            }
            auditor.take(&message);
            objects.check(&bus, &message, &mut auditor.found).await?;
        }
    }
    auditor.end(last + 1);
    Ok(auditor.found)
}

/// The objects that were looked at: none, or what is wrong with it.
#[derive(Default)]
struct Objects(BTreeMap<String, Option<String>>);

impl Objects {
    /// Holds the objects that a fact refers to against their names. The hashes of the log cover the references.
    async fn check(&mut self, bus: &Bus, message: &Stored, found: &mut Found) -> anyhow::Result<()> {
        // Few facts refer to objects, and the log is long.
        let may_refer = message.payload.windows(6).any(|w| w == b"sha256");
        let Some(fact) = may_refer.then(|| Fact::read(&message.payload).ok()).flatten() else { return Ok(()) };
        for reference in references(&fact) {
            if !self.0.contains_key(&reference.sha256) {
                let wrong = match bus.object(&reference.sha256).await {
                    Ok((content, _)) if reference.is_of(&content) => None,
                    Ok((content, _)) => Some(format!(
                        "object {} has {} bytes, the fact says {}",
                        reference.sha256,
                        content.len(),
                        reference.bytes
                    )),
                    Err(ObjectError::Bus(error)) => return Err(error.into()),
                    Err(error) => Some(error.to_string()),
                };
                self.0.insert(reference.sha256.clone(), wrong);
            }
            if let Some(Some(difference)) = self.0.get(&reference.sha256) {
                let (execution_id, sequence) = (Some(message.exec), message.sequence);
                found.broken.push(Broken { execution_id, decision: None, sequence, difference: difference.clone() });
            }
        }
        Ok(())
    }
}

/// A moment in RFC 3339, or a duration before now.
fn moment(text: &str, now: Nanos) -> Result<Nanos, Usage> {
    clock::moment(text, now).ok_or_else(|| {
        Usage(format!(
            "--since {text} is no moment: say 2026-01-31T12:00:00Z, or a time before now such as 90s, 15m, 2h, 7d"
        ))
    })
}
