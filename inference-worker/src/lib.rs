//! Turns inference jobs into tokens.
//!
//! `scheduler` and `kv` decide what a step computes, `model` and `kernels` compute it, `sample` picks tokens,
//! `answer` turns them into text and tool calls, and `engine` runs the loop on a thread of its own.

pub mod answer;
pub mod architecture;
pub mod detokenize;
pub mod engine;
pub mod kernels;
pub mod kv;
pub mod model;
pub mod model_directory;
pub mod sample;
pub mod scheduler;
pub mod template;
pub mod tokenizer;
pub mod tool_calls;
pub mod weights;
