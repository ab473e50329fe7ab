//! The analysis worker: code in, outline out.
//!
//! What is known of single files adds up to what is known of a workspace: [`resolve`] finds the files that imports lead
//! to, [`Graph`] tells who depends on whom, and [`outline_of_repository`] shows what the rest stands on. All three are
//! pure.
//!
//! It answers `vl.v1.rpc.analysis` and publishes nothing but its presence. It parses one file at a time with
//! tree-sitter and tells what the file imports and defines. It is given the code and reads no disk: reading is
//! confined, and that is the tool worker's affair.
//!
//! What must always be true: an answer costs bounded time and memory whatever the code is, and the same code gives
//! the same answer.

mod analysis;
mod config;
mod dependencies;
mod graph;
mod imports;
mod language;
mod lookup;
mod map;
mod outline;
mod service;
mod symbols;

pub use analysis::{Analysis, Limits, Refusal, analyze};
pub use config::Config;
pub use dependencies::{
    Definition, Dependencies, Dependency, FILES_PER_IMPORT_MAX, IMPORT_BYTES_MAX, IMPORTS_PER_FILE_MAX, ImportKind,
    ImportRef, SourceFile, Target, resolve,
};
pub use graph::{DEPENDENCIES_PER_FILE_MAX, Graph};
pub use imports::Import;
pub use language::Language;
pub use map::{TokenBudget, outline_of_repository};
pub use outline::outline;
pub use service::{Error, serve};
pub use symbols::{Symbol, SymbolKind};
