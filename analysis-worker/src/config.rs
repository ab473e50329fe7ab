//! The knobs of the analysis worker.

use serde::Deserialize;

use crate::vectors;

/// Section `analysis`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Files parsed at once, 1 to 64.
    pub slots: u32,
    /// Wall time of one parse, milliseconds. Half a megabyte parses in a tenth of a second.
    pub parse_timeout_ms: u64,
    /// Longest code that is parsed, bytes.
    pub code_bytes_max: usize,
    /// Where the vectors are.
    pub vectors: vectors::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self { slots: 4, parse_timeout_ms: 2_000, code_bytes_max: 1 << 20, vectors: vectors::Config::default() }
    }
}

impl Config {
    /// Checks what can be known before anything is opened.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        self.vectors.check()
    }
}
