//! The knobs of this service, section `inference`.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use crate::{engine::EngineConfig, tool_calls::Family};

/// Section `inference`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Chat models: directories in Hugging Face's layout or with one GGUF file, or GGUF files. A model is named after its
    /// directory or file.
    pub models: Vec<PathBuf>,
    /// Directories in which models lie that may be loaded by name while the worker runs, each in Hugging Face's layout, or
    /// GGUF files.
    pub models_dirs: Vec<PathBuf>,
    /// Memory that all models together may take, bytes: their weights, and keys and values up to `cache_bytes_max` for each.
    /// Default: four fifths of what the system has, or its control group may take.
    pub memory_bytes_max: Option<u64>,
    /// Whether a model is loaded when a job for it waits, it is in a directory, and there is room. Default false.
    pub load_on_demand: bool,
    /// How long a model that is unloaded goes on answering what was asked of it, seconds. Default 60.
    pub drain_s_max: u64,
    /// Memory for what unloaded models had computed of prompts, bytes, for when they are loaded again. Default 64 MiB.
    pub cache_kept_bytes_max: u64,
    /// How long that is kept, seconds. Default 300.
    pub cache_kept_s: u64,
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
    /// How models write tool calls, by the model's name: `hermes`, `llama`, `mistral` or `pythonic`. Needed where the
    /// chat template does not tell.
    pub tool_calls: BTreeMap<String, Family>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            models_dirs: Vec::new(),
            memory_bytes_max: None,
            load_on_demand: false,
            drain_s_max: 60,
            cache_kept_bytes_max: 64 << 20,
            cache_kept_s: 300,
            embedding_models: Vec::new(),
            slots: 100,
            step_tokens: 512,
            cache_bytes_max: 64 << 20,
            cache_idle_s: 30,
            threads: 0,
            tool_calls: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The bounds of each engine; zeros that would stop it are raised to one.
    pub(crate) fn engine(&self) -> EngineConfig {
        let default = EngineConfig::default();
        EngineConfig {
            slots: self.slots.max(1),
            step_tokens: self.step_tokens.max(1),
            cache_bytes_max: self.cache_bytes_max,
            cache_idle: std::time::Duration::from_secs(self.cache_idle_s),
            threads: if self.threads == 0 { default.threads } else { self.threads },
        }
    }
}
