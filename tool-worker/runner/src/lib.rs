//! The tool runner: the program inside the box, and what it says to the tool worker outside; and the spawner, which
//! starts boxes for the worker.
//!
//! A crate of its own, because it is the part that meets hostile input: it knows no bus, starts no thread once it has
//! locked itself up, and is small enough to be linked statically and to be an image by itself.
//!
//! What must always be true: it runs inside a box only, it has locked itself up before it reads its one call, and it never
//! takes a second one. The spawner runs outside, runs nothing by itself, and ends with the worker.

mod cgroup;
mod confine;
mod confined;
mod crew;
pub mod failure;
pub mod message;
pub mod probe;
mod queue;
mod run;
pub mod spawner;
pub mod system_calls;
pub mod tools;

pub use failure::Failure;
pub use run::{NOT_CONFINED, runner_main};

/// Where the box shows the workspace.
pub const WORKSPACE: &str = "/workspace";
/// Where the box has the runner.
pub const RUNNER: &str = "/box/runner";
/// User and group inside a box that bubblewrap makes, and of a container where there is none better: nobody.
pub const NOBODY: u32 = 65534;
/// The name under which the runner takes the self-test's operations. No tool of the registry has it.
pub const PROBE: &str = "__probe";
/// The argument that makes a runner take probes only, with nothing but the container around it.
pub const CONTAINER_ONLY: &str = "--container-only";
/// The argument, before an [`message::Allowance`] in JSON, that makes a runner take an order instead of a call.
pub const COMMANDS: &str = "--commands";
/// The argument that makes this program the spawner.
pub const SPAWNER: &str = "--spawner";
