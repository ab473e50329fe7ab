//! Tracked tasks and shutdown in two phases.
//!
//! The *soft* token stops intake and lets work in hand finish; the *hard* token ends the rest. Every task is spawned
//! here, so none is an orphan; a task that ends with an error starts the same shutdown.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where tasks are spawned. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
}

impl Tasks {
    /// A fresh tree of tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when no new work should be taken.
    #[must_use]
    pub fn soft(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Cancelled when work in hand must end, too.
    #[must_use]
    pub fn hard(&self) -> CancellationToken {
        self.hard.clone()
    }

    /// Spawns a task that ends by itself or at the hard token, at which it is dropped.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let hard = self.hard.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = hard.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Spawns a task the process cannot do without: when it fails, the process shuts down and says why.
    pub fn spawn_essential<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let tasks = self.clone();
        self.spawn(async move {
            if let Err(error) = task.await {
                tracing::error!(task = name, %error, "an essential task failed; shutting down");
                tasks.fail(format!("{name}: {error}"));
            }
        });
    }

    /// Records why the process ends and starts the shutdown.
    pub fn fail(&self, why: String) {
        self.failure.lock().expect("no panic while the lock is held").get_or_insert(why);
        self.soft.cancel();
    }

    /// Why the process ends, if something failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no panic while the lock is held").clone()
    }

    /// Starts the shutdown.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Waits for the shutdown to begin and then for all tasks: at most `grace`, after which the hard token falls.
    /// Returns whether everything ended by itself.
    pub async fn drained(&self, grace: Duration) -> bool {
        self.soft.cancelled().await;
        self.tracker.close();
        let in_time = tokio::select! {
            () = self.tracker.wait() => true,
            () = tokio::time::sleep(grace) => false,
            () = self.hard.cancelled() => false,
        };
        self.hard.cancel();
        self.tracker.wait().await;
        in_time
    }
}
