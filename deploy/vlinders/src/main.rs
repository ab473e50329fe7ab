//! The vlinders binary.
fn main() {}
