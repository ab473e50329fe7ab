//! The analysis worker: reads code, indexes it, finds it again, and keeps what should be remembered.
//!
//! It consumes jobs on `vl.v1.job.analysis.>`, publishes the facts `tool.completed` and `tool.failed` of them, and answers
//! `vl.v1.rpc.analysis`, `.search`, `.code`, `.indexes` and `.memory`. It asks `vl.v1.rpc.embed` for vectors.
//!
//! | module | |
//! |---|---|
//! | `language`, `tags`, `analysis` | **parsing**: one file by its grammar, bounded in time and size; pure |
//! | `symbols`, `references`, `imports`, `chunk` | what a file defines, mentions and imports, and the pieces it is cut into; pure |
//! | `dependencies`, `graph`, `map` | what files depend on, circles, the outline of a repository; pure |
//! | `workspace`, `walk`, `reading` | files of a workspace, confined to it |
//! | `catalogue`, `lexical` | what is indexed, in a bucket and in memory; found by words |
//! | `vectors`, `embedder` | the store of vectors, and who makes them |
//! | `indexer`, `jobs` | the jobs of an index execution |
//! | `search`, `overview`, `memory` | the questions |
//!
//! What must always be true: an answer costs bounded time and memory whatever the code is; the same code gives the same
//! answer; nothing outside an allowed workspace is read; and what is in the catalogue is found, vectors or not.

mod analysis;
mod catalogue;
mod chunk;
mod config;
mod dependencies;
mod embedder;
mod graph;
mod imports;
mod indexer;
mod jobs;
mod language;
mod lexical;
mod lookup;
mod map;
mod memory;
mod outline;
mod overview;
mod reading;
mod references;
mod search;
mod service;
mod symbols;
mod tags;
pub mod vectors;
mod walk;
mod workspace;

pub use analysis::{Analysis, Limits, Refusal, analyze};
pub use chunk::{Chunk, chunk_text};
pub use config::Config;
pub use dependencies::{
    Definition, Dependencies, Dependency, FILES_PER_IMPORT_MAX, IMPORT_BYTES_MAX, IMPORTS_PER_FILE_MAX, ImportRef,
    SourceFile, Target, resolve,
};
pub use graph::{DEPENDENCIES_PER_FILE_MAX, Graph};
pub use imports::{Import, ImportKind};
pub use language::Language;
pub use map::{TokenBudget, outline_of_repository};
pub use outline::outline;
pub use references::{Reference, ReferenceKind};
pub use service::{Error, serve};
pub use symbols::{Symbol, SymbolKind};
