//! The control region: whether the execution should go on.
//!
//! | from | on | to |
//! |---|---|---|
//! | `Running` | a cancel | `Cancelling` |
//! | `Running` | the deadline passes | `Expired` |

use schemas::wire::Nanos;

/// Whether the execution should go on. What ended it first stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Yes.
    Running,
    /// Somebody wants it to end.
    Cancelling {
        /// Who.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Its time is over.
    Expired,
}

impl Control {
    pub(super) fn cancel(&mut self, by: &str, reason: Option<&str>) {
        if *self == Self::Running {
            *self = Self::Cancelling { by: by.to_owned(), reason: reason.map(str::to_owned) };
        }
    }

    pub(super) fn expire(&mut self, now: Nanos, deadline: Nanos) {
        if *self == Self::Running && now >= deadline {
            *self = Self::Expired;
        }
    }
}
