//! Accounts for every result in a log, from the messages alone: not with the state machine, which might err in the
//! same way as the log it wrote.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use runtime::bus::{Kind, Stored};
use schemas::fact::{Outcome, Verdict};
use schemas::{EffectId, Event, Fact, FactBody, Record};

/// What is known of the effects while the log is read.
#[derive(Default)]
struct Books {
    /// The attempt whose result would count.
    open: BTreeMap<EffectId, u32>,
    /// Whether the result that counted was a success.
    settled: BTreeMap<EffectId, bool>,
}

/// Checks that decisions are numbered without a hole or a repeat, that an effect with a result was never asked for
/// again, that no effect has two results that count, and that every outcome that was joined is backed by one.
///
/// # Errors
/// The first thing that does not add up.
pub fn account(messages: &[Stored]) -> anyhow::Result<()> {
    let mut books = Books::default();
    let mut decisions = 0;
    for message in messages {
        match message.kind {
            Kind::Fact => {
                if let Ok(fact) = Fact::read(&message.payload) {
                    books.fact(&fact.body)?;
                }
            }
            Kind::Decision => {
                let record = Record::read(&message.payload)?;
                ensure!(record.n == decisions, "decision {} stands where {decisions} belongs", record.n);
                decisions += 1;
                for event in &record.events {
                    books.event(event).with_context(|| format!("decision {}", record.n))?;
                }
            }
        }
    }
    Ok(())
}

impl Books {
    fn fact(&mut self, body: &FactBody) -> anyhow::Result<()> {
        let (effect, attempt, success) = match body {
            FactBody::InferenceCompleted(f) => (&f.effect, f.attempt, true),
            FactBody::ToolCompleted(f) => (&f.effect, f.attempt, true),
            FactBody::InferenceFailed(f) => (&f.effect, f.attempt, false),
            FactBody::ToolFailed(f) => (&f.effect, f.attempt, false),
            FactBody::ChildClosed(f) => (&f.effect, f.attempt, f.outcome == Outcome::Completed),
            FactBody::CompressionCompleted(f) => (&f.effect, f.attempt, true),
            FactBody::CompressionFailed(f) => (&f.effect, f.attempt, false),
            FactBody::EffectLost(f) => {
                if self.open.get(&f.effect) == Some(&f.attempt) {
                    self.open.remove(&f.effect);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        if self.open.get(effect) == Some(&attempt) {
            self.open.remove(effect);
            let before = self.settled.insert(effect.clone(), success);
            ensure!(before != Some(true), "{effect} has two results that count");
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        match event {
            Event::InferenceRequested(asked) => self.ask(&asked.effect, asked.attempt)?,
            Event::ToolsRequested(asked) => {
                for call in &asked.calls {
                    if call.refused.is_some() {
                        self.settled.insert(call.effect.clone(), false);
                    } else {
                        self.ask(&call.effect, call.attempt)?;
                    }
                }
            }
            Event::ChildRequested(asked) => self.ask(&asked.effect, asked.attempt)?,
            Event::CompressionRequested(asked) => self.ask(&asked.effect, asked.attempt)?,
            // Nobody carries out what a person did not allow.
            Event::ApprovalResolved(resolved) if resolved.verdict == Verdict::Deny => {
                self.open.remove(&resolved.approval);
                self.settled.insert(resolved.approval.clone(), false);
            }
            Event::RetryScheduled(retry) => drop(self.open.remove(&retry.effect)),
            Event::EffectCancelled(cancelled) => drop(self.open.remove(&cancelled.effect)),
            Event::ToolsJoined(joined) => {
                for outcome in &joined.outcomes {
                    let result = self.settled.get(&outcome.effect);
                    ensure!(result == Some(&outcome.success), "{outcome:?} was joined, the facts say {result:?}");
                }
            }
            Event::ExecutionCompleted(end) => {
                ensure!(self.settled.contains_key(&end.result), "ended with {}, which has no result", end.result);
            }
            _ => {}
        }
        Ok(())
    }

    fn ask(&mut self, effect: &EffectId, attempt: u32) -> anyhow::Result<()> {
        ensure!(self.settled.get(effect) != Some(&true), "{effect} was asked for again although it has a result");
        let before = self.open.insert(effect.clone(), attempt);
        ensure!(before.is_none_or(|before| before < attempt), "attempt {attempt} of {effect} was asked for twice");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use schemas::decision::{Draft, FactsDigest, InferenceRequested, ToolOutcome, ToolsJoined};
    use schemas::{ExecutionId, wire::encode};
    use serde_json::json;

    use super::*;

    struct Log(ExecutionId, Vec<Stored>);

    impl Log {
        fn push(&mut self, kind: Kind, payload: Vec<u8>) {
            let sequence = self.1.len() as u64 + 1;
            self.1.push(Stored { exec: self.0, sequence, kind, stored_at: 0, payload: payload.into() });
        }

        fn decide(mut self, n: u64, events: Vec<Event>) -> Self {
            let facts = FactsDigest::default();
            let draft = Draft { exec: self.0, n, at: 1, machine: 1, facts_upto: 0, facts: &facts, prev_hash: "" };
            self.push(Kind::Decision, encode(&Record::seal(&draft, events)));
            self
        }

        fn answer(mut self) -> Self {
            let fact = crate::answered(self.0, 1, "yes", &[("read_file", json!({}))]);
            self.push(Kind::Fact, encode(&fact));
            self
        }
    }

    fn ask(attempt: u32) -> Vec<Event> {
        vec![Event::InferenceRequested(InferenceRequested {
            effect: EffectId::inference(1),
            attempt,
            turn: 1,
            context: 1,
            tokens_max: 0,
            deadline: 9,
        })]
    }

    fn accounted(log: &Log) -> Result<(), String> {
        account(&log.1).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_does_not_add_up_is_found() {
        let log = || Log(runtime::clock::execution_id(), Vec::new());
        assert_eq!(accounted(&log().decide(0, ask(1)).answer().answer()), Ok(()), "a late result does not count");
        assert_eq!(accounted(&log().decide(0, ask(1)).decide(1, ask(2)).answer()), Ok(()), "nor does an old one");

        let again = accounted(&log().decide(0, ask(1)).answer().decide(1, ask(2)));
        assert!(again.is_err_and(|e| e.contains("asked for again although it has a result")));
        let twice = accounted(&log().decide(0, ask(1)).decide(1, ask(1)));
        assert!(twice.is_err_and(|e| e.contains("asked for twice")));
        let repeated = accounted(&log().decide(0, ask(1)).decide(0, ask(2)));
        assert!(repeated.is_err_and(|e| e.contains("stands where 1 belongs")));
        let outcomes = vec![ToolOutcome { effect: EffectId::tool(1, 0), success: true }];
        let joined = Event::ToolsJoined(ToolsJoined { turn: 1, outcomes });
        let unbacked = accounted(&log().decide(0, vec![joined]));
        assert!(unbacked.is_err_and(|e| e.contains("the facts say None")));
    }
}
