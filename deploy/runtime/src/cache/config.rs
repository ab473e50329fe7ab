//! Every knob of what processes share to save work.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Secret;

/// A call may take so long at most: a worker asks before it says that it is there, which it must every few seconds.
const TIMEOUT_MS_MAX: u64 = 2_000;

/// Section `cache`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A Redis server, `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or `rediss://` with TLS. Buckets of the bus when missing.
    pub redis: Option<Secret>,
    /// A file that holds it, instead.
    pub redis_file: Option<PathBuf>,
    /// What every key begins with there. Default `vlinders`.
    pub prefix: String,
    /// How long one call to it may take, in milliseconds. Default 250: the work would have begun by then.
    pub timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { redis: None, redis_file: None, prefix: "vlinders".to_owned(), timeout_ms: 250 }
    }
}

impl Config {
    /// Checks what can be known without the server.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there; never the URL, which may hold a password.
    pub fn check(&self) -> Result<(), String> {
        if self.redis.is_some() && self.redis_file.is_some() {
            return Err("cache.redis: say either this or redis_file".to_owned());
        }
        if self.prefix.is_empty() || self.prefix.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("cache.prefix: {:?} cannot begin a key: a word is expected", self.prefix));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            return Err(format!("cache.timeout_ms: {} is not within 1 and {TIMEOUT_MS_MAX}", self.timeout_ms));
        }
        self.server().map(|_| ())
    }

    /// The server's URL.
    pub(super) fn server(&self) -> Result<Option<Secret>, String> {
        let (setting, text) = match (&self.redis, &self.redis_file) {
            (Some(url), _) => ("redis", url.expose().to_owned()),
            (None, Some(file)) => {
                let read = std::fs::read_to_string(file);
                let why = |error| format!("cache.redis_file: read {}: {error}", file.display());
                ("redis_file", read.map_err(why)?)
            }
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        match ::redis::parse_redis_url(text) {
            Some(_) if ::redis::Client::open(text).is_ok() => Ok(Some(Secret::new(text.to_owned()))),
            _ => Err(format!(
                "cache.{setting}: expected redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// with TLS"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_server_is_refused_without_being_shown() {
        let of = |url: &str| Config { redis: Some(Secret::new(url.to_owned())), ..Config::default() };
        for url in ["redis://cache", "redis://:hidden@cache:6380/2", "rediss://user:hidden@cache:6380"] {
            assert_eq!(of(url).check(), Ok(()), "{url}");
        }
        for url in ["", "cache:6379", "http://cache", "redis://cache/hidden", "redis://cache:hidden"] {
            let refused = of(url).check().expect_err(url);
            assert!(refused.contains("cache.redis: expected redis://") && !refused.contains("hidden"), "{refused}");
        }
    }

    #[test]
    fn one_server_is_named_once() {
        let redis = Some(Secret::new("redis://cache".to_owned()));
        let both = Config { redis, redis_file: Some("/run/secrets/redis".into()), ..Config::default() };
        assert!(both.check().expect_err("two").contains("either this or redis_file"));
        let file = Config { redis_file: Some("/nowhere/redis".into()), ..Config::default() };
        assert!(file.check().expect_err("no file").contains("cache.redis_file: read /nowhere/redis"));
        assert!(Config { timeout_ms: 0, ..Config::default() }.check().is_err());
        assert!(Config { prefix: "a b".into(), ..Config::default() }.check().is_err());
    }
}
