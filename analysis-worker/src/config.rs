//! The knobs of the analysis worker.

use serde::Deserialize;

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
}

impl Default for Config {
    fn default() -> Self {
        Self { slots: 4, parse_timeout_ms: 2_000, code_bytes_max: 1 << 20 }
    }
}
