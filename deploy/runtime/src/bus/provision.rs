//! Creates the streams, buckets and consumers that `schemas` defines. Running it again changes nothing; a stream
//! that exists and differs is refused with the difference, and left as it is. A process that may not create anything
//! waits until another one has.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PriorityPolicy, pull};
use async_nats::jetstream::stream::{Compression, Config, DiscardPolicy, Republish, RetentionPolicy, StorageType};
use async_nats::jetstream::{ErrorCode, kv};
use futures::TryStreamExt;
use schemas::stream::{self, BucketDefinition, Discard, Retention, Storage, StreamDefinition};
use schemas::{Partition, subject};

use super::dead_letters::ADVISORIES_CONSUMER;
use super::log::FACTS_CONSUMER;
use super::{Bus, Error};

/// Codes of a server that may not store as much as a stream needs.
const NO_ROOM: [ErrorCode; 3] =
    [ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::MEMORY_RESOURCES_EXCEEDED, ErrorCode::INSUFFICIENT_RESOURCES];

/// How long a process that may not create anything waits for one that may: containers start in any order.
const PROVISIONED_WITHIN: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Creates what is missing, or waits for it where this process may not (`nats.provision`).
///
/// # Errors
/// [`Error::Incompatible`] when something exists and differs, [`Error::NotProvisioned`] when nobody creates what is
/// missing; otherwise when the server does not answer.
pub async fn provision(bus: &Bus) -> Result<(), Error> {
    if !bus.provisions {
        return provisioned(bus, PROVISIONED_WITHIN).await;
    }
    let streams = stream::streams();
    futures::future::try_join_all(streams.iter().map(|definition| ensure_stream(bus, definition))).await?;
    futures::future::try_join_all(stream::BUCKETS.iter().map(|bucket| ensure_bucket(bus, bucket))).await?;
    futures::future::try_join_all(Partition::all().map(|partition| facts_consumer(bus, partition))).await?;
    advisories_consumer(bus).await?;
    bus.ensure_objects().await
}

/// Waits until every stream and bucket is there, by their names alone.
async fn provisioned(bus: &Bus, within: Duration) -> Result<(), Error> {
    let mut wanted: BTreeSet<String> = stream::streams().into_iter().map(|definition| definition.name).collect();
    wanted.extend(stream::BUCKETS.iter().map(|bucket| format!("KV_{}", bucket.name)));
    wanted.insert(format!("OBJ_{}", stream::BUCKET_OBJECTS));
    let until = tokio::time::Instant::now() + within;
    let mut is_told = false;
    loop {
        let names: Vec<String> = bus.js.stream_names().try_collect().await.map_err(Error::broken)?;
        let missing: Vec<&str> = wanted.iter().filter(|name| !names.contains(name)).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            return Err(Error::NotProvisioned { waited: within, missing: missing.join(", ") });
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(missing = missing.len(), "waiting for the orchestrator to create the streams");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn ensure_stream(bus: &Bus, definition: &StreamDefinition) -> Result<(), Error> {
    let wanted = stream_config(definition, bus.replicas);
    let found = match bus.js.get_stream(&definition.name).await {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(_) => match bus.js.create_stream(wanted.clone()).await {
            Ok(_) => return Ok(()),
            // Somebody created it at the same moment.
            Err(e) if is_code(&e.kind(), ErrorCode::STREAM_NAME_EXIST) => {
                bus.js.get_stream(&definition.name).await.map_err(Error::broken)?.cached_info().config.clone()
            }
            Err(e) if NO_ROOM.iter().any(|code| is_code(&e.kind(), *code)) => {
                let room = definition.max_bytes.map_or_else(String::new, |b| format!(" of {} MiB", b >> 20));
                let what = format!("stream {}{room}", definition.name);
                return Err(Error::NoRoom { what, reason: e.to_string() });
            }
            Err(e) => {
                return Err(Error::Broken(format!("create stream {}: {e}", definition.name)));
            }
        },
    };
    let differences = differences(&wanted, &found);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Incompatible { stream: definition.name.clone(), differences: differences.join("\n") })
}

fn is_code(kind: &async_nats::jetstream::context::CreateStreamErrorKind, code: ErrorCode) -> bool {
    matches!(kind, async_nats::jetstream::context::CreateStreamErrorKind::JetStream(e) if e.error_code() == code)
}

/// What matters of a stream, compared field by field; limits may be raised by an operator, its nature may not change.
fn differences(wanted: &Config, found: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |field: &str, wanted: String, found: String| {
        if wanted != found {
            lines.push(format!("  {field}: needs {wanted}, is {found}"));
        }
    };
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort();
        subjects.join(" ")
    };
    compare("subjects", sorted(&wanted.subjects), sorted(&found.subjects));
    compare("storage", format!("{:?}", wanted.storage), format!("{:?}", found.storage));
    compare("retention", format!("{:?}", wanted.retention), format!("{:?}", found.retention));
    compare("discard", format!("{:?}", wanted.discard), format!("{:?}", found.discard));
    compare("deny_delete", wanted.deny_delete.to_string(), found.deny_delete.to_string());
    compare("deny_purge", wanted.deny_purge.to_string(), found.deny_purge.to_string());
    compare("allow_direct", wanted.allow_direct.to_string(), found.allow_direct.to_string());
    compare("no_ack", wanted.no_ack.to_string(), found.no_ack.to_string());
    compare("max_age", format!("{:?}", wanted.max_age), format!("{:?}", found.max_age));
    let republish = |r: &Option<Republish>| {
        r.as_ref().map_or_else(|| "none".to_owned(), |r| format!("{} to {}", r.source, r.destination))
    };
    compare("republish", republish(&wanted.republish), republish(&found.republish));
    lines
}

fn stream_config(definition: &StreamDefinition, replicas: usize) -> Config {
    Config {
        name: definition.name.clone(),
        subjects: definition.subjects.clone(),
        storage: storage(definition.storage),
        retention: match definition.retention {
            Retention::Limits => RetentionPolicy::Limits,
            Retention::WorkQueue => RetentionPolicy::WorkQueue,
        },
        discard: match definition.discard {
            Discard::New => DiscardPolicy::New,
            Discard::Old => DiscardPolicy::Old,
        },
        discard_new_per_subject: definition.discard == Discard::New && definition.max_messages_per_subject.is_some(),
        max_age: definition.max_age.unwrap_or_default(),
        max_messages: definition.max_messages.unwrap_or(-1),
        max_bytes: definition.max_bytes.unwrap_or(-1),
        max_messages_per_subject: definition.max_messages_per_subject.unwrap_or(-1),
        max_message_size: definition.max_message_bytes.unwrap_or(-1),
        duplicate_window: definition.duplicate_window,
        deny_delete: definition.immutable,
        deny_purge: definition.immutable,
        no_ack: definition.no_ack,
        allow_direct: true,
        compression: definition.compressed.then_some(Compression::S2),
        republish: definition.republish.as_ref().map(|(source, destination)| Republish {
            source: source.clone(),
            destination: destination.clone(),
            headers_only: false,
        }),
        num_replicas: if definition.storage == Storage::File { replicas } else { 1 },
        ..Config::default()
    }
}

const fn storage(storage: Storage) -> StorageType {
    match storage {
        Storage::File => StorageType::File,
        Storage::Memory => StorageType::Memory,
    }
}

async fn ensure_bucket(bus: &Bus, bucket: &BucketDefinition) -> Result<(), Error> {
    if bus.js.get_key_value(bucket.name).await.is_ok() {
        return Ok(());
    }
    if let Some(max_bytes) = bucket.max_bytes {
        return ensure_bounded(bus, bucket, max_bytes).await;
    }
    let config = kv::Config {
        bucket: bucket.name.to_owned(),
        history: 1,
        storage: storage(bucket.storage),
        max_age: bucket.max_age.unwrap_or_default(),
        num_replicas: if bucket.storage == Storage::File { bus.replicas } else { 1 },
        ..kv::Config::default()
    };
    match bus.js.create_key_value(config).await {
        Ok(_) => Ok(()),
        Err(_) if bus.js.get_key_value(bucket.name).await.is_ok() => Ok(()),
        Err(e) => Err(Error::Broken(format!("create bucket {}: {e}", bucket.name))),
    }
}

/// A bucket that forgets its oldest entries when it is full. The client makes only such that refuse new ones then, so it
/// is made as the stream that a bucket is.
async fn ensure_bounded(bus: &Bus, bucket: &BucketDefinition, max_bytes: i64) -> Result<(), Error> {
    let config = Config {
        name: format!("KV_{}", bucket.name),
        subjects: vec![format!("$KV.{}.>", bucket.name)],
        storage: storage(bucket.storage),
        discard: DiscardPolicy::Old,
        max_age: bucket.max_age.unwrap_or_default(),
        max_bytes,
        max_messages: -1,
        max_messages_per_subject: 1,
        max_message_size: -1,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        num_replicas: if bucket.storage == Storage::File { bus.replicas } else { 1 },
        ..Config::default()
    };
    match bus.js.create_stream(config).await {
        Ok(_) => Ok(()),
        Err(_) if bus.js.get_key_value(bucket.name).await.is_ok() => Ok(()),
        Err(e) if NO_ROOM.iter().any(|code| is_code(&e.kind(), *code)) => {
            let what = format!("bucket {} of {} MiB", bucket.name, max_bytes >> 20);
            Err(Error::NoRoom { what, reason: e.to_string() })
        }
        Err(e) => Err(Error::Broken(format!("create bucket {}: {e}", bucket.name))),
    }
}

/// The consumer that the possible owners of a partition share.
pub(super) async fn facts_consumer(bus: &Bus, partition: Partition) -> Result<(), Error> {
    let config = pull::Config {
        durable_name: Some(FACTS_CONSUMER.to_owned()),
        filter_subject: format!("vl.v1.log.{partition}.*.fact"),
        ack_policy: AckPolicy::Explicit,
        ack_wait: stream::FACT_ACK_WAIT,
        // A thousand facts in flight is far more than one owner handles at once.
        max_ack_pending: 1_024,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![stream::OWNER_GROUP.to_owned()],
        priority_timeout: stream::OWNER_TIMEOUT,
        ..pull::Config::default()
    };
    super::place::ensure_facts_consumer(bus, partition, config).await
}

/// The consumer of the server's advisories, which land beside the letters.
async fn advisories_consumer(bus: &Bus) -> Result<(), Error> {
    let config = pull::Config {
        durable_name: Some(ADVISORIES_CONSUMER.to_owned()),
        filter_subjects: subject::ADVISORIES.map(str::to_owned).to_vec(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: stream::FACT_ACK_WAIT,
        ..pull::Config::default()
    };
    ensure_consumer(bus, stream::DEAD_LETTERS, ADVISORIES_CONSUMER, config).await
}

/// The consumer that workers of one pool share.
pub(super) async fn job_consumer(bus: &Bus, stream: &str, name: &str, filter: &str) -> Result<(), Error> {
    let config = pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: filter.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: stream::JOB_ACK_WAIT,
        max_deliver: stream::JOB_DELIVERIES_MAX,
        // Workers pull only for free slots, so this bounds nothing in practice but a runaway.
        max_ack_pending: 10_000,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    ensure_consumer(bus, stream, name, config).await
}

pub(super) async fn ensure_consumer(bus: &Bus, stream: &str, name: &str, config: pull::Config) -> Result<(), Error> {
    let failed = |e: String| Error::Broken(format!("create consumer {name} on {stream}: {e}"));
    let stream = bus.js.get_stream_no_info(stream).await.map_err(|e| failed(e.to_string()))?;
    stream.get_or_create_consumer(name, config).await.map(|_| ()).map_err(|e| failed(e.to_string()))
}
