//! What the server says of itself: its version, how much it may keep, and what time it has.

use std::time::Duration;

use schemas::Partition;
use schemas::subject;
use schemas::wire::Nanos;
use serde::Deserialize;

use super::{Bus, Error};
use crate::clock;

/// A server as it stands, and our account on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// Its version.
    pub version: String,
    /// Bytes that the account keeps in files.
    pub file_bytes: u64,
    /// The most that it may; none where the server's own limit is the only one.
    pub file_bytes_max: Option<u64>,
    /// Bytes that the account keeps in memory.
    pub memory_bytes: u64,
    /// The most that it may.
    pub memory_bytes_max: Option<u64>,
    /// Its clock; none before the log is there, of which it is asked.
    pub clock: Option<ServerClock>,
}

/// The server's clock beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerClock {
    /// Nanoseconds by which it is ahead of ours; negative where it is behind.
    pub ahead: Nanos,
    /// It may be so much more or less: half of the time that asking took.
    pub give_or_take: Duration,
}

/// The part that matters of what the server answers about a stream.
#[derive(Deserialize)]
struct About {
    ts: Option<String>,
}

impl Bus {
    /// Asks the server about itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn server(&self) -> Result<ServerState, Error> {
        let account = self.js.query_account().await.map_err(|e| Error::NoJetStream(e.to_string()))?;
        let limit = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
        Ok(ServerState {
            version: self.server_version(),
            file_bytes: account.storage,
            file_bytes_max: limit(account.limits.max_storage),
            memory_bytes: account.memory,
            memory_bytes_max: limit(account.limits.max_memory),
            clock: self.server_clock().await?,
        })
    }

    async fn server_clock(&self) -> Result<Option<ServerClock>, Error> {
        let Some(first) = Partition::all().next() else { return Ok(None) };
        let question = format!("$JS.API.STREAM.INFO.{}", subject::log_stream(first));
        let (asked, since) = (clock::now(), clock::instant());
        let answer = self.log.request(question, Vec::new().into()).await.map_err(Error::broken)?;
        let took = clock::instant().duration_since(since);
        let about: About = serde_json::from_slice(&answer.payload).map_err(Error::broken)?;
        let half = took / 2;
        let middle = asked.saturating_add(Nanos::try_from(half.as_nanos()).unwrap_or(Nanos::MAX));
        let at = about.ts.as_deref().and_then(clock::parse);
        Ok(at.map(|at| ServerClock { ahead: at - middle, give_or_take: half }))
    }
}
