//! How the jobs of one model are pulled: one for each free slot, until it is told to stop.

use std::sync::Arc;

use runtime::bus::Delivery;
use schemas::InferenceJob;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    backend::Backend,
    service::{RETRY_AFTER, Service},
    traced,
};

impl Service {
    /// Pulls until `stop` falls, which shutdown lets fall, too; then returns when no job is in hand any more.
    pub(crate) async fn pull(self: Arc<Self>, backend: Backend, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(backend.slots()));
        while !stop.is_cancelled() {
            self.pull_from_one_queue(&backend, &stop, &slots).await;
        }
        let all = u32::try_from(backend.slots()).unwrap_or(u32::MAX);
        // Closed semaphores give an error; this one never is.
        let _ = slots.acquire_many(all).await;
    }

    /// The same until the queue breaks.
    async fn pull_from_one_queue(
        self: &Arc<Self>,
        backend: &Backend,
        stop: &CancellationToken,
        slots: &Arc<Semaphore>,
    ) {
        let mut queue = match self.runtime.bus.inference_jobs(backend.name()).await {
            Ok(queue) => queue,
            Err(error) => {
                tracing::warn!(%error, "the job queue cannot be opened; trying again");
                stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
                return;
            }
        };
        loop {
            let next = async {
                // What cannot answer now takes nothing from those who can.
                backend.until_ready().await;
                let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
                (slot, queue.next().await)
            };
            let Some((slot, next)) = stop.run_until_cancelled(next).await else {
                match queue.close().await {
                    Ok(deliveries) => self.take_the_last(backend, slots, deliveries).await,
                    Err(error) => tracing::debug!(%error, "a queue was not closed; what was sent comes again"),
                }
                return;
            };
            match next {
                // Asked for while the backend was ready: it waits in the queue again, also for another worker.
                Ok(Some(delivery)) if !backend.is_ready() => give_back(delivery).await,
                Ok(Some(delivery)) => self.take(backend, slot, delivery),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the job queue broke; opening it anew");
                    stop.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
                    return;
                }
            }
        }
    }

    /// Jobs that the server had sent when the pulling stopped.
    async fn take_the_last(
        self: &Arc<Self>,
        backend: &Backend,
        slots: &Arc<Semaphore>,
        deliveries: Vec<Delivery<InferenceJob>>,
    ) {
        for delivery in deliveries {
            let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
            if backend.is_ready() {
                self.take(backend, slot, delivery);
            } else {
                give_back(delivery).await;
            }
        }
    }

    fn take(self: &Arc<Self>, backend: &Backend, slot: OwnedSemaphorePermit, delivery: Delivery<InferenceJob>) {
        let (this, backend) = (Arc::clone(self), backend.clone());
        let within = traced::within(&delivery.job);
        let work = async move {
            this.carry_out(&backend, delivery).await;
            drop(backend);
            drop(slot);
        };
        self.runtime.tasks.spawn(work.instrument(within));
    }
}

/// Puts a job back into its queue, for another worker or for later.
async fn give_back(delivery: Delivery<InferenceJob>) {
    if let Err(error) = delivery.retry(RETRY_AFTER).await {
        tracing::debug!(%error, "a job was not given back; it comes again by itself");
    }
}
