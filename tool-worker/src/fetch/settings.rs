//! What is configured about fetching, under `[tools.fetch]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::target;

/// The largest body that may be allowed.
const BYTES_LIMIT: usize = 64 << 20;
/// The longest time that may be allowed, in milliseconds.
const TIMEOUT_MS_LIMIT: u64 = 120_000;
/// The longest chain of redirects that may be allowed.
const REDIRECTS_LIMIT: u32 = 20;

/// Section `tools.fetch`: what requests of tools to the web may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether pages may be fetched: by `web_fetch`, and by `web_search` for what it found. The search provider works
    /// without.
    pub pages: bool,
    /// Servers whose pages may be fetched although their addresses are not public, each exactly `host:port`: for example
    /// `["wiki.lan:80"]`. Pages of others cannot redirect there.
    pub allow: Vec<String>,
    /// Ports that may be asked elsewhere.
    pub ports: Vec<u16>,
    /// Bytes of one body at most, as sent and again as unpacked, 1 to 64 MiB. Of HTML the first 2 MiB are read.
    pub bytes_max: usize,
    /// Wall time of one request with all its redirects, milliseconds, 1 to 120,000.
    pub timeout_ms: u64,
    /// Redirects followed, 0 to 20.
    pub redirects_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pages: false,
            allow: Vec::new(),
            ports: vec![80, 443],
            bytes_max: 2 << 20,
            timeout_ms: 10_000,
            redirects_max: 5,
        }
    }
}

impl Settings {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        if let Some(entry) = self.allow.iter().find(|entry| target::authority(entry).is_none()) {
            return Err(format!("tools.fetch.allow: {entry:?} is no host:port, such as 127.0.0.1:8888 or [::1]:8888"));
        }
        if self.ports.is_empty() || self.ports.contains(&0) {
            return Err("tools.fetch.ports: expected ports from 1 on, such as [80, 443]".to_owned());
        }
        let bounds = [
            ("bytes_max", self.bytes_max as u64, 1, BYTES_LIMIT as u64),
            ("timeout_ms", self.timeout_ms, 1, TIMEOUT_MS_LIMIT),
            ("redirects_max", u64::from(self.redirects_max), 0, u64::from(REDIRECTS_LIMIT)),
        ];
        match bounds.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value)) {
            None => Ok(()),
            Some((key, value, least, most)) => {
                Err(format!("tools.fetch.{key}: {value} is not within {least} and {most}"))
            }
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// The servers that may be asked whatever their address.
    pub(super) fn allowed(&self) -> Vec<String> {
        self.allow.iter().filter_map(|entry| target::authority(entry)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kept_and_named() {
        assert_eq!(Settings::default().check(), Ok(()));
        let wrong = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err()
        };
        assert!(wrong(|s| s.allow = vec!["127.0.0.1".into()]).starts_with("tools.fetch.allow: \"127.0.0.1\" is no"));
        assert!(wrong(|s| s.ports.clear()).starts_with("tools.fetch.ports"));
        assert_eq!(wrong(|s| s.timeout_ms = 0), "tools.fetch.timeout_ms: 0 is not within 1 and 120000");
        assert!(wrong(|s| s.bytes_max = 1 << 30).contains("67108864"));
        assert!(wrong(|s| s.redirects_max = 21).contains("0 and 20"));
    }
}
