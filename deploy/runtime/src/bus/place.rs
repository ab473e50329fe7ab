//! How far the facts of each partition are dealt with.
//!
//! The server itself knows, by the partition's consumer. On disk that would be written through ten times a second for each
//! partition, which costs as much as half of the log; so where a partition has one copy, the consumer lives in the server's
//! memory, and what a server that was stopped forgets is written down here every few seconds. Facts behind that come again,
//! which does no harm. In a cluster the copies of a consumer are its memory, and it stays as it is.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::jetstream::stream::ConsumerErrorKind;
use schemas::{Partition, stream, subject};

use super::log::FACTS_CONSUMER;
use super::provision::ensure_consumer;
use super::{Bus, Error};

/// What is written down about a partition.
struct Kept {
    /// All facts up to this sequence are dealt with.
    done: u64,
    /// Of the entry; 0 when there is none.
    revision: u64,
}

impl Bus {
    /// Writes down how far the facts of a partition are dealt with, for a server that forgets it. Nothing is written where
    /// nothing has changed.
    ///
    /// # Errors
    /// When the server does not answer, or has no consumer for this partition.
    pub async fn keep_place(&self, partition: Partition) -> Result<(), Error> {
        if self.replicas > 1 {
            return Ok(());
        }
        let bucket = self.bucket(stream::BUCKET_OPEN).await?;
        // Read before the consumer is: what somebody writes in between counts.
        let kept = kept(&bucket, partition).await?;
        let done = match info(self, partition).await? {
            Some(info) => info.ack_floor.stream_sequence,
            None => return Err(Error::Broken(format!("partition {partition} has no consumer of its facts"))),
        };
        if done > kept.done { keep(&bucket, partition, done, kept.revision).await } else { Ok(()) }
    }
}

/// Makes the consumer of a partition's facts where it is missing, or does not know any more how far it was.
pub(super) async fn ensure_facts_consumer(
    bus: &Bus,
    partition: Partition,
    mut config: pull::Config,
) -> Result<(), Error> {
    let log = subject::log_stream(partition);
    if bus.replicas > 1 {
        return ensure_consumer(bus, &log, FACTS_CONSUMER, config).await;
    }
    let bucket = bus.bucket(stream::BUCKET_OPEN).await?;
    let kept = kept(&bucket, partition).await?;
    let mut done = kept.done;
    if let Some(info) = info(bus, partition).await? {
        let known = info.ack_floor.stream_sequence;
        if info.config.memory_storage && known >= kept.done {
            return Ok(());
        }
        // It forgot, or it is on disk.
        done = done.max(known);
        delete(bus, &log).await?;
    }
    // A log that lost its end has fewer messages than were dealt with: those that follow are new.
    done = done.min(bus.last_sequence(partition).await?);
    // Written even where it says the same: what somebody is about to write who has not heard of the loss is refused.
    keep(&bucket, partition, done, kept.revision).await?;
    config.memory_storage = true;
    config.num_replicas = 1;
    config.deliver_policy = match done {
        0 => DeliverPolicy::All,
        done => DeliverPolicy::ByStartSequence { start_sequence: done + 1 },
    };
    match ensure_consumer(bus, &log, FACTS_CONSUMER, config).await {
        // Somebody else made it at the same moment.
        Err(_) if info(bus, partition).await.is_ok_and(|info| info.is_some()) => Ok(()),
        made => made,
    }
}

async fn info(bus: &Bus, partition: Partition) -> Result<Option<Info>, Error> {
    let stream = bus.js.get_stream_no_info(subject::log_stream(partition)).await.map_err(Error::broken)?;
    match stream.consumer_info(FACTS_CONSUMER).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::broken(error)),
    }
}

/// One that is gone already is no error.
async fn delete(bus: &Bus, log: &str) -> Result<(), Error> {
    let stream = bus.js.get_stream_no_info(log).await.map_err(Error::broken)?;
    match stream.delete_consumer(FACTS_CONSUMER).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(refused) if refused.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(()),
            _ => Err(Error::broken(error)),
        },
    }
}

fn key(partition: Partition) -> String {
    format!("{partition}.facts")
}

async fn kept(bucket: &Store, partition: Partition) -> Result<Kept, Error> {
    let entry = bucket.entry(key(partition)).await.map_err(Error::broken)?;
    Ok(entry.map_or(Kept { done: 0, revision: 0 }, |entry| {
        // What cannot be read counts as nothing: then all facts come again.
        let done = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Kept { done, revision: entry.revision }
    }))
}

/// Unless somebody else has written meanwhile, who knows better.
async fn keep(bucket: &Store, partition: Partition, done: u64, revision: u64) -> Result<(), Error> {
    match bucket.update(key(partition), done.to_string().into(), revision).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(()),
        Err(error) => Err(Error::broken(error)),
    }
}
