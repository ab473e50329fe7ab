//! Streams, buckets and consumers as data. `runtime` creates them; changing one here is changing the bus.

use std::time::Duration;

use crate::ids::{PARTITIONS, Partition};
use crate::subject;

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: gone with the server, and built again from the log.
    Memory,
}

/// How long a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Until a limit.
    Limits,
    /// Until acknowledged.
    WorkQueue,
}

/// What a full stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Refuses new messages: admission control.
    New,
    /// Drops old ones.
    Old,
}

/// A stream's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamDefinition {
    /// Its name.
    pub name: String,
    /// Subjects it stores.
    pub subjects: Vec<String>,
    /// Where.
    pub storage: Storage,
    /// How long.
    pub retention: Retention,
    /// What it does when full.
    pub discard: Discard,
    /// Age at which messages go; none means never.
    pub max_age: Option<Duration>,
    /// Messages at most.
    pub max_messages: Option<i64>,
    /// Bytes at most.
    pub max_bytes: Option<i64>,
    /// Messages of one subject at most.
    pub max_messages_per_subject: Option<i64>,
    /// Bytes of one message at most.
    pub max_message_bytes: Option<i32>,
    /// Window in which a message id is stored once.
    pub duplicate_window: Duration,
    /// Messages can be neither deleted nor purged.
    pub immutable: bool,
    /// The server does not acknowledge publishes.
    pub no_ack: bool,
    /// Compressed on disk (s2).
    pub compressed: bool,
    /// After storing, messages are republished: source and destination patterns.
    pub republish: Option<(String, String)>,
}

/// Queue of inference jobs.
pub const INFERENCE_JOBS: &str = "VL_INFER";
/// Queue of tool jobs.
pub const TOOL_JOBS: &str = "VL_TOOL";
/// Queue of analysis jobs.
pub const ANALYSIS_JOBS: &str = "VL_ANALYSIS";
/// Token frames of the last minutes.
pub const TOKENS: &str = "VL_TOKENS";
/// Dead letters.
pub const DEAD_LETTERS: &str = "VL_DLQ";
/// Bucket of open executions, and of how far the facts of each partition are dealt with: a cache and live index, never the
/// truth.
pub const BUCKET_OPEN: &str = "vl_snapshots";
/// Bucket of workers that are there.
pub const BUCKET_WORKERS: &str = "vl_workers";
/// Bucket of agent types and tool manifests.
pub const BUCKET_CONFIG: &str = "vl_config";

/// Bucket of results of inferences that would come out the same again: a cache, never the truth.
pub const BUCKET_RESULTS: &str = "vl_results";

/// Bucket of results of tools that only read: a cache, never the truth.
pub const BUCKET_TOOL_RESULTS: &str = "vl_tool_results";

/// Bucket of leases: who is at work whose result will be kept for others.
pub const BUCKET_LEASES: &str = "vl_leases";

/// Bucket of calls that must not be carried out twice: each is written down before it begins, and again with what came
/// of it.
pub const BUCKET_TOOL_CALLS: &str = "vl_tool_calls";

/// Bucket of indexed code: what is known of each file, from which every analysis worker answers. It follows from the
/// workspaces: indexing again writes it anew.
pub const BUCKET_CODE: &str = "vl_code";

/// Bucket of requests that carry an `Idempotency-Key`: which execution each key began, and the hash of its request.
pub const BUCKET_REQUESTS: &str = "vl_requests";

/// Bucket of objects: content of the log that is too large for a message, by the hash of its bytes.
pub const BUCKET_OBJECTS: &str = "vl_objects";

/// How long a result is kept for equal requests.
pub const RESULT_TTL: Duration = Duration::from_secs(3_600);
/// How long a tool's result is kept for equal calls.
pub const TOOL_RESULT_TTL: Duration = Duration::from_secs(300);
/// How long a lease lasts when it is not renewed: so long does equal work wait for who died at it.
pub const LEASE_TTL: Duration = Duration::from_secs(3);
/// How long a call that must not be carried out twice is remembered: longer than any execution may take.
pub const TOOL_CALL_TTL: Duration = Duration::from_secs(8 * 24 * 3_600);
/// How long an `Idempotency-Key` is remembered.
pub const REQUEST_TTL: Duration = Duration::from_secs(24 * 3_600);
/// How long a worker's entry lives without being renewed.
pub const WORKER_ENTRY_TTL: Duration = Duration::from_secs(15);
/// How long a job may be held without a sign of life before it is handed to another worker.
pub const JOB_ACK_WAIT: Duration = Duration::from_secs(6);
/// How often a job is handed out before it becomes a dead letter.
pub const JOB_DELIVERIES_MAX: i64 = 6;
/// How long a fact may wait for its decision before it is handed to another orchestrator.
pub const FACT_ACK_WAIT: Duration = Duration::from_secs(10);
/// The priority group of the consumers that orchestrators share.
pub const OWNER_GROUP: &str = "owner";
/// How long an owner may be silent before a standby takes its place.
pub const OWNER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a follower of the log may take over messages before they are handed out again, which does no harm.
pub const FOLLOWER_ACK_WAIT: Duration = Duration::from_secs(30);
/// How long a follower may be silent before another one of its name takes its place; some of its pulls.
pub const FOLLOWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the place of followers is kept when none of them is there. They know themselves how far they are.
pub const FOLLOWER_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);

const MINUTE: Duration = Duration::from_secs(60);
const MIB: i64 = 1 << 20;

/// All streams, in the order in which they are created.
#[must_use]
pub fn streams() -> Vec<StreamDefinition> {
    let mut all: Vec<_> = Partition::all().map(log).collect();
    all.extend([
        jobs(INFERENCE_JOBS, "vl.v1.job.infer.>"),
        jobs(TOOL_JOBS, "vl.v1.job.tool.>"),
        jobs(ANALYSIS_JOBS, "vl.v1.job.analysis.>"),
        tokens(),
        dead_letters(),
    ]);
    all
}

/// A partition of the log. TTL and schedules stay off it: they would unlock purge.
fn log(partition: Partition) -> StreamDefinition {
    StreamDefinition {
        name: subject::log_stream(partition),
        subjects: vec![format!("vl.v1.log.{partition}.*.fact"), format!("vl.v1.log.{partition}.*.decision")],
        storage: Storage::File,
        retention: Retention::Limits,
        discard: Discard::New,
        max_age: None,
        max_messages: None,
        max_bytes: None,
        // A runaway fuse: no honest execution has this many messages.
        max_messages_per_subject: Some(50_000),
        max_message_bytes: Some((8 * MIB) as i32),
        duplicate_window: 2 * MINUTE,
        immutable: true,
        no_ack: false,
        compressed: true,
        republish: Some((format!("vl.v1.log.{partition}.>"), format!("vl.v1.seen.{partition}.>"))),
    }
}

/// A disposable work queue. Full means "not now": the publisher is told, nothing is dropped.
fn jobs(name: &str, subjects: &str) -> StreamDefinition {
    StreamDefinition {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        storage: Storage::Memory,
        retention: Retention::WorkQueue,
        discard: Discard::New,
        max_age: None,
        max_messages: Some(20_000),
        max_bytes: Some(512 * MIB),
        max_messages_per_subject: None,
        max_message_bytes: Some((8 * MIB) as i32),
        duplicate_window: 2 * MINUTE,
        immutable: false,
        no_ack: false,
        compressed: false,
        republish: None,
    }
}

/// Frames of the last minutes, for gap repair, resumption and takeover.
fn tokens() -> StreamDefinition {
    StreamDefinition {
        name: TOKENS.to_owned(),
        subjects: vec!["vl.v1.tok.>".to_owned()],
        storage: Storage::Memory,
        retention: Retention::Limits,
        discard: Discard::Old,
        max_age: Some(5 * MINUTE),
        max_messages: None,
        max_bytes: Some(256 * MIB),
        max_messages_per_subject: Some(16_384),
        max_message_bytes: Some(MIB as i32),
        // The server's minimum: frames carry no id.
        duplicate_window: Duration::from_millis(100),
        immutable: false,
        no_ack: true,
        compressed: false,
        republish: None,
    }
}

fn dead_letters() -> StreamDefinition {
    StreamDefinition {
        name: DEAD_LETTERS.to_owned(),
        subjects: std::iter::once("vl.v1.dlq.>").chain(subject::ADVISORIES).map(str::to_owned).collect(),
        storage: Storage::File,
        retention: Retention::Limits,
        discard: Discard::Old,
        max_age: Some(30 * 24 * 60 * MINUTE),
        max_messages: None,
        // The server sets this much aside; a dead letter is a rare thing.
        max_bytes: Some(64 * MIB),
        max_messages_per_subject: None,
        max_message_bytes: Some((8 * MIB) as i32),
        duplicate_window: 2 * MINUTE,
        immutable: false,
        no_ack: false,
        compressed: true,
        republish: None,
    }
}

/// A KV bucket's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketDefinition {
    /// Its name.
    pub name: &'static str,
    /// Where it is kept.
    pub storage: Storage,
    /// Age at which entries go; none means never.
    pub max_age: Option<Duration>,
    /// Bytes at most, beyond which the oldest entries go; none means no bound.
    pub max_bytes: Option<i64>,
}

/// All buckets.
pub const BUCKETS: [BucketDefinition; 9] = [
    BucketDefinition { name: BUCKET_OPEN, storage: Storage::File, max_age: None, max_bytes: None },
    BucketDefinition {
        name: BUCKET_WORKERS,
        storage: Storage::Memory,
        max_age: Some(WORKER_ENTRY_TTL),
        max_bytes: None,
    },
    BucketDefinition { name: BUCKET_CONFIG, storage: Storage::File, max_age: None, max_bytes: None },
    // Losing them costs computing them again, so they are not worth a write to disk.
    BucketDefinition {
        name: BUCKET_RESULTS,
        storage: Storage::Memory,
        max_age: Some(RESULT_TTL),
        max_bytes: Some(64 * MIB),
    },
    BucketDefinition {
        name: BUCKET_TOOL_RESULTS,
        storage: Storage::Memory,
        max_age: Some(TOOL_RESULT_TTL),
        max_bytes: Some(32 * MIB),
    },
    BucketDefinition {
        name: BUCKET_LEASES,
        storage: Storage::Memory,
        max_age: Some(LEASE_TTL),
        max_bytes: Some(8 * MIB),
    },
    // No bound but age: forgetting one early could carry a call out twice.
    BucketDefinition { name: BUCKET_TOOL_CALLS, storage: Storage::File, max_age: Some(TOOL_CALL_TTL), max_bytes: None },
    // On disk before the request is: a key that is forgotten would begin a second execution.
    BucketDefinition { name: BUCKET_REQUESTS, storage: Storage::File, max_age: Some(REQUEST_TTL), max_bytes: None },
    BucketDefinition { name: BUCKET_CODE, storage: Storage::File, max_age: None, max_bytes: None },
];

/// The account mapping that lets a plain NATS client submit with one publish, as a line of NATS configuration.
#[must_use]
pub fn submit_mapping() -> String {
    format!("\"vl.v1.submit.*\": \"vl.v1.log.{{{{partition({PARTITIONS},1)}}}}.{{{{wildcard(1)}}}}.fact\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_are_unique_and_every_partition_has_one() {
        let names: std::collections::BTreeSet<_> = streams().into_iter().map(|s| s.name).collect();
        assert_eq!(names.len(), usize::from(PARTITIONS) + 5);
    }

    #[test]
    fn a_call_is_remembered_for_longer_than_any_execution_takes() {
        assert!(TOOL_CALL_TTL > Duration::from_millis(crate::agent::DEADLINE_MS_MAX));
    }

    #[test]
    fn the_log_cannot_be_changed() {
        assert!(
            streams()
                .iter()
                .filter(|s| s.name.starts_with("VL_LOG"))
                .all(|s| s.immutable && s.storage == Storage::File && s.max_age.is_none())
        );
    }
}
