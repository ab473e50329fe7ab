//! The worker's end of the spawner ([`tool_runner::spawner`]): starts boxes, hears of their ends, ends them.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use runtime::Tasks;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tool_runner::SPAWNER;
use tool_runner::spawner::{Bounds, Event, MESSAGE_BYTES_MAX, PIPES, Request, Start};

use super::program::Program;

/// How long the spawner may take to say that it is there.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end boxes and itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A running spawner.
pub(super) struct Spawner {
    connection: Arc<Connection>,
    process: Child,
    /// Told when the connection is closed on this side, too.
    closed: oneshot::Receiver<()>,
    /// What control groups bound here, or why boxes cannot be bounded.
    pub(super) bounded: Result<Vec<String>, String>,
}

/// What every box needs of it.
#[derive(Debug)]
struct Connection {
    /// Requests and the pipes that go along. There are never more than two for a box.
    requests: mpsc::UnboundedSender<(Request, Vec<OwnedFd>)>,
    boxes: Mutex<BTreeMap<u64, oneshot::Sender<Ended>>>,
    made: AtomicU64,
    lost: AtomicBool,
}

/// How a box ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an exit code; a signal counts as 128 and its number.
    Code { code: i32, out_of_memory: bool },
    /// It never ran.
    NotStarted(String),
}

/// A box, and the worker's ends of its pipes. Dropping it ends the box.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) held: Held,
}

/// A box without its pipes. Dropping it ends the box.
#[derive(Debug)]
pub(super) struct Held {
    id: u64,
    ended: oneshot::Receiver<Ended>,
    connection: Arc<Connection>,
}

impl Spawner {
    /// Starts it.
    pub(super) async fn start(program: &Program, tasks: &Tasks) -> Result<Self, String> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| format!("make a pair of sockets: {error}"))?;
        let mut command = Command::new(&program.file);
        command.args(program.arguments()).arg(SPAWNER).env_clear().current_dir("/");
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let process =
            command.spawn().map_err(|error| format!("start the spawner {}: {error}", program.file.display()))?;
        // The command holds the spawner's end, which must close with the spawner.
        drop(command);
        let socket = watched(ours).map_err(|error| format!("watch the spawner: {error}"))?;
        let (requests, taken) = mpsc::unbounded_channel();
        let connection = Arc::new(Connection {
            requests,
            boxes: Mutex::default(),
            made: AtomicU64::new(0),
            lost: AtomicBool::new(false),
        });
        let greeting = tokio::time::timeout(GREETING_TIMEOUT, receive(&socket)).await;
        let bounded = match greeting {
            Ok(Ok(Some(Event::Ready { bounded }))) => bounded,
            Ok(Ok(_)) => return Err("the spawner ended at once".to_owned()),
            Ok(Err(error)) => return Err(format!("hear from the spawner: {error}")),
            Err(_) => return Err(format!("the spawner did not start in {} s", GREETING_TIMEOUT.as_secs())),
        };
        let (closing, closed) = oneshot::channel();
        let listener = Arc::downgrade(&connection);
        tasks.spawn_background(async move {
            tokio::join!(send_all(&socket, taken), hear(&socket, listener));
            drop(socket);
            let _ = closing.send(());
        });
        Ok(Self { connection, process, closed, bounded })
    }

    /// Whether it is gone, so that another must be started.
    pub(super) fn is_lost(&self) -> bool {
        self.connection.lost.load(Ordering::Acquire)
    }

    /// Asks for a box. That it does not start is told as its end.
    pub(super) fn spawn(
        &self,
        command: Vec<String>,
        user: Option<(u32, u32)>,
        bounds: Option<Bounds>,
    ) -> io::Result<Spawned> {
        let ((stdin, in_box_stdin), (in_box_stdout, stdout), (in_box_stderr, stderr)) =
            (pipe::pipe()?, pipe::pipe()?, pipe::pipe()?);
        let pipes = vec![
            in_box_stdin.into_blocking_fd()?,
            in_box_stdout.into_blocking_fd()?,
            in_box_stderr.into_blocking_fd()?,
        ];
        let id = self.connection.made.fetch_add(1, Ordering::Relaxed);
        let (ending, ended) = oneshot::channel();
        self.connection.boxes().insert(id, ending);
        let held = Held { id, ended, connection: self.connection.clone() };
        let request = Request::Start(Start { id, command, user, bounds });
        self.connection.requests.send((request, pipes)).map_err(|_| io::Error::other("the spawner is gone"))?;
        Ok(Spawned { stdin, stdout, stderr, held })
    }

    /// Ends the spawner and every box, and waits until they are gone.
    pub(super) async fn close(self) {
        let Self { connection, mut process, closed, .. } = self;
        // Nobody can ask for boxes any more, which the spawner is told; with the last box it knows that nobody will.
        drop(connection);
        if tokio::time::timeout(CLOSE_TIMEOUT, process.wait()).await.is_err() {
            tracing::warn!("the spawner did not end in time");
            let _ = process.kill().await;
        }
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }
}

impl Connection {
    fn boxes(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Ended>>> {
        self.boxes.lock().expect("no panic while the lock is held")
    }
}

impl Held {
    /// Whether the spawner is gone, and the box with it.
    pub(super) fn is_lost(&self) -> bool {
        self.connection.lost.load(Ordering::Acquire)
    }

    /// Waits for the end; none when the spawner went away.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        (&mut self.ended).await.ok()
    }

    /// Ends the box and waits until it is gone.
    pub(super) async fn end(mut self) {
        let _ = self.connection.requests.send((Request::End { id: self.id }, Vec::new()));
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.ended()).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // One that has ended has left the list already.
        if self.connection.boxes().remove(&self.id).is_some() {
            let _ = self.connection.requests.send((Request::End { id: self.id }, Vec::new()));
        }
    }
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    #[expect(unsafe_code, reason = "the watch asks for a descriptor that stays what it is")]
    // SAFETY: an owned descriptor stays open, and the same, until it is dropped, which is when the watch ends.
    let watched = unsafe { AsyncFd::register(socket) };
    Ok(watched?)
}

/// Passes requests on until nobody can make one; then the spawner is told to end.
async fn send_all(socket: &AsyncFd<OwnedFd>, mut requests: mpsc::UnboundedReceiver<(Request, Vec<OwnedFd>)>) {
    while let Some((request, pipes)) = requests.recv().await {
        let bytes = serde_json::to_vec(&request).expect("strings only");
        let sent = loop {
            let Ok(mut ready) = socket.writable().await else { break Ok(()) };
            match ready.try_io(|socket| send(socket.get_ref(), &bytes, &pipes)) {
                Ok(sent) => break sent,
                Err(_would_block) => {}
            }
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "the spawner was not reached");
        }
    }
    let _ = rustix::net::shutdown(socket.get_ref(), Shutdown::Write);
}

fn send(socket: &OwnedFd, bytes: &[u8], pipes: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = pipes.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIPES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Tells boxes' holders of their ends, until the spawner is gone.
async fn hear(socket: &AsyncFd<OwnedFd>, connection: std::sync::Weak<Connection>) {
    loop {
        let event = receive(socket).await;
        let Some(connection) = connection.upgrade() else { return };
        let (id, ended) = match event {
            Ok(Some(Event::Ended { id, code, out_of_memory })) => (id, Ended::Code { code, out_of_memory }),
            Ok(Some(Event::NotStarted { id, reason })) => (id, Ended::NotStarted(reason)),
            Ok(Some(Event::Ready { .. })) => continue,
            Ok(None) | Err(_) => {
                connection.lost.store(true, Ordering::Release);
                connection.boxes().clear();
                return;
            }
        };
        let holder = connection.boxes().remove(&id);
        if let Some(holder) = holder {
            // Nobody need be interested.
            let _ = holder.send(ended);
        }
    }
}

/// The next event; none when the spawner is gone.
async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Event>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let (_, length) = rustix::net::recv(socket.get_ref(), bytes.as_mut_slice(), RecvFlags::empty())?;
            Ok(length)
        });
        match received {
            Err(_would_block) => {}
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(length)) => return serde_json::from_slice(&bytes[..length]).map(Some).map_err(io::Error::other),
            Ok(Err(error)) => return Err(error),
        }
    }
}
