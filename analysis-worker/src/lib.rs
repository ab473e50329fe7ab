//! The analysis worker: code in, outline out.
//!
//! It answers `vl.v1.rpc.analysis` and publishes nothing but its presence. It parses one file at a time with
//! tree-sitter and tells what the file imports, defines and uses, and into which pieces it is cut for an index. It is
//! given the code and reads no disk: reading is confined, and that is the tool worker's affair.
//!
//! What must always be true: an answer costs bounded time and memory whatever the code is, and the same code gives
//! the same answer.

mod analysis;
mod chunk;
mod config;
mod imports;
mod language;
mod outline;
mod references;
mod service;
mod symbols;
mod tags;

pub use analysis::{Analysis, Limits, Refusal, analyze};
pub use chunk::{Chunk, chunk_text};
pub use config::Config;
pub use imports::{Import, ImportKind};
pub use language::Language;
pub use outline::outline;
pub use references::{Reference, ReferenceKind};
pub use service::{Error, serve};
pub use symbols::{Symbol, SymbolKind};
