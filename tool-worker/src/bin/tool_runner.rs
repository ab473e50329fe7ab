//! The tool runner alone, for this crate's own tests; `vlinders tool-runner` is the one that ships.

fn main() -> std::process::ExitCode {
    tool_worker::runner_main()
}
