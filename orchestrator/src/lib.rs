//! Owns each execution: looks at what happened, decides what happens next.
//!
//! Consumes the facts of the log's partitions; publishes decisions into the log and jobs onto the queues. What must
//! always be true:
//!
//! - The core ([`execution`]) does no I/O, reads no clock and draws no randomness: the same log gives the same state
//!   and the same decisions, byte for byte ([`history::verify`]).
//! - A decision is appended only at the sequence it rests on, so two owners never write two histories.
//! - Tables are derived from the log: nothing waits for them, and they can be built anew at any time.
//! - Jobs are derived from the log and may be published again at any time.
//!
//! | module | |
//! |---|---|
//! | [`execution`] | **the state machine**: `apply` and `decide`, five regions, all pure |
//! | [`history`] | folds a log into an execution, seals decisions, verifies them |
//! | [`work`] | what an open effect asks of others: a job, or the request of a child |
//! | [`useless`] | facts that led to nothing and never could have |
//! | `forks` | what another execution would begin with |
//! | [`audit`] | the proof of a whole partition, while it is read |
//! | [`projection`] | executions as rows: the log folded into SQL tables, and questions about them |
//! | [`questions`] | what can be asked about one execution |
//! | [`agents`] | agent types: built in, and from a directory |
//! | [`simulate`] | core and shell in virtual time against a bus in memory, from a seed: `cargo run -p orchestrator --example simulate -- --seeds 1000` |
//! | `completion` | requests of plain NATS clients, of which gateways say what they come to |
//! | `service`, `partition`, `carry_out`, `liveness`, `ownership` | the shell: receive, ask the core, do what it answered |

pub mod agents;
pub mod audit;
mod carry_out;
mod completion;
pub mod config;
pub mod execution;
mod forks;
pub mod history;
mod liveness;
mod ownership;
mod partition;
pub mod projection;
pub mod questions;
mod service;
pub mod simulate;
mod step;
mod traced;
pub mod useless;
pub mod work;

pub use config::Config;
pub use service::{Error, serve};
