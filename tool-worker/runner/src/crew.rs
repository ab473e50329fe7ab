//! Threads for the tools that are worth more than one.
//!
//! Once a runner has locked itself up, nothing can start a thread any more. So a few are started just before the last lock,
//! with all that was given up by then, and wait. The last lock falls for all of them together.

use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;

/// Threads of a runner at most, its first one included. A search of a tree that is in memory spends most of its time in the
/// kernel, and gains little from more.
const THREADS_MAX: usize = 8;
/// Stack of a thread. What it runs keeps its data elsewhere.
const STACK_BYTES: usize = 512 << 10;

/// What every thread is given to do.
type Work = Arc<dyn Fn() + Send + Sync>;

/// Threads that wait for work.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    hands: Vec<Sender<Work>>,
}

impl Crew {
    /// Starts what the processors are enough for, besides this thread. When it returns, every one of them has done what a
    /// thread does at its start, so that nothing of that is left for when it would be refused.
    pub(crate) fn start() -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        let all_wait = Arc::new(Barrier::new(threads));
        let mut hands = Vec::new();
        for _ in 1..threads {
            let (sender, work) = channel::<Work>();
            let all_wait = all_wait.clone();
            thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
                all_wait.wait();
                work.into_iter().for_each(|work| work());
            })?;
            hands.push(sender);
        }
        all_wait.wait();
        Ok(Self { hands })
    }

    /// How many there are.
    pub(crate) fn hands(&self) -> u64 {
        self.hands.len() as u64
    }

    /// Has all of them do the same; does not wait. One that panics is gone, and so is its part of the work.
    pub(crate) fn give(&self, work: &Work) {
        for hand in &self.hands {
            let _ = hand.send(work.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_hand_does_the_work_once_and_a_panic_takes_only_its_own() {
        let crew = Crew::start().unwrap();
        let (done, told) = channel();
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let work: Work = Arc::new(move || {
            let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            done.send(()).unwrap();
            assert!(!first, "the first of them falls");
        });
        crew.give(&work);
        drop(work);
        // The channel closes when all are through with it, fallen or not.
        assert_eq!(told.iter().count() as u64, crew.hands());
        assert_eq!(count.load(Ordering::Relaxed), crew.hands());
    }
}
