//! Answers questions about executions on the bus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::bus;
use schemas::executions::{AskPerformance, AskProjection, ListExecutions, ListToolCalls, Projection, ProjectionState};
use schemas::rpc::{Refusal, Reply};
use schemas::{Partition, subject};

use super::Shared;
use super::store::{self, rebuilding};

/// How long tables of another log may take to be opened when they are taken over.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// How long the database may take to say how far the tables are.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// Serves them until the soft token falls.
pub(super) async fn serve(shared: &Arc<Shared>) -> Result<(), bus::Error> {
    let (bus, tasks) = (&shared.runtime.bus, &shared.runtime.tasks);
    let of = shared.clone();
    let list = move |asked: ListExecutions| {
        let shared = of.clone();
        async move {
            match shared.store() {
                Ok(store) => answer(store.executions(&asked).await),
                Err(why) => away(why),
            }
        }
    };
    bus.serve(tasks, subject::RPC_EXECUTIONS, list).await?;
    let of = shared.clone();
    let calls = move |asked: ListToolCalls| {
        let shared = of.clone();
        async move {
            match shared.store() {
                Ok(store) => answer(store.tool_calls(asked).await),
                Err(why) => away(why),
            }
        }
    };
    bus.serve(tasks, subject::RPC_TOOL_CALLS, calls).await?;
    let of = shared.clone();
    let performance = move |asked: AskPerformance| {
        let shared = of.clone();
        async move {
            match shared.store() {
                Ok(store) => answer(store.performance(asked.since).await),
                Err(why) => away(why),
            }
        }
    };
    bus.serve(tasks, subject::RPC_PERFORMANCE, performance).await?;
    let of = shared.clone();
    let projection = move |asked: AskProjection| {
        let shared = of.clone();
        async move {
            match asked {
                AskProjection::Status => Reply::Ok(status(&shared).await),
                AskProjection::Rebuild => match rebuild(&shared).await {
                    Ok(()) => Reply::Ok(status(&shared).await),
                    Err(why) => away(why),
                },
            }
        }
    };
    bus.serve(tasks, subject::RPC_PROJECTION, projection).await
}

fn answer<T>(found: Result<T, store::Error>) -> Reply<T> {
    match found {
        Ok(answer) => Reply::Ok(answer),
        Err(error) => away(error.to_string()),
    }
}

fn away<T>(detail: String) -> Reply<T> {
    Reply::Err(Refusal { code: "projection_away".to_owned(), detail })
}

async fn status(shared: &Shared) -> Projection {
    let database = shared.target.name();
    let found = match shared.store() {
        Err(why) => Err(why),
        Ok(store) => match tokio::time::timeout(LOOK_WITHIN, store.positions()).await {
            Ok(positions) => positions.map_err(|error| error.to_string()),
            Err(_) => Err(shared.trouble().unwrap_or_else(|| "the database does not answer".to_owned())),
        },
    };
    let last = shared.runtime.bus.last_sequences().await.ok();
    let lag = |held: &BTreeMap<Partition, u64>| {
        let held = |partition: &Partition| held.get(partition).copied().unwrap_or(0);
        let lag = last.as_ref().map(|last| last.iter().map(|(partition, last)| last.saturating_sub(held(partition))));
        lag.map(Iterator::sum::<u64>)
    };
    match found {
        Ok(positions) => {
            let rebuilding = rebuilding(&positions);
            let held: BTreeMap<_, _> = positions.iter().map(|(partition, at)| (*partition, at.sequence)).collect();
            let state = if rebuilding.is_some() { ProjectionState::Rebuilding } else { ProjectionState::Following };
            let (lag_messages, positions) = (lag(&held), held.into_values().collect());
            Projection { database, state, trouble: shared.trouble(), rebuilding, lag_messages, positions }
        }
        Err(why) => {
            let held = shared.positions.lock().expect("no panic while the lock is held").clone();
            let (lag_messages, positions) = (lag(&held), held.into_values().collect());
            let state = ProjectionState::Away;
            Projection { database, state, trouble: Some(why), rebuilding: None, lag_messages, positions }
        }
    }
}

/// Empties the tables and lets everybody who follows begin anew.
async fn rebuild(shared: &Shared) -> Result<(), String> {
    let Some(store) = shared.opened() else {
        // Tables of another log are opened, and emptied with that, once somebody has said so.
        shared.take_over.store(true, Ordering::Relaxed);
        shared.open.notify_one();
        let mut opened = shared.store.subscribe();
        let waited = tokio::time::timeout(OPEN_WITHIN, opened.wait_for(Option::is_some)).await.is_ok();
        shared.take_over.store(false, Ordering::Relaxed);
        return if waited { Ok(()) } else { shared.store().map(drop) };
    };
    let last = shared.runtime.bus.last_sequences().await.map_err(|error| error.to_string())?;
    store.clear(&last).await.map_err(|error| error.to_string())?;
    for partition in Partition::all() {
        shared.nudge(partition);
    }
    Ok(())
}
