//! The edge, over HTTP and gRPC: checks a request, appends it to the log, and streams back what comes of it.
//!
//! It says what requests of plain NATS clients come to, when orchestrators ask (`vl.v1.rpc.submission`).
//! It consumes what the log republishes and the token frames of the executions it waits for, publishes the facts
//! `execution.submitted` and what people tell an execution (`cancel.requested`, `approval.decided`, …), asks
//! `vl.v1.rpc.*` what is there, and keeps the agent types that are registered in the bucket `vl_config` and the keys of
//! requests in `vl_requests`. It settles dead letters on people's behalf.
//!
//! What must always be true: nothing is answered that is not in the log, an accepted request goes on whatever
//! happens to its client, and any gateway can serve any execution.

mod admission;
mod agents;
mod batch;
mod code;
mod completion;
mod config;
mod console;
mod control;
mod dead_letters;
mod directory;
mod executions;
mod follow;
mod forks;
mod grpc;
mod idempotency;
mod listen;
mod live;
mod memory;
mod metrics;
mod models;
mod objects;
mod openai;
mod openapi;
mod operations;
mod problem;
mod queues;
mod requests;
mod secrets;
mod service;
mod sse;
mod submission;
mod traced;
mod transcript;
mod view;

pub use config::Config;
pub use listen::{Tls, TlsError};
pub use secrets::Secrets;
pub use service::{Addresses, Error, serve};
