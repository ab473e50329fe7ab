//! What waits where: the streams and buckets of the bus, what they hold, and how far each one's consumers are; and of the
//! work queues, how many jobs wait and for how long.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::Message;
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{Info, StorageType};
use futures::TryStreamExt;
use schemas::stream;
use schemas::wire::Nanos;
use serde_json::json;

use super::log::direct_get;
use super::pull::header;
use super::{Bus, Error};
use crate::clock;

/// A stream, or the stream that a bucket is, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Its name.
    pub name: String,
    /// In memory: gone with the server.
    pub in_memory: bool,
    /// Messages that it holds.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages at most.
    pub messages_max: Option<u64>,
    /// Bytes at most.
    pub bytes_max: Option<u64>,
    /// Age at which messages go.
    pub age_max: Option<Duration>,
    /// When its oldest message was stored; none when it holds none.
    pub first_at: Option<Nanos>,
    /// When its newest message was stored.
    pub last_at: Option<Nanos>,
    /// Its durable consumers, sorted by name.
    pub consumers: Vec<ConsumerState>,
}

/// How far a consumer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// Its name.
    pub name: String,
    /// Messages that nobody was given yet.
    pub pending: u64,
    /// Messages that somebody has and has not finished.
    pub ack_pending: u64,
    /// Of those, the ones that were handed out more than once.
    pub redelivered: u64,
    /// Pulls that wait for a message.
    pub waiting: u64,
    /// When the oldest message that nobody has finished was stored.
    pub oldest_at: Option<Nanos>,
}

/// The jobs of a work queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs that no worker was given yet, those among them whose workers have never been there.
    pub waiting: u64,
    /// Of these, jobs whose workers have never been there.
    pub unserved: u64,
    /// Jobs that a worker has and has not finished.
    pub held: u64,
    /// When the oldest job that waits for workers who are or were there was stored.
    pub oldest_at: Option<Nanos>,
}

impl Bus {
    /// The jobs of a work queue. Two questions, and one more for each consumer that has not given all of its jobs away.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn backlog(&self, stream: &str) -> Result<Backlog, Error> {
        let stream = self.js.get_stream(stream).await.map_err(Error::broken)?;
        let consumers: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(Error::broken)?;
        let held = consumers.iter().map(|info| info.num_ack_pending as u64).sum();
        let behind = consumers.iter().filter(|info| info.num_pending > 0);
        let oldest = behind.map(|info| self.first_from(info, info.delivered.stream_sequence + 1));
        let oldest = futures::future::try_join_all(oldest).await?;
        let waiting = stream.cached_info().state.messages.saturating_sub(held);
        let served: u64 = consumers.iter().map(|info| info.num_pending).sum();
        Ok(Backlog {
            waiting,
            unserved: waiting.saturating_sub(served),
            held,
            oldest_at: oldest.into_iter().flatten().min(),
        })
    }

    /// Every stream and bucket of this system that the server holds, sorted by name.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn queues(&self) -> Result<Vec<StreamState>, Error> {
        let ours: BTreeSet<String> = (stream::streams().into_iter().map(|definition| definition.name))
            .chain(stream::BUCKETS.iter().map(|bucket| format!("KV_{}", bucket.name)))
            .chain([format!("OBJ_{}", stream::BUCKET_OBJECTS)])
            .collect();
        let found: Vec<Info> = self.js.streams().try_collect().await.map_err(Error::broken)?;
        let found = found.into_iter().filter(|info| ours.contains(&info.config.name));
        let mut streams: Vec<StreamState> =
            futures::future::try_join_all(found.map(|info| self.stream_state(info))).await?;
        streams.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(streams)
    }

    async fn stream_state(&self, info: Info) -> Result<StreamState, Error> {
        let (config, state) = (&info.config, &info.state);
        let mut consumers = Vec::new();
        if state.consumer_count > 0 {
            let stream = self.js.get_stream_no_info(&config.name).await.map_err(Error::broken)?;
            let found: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(Error::broken)?;
            // Others come and go with those who look at a bucket.
            let durable = found.into_iter().filter(|info| info.config.durable_name.is_some());
            consumers = futures::future::try_join_all(durable.map(|info| self.consumer_state(info))).await?;
            consumers.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let limit = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
        let at = |moment: time::OffsetDateTime| Nanos::try_from(moment.unix_timestamp_nanos()).ok();
        Ok(StreamState {
            name: config.name.clone(),
            in_memory: config.storage == StorageType::Memory,
            messages: state.messages,
            bytes: state.bytes,
            messages_max: limit(config.max_messages),
            bytes_max: limit(config.max_bytes),
            age_max: Some(config.max_age).filter(|age| !age.is_zero()),
            first_at: (state.messages > 0).then_some(state.first_timestamp).and_then(at),
            last_at: (state.messages > 0).then_some(state.last_timestamp).and_then(at),
            consumers,
        })
    }

    async fn consumer_state(&self, info: consumer::Info) -> Result<ConsumerState, Error> {
        let (pending, ack_pending) = (info.num_pending, info.num_ack_pending as u64);
        let oldest_at = if pending + ack_pending == 0 {
            None
        } else {
            self.first_from(&info, info.ack_floor.stream_sequence + 1).await?
        };
        Ok(ConsumerState {
            name: info.name,
            pending,
            ack_pending,
            redelivered: info.num_redelivered as u64,
            waiting: info.num_waiting as u64,
            oldest_at,
        })
    }

    /// When the first message that a consumer is to hand out, from this sequence on, was stored; none when it is finished
    /// meanwhile.
    async fn first_from(&self, info: &consumer::Info, sequence: u64) -> Result<Option<Nanos>, Error> {
        let config = &info.config;
        let mut filters = config.filter_subjects.clone();
        filters.extend(Some(config.filter_subject.clone()).filter(|filter| !filter.is_empty()));
        if filters.is_empty() {
            filters.push(">".to_owned());
        }
        let found = filters.iter().map(|filter| {
            let request = json!({"seq": sequence, "next_by_subj": filter, "batch": 1});
            async move { direct_get(&self.log, &info.stream_name, &request).await }
        });
        let found = futures::future::try_join_all(found).await?;
        let stored_at = |message: &Message| header(message, "Nats-Time-Stamp").and_then(|text| clock::parse(&text));
        Ok(found.iter().flatten().filter_map(stored_at).min())
    }
}
