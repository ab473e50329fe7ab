//! The knobs of this service, section `inference`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{engine::EngineConfig, tool_calls::Family};

/// Section `inference`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Chat models: directories in Hugging Face's layout or with one GGUF file, or GGUF files. A model is named after its
    /// directory or file.
    pub models: Vec<PathBuf>,
    /// Directories of embedding models (BERT family); a model is named after its directory.
    pub embedding_models: Vec<PathBuf>,
    /// Requests of one model that run at the same time. Default 100.
    pub slots: usize,
    /// Tokens of one model computed in one step. Default 512: a step stays short enough for answers to flow.
    pub step_tokens: usize,
    /// Memory for keys and values of one model, bytes; taken as needed. Default 64 MiB.
    pub cache_bytes_max: usize,
    /// How long without work until the memory for keys and values is given back, seconds. With it goes what was kept of
    /// earlier prompts. Default 30.
    pub cache_idle_s: u64,
    /// Threads that compute, for each model; 0 is one for each CPU. Default 0.
    pub threads: usize,
    /// How long a result is kept for equal requests of which nothing is drawn, or by a seed that the caller chose, seconds;
    /// 0 keeps none. Beyond an hour only this worker's own memory does. Default 3600.
    pub cache_results_s: u64,
    /// How models write tool calls, by the model's name: `hermes`, `llama`, `mistral` or `pythonic`. Needed where the
    /// chat template does not tell.
    pub tool_calls: BTreeMap<String, Family>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            embedding_models: Vec::new(),
            slots: 100,
            step_tokens: 512,
            cache_bytes_max: 64 << 20,
            cache_idle_s: 30,
            threads: 0,
            cache_results_s: schemas::stream::RESULT_TTL.as_secs(),
            tool_calls: BTreeMap::new(),
        }
    }
}

/// Longer than any worker lives.
const CACHE_RESULTS_S_MAX: u64 = 365 * 24 * 3_600;

impl Config {
    /// How long results are kept.
    pub(crate) fn cache_results(&self) -> Duration {
        Duration::from_secs(self.cache_results_s.min(CACHE_RESULTS_S_MAX))
    }

    /// The bounds of each engine; zeros that would stop it are raised to one.
    pub(crate) fn engine(&self) -> EngineConfig {
        let default = EngineConfig::default();
        EngineConfig {
            slots: self.slots.max(1),
            step_tokens: self.step_tokens.max(1),
            cache_bytes_max: self.cache_bytes_max,
            cache_idle: Duration::from_secs(self.cache_idle_s),
            threads: if self.threads == 0 { default.threads } else { self.threads },
        }
    }
}
