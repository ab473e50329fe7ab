//! The main region: which step the execution is at.

use schemas::EffectId;
use serde::{Deserialize, Serialize};

use super::Transition;

/// Where an execution stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not taken up.
    #[default]
    New,
    /// Between two steps.
    Ready,
    /// The model is asked.
    Inferring(EffectId),
    /// Calls are carried out: position in the answer, and the effect.
    Acting(Vec<(u32, EffectId)>),
    /// Nothing follows.
    Closed,
}

/// What moves it.
pub const TABLE: &[Transition] = &[
    ("New", "execution.started", "Ready"),
    ("New", "execution.rejected", "Closed"),
    ("New", "execution.cancelled", "Closed"),
    ("New", "execution.timed_out", "Closed"),
    ("Ready", "inference.requested", "Inferring"),
    ("Ready", "tools.requested", "Acting"),
    ("Ready", "execution.completed", "Closed"),
    ("Ready", "execution.failed", "Closed"),
    ("Ready", "execution.cancelled", "Closed"),
    ("Ready", "execution.timed_out", "Closed"),
    ("Ready", "execution.budget_exhausted", "Closed"),
    // More was said while the model answered: it is asked again, in a new turn.
    ("Inferring", "inference.requested", "Inferring"),
    ("Inferring", "tools.requested", "Acting"),
    ("Inferring", "child.requested", "Acting"),
    ("Inferring", "execution.completed", "Closed"),
    ("Inferring", "execution.failed", "Closed"),
    ("Inferring", "execution.cancelled", "Closed"),
    ("Inferring", "execution.timed_out", "Closed"),
    ("Acting", "child.requested", "Acting"),
    ("Acting", "tools.joined", "Ready"),
    ("Acting", "execution.failed", "Closed"),
    ("Acting", "execution.cancelled", "Closed"),
    ("Acting", "execution.timed_out", "Closed"),
];

impl Phase {
    /// The state's name, as in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::New => "New",
            Self::Ready => "Ready",
            Self::Inferring(_) => "Inferring",
            Self::Acting(_) => "Acting",
            Self::Closed => "Closed",
        }
    }

    /// One more call of the turn is carried out; the calls stay in the order of the answer.
    pub(super) fn act(&mut self, ordinal: u32, effect: &EffectId) {
        let mut calls = match std::mem::take(self) {
            Self::Acting(calls) => calls,
            _ => Vec::new(),
        };
        if !calls.iter().any(|(_, known)| known == effect) {
            let place = calls.partition_point(|(other, _)| *other < ordinal);
            calls.insert(place, (ordinal, effect.clone()));
        }
        *self = Self::Acting(calls);
    }
}
