//! The runner as a program. Its presence here also makes cargo build it for the tests that start boxes.

use std::process::Command;

#[test]
fn the_runner_refuses_to_run_outside_its_box() {
    let output = Command::new(env!("CARGO_BIN_EXE_tool_runner")).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "the tool runner only runs inside its box\n");
    assert!(output.stdout.is_empty());
}
