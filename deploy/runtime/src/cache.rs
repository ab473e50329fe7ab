//! What processes tell each other to save work: results, and who is at which work. In Redis where one is named, else in
//! buckets of the bus. Never the truth: what is lost is computed again, and where nothing answers, everybody computes.
//!
//! A [`Lease`] says that nobody else is at the same work. Like every lease of a distributed system it may end without its
//! holder's knowing, for a process can stand still for longer than it lasts. So each has a number, greater than those of all
//! leases before it, and a result that is put under a lease is refused when a later one has put its own (fencing).

mod buckets;
mod config;
mod redis;

pub use config::Config;

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use schemas::presence;
use schemas::stream::{BUCKET_RESULTS, BUCKET_TOOL_RESULTS, LEASE_TTL};
use tokio::sync::oneshot;

use crate::Bus;
use buckets::Buckets;
use redis::Redis;

/// How often a lease is renewed while it lasts.
const RENEWALS: u32 = 3;
/// Digits of a fence in front of a value: a number of 64 bits.
const FENCE_DIGITS: usize = 16;

/// What is kept for whom. Keys mean something within one space only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Results of inferences that would come out the same again.
    Results,
    /// Results of tools that only read.
    ToolResults,
}

impl Space {
    const fn bucket(self) -> &'static str {
        match self {
            Self::Results => BUCKET_RESULTS,
            Self::ToolResults => BUCKET_TOOL_RESULTS,
        }
    }
}

/// Shared by all processes. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

struct Shared {
    means: Means,
    /// Whether the last call was answered; said in the log when it changes.
    answers: AtomicBool,
}

enum Means {
    Buckets(Box<Buckets>),
    Redis(Box<Redis>),
}

/// What is left of a call that got no answer.
type Answer<T> = Result<T, String>;

/// How an attempt at a lease went.
#[derive(Debug)]
pub enum Leased {
    /// Nobody else is at it.
    Yes(Lease),
    /// Somebody is.
    ToAnother,
    /// Nobody could be asked.
    Unknown,
}

/// The right to be at some work, renewed while this is held and given back when it is dropped.
#[derive(Debug)]
pub struct Lease {
    number: u64,
    is_lost: Arc<AtomicBool>,
    /// Its end tells the task that renews.
    _held: oneshot::Sender<()>,
}

impl Lease {
    /// Greater than that of every lease on the same work before.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is known to have ended. It may have ended unknown: only what is put under it tells.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

impl Cache {
    /// Keeps everything in buckets of the bus.
    #[must_use]
    pub fn on_bus(bus: Bus) -> Self {
        Self::of(Means::Buckets(Box::new(Buckets::new(bus))))
    }

    /// Keeps it where the configuration says. Nothing is connected before it is needed, and a server that is away is asked
    /// again: it holds up nobody's start.
    ///
    /// # Errors
    /// The configuration is wrong; the text names the key.
    pub fn open(config: &Config, bus: Bus) -> Result<Self, String> {
        let Some(server) = config.server()? else {
            tracing::info!("no Redis is named (cache.redis): results are shared in buckets of the bus");
            return Ok(Self::on_bus(bus));
        };
        let redis = Redis::new(&server, &config.prefix, Duration::from_millis(config.timeout_ms))?;
        tracing::info!(place = redis.place(), "results are shared in Redis");
        Ok(Self::of(Means::Redis(Box::new(redis))))
    }

    fn of(means: Means) -> Self {
        Self(Arc::new(Shared { means, answers: AtomicBool::new(true) }))
    }

    /// What was kept under a key; none also where nobody could be asked. Cancel safe.
    pub async fn get(&self, space: Space, key: &str) -> Option<Bytes> {
        let found = match &self.0.means {
            Means::Buckets(buckets) => self.told(buckets.get(space.bucket(), key)).await,
            Means::Redis(redis) => self.told(redis.get(space, key)).await,
        };
        found.flatten().and_then(|framed| (framed.len() >= FENCE_DIGITS).then(|| framed.slice(FENCE_DIGITS..)))
    }

    /// Keeps a value for so long, in buckets at most as long as they keep anything. Under a lease it is refused when a later
    /// lease has put one. Says whether it was kept.
    pub async fn put(&self, space: Space, key: &str, value: &[u8], keep: Duration, lease: Option<&Lease>) -> bool {
        if lease.is_some_and(Lease::is_lost) {
            return false;
        }
        let fence = lease.map_or(0, Lease::number);
        let framed = [format!("{fence:016x}").as_bytes(), value].concat();
        let kept = match &self.0.means {
            Means::Buckets(buckets) => {
                self.told(buckets.put(space.bucket(), key, framed.into(), lease.is_some())).await
            }
            Means::Redis(redis) => self.told(redis.put(space, key, &framed, keep)).await,
        };
        kept.unwrap_or(false)
    }

    /// Tries to be the only one at some work, which is known by its space and key.
    pub async fn lease(&self, space: Space, key: &str) -> Leased {
        let taken = match &self.0.means {
            Means::Buckets(buckets) => self.told(buckets.take(space.bucket(), key)).await,
            Means::Redis(redis) => self.told(redis.take(space, key)).await,
        };
        match taken {
            Some(Some(number)) => Leased::Yes(self.held(space, key, number)),
            Some(None) => Leased::ToAnother,
            None => Leased::Unknown,
        }
    }

    /// Renews a lease until it is dropped, and gives it back.
    #[expect(
        clippy::disallowed_methods,
        reason = "ends with the lease; who ends at once leaves one behind that lapses"
    )]
    fn held(&self, space: Space, key: &str, number: u64) -> Lease {
        let (held, mut dropped) = oneshot::channel::<()>();
        let is_lost = Arc::new(AtomicBool::new(false));
        let (this, key, lost) = (self.clone(), key.to_owned(), Arc::clone(&is_lost));
        tokio::spawn(async move {
            loop {
                if tokio::time::timeout(LEASE_TTL / RENEWALS, &mut dropped).await.is_ok() {
                    break;
                }
                let still = match &this.0.means {
                    Means::Buckets(buckets) => this.told(buckets.renew(space.bucket(), &key, number)).await,
                    Means::Redis(redis) => this.told(redis.renew(space, &key, number)).await,
                };
                // Unanswered is not lost: it is asked again, and what is put is compared anyway.
                if still == Some(false) {
                    lost.store(true, Ordering::Release);
                    return;
                }
            }
            match &this.0.means {
                Means::Buckets(buckets) => this.told(buckets.give_back(space.bucket(), &key, number)).await,
                Means::Redis(redis) => this.told(redis.give_back(space, &key, number)).await,
            };
        });
        Lease { number, is_lost, _held: held }
    }

    /// Where it is, for people, and why nothing can be had from there, if so. Asks.
    pub async fn state(&self) -> presence::Cache {
        let (store, asked) = match &self.0.means {
            Means::Buckets(buckets) => ("NATS".to_owned(), self.answered(buckets.ping()).await),
            Means::Redis(redis) => (format!("Redis at {}", redis.place()), self.answered(redis.ping()).await),
        };
        presence::Cache { store, trouble: asked.err() }
    }

    async fn told<T>(&self, call: impl Future<Output = Answer<T>>) -> Option<T> {
        self.answered(call).await.ok()
    }

    async fn answered<T>(&self, call: impl Future<Output = Answer<T>>) -> Answer<T> {
        let answer = call.await;
        let before = self.0.answers.swap(answer.is_ok(), Ordering::AcqRel);
        match &answer {
            Err(why) if before => tracing::warn!(%why, "results are not shared: every process computes for itself"),
            Err(why) => tracing::debug!(%why, "results are not shared"),
            Ok(_) if !before => tracing::info!("results are shared again"),
            Ok(_) => {}
        }
        answer
    }
}

fn told(error: impl Display) -> String {
    error.to_string()
}

/// The lease that a framed value was put under.
fn fence(framed: &[u8]) -> u64 {
    let digits = framed.get(..FENCE_DIGITS).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}
