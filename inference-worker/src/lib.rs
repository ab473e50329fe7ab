//! Turns inference jobs into tokens.
//!
//! `scheduler` and `kv` decide what a step computes, `model` and `kernels` compute it, `constraint` says which tokens may
//! come, `sample` picks one of them, `answer` turns them into text and tool calls, and `engine` runs the loop on a thread
//! of its own.
//! `service` is the shell on the bus: it consumes inference jobs and has `carry_out` publish their token frames and result
//! facts; `backend` is what generates them. A result is in the log before its job is off the queue: a crash between the
//! two repeats the job, and the log recognises the second result. An attempt after the first goes on behind the tokens
//! already published.

pub mod answer;
pub mod architecture;
pub mod backend;
mod carry_out;
pub mod config;
pub mod constraint;
pub mod detokenize;
pub mod embed;
pub mod engine;
pub mod gguf;
pub mod kernels;
pub mod kv;
mod marks;
pub mod model;
pub mod model_directory;
pub mod parallel;
pub mod sample;
pub mod scheduler;
mod service;
pub mod template;
pub mod tokenizer;
pub mod tool_calls;
pub mod weights;

pub use config::Config;
pub use service::{Error, serve};
