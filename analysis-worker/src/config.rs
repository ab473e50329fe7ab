//! The knobs of the analysis worker.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::analysis::Limits;
use crate::vectors;

/// Section `analysis`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Files parsed, and parts of a workspace indexed, at once; 1 to 64. Default 4.
    pub slots: u32,
    /// Wall time of one parse, milliseconds. Half a megabyte parses in a tenth of a second. Default 2,000.
    pub parse_timeout_ms: u64,
    /// Longest code that is parsed, bytes. Default 1 MiB.
    pub code_bytes_max: usize,
    /// Directories under which workspaces may be indexed; none by default. `--workspace` sets them for tools and for
    /// indexing alike.
    pub workspaces: Vec<PathBuf>,
    /// Files of one workspace that are indexed at most, 1 to 200,000. Default 50,000.
    pub files_max: usize,
    /// Longest file that is indexed, bytes, 1 to 4 MiB. Default 512 KiB.
    pub file_bytes_max: u64,
    /// The embedding model; the first that an inference worker has when missing.
    pub embedding_model: Option<String>,
    /// Where vectors are kept.
    pub vectors: vectors::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slots: 4,
            parse_timeout_ms: 2_000,
            code_bytes_max: 1 << 20,
            workspaces: Vec::new(),
            files_max: 50_000,
            file_bytes_max: 512 << 10,
            embedding_model: None,
            vectors: vectors::Config::default(),
        }
    }
}

impl Config {
    /// Holds the settings against their bounds.
    ///
    /// # Errors
    /// The text names the setting, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, most: u64| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("analysis.{name} is {value}; it may be 1 to {most}")),
        };
        within("slots", u64::from(self.slots), 64)?;
        within("files_max", self.files_max as u64, 200_000)?;
        within("file_bytes_max", self.file_bytes_max, 4 << 20)?;
        self.vectors.check()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { code_bytes_max: self.code_bytes_max, ..Limits::default() }
    }
}
