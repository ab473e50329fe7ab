//! The effects region: what was asked of workers. One type serves inference and tools, so that retry, timeout,
//! cancel and fencing by attempt are written once.
//!
//! | from | on | to |
//! |---|---|---|
//! | – | asked | `Open` |
//! | `Open` | result of the current attempt | `Done` |
//! | `Open` | failure of the current attempt | `Failed` |
//! | `Open` | the holder is gone | `Lost` |
//! | `Open` (tool) | its deadline passes | `Failed` (timeout) |
//! | `Failed`, retryable | retry scheduled | `Backoff` |
//! | `Failed`, `Lost`, `Backoff` | asked again | `Open`, next attempt |
//! | `Open` | refused by a rule | `Dead` |
//! | any unfinished | cancelled | `Cancelled` |
//!
//! A result counts only if its effect is open and its attempt is the current one.

use std::collections::BTreeMap;

use schemas::fact::FailureClass;
use schemas::wire::Nanos;
use schemas::{EffectId, ToolCall};

/// What a worker is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Generate an answer.
    Inference {
        /// Tokens at most.
        tokens_max: u64,
    },
    /// Carry out a call.
    Tool {
        /// The call as the model or the caller wrote it.
        call: ToolCall,
    },
}

/// Where an effect stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A worker should be at it.
    Open {
        /// When it is given up.
        deadline: Nanos,
    },
    /// It failed, and nothing has been decided about it yet. For a tool whose failure is final, this is its outcome.
    Failed {
        /// What kind of failure.
        class: FailureClass,
        /// In words.
        detail: String,
    },
    /// Its holder is gone.
    Lost,
    /// It will be tried again.
    Backoff {
        /// When.
        until: Nanos,
    },
    /// It gave a result.
    Done,
    /// It was refused.
    Dead,
    /// It is no longer wanted.
    Cancelled,
}

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// What is asked.
    pub work: Work,
    /// The current attempt, from 1.
    pub attempt: u32,
    /// Where it stands.
    pub state: State,
    /// Result or refusal, for the model.
    text: String,
}

/// All effects of an execution, by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects(BTreeMap<EffectId, Effect>);

impl Effects {
    pub(super) fn open(&mut self, id: EffectId, work: Work, attempt: u32, deadline: Nanos) {
        self.0.insert(id, Effect { work, attempt, state: State::Open { deadline }, text: String::new() });
    }

    /// The current attempt of an open effect, or none: the fence against late and repeated results.
    fn current(&mut self, id: &EffectId, attempt: u32) -> Option<&mut Effect> {
        self.0.get_mut(id).filter(|e| e.attempt == attempt && matches!(e.state, State::Open { .. }))
    }

    /// Returns whether the result counts.
    pub(super) fn complete(&mut self, id: &EffectId, attempt: u32, text: String) -> bool {
        let Some(effect) = self.current(id, attempt) else {
            return false;
        };
        effect.state = State::Done;
        // An inference's text goes to the context at once; only a tool's waits for its siblings.
        if matches!(effect.work, Work::Tool { .. }) {
            effect.text = text;
        }
        true
    }

    pub(super) fn fail(&mut self, id: &EffectId, attempt: u32, class: FailureClass, detail: &str) {
        if let Some(effect) = self.current(id, attempt) {
            effect.text = format!("error: {detail}");
            effect.state = State::Failed { class, detail: detail.to_owned() };
        }
    }

    pub(super) fn lose(&mut self, id: &EffectId, attempt: u32) {
        if let Some(effect) = self.current(id, attempt) {
            effect.state = State::Lost;
        }
    }

    /// Tools whose deadline has passed have failed; an inference ends with its execution.
    pub(super) fn expire(&mut self, now: Nanos) {
        for effect in self.0.values_mut() {
            let late = matches!(effect.state, State::Open { deadline } if deadline <= now);
            if late && matches!(effect.work, Work::Tool { .. }) {
                let detail = "the tool took too long".to_owned();
                effect.text = format!("error: {detail}");
                effect.state = State::Failed { class: FailureClass::Timeout, detail };
            }
        }
    }

    pub(super) fn back_off(&mut self, id: &EffectId, until: Nanos) {
        if let Some(effect) = self.0.get_mut(id) {
            effect.state = State::Backoff { until };
        }
    }

    pub(super) fn refuse(&mut self, id: &EffectId, why: &str) {
        if let Some(effect) = self.0.get_mut(id) {
            effect.state = State::Dead;
            effect.text = why.to_owned();
        }
    }

    pub(super) fn cancel(&mut self, id: &EffectId) {
        if let Some(effect) = self.0.get_mut(id) {
            effect.state = State::Cancelled;
        }
    }

    /// The call of a tool effect and what the model reads as its result.
    pub(super) fn result(&mut self, id: &EffectId) -> (Option<ToolCall>, String) {
        let Some(effect) = self.0.get_mut(id) else {
            return (None, String::new());
        };
        let call = match &effect.work {
            Work::Tool { call } => Some(call.clone()),
            Work::Inference { .. } => None,
        };
        (call, std::mem::take(&mut effect.text))
    }

    /// All effects in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&EffectId, &Effect)> {
        self.0.iter()
    }

    /// One effect.
    #[must_use]
    pub fn get(&self, id: &EffectId) -> Option<&Effect> {
        self.0.get(id)
    }

    /// Effects a worker should be at.
    pub fn open_effects(&self) -> impl Iterator<Item = (&EffectId, &Effect)> {
        self.0.iter().filter(|(_, e)| matches!(e.state, State::Open { .. }))
    }

    /// Whether it gave a result.
    #[must_use]
    pub fn is_done(&self, id: &EffectId) -> bool {
        self.0.get(id).is_some_and(|e| e.state == State::Done)
    }

    /// Whether it has an outcome that will not change. A failed tool is settled once no retry is due.
    pub(super) fn is_settled(&self, id: &EffectId) -> bool {
        self.0
            .get(id)
            .is_some_and(|e| matches!(e.state, State::Done | State::Dead | State::Cancelled | State::Failed { .. }))
    }

    pub(super) fn unfinished(&self) -> impl Iterator<Item = (&EffectId, u32)> {
        self.0
            .iter()
            .filter(|(_, e)| matches!(e.state, State::Open { .. } | State::Lost | State::Backoff { .. }))
            .map(|(id, e)| (id, e.attempt))
    }

    /// Moments at which an effect wants to be looked at again.
    pub(super) fn wakes(&self) -> impl Iterator<Item = (&EffectId, Nanos)> {
        self.0.iter().filter_map(|(id, effect)| match (&effect.state, &effect.work) {
            (State::Backoff { until }, _) => Some((id, *until)),
            (State::Open { deadline }, Work::Tool { .. }) => Some((id, *deadline)),
            _ => None,
        })
    }
}
