//! Executions as rows: follows the log and folds it into tables, which answer what no single log can: which executions
//! there are, what tools they called, how fast models are. Beside the core, and never in its way: the orchestrator works
//! on whatever becomes of the database.
//!
//! The tables are derived from the log alone and can be dropped at any time. Each message counts exactly once, whoever
//! dies in between: the position of each partition is written in the same transaction as the rows, on condition that
//! nobody has moved it ([`store`]). Several orchestrators that share a database take turns at each partition; the server
//! sees to that, and the tables are right without it.
//!
//! | module | |
//! |---|---|
//! | `config` | where the tables are |
//! | `fold` | what a run of messages changes: pure |
//! | `store` | opens the tables, writes runs |
//! | `queries` | reads them |
//! | `follow` | from the log into the store |
//! | `questions` | answers on the bus |

mod config;
mod fold;
mod follow;
mod queries;
mod questions;
mod store;

pub use config::Config;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use runtime::{Runtime, bus};
use schemas::Partition;
use tokio::sync::{Notify, watch};

use config::Target;
use store::Store;

/// Pauses before a database that did not answer is asked again: they double up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Messages not in the tables from which on they count as being built.
const BUILDING: u64 = 5_000;

/// Who finds out whether the tables answer at all.
const LOOK: &str = "the tables";

/// The projection could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// A metric was registered twice.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What the parts of a projection share.
pub(crate) struct Shared {
    runtime: Runtime,
    target: Target,
    /// Tells this log from others.
    log: String,
    /// The tables, once they are open.
    store: watch::Sender<Option<Store>>,
    /// Why the database cannot be used, by who found out.
    troubles: Mutex<BTreeMap<String, String>>,
    /// Up to where each partition was known to be in the tables.
    positions: Mutex<BTreeMap<Partition, u64>>,
    /// Tables of another log are taken over: somebody has said so.
    take_over: AtomicBool,
    /// Somebody has changed the positions: look at them again.
    moved: BTreeMap<Partition, Notify>,
    /// Open the tables now.
    open: Notify,
    lag: IntGauge,
    messages: IntCounter,
}

/// Begins to project executions, and to answer questions about them, until the soft token falls. The database may come
/// later, and go and come again.
///
/// # Errors
/// When a setting is wrong, or the bus does not answer.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    config.check().map_err(Error::Config)?;
    if !config.enabled {
        return Ok(());
    }
    let log = runtime.bus.log_identity().await?;
    let lag = IntGauge::new("vlinders_projection_lag_messages", "Messages of the log that are in no table yet")?;
    let messages = IntCounter::new("vlinders_projection_messages_total", "Messages that this process put into tables")?;
    runtime.metrics.register(Box::new(lag.clone()))?;
    runtime.metrics.register(Box::new(messages.clone()))?;
    let shared = Arc::new(Shared {
        target: config.target(&log).map_err(Error::Config)?,
        log,
        store: watch::Sender::new(None),
        troubles: Mutex::default(),
        positions: Mutex::default(),
        take_over: AtomicBool::new(false),
        moved: Partition::all().map(|partition| (partition, Notify::new())).collect(),
        open: Notify::new(),
        lag,
        messages,
        runtime: runtime.clone(),
    });
    questions::serve(&shared).await?;
    // Following holds up no shutdown: what was not written is followed anew.
    runtime.tasks.spawn_background(follow::run(shared));
    Ok(())
}

impl Shared {
    /// The tables, or why they cannot be asked now.
    fn store(&self) -> Result<Store, String> {
        if let Some(trouble) = self.troubles.lock().expect("no panic while the lock is held").get(LOOK) {
            return Err(trouble.clone());
        }
        let opening = || self.trouble().unwrap_or_else(|| "the database is being opened".to_owned());
        self.opened().ok_or_else(opening)
    }

    /// The tables, whether they answer or not; none before they have been opened.
    fn opened(&self) -> Option<Store> {
        self.store.borrow().clone()
    }

    fn trouble(&self) -> Option<String> {
        self.troubles.lock().expect("no panic while the lock is held").values().next().cloned()
    }

    /// Notes how the database took what `who` asked of it. Each change is logged once.
    fn note(&self, who: &str, trouble: Option<String>) {
        let mut troubles = self.troubles.lock().expect("no panic while the lock is held");
        let was = !troubles.is_empty();
        match trouble {
            None => drop(troubles.remove(who)),
            Some(trouble) => {
                if !was {
                    let database = self.target.name();
                    tracing::warn!(database, %trouble, "executions are not projected for now; trying again");
                }
                troubles.insert(who.to_owned(), trouble);
                return;
            }
        }
        if was && troubles.is_empty() {
            tracing::info!(database = self.target.name(), "executions are projected again");
        }
    }

    fn set_position(&self, partition: Partition, sequence: u64) {
        self.positions.lock().expect("no panic while the lock is held").insert(partition, sequence);
    }

    fn position(&self, partition: Partition) -> Option<u64> {
        self.positions.lock().expect("no panic while the lock is held").get(&partition).copied()
    }

    /// Wakes whoever follows a partition: its position is no longer what it was.
    fn nudge(&self, partition: Partition) {
        if let Some(moved) = self.moved.get(&partition) {
            moved.notify_one();
        }
    }

    fn takes_over(&self) -> bool {
        self.take_over.load(Ordering::Relaxed)
    }
}

/// Pauses that double.
struct Backoff(Duration);

impl Backoff {
    const fn new() -> Self {
        Self(PAUSE)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        pause
    }
}
