//! Turns inference jobs into tokens.
//!
//! `scheduler`, `waiting` and `kv` decide what a step computes, `model` and `kernels` compute it on CPUs and `cuda` on GPUs,
//! both behind `compute`, `constraint` says which tokens may come, `sample` picks one of them, `answer` turns them into text and tool calls, and `engine` runs the loop on a thread
//! of its own.
//! `service` is the shell on the bus: `pull` consumes inference jobs, and `carry_out` publishes their token frames and
//! result facts; `backend` is what generates them: the engine, or `remote`, a server that speaks OpenAI's API. A result is
//! in the log before its job is off the queue: a crash between the two repeats the job, and the log recognises the second
//! result. An attempt after the first goes on behind the tokens already published. `results` knows answers that would
//! come out the same again. `embed` turns texts into vectors, with which `embeddings` answers questions.
//! `models` loads and unloads while others answer: it reads what a model will `need` before it reads the model, keeps the
//! `prefixes` of one that goes, and answers questions for changes. `gpus` measures, and `figures` are what an engine shows.

pub mod answer;
mod answered;
pub mod architecture;
pub mod backend;
mod carry_out;
pub mod compute;
pub mod config;
pub mod constraint;
pub mod cuda;
pub mod detokenize;
pub mod embed;
mod embeddings;
pub mod engine;
pub mod figures;
pub mod gguf;
pub mod gpus;
mod identity;
pub mod kernels;
pub mod kv;
mod marks;
mod metrics;
pub mod model;
pub mod model_directory;
mod models;
pub mod need;
pub mod parallel;
pub mod prefixes;
mod pull;
pub mod remote;
mod results;
pub mod sample;
pub mod scheduler;
mod service;
mod sharing;
pub mod template;
pub mod tokenizer;
pub mod tool_calls;
mod traced;
mod truncation;
pub mod waiting;
pub mod weights;

pub use config::Config;
pub use service::{Error, serve};
