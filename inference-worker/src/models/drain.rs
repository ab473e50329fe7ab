//! How a model finishes before it goes: what was queued for it is answered, and so are executions that it has begun.
//!
//! From the moment it goes a model is offered to nobody, but who asked a moment ago may still name it: its jobs are
//! pulled for a while longer, until none waits. An agent that it answered with tool calls will ask it again: as long as
//! such an execution is open, jobs are pulled, too. Both end after a time that the configuration bounds; what comes
//! later waits in the queue for another worker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use runtime::clock;
use schemas::{Event, ExecutionId, FactBody, Record};

use crate::service::Service;

/// How long a request may be on its way that was sent when the model was still offered: gateways remember for a second
/// what is, and their request becomes a fact, a decision and a job.
const ON_ITS_WAY: Duration = Duration::from_secs(3);
/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Executions that are remembered for one model; the oldest are forgotten first.
const EXECUTIONS_MAX: usize = 4_096;

/// Executions that will ask a model again, as far as its last answers say.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(Mutex<BTreeMap<String, BTreeSet<ExecutionId>>>);

impl Unfinished {
    /// A model has answered: only an answer without calls can be the last.
    pub(crate) fn answered(&self, model: &str, exec: ExecutionId, body: &FactBody) {
        let mut all = self.0.lock().expect("no panic while the lock is held");
        let of_it = all.entry(model.to_owned()).or_default();
        if matches!(body, FactBody::InferenceCompleted(answer) if answer.tool_calls.is_empty()) {
            of_it.remove(&exec);
        } else {
            of_it.insert(exec);
            // Ids sort by time.
            if of_it.len() > EXECUTIONS_MAX {
                of_it.pop_first();
            }
        }
    }

    pub(super) fn forget(&self, model: &str) {
        self.0.lock().expect("no panic while the lock is held").remove(model);
    }

    fn of(&self, model: &str) -> Vec<ExecutionId> {
        let all = self.0.lock().expect("no panic while the lock is held");
        all.get(model).into_iter().flatten().copied().collect()
    }

    fn ended(&self, model: &str, exec: ExecutionId) {
        if let Some(of_it) = self.0.lock().expect("no panic while the lock is held").get_mut(model) {
            of_it.remove(&exec);
        }
    }
}

impl Service {
    /// Waits until nothing more is to be expected for a model that is no longer offered; at most so long.
    pub(super) async fn finish_waiting(&self, model: &str, at_most: Duration) {
        let begun = clock::instant();
        let quiet = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if clock::instant().duration_since(begun) >= ON_ITS_WAY && self.nothing_waits(model).await {
                    return;
                }
            }
        };
        if tokio::time::timeout(at_most, quiet).await.is_err() {
            tracing::warn!(model, ?at_most, "goes although more is asked of it; that waits for another worker");
        }
    }

    async fn nothing_waits(&self, model: &str) -> bool {
        match self.runtime.bus.inference_jobs_waiting(model).await {
            Ok(0) => {}
            Ok(_) => return false,
            Err(error) => {
                tracing::debug!(model, %error, "the queue did not say what waits");
                return false;
            }
        }
        for exec in self.unfinished.of(model) {
            if self.is_open(exec).await {
                return false;
            }
            self.unfinished.ended(model, exec);
        }
        true
    }

    /// Whether an execution goes on, as its log says.
    async fn is_open(&self, exec: ExecutionId) -> bool {
        let Ok(messages) = self.runtime.bus.read_execution(exec, 0).await else {
            return true;
        };
        let ends = |record: Record| record.events.iter().any(Event::is_terminal);
        !messages.iter().rev().filter_map(|message| Record::read(&message.payload).ok()).any(ends)
    }
}

#[cfg(test)]
mod tests {
    use schemas::{
        EffectId, ToolCall,
        fact::{FailureClass, InferenceCompleted, InferenceFailed},
    };

    use super::*;

    fn answer(calls: usize) -> FactBody {
        FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(1),
            attempt: 1,
            worker: "w".into(),
            text: String::new(),
            tool_calls: (0..calls).map(|n| ToolCall::new(format!("call-{n}"), "read_file", "{}")).collect(),
            finish: schemas::FinishReason::Stop,
            usage: schemas::Usage::default(),
            cached_tokens: 0,
            timing: Default::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        })
    }

    #[test]
    fn only_an_answer_without_calls_is_the_last_of_its_execution() {
        let (one, other) = (clock::execution_id(), clock::execution_id());
        let unfinished = Unfinished::default();
        unfinished.answered("a", one, &answer(2));
        unfinished.answered("a", other, &answer(0));
        unfinished.answered("b", other, &answer(1));
        assert_eq!((unfinished.of("a"), unfinished.of("b")), (vec![one], vec![other]));
        unfinished.answered("a", one, &answer(0));
        assert_eq!(unfinished.of("a"), []);
        // It may be tried again.
        let (effect, class) = (EffectId::inference(1), FailureClass::Internal);
        let failed = InferenceFailed { effect, attempt: 1, worker: "w".into(), class, detail: String::new() };
        unfinished.answered("a", one, &FactBody::InferenceFailed(failed));
        assert_eq!(unfinished.of("a"), [one]);
        unfinished.forget("a");
        assert_eq!(unfinished.of("a"), []);
    }

    #[test]
    fn the_oldest_executions_are_forgotten_first() {
        let unfinished = Unfinished::default();
        let first = clock::execution_id();
        unfinished.answered("a", first, &answer(1));
        (0..EXECUTIONS_MAX).for_each(|_| unfinished.answered("a", clock::execution_id(), &answer(1)));
        let left = unfinished.of("a");
        assert_eq!((left.len(), left.contains(&first)), (EXECUTIONS_MAX, false));
    }
}
