//! The effects region: what was asked of others. One type serves inference, tools, children and compression, so that
//! retry, timeout, cancel, approval and fencing by attempt are written once.
//!
//! A result counts only if its effect is open and its attempt is the current one.

use std::collections::BTreeMap;

use schemas::chat::Usage;
use schemas::fact::{FailureClass, Limits, Verdict};
use schemas::wire::Nanos;
use schemas::{EffectId, ExecutionId, ToolCall};
use serde::{Deserialize, Serialize};

use super::Transition;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// Generate an answer.
    Inference {
        /// Tokens at most.
        tokens_max: u64,
        /// How often the context had been replaced when it was asked.
        replacements: u32,
    },
    /// Carry out a call.
    Tool {
        /// The call as the model or the caller wrote it.
        call: ToolCall,
    },
    /// Carry out an execution.
    Child {
        /// The call that asked for it.
        call: ToolCall,
        /// Its id.
        child: ExecutionId,
        /// Its agent type.
        agent: String,
        /// Its part of the limits.
        limits: Limits,
    },
    /// Summarise a part of the context.
    Compression {
        /// What the summariser reads.
        history: String,
        /// Tokens at most.
        tokens_max: u64,
    },
}

/// Where an effect stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Somebody should be at it.
    Open {
        /// When it is given up.
        deadline: Nanos,
    },
    /// A person must allow it.
    AwaitApproval {
        /// When waiting counts as a denial.
        expires: Nanos,
        /// The person's word, which nothing has been decided about yet.
        word: Option<Word>,
    },
    /// It failed, and nothing has been decided about it yet. For a call whose failure is final, this is its outcome.
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

/// What a person said about a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who.
    pub by: String,
    /// What.
    pub verdict: Verdict,
    /// Other arguments.
    pub arguments: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// What moves one effect; `-` is an effect that was never asked for.
pub const TABLE: &[Transition] = &[
    ("-", "inference.requested", "Open"),
    ("-", "tools.requested", "Open"),
    ("-", "child.requested", "Open"),
    ("-", "compression.requested", "Open"),
    ("-", "tools.requested", "Dead"),
    ("Open", "approval.requested", "AwaitApproval"),
    ("AwaitApproval", "approval.resolved", "Open"),
    ("AwaitApproval", "approval.resolved", "Dead"),
    ("AwaitApproval", "effect.cancelled", "Cancelled"),
    ("Open", "inference.completed", "Done"),
    ("Open", "tool.completed", "Done"),
    ("Open", "child.closed", "Done"),
    ("Open", "compression.completed", "Done"),
    ("Open", "inference.failed", "Failed"),
    ("Open", "tool.failed", "Failed"),
    ("Open", "child.closed", "Failed"),
    ("Open", "compression.failed", "Failed"),
    ("Open", "deadline", "Failed"),
    ("Open", "effect.lost", "Lost"),
    ("Open", "effect.cancelled", "Cancelled"),
    ("Failed", "retry.scheduled", "Backoff"),
    // The prompt did not fit; a part of the context has been replaced since.
    ("Failed", "inference.requested", "Open"),
    ("Lost", "inference.requested", "Open"),
    ("Lost", "tools.requested", "Open"),
    ("Lost", "compression.requested", "Open"),
    ("Lost", "effect.cancelled", "Cancelled"),
    ("Backoff", "inference.requested", "Open"),
    ("Backoff", "tools.requested", "Open"),
    ("Backoff", "compression.requested", "Open"),
    ("Backoff", "effect.cancelled", "Cancelled"),
];

impl State {
    /// The state's name, as in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "Open",
            Self::AwaitApproval { .. } => "AwaitApproval",
            Self::Failed { .. } => "Failed",
            Self::Lost => "Lost",
            Self::Backoff { .. } => "Backoff",
            Self::Done => "Done",
            Self::Dead => "Dead",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// What is asked.
    pub work: Work,
    /// The current attempt, from 1.
    pub attempt: u32,
    /// Where it stands.
    pub state: State,
    /// Tokens set aside for it.
    pub reserved: u64,
    /// Tokens it used.
    pub used: u64,
    /// Result or refusal, for the model.
    text: String,
}

/// All effects of an execution, by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effects(BTreeMap<EffectId, Effect>);

impl Effects {
    // --- what was decided ----------------------------------------------------------------------------------------

    pub(super) fn open(&mut self, id: &EffectId, work: Work, attempt: u32, deadline: Nanos) {
        self.set(id, work, attempt, State::Open { deadline });
    }

    pub(super) fn await_approval(&mut self, id: &EffectId, call: ToolCall, expires: Nanos) {
        self.set(id, Work::Tool { call }, 1, State::AwaitApproval { expires, word: None });
    }

    fn set(&mut self, id: &EffectId, work: Work, attempt: u32, state: State) {
        let (reserved, used) = self.0.get(id).map_or((0, 0), |e| (e.reserved, e.used));
        self.0.insert(id.clone(), Effect { work, attempt, state, reserved, used, text: String::new() });
    }

    /// A person's word, or the end of waiting for it, takes effect.
    pub(super) fn resolve(&mut self, id: &EffectId, verdict: Verdict, deadline: Nanos) {
        let Some(effect) = self.0.get_mut(id) else { return };
        let State::AwaitApproval { word, .. } = &mut effect.state else { return };
        let word = word.take();
        if verdict == Verdict::Deny {
            effect.text = match word {
                None => "error: nobody allowed this call in time".to_owned(),
                Some(Word { reason: Some(reason), .. }) => format!("error: this call was not allowed: {reason}"),
                Some(_) => "error: this call was not allowed".to_owned(),
            };
            effect.state = State::Dead;
            return;
        }
        if let (Work::Tool { call }, Some(arguments)) = (&mut effect.work, word.and_then(|w| w.arguments)) {
            call.function.arguments = arguments;
        }
        effect.state = State::Open { deadline };
    }

    pub(super) fn back_off(&mut self, id: &EffectId, until: Nanos) {
        self.become_(id, State::Backoff { until });
    }

    pub(super) fn refuse(&mut self, id: &EffectId, call: ToolCall, why: &str) {
        self.set(id, Work::Tool { call }, 1, State::Dead);
        if let Some(effect) = self.0.get_mut(id) {
            why.clone_into(&mut effect.text);
        }
    }

    pub(super) fn cancel(&mut self, id: &EffectId) {
        self.become_(id, State::Cancelled);
    }

    fn become_(&mut self, id: &EffectId, state: State) {
        if let Some(effect) = self.0.get_mut(id) {
            effect.state = state;
        }
    }

    pub(super) fn reserve(&mut self, id: &EffectId, tokens: u64) {
        if let Some(effect) = self.0.get_mut(id) {
            effect.reserved = tokens;
        }
    }

    /// Takes back what was set aside.
    pub(super) fn settle(&mut self, id: &EffectId) -> u64 {
        self.0.get_mut(id).map_or(0, |effect| std::mem::take(&mut effect.reserved))
    }

    // --- what happened -------------------------------------------------------------------------------------------

    /// The current attempt of an open effect, or none: the fence against late and repeated results.
    fn current(&mut self, id: &EffectId, attempt: u32) -> Option<&mut Effect> {
        self.0.get_mut(id).filter(|e| e.attempt == attempt && matches!(e.state, State::Open { .. }))
    }

    /// Returns whether the result counts.
    pub(super) fn complete(&mut self, id: &EffectId, attempt: u32, text: &str, usage: Usage) -> bool {
        let Some(effect) = self.current(id, attempt) else {
            return false;
        };
        effect.state = State::Done;
        effect.used += usage.tokens;
        // An inference's text goes to the context at once; the others wait for their siblings or a decision.
        if !matches!(effect.work, Work::Inference { .. }) {
            text.clone_into(&mut effect.text);
        }
        true
    }

    /// Returns whether the failure counts.
    pub(super) fn fail(&mut self, id: &EffectId, attempt: u32, class: FailureClass, detail: &str) -> bool {
        let Some(effect) = self.current(id, attempt) else {
            return false;
        };
        effect.text = format!("error: {detail}");
        effect.state = State::Failed { class, detail: detail.to_owned() };
        true
    }

    /// Returns whether the end of the child counts.
    pub(super) fn child_failed(&mut self, id: &EffectId, attempt: u32, detail: &str, usage: Usage) -> bool {
        let counts = self.fail(id, attempt, FailureClass::Refused, detail);
        if counts && let Some(effect) = self.0.get_mut(id) {
            effect.used += usage.tokens;
        }
        counts
    }

    /// Nobody holds a child: it is an execution of its own, and says itself how it ended.
    pub(super) fn lose(&mut self, id: &EffectId, attempt: u32) {
        if let Some(effect) = self.current(id, attempt).filter(|e| !matches!(e.work, Work::Child { .. })) {
            effect.state = State::Lost;
        }
    }

    /// A person's word about a call that waits for it; the first one counts.
    pub(super) fn hear(&mut self, id: &EffectId, said: Word, now: Nanos) {
        if let Some(State::AwaitApproval { expires, word }) = self.0.get_mut(id).map(|e| &mut e.state)
            && *expires > now
        {
            word.get_or_insert(said);
        }
    }

    /// Tools and compressions whose deadline has passed have failed; an inference ends with its execution, and a child
    /// says itself that it is late.
    pub(super) fn expire(&mut self, now: Nanos) {
        for effect in self.0.values_mut() {
            let late = matches!(effect.state, State::Open { deadline } if deadline <= now);
            let detail = match effect.work {
                Work::Tool { .. } => "the tool took too long",
                Work::Compression { .. } => "the summary took too long",
                Work::Inference { .. } | Work::Child { .. } => continue,
            };
            if late {
                effect.text = format!("error: {detail}");
                effect.state = State::Failed { class: FailureClass::Timeout, detail: detail.to_owned() };
            }
        }
    }

    // --- what is the case ----------------------------------------------------------------------------------------

    /// The call of a tool or child effect and what the model reads as its result.
    pub(super) fn take_result(&mut self, id: &EffectId) -> (Option<ToolCall>, String) {
        let Some(effect) = self.0.get_mut(id) else {
            return (None, String::new());
        };
        let call = match &effect.work {
            Work::Tool { call } | Work::Child { call, .. } => Some(call.clone()),
            Work::Inference { .. } | Work::Compression { .. } => None,
        };
        let text = std::mem::take(&mut effect.text);
        let cancelled = text.is_empty() && effect.state == State::Cancelled;
        (call, if cancelled { "cancelled: enough of the others were done".to_owned() } else { text })
    }

    /// What an effect gave or why it did not, as the model reads it.
    #[must_use]
    pub fn text(&self, id: &EffectId) -> &str {
        self.0.get(id).map_or("", |e| e.text.as_str())
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

    /// Effects somebody should be at.
    pub fn open_effects(&self) -> impl Iterator<Item = (&EffectId, &Effect)> {
        self.0.iter().filter(|(_, e)| matches!(e.state, State::Open { .. }))
    }

    /// Whether it gave a result.
    #[must_use]
    pub fn is_done(&self, id: &EffectId) -> bool {
        self.0.get(id).is_some_and(|e| e.state == State::Done)
    }

    /// Whether it has an outcome that will not change. A failed call is settled once no retry is due.
    pub(super) fn is_settled(&self, id: &EffectId) -> bool {
        self.0
            .get(id)
            .is_some_and(|e| matches!(e.state, State::Done | State::Dead | State::Cancelled | State::Failed { .. }))
    }

    /// Effects that would still become something.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = (&EffectId, u32)> {
        let unfinished = |state: &State| {
            matches!(state, State::Open { .. } | State::AwaitApproval { .. } | State::Lost | State::Backoff { .. })
        };
        self.0.iter().filter(move |(_, e)| unfinished(&e.state)).map(|(id, e)| (id, e.attempt))
    }

    /// Moments at which an effect wants to be looked at again.
    pub(super) fn wakes(&self) -> impl Iterator<Item = (&EffectId, Nanos)> {
        self.0.iter().filter_map(|(id, effect)| match (&effect.state, &effect.work) {
            (State::Backoff { until }, _) => Some((id, *until)),
            (State::AwaitApproval { expires, .. }, _) => Some((id, *expires)),
            (State::Open { deadline }, Work::Tool { .. } | Work::Compression { .. }) => Some((id, *deadline)),
            _ => None,
        })
    }
}
