//! The analysis worker: code in, outline out.
//!
//! It parses one file at a time with tree-sitter and tells what the file imports and defines. It is given the code
//! and reads no disk: reading is confined, and that is the tool worker's affair.
//!
//! What must always be true: an answer costs bounded time and memory whatever the code is, and the same code gives
//! the same answer.

mod analysis;
mod imports;
mod language;
mod outline;
mod symbols;

pub use analysis::{Analysis, Limits, Refusal, analyze};
pub use imports::Import;
pub use language::Language;
pub use outline::outline;
pub use symbols::{Symbol, SymbolKind};
