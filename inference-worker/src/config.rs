//! The knobs of this service, section `inference`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use schemas::subject;
use serde::{Deserialize, Serialize};

use crate::{
    cuda::{Limits, need::TOGETHER_COUNTS},
    engine::EngineConfig,
    kernels::team::Team,
    model_directory,
    remote::{self, Remote, RemoteConfig},
    tool_calls::Family,
};

/// Where chat models compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// On a GPU where one can be used and a model fits it, else on the CPUs.
    #[default]
    Auto,
    /// On the CPUs.
    Cpu,
    /// On a GPU, and nowhere else.
    Cuda,
}

/// Section `inference`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Where chat models compute: `auto`, `cpu` or `cuda`. Default `auto`: on a GPU where one can be used and the model fits,
    /// and the log says why not.
    pub device: Device,
    /// The GPUs that may be used, by the numbers that CUDA gives them; all when empty. Default empty.
    pub gpus: Vec<u32>,
    /// How many GPUs compute one model together: 1, 2, 4 or 8, each a part of every layer; 0 is one where that holds the model,
    /// else as few as do. More than one need NCCL. Default 0.
    pub gpus_per_model: usize,
    /// Tokens of one model computed in one step on a GPU. Default 2048: fewer leave it idle.
    pub gpu_step_tokens: usize,
    /// Part of the memory left on a GPU, once a model's weights are there, that its keys and values take, above 0 and at most
    /// 1. Default 0.9.
    pub gpu_memory_part: f64,
    /// The most that keys and values of one model take on a GPU, bytes. Default: all of that part. Needed where several
    /// models share a GPU.
    pub gpu_cache_bytes_max: Option<usize>,
    /// Threads that compute, for all models together; 0 is one for each CPU. Default 0.
    pub threads: usize,
    /// Whether activations meet quantised weights as they are. They are rounded to bytes otherwise, each small group with a
    /// scale of its own, which is several times faster and changes logits by about a hundredth. Default false.
    pub exact_activations: bool,
    /// How long a result is kept for equal requests of which nothing is drawn, or by a seed that the caller chose, seconds;
    /// 0 keeps none. Beyond an hour only this worker's own memory does. Default 3600.
    pub cache_results_s: u64,
    /// How models write tool calls, by the model's name: `hermes`, `llama`, `mistral` or `pythonic`. Needed where the
    /// chat template does not tell.
    pub tool_calls: BTreeMap<String, Family>,
    /// Chat models of other servers that speak OpenAI's API, by the name under which they are served here.
    #[serde(deserialize_with = "remote::table")]
    pub remote: BTreeMap<String, RemoteConfig>,
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
            device: Device::Auto,
            gpus: Vec::new(),
            gpus_per_model: 0,
            gpu_step_tokens: Limits::default().step_tokens,
            gpu_memory_part: Limits::default().memory_part,
            gpu_cache_bytes_max: None,
            threads: 0,
            exact_activations: false,
            cache_results_s: schemas::stream::RESULT_TTL.as_secs(),
            tool_calls: BTreeMap::new(),
            remote: BTreeMap::new(),
        }
    }
}

/// A step of more is slower for everyone, and a launch has its bounds.
const GPU_STEP_TOKENS_MAX: usize = 32_768;
/// Longer than any worker lives.
const CACHE_RESULTS_S_MAX: u64 = 365 * 24 * 3_600;

impl Config {
    /// Checks what can be known before anything is loaded.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        // What is no number is in no range.
        if !(self.gpu_memory_part > 0.0 && self.gpu_memory_part <= 1.0) {
            return Err(format!(
                "inference.gpu_memory_part is {}; take a part above 0 and at most 1",
                self.gpu_memory_part
            ));
        }
        if self.gpus_per_model != 0 && !TOGETHER_COUNTS.contains(&self.gpus_per_model) {
            return Err(format!("inference.gpus_per_model is {}; take 1, 2, 4 or 8, or 0", self.gpus_per_model));
        }
        let chat = self.models.iter().map(|path| model_directory::name_of(path));
        let embedding: Vec<String> = self.embedding_models.iter().map(|path| model_directory::name_of(path)).collect();
        if let Some(name) = chat.clone().find(|name| embedding.contains(name)) {
            return Err(format!("inference.embedding_models: a chat model is named {name}, too; rename one of them"));
        }
        if self.gpu_step_tokens > GPU_STEP_TOKENS_MAX {
            return Err(format!(
                "inference.gpu_step_tokens is {}; take at most {GPU_STEP_TOKENS_MAX}",
                self.gpu_step_tokens
            ));
        }
        // Jobs are queued under the name's token: two models of one token would take each other's.
        let mut taken: Vec<(String, String)> =
            chat.chain(embedding).map(|name| (subject::token(&name), name)).collect();
        for (name, remote) in &self.remote {
            let token = subject::token(name);
            if let Some((_, twin)) = taken.iter().find(|(other, _)| *other == token) {
                let how = if twin == name { "of this name" } else { "of the same queue" };
                return Err(format!(
                    "inference.remote.{name}: a model {how} ({twin}) is served here, too; serve one of them under another name"
                ));
            }
            taken.push((token, name.clone()));
            remote.check(name)?;
        }
        Ok(())
    }

    /// The remote models, of which none has been looked at.
    ///
    /// # Errors
    /// The text names the key, what is wrong with it, and what belongs there.
    pub fn remotes(&self) -> Result<Vec<Remote>, String> {
        self.check()?;
        self.remote.iter().map(|(name, remote)| Remote::new(name, remote.clone())).collect()
    }

    /// Whether no chat model is configured.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty() && self.remote.is_empty()
    }

    /// The names of all chat models.
    pub fn model_names(&self) -> Vec<String> {
        let local = self.models.iter().map(|path| model_directory::name_of(path));
        local.chain(self.remote.keys().cloned()).collect()
    }

    /// How long results are kept.
    pub(crate) fn cache_results(&self) -> Duration {
        Duration::from_secs(self.cache_results_s.min(CACHE_RESULTS_S_MAX))
    }

    /// The bounds of each engine; zeros that would stop it are raised to one.
    pub(crate) fn engine(&self) -> EngineConfig {
        EngineConfig {
            slots: self.slots.max(1),
            step_tokens: self.step_tokens.max(1),
            cache_bytes_max: self.cache_bytes_max,
            cache_idle: Duration::from_secs(self.cache_idle_s),
            gpu: self.gpu_limits(),
        }
    }

    /// The bounds of each engine on a GPU.
    pub(crate) fn gpu_limits(&self) -> Limits {
        Limits {
            step_tokens: self.gpu_step_tokens.max(1),
            memory_part: self.gpu_memory_part,
            cache_bytes_max: self.gpu_cache_bytes_max,
            ..Limits::default()
        }
    }

    /// How many threads compute.
    pub(crate) fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.threads == 0 { all() } else { self.threads }
    }

    /// The threads that compute.
    pub(crate) fn team(&self) -> std::io::Result<Team> {
        Team::new(self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_memory_is_a_part() {
        for part in [0.0, -0.5, 1.5, f64::NAN] {
            let why = Config { gpu_memory_part: part, ..Config::default() }.check().expect_err("no part");
            assert!(why.starts_with("inference.gpu_memory_part is"), "{why}");
        }
        assert_eq!(Config { gpu_memory_part: 1.0, ..Config::default() }.check(), Ok(()));
    }

    #[test]
    fn gpus_compute_together_in_numbers_that_share_heads() {
        let with = |gpus_per_model| Config { gpus_per_model, ..Config::default() }.check();
        assert!([0, 1, 2, 4, 8].into_iter().all(|count| with(count) == Ok(())));
        assert_eq!(with(3), Err("inference.gpus_per_model is 3; take 1, 2, 4 or 8, or 0".to_owned()));
    }

    #[test]
    fn a_name_belongs_to_one_model() {
        let remote = RemoteConfig { url: "http://127.0.0.1:1/v1".to_owned(), ..RemoteConfig::default() };
        let mut config = Config { remote: BTreeMap::from([("large".to_owned(), remote)]), ..Config::default() };
        config.models = vec!["/models/tiny".into()];
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.model_names(), ["tiny", "large"]);
        config.models.push("/models/large.gguf".into());
        let why = config.check().expect_err("two of one name");
        assert!(why.starts_with("inference.remote.large: a model of this name (large) is served here"), "{why}");
        config.models = vec!["/models/l_arge".into()];
        config.remote = BTreeMap::from([("l.arge".to_owned(), RemoteConfig::default())]);
        let why = config.check().expect_err("two of one queue");
        assert!(why.contains("of the same queue (l_arge)"), "{why}");
        config.embedding_models = vec!["/other/l_arge".into()];
        let why = config.check().expect_err("a chat and an embedding model of one name");
        assert!(why.contains("a chat model is named l_arge"), "{why}");
    }
}
