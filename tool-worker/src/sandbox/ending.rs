//! What the end of a box means, in the same words for every kind of box.

use std::time::Duration;

use crate::failure::Failure;

/// Bytes read of an answer: the largest source handed out, escaped as JSON, and some more.
pub(crate) const STDOUT_BYTES_MAX: u64 = 4 << 20;
/// Bytes read of what a runner says in trouble.
pub(crate) const STDERR_BYTES_MAX: u64 = 8 << 10;

/// The wall time is over.
pub(crate) fn too_long(timeout: Duration) -> Failure {
    Failure::timeout(format!("the tool took longer than {} s and was stopped", timeout.as_secs_f64()))
}

/// More came out than may.
pub(crate) fn too_much(bytes_max: u64) -> Failure {
    Failure::refused(format!("the tool wrote more than {bytes_max} bytes and was stopped"))
}

/// The kernel ended it for its memory.
pub(crate) fn too_large() -> Failure {
    Failure::refused("the tool used more memory than it may and was stopped")
}

/// An exit without an answer. A signal is told as 128 and its number.
pub(crate) fn in_words(code: i32, stderr: &str) -> Failure {
    let said: String = stderr.trim().chars().take(300).collect();
    match code - 128 {
        libc::SIGABRT if stderr.contains("memory allocation") => too_large(),
        libc::SIGXCPU | libc::SIGKILL => {
            Failure::timeout("the tool used more processor time than it may and was stopped")
        }
        libc::SIGXFSZ => Failure::refused("the tool wrote a larger file than it may and was stopped"),
        libc::SIGSYS => Failure::refused("the tool made a system call that no tool may make and was stopped"),
        _ => Failure::internal(format!("the sandbox ended with code {code}: {said}")),
    }
}
