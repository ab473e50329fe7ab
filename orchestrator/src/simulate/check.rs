//! What must be true of every log, whatever happened while it was written.

use std::collections::{BTreeMap, BTreeSet};

use runtime::bus::{Kind, Stored};
use schemas::chat::{Message, Role};
use schemas::fact::{ChildClosed, Outcome};
use schemas::summary::Summary;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody, Record};

use super::coverage::Coverage;
use crate::execution::{Control, Execution, Rules, State, Work};
use crate::history::{History, Snapshot, verify};

type Logs = BTreeMap<ExecutionId, Vec<Stored>>;

/// Everything that is wrong with what a run left: the logs, and what orchestrators believe about them.
pub(super) fn all(logs: &Logs, memories: &[(ExecutionId, u64, &Execution)], coverage: &mut Coverage) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ends = BTreeMap::new();
    for (exec, log) in logs {
        match one(*exec, log, coverage) {
            Ok(execution) => drop(ends.insert(*exec, execution)),
            Err(why) => wrong.push(format!("{exec}: {why}")),
        }
    }
    for (exec, execution) in &ends {
        wrong.extend(children(*exec, execution, &ends, logs).err().map(|why| format!("{exec}: {why}")));
    }
    for (exec, sequence, memory) in memories {
        let mut history = History::new(*exec);
        let known = logs.get(exec).into_iter().flatten().take_while(|m| m.sequence <= *sequence);
        known.for_each(|m| history.fold(m).expect("every message of the simulation reads"));
        if history.execution != **memory {
            wrong.push(format!("{exec}: an orchestrator believes something else than its log up to {sequence}"));
        }
    }
    wrong
}

/// One log by itself.
fn one(exec: ExecutionId, log: &[Stored], coverage: &mut Coverage) -> Result<Execution, String> {
    let verified = verify(exec, log).map_err(|difference| difference.to_string())?;
    let mut history = History::new(exec);
    let mut observed = Execution::default();
    let mut summary: Option<Summary> = None;
    let mut ends = 0;
    let mut commits = BTreeSet::new();
    for message in log {
        history.fold(message).map_err(|u| format!("message {} does not read: {}", u.sequence, u.reason))?;
        summarise(&mut summary, message);
        same_in_the_row(&history.execution, summary.as_ref(), message.sequence)?;
        match message.kind {
            Kind::Fact => coverage.fact(&mut observed, &fact(message)),
            Kind::Decision => {
                let record = record(message);
                if ends > 0 {
                    return Err(format!("decision {} stands behind the end", record.n));
                }
                if !commits.insert(record.commit()) {
                    return Err(format!("decision {} was appended twice", record.n));
                }
                ends += record.events.iter().filter(|e| e.is_terminal()).count();
                record.events.iter().for_each(|event| coverage.event(&mut observed, event));
                after_decision(&history)?;
            }
        }
    }
    if observed != history.execution {
        return Err("facts and events one by one give another state than the history".to_owned());
    }
    // A request that never arrived leaves nothing to end: its parent was cancelled before it was made.
    if history.execution.request.is_some() && ends != 1 {
        return Err(format!("it ended {ends} times"));
    }
    snapshots(exec, log, &history)?;
    if verified.decisions > 0 {
        accounts(log, &history.execution)?;
    }
    Ok(history.execution)
}

fn summarise(summary: &mut Option<Summary>, message: &Stored) {
    match summary {
        None if message.kind == Kind::Fact => *summary = Summary::begin(&fact(message)),
        None => {}
        Some(summary) if message.kind == Kind::Fact => drop(summary.fact(&fact(message))),
        Some(summary) => drop(summary.decision(&record(message))),
    }
}

/// The fold for tables and lists counts the same results as the rules do, and ends where they end.
fn same_in_the_row(execution: &Execution, summary: Option<&Summary>, sequence: u64) -> Result<(), String> {
    let Some(summary) = summary.filter(|_| execution.request.is_some()) else { return Ok(()) };
    let row = &summary.row;
    if summary.is_ended() != execution.is_closed() {
        return Err(format!("after message {sequence} the row says {:?}, the rules another thing", row.status));
    }
    if row.usage != execution.budget.usage && !summary.is_ended() {
        let used = execution.budget.usage;
        return Err(format!("after message {sequence} the row counts {:?}, the rules {used:?}", row.usage));
    }
    Ok(())
}

/// Right after a decision nothing more follows, and an execution that goes on waits for something.
fn after_decision(history: &History) -> Result<(), String> {
    let (execution, n) = (&history.execution, history.decisions() - 1);
    if let Some(more) = history.decide(Rules::current()) {
        let names: Vec<_> = more.events.iter().map(Event::name).collect();
        return Err(format!("decision {n} was not the whole of it: {} follows", names.join(", ")));
    }
    let waits =
        |state: &State| matches!(state, State::Open { .. } | State::AwaitApproval { .. } | State::Backoff { .. });
    let busy = execution.effects.iter().any(|(_, e)| waits(&e.state));
    let asleep = matches!(execution.control, Control::Paused { .. });
    if !execution.is_closed() && !busy && !asleep {
        let states: Vec<_> = execution.effects.iter().map(|(id, e)| format!("{id} {}", e.state.name())).collect();
        let phase = execution.phase.name();
        return Err(format!("after decision {n} it is {phase} and waits for nothing ({})", states.join(", ")));
    }
    if !execution.is_closed() && execution.wake().is_none() {
        return Err(format!("after decision {n} no timer would wake it"));
    }
    if execution.is_closed() && execution.effects.iter().any(|(_, e)| waits(&e.state) || e.state == State::Lost) {
        return Err("it ended with effects under way".to_owned());
    }
    prompt(execution.context.messages()).or_else(|why| {
        // The newest answer's calls are still to be carried out, or go back to the caller.
        let newest = execution.context.messages().iter().rposition(|m| m.role == Role::Assistant);
        prompt(&execution.context.messages()[..newest.unwrap_or(0)]).map_err(|_| why)
    })
}

/// Every call of an answer has its result right behind it, in the order of the calls.
pub(super) fn prompt(messages: &[Message]) -> Result<(), String> {
    let mut i = 0;
    while let Some(message) = messages.get(i) {
        i += 1;
        if message.role == Role::Tool {
            return Err(format!("message {} is a result without a call", i - 1));
        }
        for call in &message.tool_calls {
            let result = messages.get(i).and_then(|m| m.tool_call_id.as_deref());
            if result != Some(call.id.as_str()) {
                return Err(format!("message {i} should be the result of {}", call.id));
            }
            i += 1;
        }
    }
    Ok(())
}

/// A snapshot after any decision and the rest of the log give the same, byte for byte.
fn snapshots(exec: ExecutionId, log: &[Stored], whole: &History) -> Result<(), String> {
    let decisions: Vec<usize> = (0..log.len()).filter(|i| log[*i].kind == Kind::Decision).collect();
    let Some(middle) = decisions.get(decisions.len() / 2) else { return Ok(()) };
    let mut history = History::new(exec);
    log[..=*middle].iter().for_each(|m| history.fold(m).expect("read before"));
    let bytes = schemas::wire::encode(&history.snapshot().ok_or("no snapshot right after a decision")?);
    let mut restored = History::restore(Snapshot::read(&bytes).ok_or("a snapshot does not read")?);
    log.iter().for_each(|m| restored.fold(m).expect("read before"));
    let same = restored.execution == whole.execution && restored.sequence == whole.sequence;
    if same { Ok(()) } else { Err("a snapshot and the rest of the log differ from the log".to_owned()) }
}

/// What was set aside is free again at the end, and what was settled is what was used.
fn accounts(log: &[Stored], execution: &Execution) -> Result<(), String> {
    if !execution.is_closed() {
        return Ok(());
    }
    if execution.budget.reserved != 0 {
        return Err(format!("{} tokens stay set aside behind the end", execution.budget.reserved));
    }
    let events = log.iter().filter(|m| m.kind == Kind::Decision).flat_map(|m| record(m).events);
    let settled: u64 = events.map(|e| if let Event::BudgetSettled(e) = e { e.tokens } else { 0 }).sum();
    // Nothing is set aside for a summary.
    let summaries = execution.effects.iter().filter(|(_, e)| matches!(e.work, Work::Compression { .. }));
    let settled = settled + summaries.map(|(_, e)| e.used).sum::<u64>();
    let used = execution.budget.usage.tokens;
    if settled != used {
        return Err(format!("{settled} tokens were settled, {used} were used"));
    }
    Ok(())
}

/// Every child that counts was heard of exactly once and as it was; every one that does not was told to end.
fn children(
    exec: ExecutionId,
    execution: &Execution,
    ends: &BTreeMap<ExecutionId, Execution>,
    logs: &Logs,
) -> Result<(), String> {
    for (id, effect) in execution.effects.iter() {
        let Work::Child { child, .. } = effect.work else { continue };
        let found = ends.get(&child);
        match effect.state {
            State::Done | State::Failed { .. } => {
                let ended = found.ok_or_else(|| format!("{id} ended without its child"))?;
                let Some(closed) = heard(&logs[&exec], id) else {
                    return Err(format!("{id} ended without a word of its child"));
                };
                let end = ended.end.as_ref().ok_or_else(|| format!("the child of {id} did not end"))?;
                if (end.outcome == Outcome::Completed) != (effect.state == State::Done) {
                    return Err(format!("{id} and its child end differently"));
                }
                if closed.usage != ended.budget.usage || effect.used != ended.budget.usage.tokens {
                    return Err(format!("{id} counts {} tokens, its child {:?}", effect.used, ended.budget.usage));
                }
            }
            State::Cancelled => {
                let told = |m: &Stored| {
                    m.kind == Kind::Fact
                        && matches!(fact(m).body, FactBody::CancelRequested(c) if c.by == exec.to_string())
                };
                let log = logs.get(&child).map(Vec::as_slice).unwrap_or_default();
                let Some(told) = log.iter().position(told) else {
                    return Err(format!("the child of {id} was not told to end"));
                };
                // Whatever it decides from then on is its end.
                let decided = log[told..].iter().filter(|m| m.kind == Kind::Decision).count();
                let requested = found.is_some_and(|e| e.request.is_some());
                if requested && (decided > 1 || !ends[&child].is_closed()) {
                    return Err(format!("the child of {id} went on after it was told to end"));
                }
            }
            _ if execution.is_closed() => return Err(format!("{id} is {} behind the end", effect.state.name())),
            _ => {}
        }
    }
    Ok(())
}

fn heard(log: &[Stored], effect: &EffectId) -> Option<ChildClosed> {
    log.iter().filter(|m| m.kind == Kind::Fact).find_map(|m| match fact(m).body {
        FactBody::ChildClosed(closed) if closed.effect == *effect => Some(closed),
        _ => None,
    })
}

/// Whether a message is the end of its execution.
pub(super) fn is_end(message: &Stored) -> bool {
    message.kind == Kind::Decision && record(message).events.iter().any(Event::is_terminal)
}

fn fact(message: &Stored) -> Fact {
    Fact::read(&message.payload).expect("a fact of the simulation reads")
}

fn record(message: &Stored) -> Record {
    Record::read(&message.payload).expect("a decision of the simulation reads")
}
