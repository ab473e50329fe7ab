//! What differs between versions of the state machine. State and `apply` are shared; a change of what is *decided* is a
//! row here, so that every decision in a log can be made again by the rules that made it.

use serde::{Deserialize, Serialize};

/// The version that decides today.
pub const MACHINE: u32 = 3;

/// The version that will decide next; equal to [`MACHINE`] when none is being prepared. `replay --machine next` says
/// which executions it would decide otherwise.
pub const MACHINE_NEXT: u32 = 3;

/// The rules of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Their number, as it stands in every decision.
    pub version: u32,
    /// What is used is accounted for: `budget.reserved` and `settled`, `context.measured`, `timer.set`.
    pub accounts: bool,
    /// A context that fills the window is compressed.
    pub compresses: bool,
    /// Even when its last answer is there, which nothing follows.
    pub compresses_to_the_end: bool,
    /// An execution that repeats itself is stopped.
    pub notices_loops: bool,
}

impl Rules {
    /// The rules of a version; none when this program does not hold them.
    #[must_use]
    pub const fn of(version: u32) -> Option<Self> {
        match version {
            1 => {
                let compresses_to_the_end = false;
                Some(Self { version, accounts: false, compresses: false, compresses_to_the_end, notices_loops: false })
            }
            // From the third on decisions also hold less ([`schemas::Record`]).
            2 | 3 => {
                let compresses_to_the_end = version == 2;
                Some(Self { version, accounts: true, compresses: true, compresses_to_the_end, notices_loops: true })
            }
            _ => None,
        }
    }

    /// The rules that decide today.
    #[must_use]
    pub const fn current() -> Self {
        Self::of(MACHINE).expect("this program holds the rules it decides by")
    }
}
