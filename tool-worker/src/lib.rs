//! The tool worker: carries out tool calls, confined.
//!
//! It consumes jobs on `vl.v1.job.tool.>`, publishes the facts `tool.completed` and `tool.failed`, and answers
//! `vl.v1.rpc.tools` with its registry.
//!
//! What must always be true: no tool runs outside a box, a box is used for one call, and whatever a call does, its
//! outcome is known within its time limit.

pub mod config;
mod confined;
pub mod executor;
pub mod failure;
pub mod registry;
mod runner;
mod sandbox;
mod service;
mod tools;
pub mod workspace;

pub use config::Config;
pub use executor::{Analyst, Call, Executor, Library, Outcome};
pub use failure::Failure;
pub use runner::runner_main;
pub use service::{Error, serve};
