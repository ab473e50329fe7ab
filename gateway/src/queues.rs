//! Shows what waits: the jobs of each work queue, and dead letters.
//!
//! Any process might ask; a gateway may, because it lets nobody in for whom there is no room. Every gateway shows the same.

use std::time::Duration;

use runtime::{Bus, Tasks, clock};
use schemas::stream;

use crate::metrics::Metrics;

/// How often it is asked: some ten cheap questions each time.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The work queues, by what they are called in figures.
const QUEUES: [(&str, &str); 3] =
    [("inference", stream::INFERENCE_JOBS), ("tools", stream::TOOL_JOBS), ("analysis", stream::ANALYSIS_JOBS)];

/// Looks at the queues for as long as the process serves.
pub(crate) fn watch(bus: &Bus, metrics: &Metrics, tasks: &Tasks) {
    let (bus, metrics, soft) = (bus.clone(), metrics.clone(), tasks.soft());
    tasks.spawn_background(async move {
        while !soft.is_cancelled() {
            look(&bus, &metrics).await;
            soft.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
    });
}

async fn look(bus: &Bus, metrics: &Metrics) {
    for (name, stream) in QUEUES {
        let backlog = bus.backlog(stream).await;
        if let Err(error) = &backlog {
            tracing::debug!(queue = name, %error, "a queue did not say what it holds");
        }
        metrics.queue(name, backlog.ok(), clock::now());
    }
    if let Ok(waiting) = bus.dead_letters_waiting().await {
        metrics.dead_letters(waiting);
    }
}
