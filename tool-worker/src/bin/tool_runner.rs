//! The tool runner, for this crate's own tests: cargo builds it for them, which it does not do for another crate's.

fn main() -> std::process::ExitCode {
    tool_worker::runner_main()
}
