//! How far the facts of each partition are dealt with.
//!
//! The server itself knows, by the partition's consumer. On disk that would be written through ten times a second for each
//! partition, which costs as much as half of the log; so where a partition has one copy, the consumer lives in the server's
//! memory, and what a server that was stopped forgets is written down here every few seconds. Facts behind that come again,
//! which does no harm. Where a stream has several copies, its consumer is on disk, as the server makes it.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::jetstream::stream::ConsumerErrorKind;
use schemas::wire::Nanos;
use schemas::{Partition, stream, subject};
use serde_json::json;

use super::log::{FACTS_CONSUMER, direct_get, sequence as sequence_of, stored_at};
use super::provision::{ensure_consumer, facts_consumer};
use super::{Bus, Error};

/// Times a consumer is looked at anew because somebody else was making it, too.
const TRIES: usize = 8;

/// A place in a partition: all facts up to it are dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Sequence of a message; 0 before the first.
    sequence: u64,
    /// When that message was stored. A log that lost its end gives its sequences to other messages.
    stored_at: Nanos,
}

/// What is written down about a partition.
struct Kept {
    place: Place,
    /// Of the entry; 0 when there is none.
    revision: u64,
}

impl Bus {
    /// Writes down how far the facts of a partition are dealt with, for a server that forgets it; one that did is told.
    /// Nothing is written where nothing has changed.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn keep_place(&self, partition: Partition) -> Result<(), Error> {
        let bucket = self.bucket(stream::BUCKET_OPEN).await?;
        // Read before the consumer is: what somebody writes in between counts.
        let kept = kept(&bucket, partition).await?;
        let done = match info(self, partition).await? {
            Some(info) if !info.config.memory_storage => return Ok(()),
            Some(info) if info.ack_floor.stream_sequence >= kept.place.sequence => info.ack_floor.stream_sequence,
            _ if self.provisions => return facts_consumer(self, partition).await,
            _ => return Err(Error::Broken(format!("partition {partition} has no consumer that knows how far it is"))),
        };
        if done == kept.place.sequence {
            return Ok(());
        }
        let place = Place { sequence: done, stored_at: message_at(self, partition, done).await?.unwrap_or_default() };
        keep(&bucket, partition, place, kept.revision).await.map(drop)
    }
}

/// Whether a stream has one copy, whose consumers are better kept in memory.
pub(super) async fn is_single(bus: &Bus, stream: &str) -> Result<bool, Error> {
    let stream = bus.js.get_stream(stream).await.map_err(Error::broken)?;
    Ok(stream.cached_info().config.num_replicas <= 1)
}

/// Makes the consumer of a partition's facts where it is missing, is not where it should be, or does not know any more how
/// far it was.
pub(super) async fn ensure_facts_consumer(bus: &Bus, partition: Partition, config: pull::Config) -> Result<(), Error> {
    let log = subject::log_stream(partition);
    let (single, bucket) = (is_single(bus, &log).await?, bus.bucket(stream::BUCKET_OPEN).await?);
    for _ in 0..TRIES {
        let kept = kept(&bucket, partition).await?;
        let found = info(bus, partition).await?;
        let known = found.as_ref().map(|info| info.ack_floor.stream_sequence);
        if let (Some(info), Some(known)) = (&found, known)
            && info.config.memory_storage == single
            && known >= kept.place.sequence
        {
            return Ok(());
        }
        let place = match known.filter(|known| *known >= kept.place.sequence) {
            Some(sequence) => {
                Place { sequence, stored_at: message_at(bus, partition, sequence).await?.unwrap_or_default() }
            }
            // A log that lost its end, or is another one: what was dealt with there says nothing about what is here.
            None if message_at(bus, partition, kept.place.sequence).await? != Some(kept.place.stored_at) => {
                Place::default()
            }
            None => kept.place,
        };
        // Written even where it says the same: what somebody is about to write who has not heard of the loss is refused.
        if !keep(&bucket, partition, place, kept.revision).await? {
            continue;
        }
        if found.is_some() {
            delete(bus, &log).await?;
        }
        let mut config = config.clone();
        if single {
            (config.memory_storage, config.num_replicas) = (true, 1);
        }
        config.deliver_policy = match place.sequence {
            0 => DeliverPolicy::All,
            done => DeliverPolicy::ByStartSequence { start_sequence: done + 1 },
        };
        return match ensure_consumer(bus, &log, FACTS_CONSUMER, config).await {
            // Somebody else made it at the same moment.
            Err(_) if info(bus, partition).await.is_ok_and(|info| info.is_some()) => Ok(()),
            made => made,
        };
    }
    Err(Error::Broken(format!("others write all the time how far partition {partition} is")))
}

/// When the message of a sequence was stored; none when there is no such message.
async fn message_at(bus: &Bus, partition: Partition, sequence: u64) -> Result<Option<Nanos>, Error> {
    if sequence == 0 {
        return Ok(Some(0));
    }
    let request = json!({"seq": sequence, "next_by_subj": ">", "batch": 1});
    let found = direct_get(&bus.log, &subject::log_stream(partition), &request).await?;
    Ok(found.first().filter(|message| sequence_of(message).is_ok_and(|s| s == sequence)).and_then(stored_at))
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
    Ok(entry.map_or(Kept { place: Place::default(), revision: 0 }, |entry| {
        // What cannot be read counts as nothing: then all facts come again.
        let place = std::str::from_utf8(&entry.value).ok().and_then(read).unwrap_or_default();
        Kept { place, revision: entry.revision }
    }))
}

fn read(text: &str) -> Option<Place> {
    let (sequence, stored_at) = text.split_once(' ')?;
    Some(Place { sequence: sequence.parse().ok()?, stored_at: stored_at.parse().ok()? })
}

/// False when somebody else has written meanwhile.
async fn keep(bucket: &Store, partition: Partition, place: Place, revision: u64) -> Result<bool, Error> {
    let value = format!("{} {}", place.sequence, place.stored_at);
    match bucket.update(key(partition), value.into(), revision).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
        Err(error) => Err(Error::broken(error)),
    }
}
