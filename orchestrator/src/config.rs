//! Every knob of the orchestrator.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Section `orchestrator`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often workers that hold open effects are asked for a sign of life, milliseconds, 50 to 5000.
    pub liveness_every_ms: u64,
    /// How many closed executions are kept in memory for late facts, 0 to 100000.
    pub closed_kept: usize,
    /// A directory of agent types, one TOML file each, taken up again whenever it changes; none when missing.
    pub agents_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { liveness_every_ms: 100, closed_kept: 256, agents_dir: None }
    }
}

impl Config {
    /// Checks the bounds.
    ///
    /// # Errors
    /// A text that names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(50..=5_000).contains(&self.liveness_every_ms) {
            return Err(format!("orchestrator.liveness_every_ms is {}, must be 50 to 5000", self.liveness_every_ms));
        }
        if self.closed_kept > 100_000 {
            return Err(format!("orchestrator.closed_kept is {}, must be at most 100000", self.closed_kept));
        }
        match &self.agents_dir {
            Some(directory) if !directory.is_dir() => Err(format!(
                "orchestrator.agents_dir is {}, which is no directory: create it, or name another one",
                directory.display()
            )),
            _ => Ok(()),
        }
    }
}
