//! The spawner: a small process with one thread that starts boxes for the tool worker and ends them.
//!
//! Boxes are its children and not the worker's, for three reasons. A box that should die with its parent dies with the
//! parent's *thread*, and a worker's threads come and go. Between fork and exec a process with many threads may do hardly
//! anything, here a box joins its control group and gives up its user. And when the worker is killed, the spawner sees its
//! socket close, ends what is left, and removes the control groups.
//!
//! Worker and spawner talk over a pair of sockets that keeps messages apart. What a box reads and writes goes through
//! pipes that the worker made; the spawner passes them on and looks at none of it.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};

pub use crate::cgroup::Bounds;
use crate::cgroup::{Group, Groups};

/// Longest message either way.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Pipes of one box: what it reads, what it writes, what it says in trouble.
pub const PIPES: usize = 3;
/// How often control groups are tried again that still held a process.
const REMOVE_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What the worker asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Start a box. Its three pipes come along.
    Start(Start),
    /// End it, if it has not ended.
    End {
        /// The box.
        id: u64,
    },
}

/// A box to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The worker's number for it, never used twice.
    pub id: u64,
    /// The program that makes the box, and its arguments.
    pub command: Vec<String>,
    /// User and group to start it as; the worker's when missing.
    pub user: Option<(u32, u32)>,
    /// What it may use in all; not bounded when missing.
    pub bounds: Option<Bounds>,
}

/// What the spawner tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first of all: whether boxes can be bounded.
    Ready {
        /// What a control group bounds here, or why there is none.
        bounded: Result<Vec<String>, String>,
    },
    /// A box did not start.
    NotStarted {
        /// The box.
        id: u64,
        /// Why.
        reason: String,
    },
    /// A box has ended, whatever the reason.
    Ended {
        /// The box.
        id: u64,
        /// Exit code; a signal is told as 128 and its number.
        code: i32,
        /// Whether the kernel ended a process in it for its memory.
        out_of_memory: bool,
    },
}

/// A box that runs.
struct Running {
    child: Child,
    ended: OwnedFd,
    group: Option<Group>,
}

struct Spawner<'s> {
    socket: BorrowedFd<'s>,
    groups: Result<Groups, String>,
    running: BTreeMap<u64, Running>,
    /// Groups of boxes that have ended.
    leaving: Vec<Group>,
    /// Makes the names of groups different from those of other workers, whatever they see of each other.
    name: String,
}

/// Serves the worker at the other end of standard input, until that end closes.
pub(crate) fn main() -> ExitCode {
    let stdin = io::stdin();
    let name = format!("{}-{}", std::process::id(), started());
    let groups = Groups::find(&name);
    if let Ok(groups) = &groups {
        groups.sweep();
    }
    let mut spawner = Spawner { socket: stdin.as_fd(), groups, running: BTreeMap::new(), leaving: Vec::new(), name };
    let served = spawner.serve();
    spawner.end_all();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "the spawner lost its worker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// When this process started, in ticks since the boot.
fn started() -> String {
    crate::cgroup::started("self").unwrap_or_default()
}

impl Spawner<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let bounded = self.groups.as_ref().map_err(Clone::clone).map(|groups| {
            let mut bounded = vec!["memory-limit".to_owned(), "process-limit".to_owned()];
            bounded.extend(groups.bounds_processor().then(|| "processor-limit".to_owned()));
            bounded
        });
        self.tell(&Event::Ready { bounded })?;
        loop {
            let (asked, ended) = self.wait()?;
            for id in ended {
                self.ended(id)?;
            }
            self.leaving.retain(|group| group.remove().is_err());
            if asked && !self.take_request()? {
                return Ok(());
            }
        }
    }

    /// Waits until the worker asks or a box ends: whether it asks, and which have ended.
    fn wait(&self) -> io::Result<(bool, Vec<u64>)> {
        let mut watched = vec![PollFd::new(&self.socket, PollFlags::IN)];
        watched.extend(self.running.values().map(|running| PollFd::new(&running.ended, PollFlags::IN)));
        let timeout = (!self.leaving.is_empty()).then_some(&REMOVE_EVERY);
        match poll(&mut watched, timeout) {
            Err(rustix::io::Errno::INTR) => return Ok((false, Vec::new())),
            polled => drop(polled?),
        }
        let mut ready = watched.iter().map(|watched| !watched.revents().is_empty());
        let asked = ready.next().unwrap_or_default();
        let ended = self.running.keys().zip(ready).filter(|(_, ready)| *ready).map(|(id, _)| *id).collect();
        Ok((asked, ended))
    }

    /// Takes one request; whether there will be more.
    fn take_request(&mut self) -> io::Result<bool> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIPES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            match recvmsg(self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
                // A worker that dies with messages unread resets the connection.
                Err(rustix::io::Errno::CONNRESET) => return Ok(false),
                received => received?,
            };
        let pipes: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Ok(false);
        }
        match serde_json::from_slice(&bytes[..received.bytes]) {
            Ok(Request::Start(start)) => {
                let id = start.id;
                if let Err(error) = self.start(&start, pipes) {
                    self.tell(&Event::NotStarted { id, reason: error.to_string() })?;
                }
            }
            Ok(Request::End { id }) => {
                if let Some(running) = self.running.get_mut(&id) {
                    running.end();
                }
            }
            Err(error) => return Err(io::Error::other(format!("a request cannot be read: {error}"))),
        }
        Ok(true)
    }

    fn start(&mut self, start: &Start, pipes: Vec<OwnedFd>) -> io::Result<()> {
        let [stdin, stdout, stderr] =
            <[OwnedFd; PIPES]>::try_from(pipes).map_err(|_| io::Error::other("the pipes are missing"))?;
        let Some((program, arguments)) = start.command.split_first() else {
            return Err(io::Error::other("there is no program to start"));
        };
        let group = match start.bounds {
            None => None,
            Some(bounds) => {
                let groups = self.groups.as_ref().map_err(|reason| io::Error::other(reason.clone()))?;
                Some(groups.make(&format!("{}-{}", self.name, start.id), bounds)?)
            }
        };
        let doors = match group.as_ref().map(Group::doors).transpose() {
            Ok(doors) => doors.unwrap_or_default(),
            Err(error) => {
                self.leaving.extend(group);
                return Err(error);
            }
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir("/");
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        if let Some((user, group)) = start.user {
            command.uid(user).gid(group);
        }
        let join =
            move || doors.iter().try_for_each(|door| rustix::io::write(door, b"0").map(drop)).map_err(Into::into);
        #[expect(unsafe_code, reason = "there is no safe way to do something between fork and exec")]
        // SAFETY: this process has one thread, so its copy is whole; all that is done in it is to write to open files.
        unsafe {
            command.pre_exec(join)
        };
        let spawned = command.spawn().and_then(|mut child| {
            let process = Pid::from_child(&child);
            match pidfd_open(process, PidfdFlags::empty()) {
                Ok(ended) => Ok((child, ended)),
                Err(error) => {
                    // What is told not to have started must not run.
                    let _ = child.kill().and_then(|()| child.wait());
                    Err(error.into())
                }
            }
        });
        match spawned {
            Ok((child, ended)) => {
                self.running.insert(start.id, Running { child, ended, group });
                Ok(())
            }
            Err(error) => {
                self.leaving.extend(group);
                Err(io::Error::new(error.kind(), format!("{program}: {error}")))
            }
        }
    }

    fn ended(&mut self, id: u64) -> io::Result<()> {
        let Some(mut running) = self.running.remove(&id) else { return Ok(()) };
        let status = running.child.wait()?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        let out_of_memory = running.group.as_ref().is_some_and(Group::ran_out_of_memory);
        if let Some(group) = running.group {
            // What is in its process namespace dies by itself, a moment later than its first process.
            group.kill();
            self.leaving.push(group);
        }
        self.tell(&Event::Ended { id, code, out_of_memory })
    }

    /// The worker is gone: so are its boxes.
    fn end_all(&mut self) {
        for running in self.running.values_mut() {
            running.end();
        }
        for (_, mut running) in std::mem::take(&mut self.running) {
            let _ = running.child.wait();
            self.leaving.extend(running.group);
        }
        // Some ten times the time in which the kernel ends a process namespace. What stays is removed by the next.
        for _ in 0..100 {
            self.leaving.retain(|group| {
                group.kill();
                group.remove().is_err()
            });
            if self.leaving.is_empty() {
                return;
            }
            let _ = poll(&mut [], Some(&REMOVE_EVERY));
        }
    }

    fn tell(&self, event: &Event) -> io::Result<()> {
        let bytes = serde_json::to_vec(event).map_err(io::Error::other)?;
        loop {
            match send(self.socket, &bytes, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                // The worker's end may be full for a moment, and it is not this end that gives up.
                Err(rustix::io::Errno::AGAIN) => drop(poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None)?),
                // Read as the end of the worker by the next look at the socket.
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(()),
                sent => return Ok(sent.map(drop)?),
            }
        }
    }
}

impl Running {
    /// Ends the box, which may have ended by itself. Its process namespace goes with its first process, and that with
    /// `bwrap`; but not yet while `bwrap` is making it, when the one waits for a word of the other. So `bwrap` is stopped,
    /// and cannot make a process any more nor let go of one, and what it has made ends first.
    fn end(&mut self) {
        let process = Pid::from_child(&self.child);
        if kill_process(process, Signal::STOP).is_ok() {
            let number = process.as_raw_nonzero();
            let made = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
            for below in made.split_whitespace().filter_map(|number| number.parse().ok()).filter_map(Pid::from_raw) {
                let _ = kill_process(below, Signal::KILL);
            }
        }
        let _ = self.child.kill();
        if let Some(group) = &self.group {
            group.kill();
        }
    }
}
