//! The main function: lock up, take one call, answer it, and go; or become the one command that was ordered.

use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use crate::confine::{self, Layers};
use crate::crew::Crew;
use crate::failure::Failure;
use crate::message::{self, BoxedAnswer, BoxedCall, Order};
use crate::{BEGUN, COMMANDS, CONTAINER_ONLY, IDENTITY, PROBE, SPAWNER, WORKSPACE, probe, spawner, tools};

/// Longest call accepted: a page of 2 MiB, of which every byte is escaped. The registry lets 64 KiB of arguments through.
const CALL_BYTES_MAX: u64 = 13 << 20;
/// Exit code of a runner that refuses to start.
pub const NOT_CONFINED: u8 = 71;
/// What a shell says of a program that is not there, and of one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;
/// Variables that a command always has.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
    ("LANG", "C.UTF-8"),
];

/// The main function of the hidden command `tool-runner`. It must be called first thing, before any thread starts:
/// what it gives up, it gives up for the whole process.
#[must_use]
pub fn runner_main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let following = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    if arguments.iter().any(|argument| argument == SPAWNER) {
        return spawner::main();
    }
    let layers = if let Some(allowance) = following(COMMANDS) {
        match serde_json::from_str(allowance) {
            Ok(allowance) => Layers::Commands(allowance),
            Err(error) => return not_confined(&error),
        }
    } else if arguments.iter().any(|argument| argument == CONTAINER_ONLY) {
        Layers::ContainerOnly
    } else {
        Layers::All
    };
    if let Some(identity) = following(IDENTITY)
        && let Err(error) = is_workspace(identity)
    {
        return not_confined(&error);
    }
    let (enforced, crew) = match confine::confine(layers) {
        Ok(confined) => confined,
        Err(error) => return not_confined(&error),
    };
    let outcome = match layers {
        Layers::Commands(_) => match order() {
            Ok(None) => return ExitCode::SUCCESS,
            Ok(Some(Order::Run(command))) => return becomes(&command),
            Ok(Some(Order::Probe(operation))) => guarded(|| probe::run_for_commands(&operation)),
            Err(failure) => return not_confined(&failure),
        },
        // A box that waited for a call and got none has nothing to say.
        Layers::All | Layers::ContainerOnly => match call() {
            None => return ExitCode::SUCCESS,
            Some(text) => guarded(|| text.and_then(|text| answer(&text, layers, &crew))),
        },
    };
    let mut answer = serde_json::to_vec(&BoxedAnswer { enforced, outcome: outcome.into() }).expect("strings only");
    answer.push(b'\n');
    match io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether the box shows the directory that it was made for, and not one that has taken its name.
fn is_workspace(identity: &str) -> Result<(), String> {
    let found = std::fs::metadata(WORKSPACE).map(|found| format!("{}:{}", found.dev(), found.ino()));
    match found {
        Ok(found) if found == identity => Ok(()),
        _ => Err("the workspace is no longer the directory that was allowed".to_owned()),
    }
}

fn not_confined(error: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(NOT_CONFINED)
}

fn guarded(work: impl FnOnce() -> Result<String, Failure>) -> Result<String, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Failure::internal("the tool crashed")))
}

/// What to do in a box for commands; none when the box is not needed. Not a byte more is read, since what follows is the
/// command's own.
fn order() -> Result<Option<Order>, Failure> {
    // Standard input as a file: its usual handle reads ahead.
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(|error| unreadable(&error))?;
    let mut input = std::fs::File::from(input);
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(|error| unreadable(&error))?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > Order::BYTES_MAX {
        return Err(Failure::internal(format!("the order has {length} bytes, at most {} are read", Order::BYTES_MAX)));
    }
    let mut order = vec![0; length];
    input.read_exact(&mut order).map_err(|error| unreadable(&error))?;
    serde_json::from_slice(&order).map(Some).map_err(|error| unreadable(&error))
}

/// Becomes the command. Comes back only if it cannot be run, with the exit code that a shell would give.
fn becomes(command: &message::Command) -> ExitCode {
    let Some((program, arguments)) = command.argv.split_first() else {
        return not_confined(&"there is no program to run");
    };
    let directory = Path::new(WORKSPACE).join(&command.directory);
    let mut process = std::process::Command::new(program);
    process.args(arguments).env_clear().envs(ENVIRONMENT).envs(&command.environment).current_dir(&directory);
    // From here on the command counts as begun.
    if io::stdout().write_all(&[BEGUN]).and_then(|()| io::stdout().flush()).is_err() {
        return ExitCode::from(NOT_RUNNABLE);
    }
    let error = process.exec();
    let (what, code) = match error.kind() {
        // Said of the directory as of the program.
        io::ErrorKind::NotFound if !directory.is_dir() => (format!("no such directory: {}", command.directory), 126),
        io::ErrorKind::NotFound => (format!("no such program: {program}"), NOT_FOUND),
        _ => (format!("{program} cannot be run: {error}"), NOT_RUNNABLE),
    };
    let _ = writeln!(io::stderr(), "{what}");
    ExitCode::from(code)
}

/// One line: its end says that the call is whole, also where the stream stays open.
fn call() -> Option<Result<String, Failure>> {
    let mut text = String::new();
    match io::stdin().lock().take(CALL_BYTES_MAX).read_line(&mut text) {
        Ok(0) => None,
        Ok(_) => Some(Ok(text)),
        Err(error) => Some(Err(unreadable(&error))),
    }
}

fn answer(text: &str, layers: Layers, crew: &Crew) -> Result<String, Failure> {
    let call: BoxedCall = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    if call.tool == PROBE {
        probe::run(&call.arguments)
    } else if layers == Layers::All {
        // From here, and not from the root: that way leads through whatever an engine keeps images in, at every file.
        tools::run(Path::new("."), &call, crew)
    } else {
        Err(Failure::refused("this box takes probes only"))
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("the call cannot be read: {error}"))
}
