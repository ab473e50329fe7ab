//! The tool worker: carries out tool calls, confined.

mod confined;
pub mod failure;
pub mod registry;
pub mod tools;
pub mod workspace;
