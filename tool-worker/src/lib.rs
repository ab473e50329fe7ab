//! The tool worker: carries out tool calls, confined.
//!
//! It consumes jobs on `vl.v1.job.tool.>`, publishes the facts `tool.completed` and `tool.failed`, and answers
//! `vl.v1.rpc.tools` with its registry.
//!
//! What must always be true: no tool runs outside a box, a box is used for one call, and whatever a call does, its
//! outcome is known within its time limit. A box has no network: what looks at the web is fetched by the worker, by
//! [`fetch`] and nothing else, and taken apart in a box. A call that does more than read is never carried out twice.

mod calls;
mod code;
mod commands;
pub mod config;
pub mod executor;
pub mod fetch;
mod ledger;
pub mod mcp;
mod memory;
pub mod permission;
pub mod plugins;
pub mod registry;
mod results;
mod revision;
pub mod sandbox;
#[cfg(test)]
mod scripted;
mod service;
pub mod toolbox;
mod traced;
mod visible;
pub mod web;
pub mod workspace;

pub use config::Config;
pub use executor::{Analyst, Call, Executor, Library, Outcome, Ready, Refused};
pub use sandbox::Sandbox;
pub use service::{Error, serve};
pub use tool_runner::{Failure, failure, runner_main};
