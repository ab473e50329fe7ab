//! The control region: whether the execution should go on. Facts say what somebody wants, decisions make it so.

use schemas::fact::CancelMode;
use schemas::wire::Nanos;
use serde::{Deserialize, Serialize};

use super::Transition;

/// Whether the execution should go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Yes.
    #[default]
    Running,
    /// Somebody wants it to wait; not decided yet.
    Pausing {
        /// Who.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// It waits: what is open may finish, nothing more is asked for.
    Paused {
        /// Who wanted it; `budget` when a limit did.
        by: String,
    },
    /// Somebody wants it to go on; not decided yet.
    Resuming {
        /// Who.
        by: String,
    },
    /// Somebody wants it to end once what is open has finished.
    Draining {
        /// Who.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Somebody wants it to end now.
    Cancelling {
        /// Who.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Its time is over.
    Expired,
}

/// What moves it. A cancel beats a pause, the deadline beats both, and what ended it first stays.
pub const TABLE: &[Transition] = &[
    ("Running", "pause.requested", "Pausing"),
    ("Pausing", "execution.paused", "Paused"),
    ("Pausing", "resume.requested", "Running"),
    ("Running", "execution.paused", "Paused"),
    ("Paused", "resume.requested", "Resuming"),
    ("Paused", "budget.granted", "Resuming"),
    ("Resuming", "execution.resumed", "Running"),
    ("Resuming", "pause.requested", "Paused"),
    ("Running", "cancel.requested", "Cancelling"),
    ("Paused", "cancel.requested", "Cancelling"),
    ("Pausing", "cancel.requested", "Cancelling"),
    ("Resuming", "cancel.requested", "Cancelling"),
    ("Draining", "cancel.requested", "Cancelling"),
    ("Running", "cancel.requested", "Draining"),
    ("Paused", "cancel.requested", "Draining"),
    ("Pausing", "cancel.requested", "Draining"),
    ("Resuming", "cancel.requested", "Draining"),
    ("Running", "deadline", "Expired"),
    ("Pausing", "deadline", "Expired"),
    ("Paused", "deadline", "Expired"),
    ("Resuming", "deadline", "Expired"),
    ("Draining", "deadline", "Expired"),
];

impl Control {
    /// The state's name, as in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Pausing { .. } => "Pausing",
            Self::Paused { .. } => "Paused",
            Self::Resuming { .. } => "Resuming",
            Self::Draining { .. } => "Draining",
            Self::Cancelling { .. } => "Cancelling",
            Self::Expired => "Expired",
        }
    }

    pub(super) fn cancel(&mut self, by: &str, reason: Option<&str>, mode: CancelMode) {
        let (by, reason) = (by.to_owned(), reason.map(str::to_owned));
        match (mode, &self) {
            (_, Self::Cancelling { .. } | Self::Expired) | (CancelMode::Graceful, Self::Draining { .. }) => {}
            (CancelMode::Now, _) => *self = Self::Cancelling { by, reason },
            (CancelMode::Graceful, _) => *self = Self::Draining { by, reason },
        }
    }

    pub(super) fn expire(&mut self, now: Nanos, deadline: Nanos) {
        if now >= deadline && !matches!(self, Self::Cancelling { .. }) {
            *self = Self::Expired;
        }
    }

    pub(super) fn want_pause(&mut self, by: &str, reason: Option<&str>) {
        match self {
            Self::Running => *self = Self::Pausing { by: by.to_owned(), reason: reason.map(str::to_owned) },
            // It waits already; the wish to go on has not taken effect.
            Self::Resuming { .. } => *self = Self::Paused { by: by.to_owned() },
            _ => {}
        }
    }

    pub(super) fn want_resume(&mut self, by: &str) {
        match self {
            Self::Pausing { .. } => *self = Self::Running,
            Self::Paused { .. } => *self = Self::Resuming { by: by.to_owned() },
            _ => {}
        }
    }

    /// More was granted: a pause that a limit made is over.
    pub(super) fn granted(&mut self, by: &str) {
        if matches!(self, Self::Paused { by } if by == PAUSED_BY_BUDGET) {
            self.want_resume(by);
        }
    }

    pub(super) fn paused(&mut self, by: &str) {
        *self = Self::Paused { by: by.to_owned() };
    }

    pub(super) fn resumed(&mut self) {
        *self = Self::Running;
    }
}

/// Who paused an execution that reached a limit.
pub(super) const PAUSED_BY_BUDGET: &str = "budget";
