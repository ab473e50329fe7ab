//! Everything that crosses the wire, and nothing else: ids, facts, decisions, jobs, token frames, API types,
//! subjects, and the definitions of streams and consumers as data.
//!
//! This crate knows neither tokio nor a NATS client. A message is a `serde` type with a name and a version; it is
//! encoded by [`wire::encode`] and read by [`wire::decode`]. Every message type has a golden sample in `golden/`, so
//! a change of the wire is always a visible diff.
//!
//! | module | what crosses there |
//! |---|---|
//! | [`ids`] | execution and effect ids, partitions |
//! | [`chat`] | messages, tools and sampling in OpenAI's shape |
//! | [`json_schema`] | bounds on the schemas of answers and arguments |
//! | [`fact`] | what happened outside: appended to the log without a condition |
//! | [`decision`] | what the orchestrator decided: appended with an expected sequence, hash-chained |
//! | [`job`] | disposable, self-contained work for workers |
//! | [`dead_letter`] | copies of messages that were given up, and why |
//! | [`object`] | content that is too large for a message, by reference |
//! | [`token`] | the fast, lossy path beside the log |
//! | [`models`] | models at run time: what is known, loaded and asked for |
//! | [`presence`] | which workers are there and what they hold |
//! | [`code`] | indexed code: what index executions ask, and what is asked of the index |
//! | [`memory`] | facts that outlive an execution |
//! | [`rpc`] | stateless questions between services |
//! | [`executions`] | executions as rows, and questions about many of them |
//! | [`summary`] | the fold of an execution into its row |
//! | [`vectors`] | vectors with what they stand for, and questions to who keeps them |
//! | [`api`] | bodies of the HTTP edge |
//! | [`asyncapi`] | all of it as a document: subjects, messages and their schemas |
//! | [`subject`], [`stream`] | names and limits of everything on the bus |
//! | [`permission`] | who may say and hear what |

pub mod agent;
pub mod api;
pub mod asyncapi;
pub mod chat;
pub mod code;
pub mod dead_letter;
pub mod decision;
pub mod executions;
pub mod fact;
pub mod ids;
pub mod job;
pub mod json_schema;
pub mod memory;
pub mod models;
pub mod object;
pub mod permission;
pub mod presence;
pub mod rpc;
pub mod stream;
pub mod subject;
pub mod summary;
pub mod token;
pub mod trace;
pub mod vectors;
pub mod wire;

pub use chat::{FinishReason, Message, Role, Sampling, ToolCall, ToolSpec, Usage};
pub use dead_letter::DeadLetter;
pub use decision::{Event, Record};
pub use fact::{Fact, FactBody};
pub use ids::{EffectId, ExecutionId, Partition};
pub use job::{AnalysisJob, InferenceJob, Job, ToolJob};
pub use token::Frame;
