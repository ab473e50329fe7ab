//! The tool runner alone: what `deploy/sandbox-image` links statically, and what tests start boxes with. `vlinders
//! tool-runner` does the same.

fn main() -> std::process::ExitCode {
    tool_runner::runner_main()
}
