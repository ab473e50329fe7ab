//! The live list: a row whenever an execution begins, changes its status or ends, for everybody who watches.
//!
//! One task follows what the log republishes while anybody watches, and folds executions only as far as a row needs it.
//! Republished messages may be lost: a hole in the sequences is found, and what it may concern is read from the log.

mod board;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use runtime::Runtime;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::executions::row;
use crate::problem::Failure;
use crate::service::Gateway;
use crate::sse;
use board::Board;

/// How long a change may wait for others of the same execution.
const COALESCE: Duration = Duration::from_millis(150);
/// Rows that a slow watcher may be behind; beyond, it is told that it missed some.
const BEHIND_MAX: usize = 1_024;
/// Executions read from the log between two rounds at most.
const READ_MAX: usize = 32;

/// A row, written out once for all.
type Written = Arc<str>;

/// Those who watch. One for each process.
#[derive(Clone, Default)]
pub(crate) struct Live(Arc<Mutex<Option<broadcast::Sender<Written>>>>);

impl Live {
    /// Rows from now on. The first who watches starts the following.
    async fn watch(&self, runtime: &Runtime) -> Result<broadcast::Receiver<Written>, Failure> {
        if let Some(rows) = self.join() {
            return Ok(rows);
        }
        let seen = runtime.bus.seen().await?;
        let mut there = self.0.lock().expect("no panic while the lock is held");
        // Somebody may have been faster.
        if let Some(rows) = there.as_ref() {
            return Ok(rows.subscribe());
        }
        let (rows, receiver) = broadcast::channel(BEHIND_MAX);
        *there = Some(rows.clone());
        runtime.tasks.spawn_background(follow(self.clone(), runtime.clone(), seen, rows));
        Ok(receiver)
    }

    fn join(&self) -> Option<broadcast::Receiver<Written>> {
        self.0.lock().expect("no panic while the lock is held").as_ref().map(broadcast::Sender::subscribe)
    }

    /// Whether nobody watches any more; whoever comes next starts anew.
    fn is_over(&self, rows: &broadcast::Sender<Written>) -> bool {
        let mut there = self.0.lock().expect("no panic while the lock is held");
        let over = rows.receiver_count() == 0;
        if over {
            *there = None;
        }
        over
    }
}

/// `GET /internal/executions/live`
pub(crate) async fn live(State(gateway): State<Arc<Gateway>>) -> Result<Response, Failure> {
    let rows = gateway.live.watch(&gateway.runtime).await?;
    let events = futures::stream::unfold(rows, |mut rows| async move {
        let event = match rows.recv().await {
            Ok(row) => Event::default().event("execution").data(&*row),
            Err(RecvError::Lagged(rows)) => sse::event("missed", None, &json!({"rows": rows})),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), rows))
    });
    let events = events.take_until(gateway.runtime.tasks.soft().cancelled_owned());
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(gateway.config.keep_alive_s));
    Ok(([("x-accel-buffering", "no")], Sse::new(events).keep_alive(keep_alive)).into_response())
}

async fn follow(live: Live, runtime: Runtime, mut seen: runtime::bus::Seen, rows: broadcast::Sender<Written>) {
    let mut board = Board::default();
    let mut round = tokio::time::interval(COALESCE);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = seen.next() => match message {
                Some(message) => board.take(&message),
                None => break,
            },
            _ = round.tick() => {
                for exec in board.unknown(READ_MAX) {
                    match runtime.bus.read_execution(exec, 0).await {
                        Ok(messages) => board.read(exec, &messages),
                        // It stays unknown, and is read in another round.
                        Err(error) => tracing::debug!(%exec, %error, "an execution was not read for the live list"),
                    }
                }
                for changed in board.changes() {
                    let _ = rows.send(row(&changed).to_string().into());
                }
                if live.is_over(&rows) {
                    return;
                }
            }
        }
    }
    // The connection is closed for good: those who watch are let go.
    *live.0.lock().expect("no panic while the lock is held") = None;
}
