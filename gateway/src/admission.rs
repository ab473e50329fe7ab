//! Who is let in: as many requests as may be open, shared fairly among users, and none for a queue that is full.
//!
//! A refusal is told at once, with the seconds after which it is worth asking again. These are spread: clients that are
//! refused together do not all come back in the same moment, to be refused together again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::{Bus, Tasks};
use schemas::stream;

use crate::config::Config;
use crate::problem::Failure;

/// How often the queue is looked at: a burst of that length may be accepted beyond its bound.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Weight of the newest look at how fast the queue moves.
const NEWEST: f64 = 0.2;
/// Seconds after which the first of those that are refused is asked to come back, at most; the last is asked for twice that.
const RETRY_AFTER_MAX_S: u64 = 30;

/// Counts what is open. One for each process; cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    open_max: usize,
    per_user_max: usize,
    queued_max: u64,
    open: Arc<Mutex<Open>>,
    queue: Arc<Queue>,
    refusals: Arc<AtomicU64>,
}

#[derive(Default)]
struct Open {
    all: usize,
    users: BTreeMap<String, usize>,
}

/// The inference queue as of the newest look.
#[derive(Default)]
struct Queue {
    waiting: AtomicU64,
    /// Jobs that are done in a thousand seconds.
    rate: AtomicU64,
}

/// One request is open while this lives.
pub(crate) struct Admitted {
    open: Arc<Mutex<Open>>,
    user: Option<String>,
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        let open_max = config.requests_open_max;
        // Whoever comes new finds a place beside the largest user.
        let default = (open_max - open_max / 4).max(1);
        Self {
            open_max,
            per_user_max: config.requests_open_per_user_max.unwrap_or(default),
            queued_max: config.jobs_queued_max,
            open: Arc::default(),
            queue: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// Looks at the queue for as long as the process serves.
    pub(crate) fn watch(&self, bus: &Bus, tasks: &Tasks) {
        let (queue, bus, soft) = (Arc::clone(&self.queue), bus.clone(), tasks.soft());
        tasks.spawn_background(async move {
            let mut done_before = None;
            let mut rate = 0.0;
            while !soft.is_cancelled() {
                // Without an answer nothing is known, and nothing is refused for it.
                let (waiting, done) = bus.queue_depth(stream::INFERENCE_JOBS).await.unwrap_or_default();
                if let Some(before) = done_before.replace(done) {
                    let done = done.saturating_sub(before) as f64 / LOOK_EVERY.as_secs_f64();
                    rate += NEWEST * (done - rate);
                }
                queue.waiting.store(waiting, Ordering::Relaxed);
                queue.rate.store((rate * 1_000.0) as u64, Ordering::Relaxed);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// Lets a request of this user in.
    ///
    /// # Errors
    /// Too much is open, or too much of this user's, or what it would wait behind.
    pub(crate) fn enter(&self, user: Option<&str>) -> Result<Admitted, Failure> {
        let waiting = self.queue.waiting.load(Ordering::Relaxed);
        if waiting >= self.queued_max {
            let detail = format!("{waiting} inferences wait already");
            return Err(self.refuse("queue_full", detail, "send it again later, or start more inference workers"));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.open_max {
            let detail = format!("{} requests are open already", self.open_max);
            return Err(self.refuse("queue_full", detail, "send it again later, or start more gateways"));
        }
        if let Some(user) = user {
            let mine = open.users.get(user).copied().unwrap_or(0);
            let share = share(self.open_max, &open, mine > 0).min(self.per_user_max);
            if mine >= share {
                let detail =
                    format!("{mine} requests of user {user:?} are open already, its share of {}", self.open_max);
                return Err(self.refuse("user_queue_full", detail, "wait until some of them have ended"));
            }
            *open.users.entry(user.to_owned()).or_default() += 1;
        }
        open.all += 1;
        drop(open);
        Ok(Admitted { open: Arc::clone(&self.open), user: user.map(str::to_owned) })
    }

    fn refuse(&self, code: &str, detail: String, next: &str) -> Failure {
        let (waiting, rate) = (&self.queue.waiting, &self.queue.rate);
        let (waiting, rate) = (waiting.load(Ordering::Relaxed), rate.load(Ordering::Relaxed));
        // As long as half of what waits takes; a second where nothing is known.
        let seconds = (waiting * 500).checked_div(rate).unwrap_or(1).clamp(1, RETRY_AFTER_MAX_S);
        // Up to as long again, in turn.
        let later = self.refusals.fetch_add(1, Ordering::Relaxed) % (seconds + 1);
        Failure::new(429, code, detail, next).retry_after(seconds + later)
    }
}

/// What one user may hold: an equal part of all, for those who hold anything.
fn share(open_max: usize, open: &Open, counted: bool) -> usize {
    let users = open.users.len() + usize::from(!counted);
    (open_max / users.max(1)).max(1)
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        let Some(user) = &self.user else { return };
        if let Some(mine) = open.users.get_mut(user) {
            *mine -= 1;
            if *mine == 0 {
                open.users.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(open_max: usize) -> Admission {
        Admission::new(&Config { requests_open_max: open_max, jobs_queued_max: 10, ..Config::default() })
    }

    fn code(admission: &Admission, user: Option<&str>) -> String {
        admission.enter(user).err().expect("refused").0.code
    }

    #[test]
    fn one_user_leaves_room_and_two_share_it() {
        let admission = admission(8);
        let mut ann: Vec<Admitted> = (0..6).map(|_| admission.enter(Some("ann")).expect("room")).collect();
        assert_eq!(code(&admission, Some("ann")), "user_queue_full", "a quarter is for others");
        let _bob: Vec<Admitted> = (0..2).map(|_| admission.enter(Some("bob")).expect("room")).collect();
        assert_eq!(code(&admission, Some("bob")), "queue_full");
        assert_eq!(code(&admission, None), "queue_full");
        ann.truncate(5);
        assert_eq!(code(&admission, Some("ann")), "user_queue_full", "half is for bob now");
        admission.enter(Some("bob")).expect("his share is not used up");
        ann.clear();
        assert!(admission.open.lock().unwrap().users.keys().eq(["bob"]), "who holds nothing is forgotten");
    }

    #[test]
    fn a_full_queue_says_how_long_to_wait() {
        let admission = admission(8);
        let wait = |waiting, rate| {
            admission.queue.waiting.store(waiting, Ordering::Relaxed);
            admission.queue.rate.store(rate, Ordering::Relaxed);
            let failure = admission.enter(None).err().expect("refused");
            assert_eq!((failure.0.status, failure.0.code.as_str()), (429, "queue_full"));
            failure.0.retry_after_s
        };
        assert_eq!(wait(10, 0), Some(1), "nobody knows");
        assert_eq!(wait(10, 0), Some(2), "the next of a crowd comes later");
        assert_eq!(wait(10, 0), Some(1));
        assert_eq!(wait(40, 2_000), Some(10 + 3), "half of 40 at two a second, for the fourth");
        assert_eq!(wait(1_000_000, 1_000), Some(30 + 4), "the longest, for the fifth");
        assert_eq!(wait(1_000_000, 1_000), Some(30 + 5));
    }
}
