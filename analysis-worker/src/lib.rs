//! The analysis worker: code in, outline out.
//!
//! It answers `vl.v1.rpc.analysis` and publishes nothing but its presence. It parses one file at a time with
//! tree-sitter and tells what the file imports and defines. It is given the code and reads no disk: reading is
//! confined, and that is the tool worker's affair.
//!
//! What must always be true: an answer costs bounded time and memory whatever the code is, and the same code gives
//! the same answer.

mod analysis;
mod config;
mod imports;
mod language;
mod outline;
mod service;
mod symbols;
pub mod vectors;

pub use analysis::{Analysis, Limits, Refusal, analyze};
pub use config::Config;
pub use imports::Import;
pub use language::Language;
pub use outline::outline;
pub use service::{Error, serve};
pub use symbols::{Symbol, SymbolKind};
