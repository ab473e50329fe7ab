//! How long a tool works before it tells what it has. The worker outside ends a call that takes longer, and then there is
//! nothing to tell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time that a tool gives itself.
#[derive(Debug)]
pub(in crate::tools) struct Budget {
    until: Instant,
    over: AtomicBool,
}

impl Budget {
    #[expect(clippy::disallowed_methods, reason = "a box has no other clock, and nothing in it is ever replayed")]
    pub(in crate::tools) fn new(time: Duration) -> Self {
        Self { until: Instant::now() + time, over: AtomicBool::new(false) }
    }

    /// Whether it is used up; what has been said is not taken back.
    #[expect(clippy::disallowed_methods, reason = "as above")]
    pub(in crate::tools) fn is_over(&self) -> bool {
        if !self.over.load(Ordering::Relaxed) && Instant::now() >= self.until {
            self.over.store(true, Ordering::Relaxed);
        }
        self.over.load(Ordering::Relaxed)
    }
}
