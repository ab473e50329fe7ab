//! The NATS server that runs, or that the settings name: whether it does what the bus needs, and what time it has.

use std::time::Duration;

use runtime::bus::{self, Bus, ServerState};

use super::clocks::{self, Watch};
use super::{Finding, State};
use crate::cli::Doctor;
use crate::settings::Settings;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what an account may keep, so much is in use before somebody should know.
const FILLED_MAX: f64 = 0.9;

/// What the server is like, and its clock beside ours.
pub(super) async fn look(options: &Doctor, watch: &Watch) -> anyhow::Result<[Finding; 2]> {
    let settings = Settings::load(options.config.as_deref(), Vec::new())?;
    // A server that somebody named should be there; one that `vlinders up` had may rest with it.
    let named = options.target.nats.clone().or_else(|| settings.says("nats.url").then(|| settings.nats.url.clone()));
    let is_named = named.is_some();
    let Some(url) = named.or_else(|| options.target.nats().ok()) else {
        return Ok([at_rest("none runs: `vlinders up` starts one"), clocks::judge(None, watch.moved())]);
    };
    let config = bus::Config { url, ..settings.nats };
    let asked = async { Bus::connect(&config, "doctor").await?.server().await };
    let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        let reason = format!("it did not answer within {PATIENCE:?}");
        Err(bus::Error::Unreachable { url: config.url.clone(), reason })
    });
    Ok(match asked {
        Ok(server) => [judge(&config.url, &server), clocks::judge(server.clock, watch.moved())],
        Err(bus::Error::Unreachable { url, reason }) if !is_named => {
            [at_rest(&format!("{url} does not answer: {reason}")), clocks::judge(None, watch.moved())]
        }
        // What the bus says of itself says what to do, too.
        Err(error) => [Finding::missing("jetstream", error.to_string()), clocks::judge(None, watch.moved())],
    })
}

fn at_rest(found: &str) -> Finding {
    Finding::odd("jetstream", "at rest", found)
}

fn judge(url: &str, server: &ServerState) -> Finding {
    let ServerState { version, file_bytes, file_bytes_max, memory_bytes, memory_bytes_max, .. } = server;
    let of = |bytes: u64, max: Option<u64>| match max {
        Some(max) => format!("{} of {} MiB", bytes >> 20, max >> 20),
        None => format!("{} MiB", bytes >> 20),
    };
    let (files, memory) = (of(*file_bytes, *file_bytes_max), of(*memory_bytes, *memory_bytes_max));
    let bounded = file_bytes_max.or(*memory_bytes_max).is_some();
    let limits = if bounded { "" } else { "; it has no limits but the server's own" };
    let found = format!("{url}, version {version}, keeps {files} in files and {memory} in memory{limits}");
    let filled = |bytes: u64, max: Option<u64>| max.is_some_and(|max| bytes as f64 > FILLED_MAX * max as f64);
    let state = match (filled(*file_bytes, *file_bytes_max), filled(*memory_bytes, *memory_bytes_max)) {
        (false, false) => return Finding::fine("jetstream", found),
        _ => State::Odd("full"),
    };
    let next = "raise max_file_store or max_memory_store of the server, or the account's limits: without room requests are refused";
    Finding { what: "jetstream", state, found, next: Some(next.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_is_nearly_full_is_said() {
        let server = |file_bytes, memory_bytes_max| ServerState {
            version: "2.15.1".to_owned(),
            file_bytes,
            file_bytes_max: Some(1 << 30),
            memory_bytes: 64 << 20,
            memory_bytes_max,
            clock: None,
        };
        let usual = judge("nats://there", &server(512 << 20, None));
        assert_eq!(usual.state, State::Fine);
        assert!(usual.found.contains("version 2.15.1, keeps 512 of 1024 MiB in files and 64 MiB"), "{}", usual.found);
        assert_eq!(judge("nats://there", &server(1_000 << 20, None)).state, State::Odd("full"));
        assert_eq!(judge("nats://there", &server(1, Some(65 << 20))).state, State::Odd("full"));
    }
}
