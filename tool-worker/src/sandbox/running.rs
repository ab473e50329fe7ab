//! A box that runs: what goes in, what comes out, and how it ends, the same for every tier.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tool_runner::message::{BoxedAnswer, BoxedCall, Order};
use tool_runner::{BEGUN, NOT_CONFINED};

use super::Trouble;
use super::docker::{self, Container};
use super::ending::{self, STDERR_BYTES_MAX, STDOUT_BYTES_MAX};
use super::spawner::{Ended, Held};
use crate::failure::Failure;

/// How long a command that was stopped may take to be gone, before its end is told all the same.
const GONE_TIMEOUT: Duration = Duration::from_millis(500);
/// Of what a command says in trouble, at most this part of the room is kept.
const COMPLAINTS_SHARE: usize = 4;

/// A started box. It takes one call or one order, and ends when it is dropped.
pub(super) struct Running {
    /// What it reads.
    pub(super) input: Pin<Box<dyn AsyncWrite + Send>>,
    /// What it writes, until it has nothing more to say.
    pub(super) pieces: BoxStream<'static, Piece>,
    /// What ends it.
    pub(super) hold: Hold,
}

/// A piece of what a box writes.
pub(super) enum Piece {
    Output(Bytes),
    Complaint(Bytes),
}

/// What keeps a box.
pub(super) enum Hold {
    Spawned(Held),
    Container(Container),
}

/// How a command ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code; a signal counts as 128 and its number.
    Exited(i32),
    /// It was stopped at its limit of wall time.
    TimedOut,
    /// It was stopped because it wrote more than it may.
    TooMuchOutput,
    /// The kernel stopped it, or a process of it, for its memory.
    OutOfMemory,
}

impl Running {
    /// Whether it can still take a call: one that has ended, or was lost, has nothing more to say.
    pub(super) fn alive(&mut self) -> bool {
        !self.hold.is_lost() && self.pieces.next().now_or_never().is_none()
    }

    /// Hands a call in and waits for the answer, one line.
    pub(super) async fn carry_out(mut self, call: &BoxedCall, timeout: Duration) -> Result<BoxedAnswer, Trouble> {
        self.answer(&call.line(), timeout).await
    }

    /// The same for an operation of the self-test in a box for commands.
    pub(super) async fn probe(mut self, operation: &str, timeout: Duration) -> Result<BoxedAnswer, Trouble> {
        self.answer(&Order::Probe(operation.to_owned()).bytes(), timeout).await
    }

    async fn answer(&mut self, asked: &[u8], timeout: Duration) -> Result<BoxedAnswer, Trouble> {
        let Self { input, pieces, hold } = self;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let reading = async {
            while let Some(piece) = pieces.next().await {
                let (bytes, bytes_max, piece) = match piece {
                    Piece::Output(piece) => (&mut stdout, STDOUT_BYTES_MAX, piece),
                    Piece::Complaint(piece) => (&mut stderr, STDERR_BYTES_MAX, piece),
                };
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > bytes_max {
                    return Err(ending::too_much(bytes_max));
                }
                if stdout.ends_with(b"\n") {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let work = async {
            let writing = async {
                // A runner that died early does not read; how it ended says why.
                let _ = input.write_all(asked).await;
                let _ = input.flush().await;
            };
            tokio::pin!(reading);
            tokio::select! {
                read = &mut reading => read,
                () = writing => reading.await,
            }
        };
        match tokio::time::timeout(timeout, work).await {
            Err(_) => Err(Trouble::Failed(ending::too_long(timeout))),
            Ok(Err(failure)) => Err(Trouble::Failed(failure)),
            Ok(Ok(true)) => Ok(BoxedAnswer::read(&stdout)?),
            Ok(Ok(false)) => match hold.ended().await? {
                Ended::Code { out_of_memory: true, .. } => Err(Trouble::Failed(ending::too_large())),
                // A runner that has lost its input leaves without a word.
                Ended::Code { code: 0, .. } => Err(Trouble::Lost(hold.cut_off())),
                Ended::Code { code, .. } if code == i32::from(NOT_CONFINED) => {
                    Err(Trouble::Failed(Failure::refused(format!("nothing was run: {}", said(&stderr)))))
                }
                Ended::Code { code, .. } => {
                    Err(Trouble::Failed(ending::in_words(code, &String::from_utf8_lossy(&stderr))))
                }
                Ended::NotStarted(reason) => Err(Trouble::Failed(not_started(&reason))),
            },
        }
    }

    /// Gives a command its order and its input, and waits for its end.
    pub(super) async fn finish(
        self,
        order: &Order,
        given: &[u8],
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<Finished, Trouble> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let Self { mut input, mut pieces, mut hold } = self;
        // The first byte is the runner's.
        let mut begun = false;
        let reading = async {
            while let Some(piece) = pieces.next().await {
                let (bytes, bytes_max, piece) = match &piece {
                    Piece::Output(piece) => match piece.split_first() {
                        Some((&BEGUN, rest)) if !begun => {
                            begun = true;
                            (&mut stdout, bytes_max, rest)
                        }
                        _ => (&mut stdout, bytes_max, &piece[..]),
                    },
                    Piece::Complaint(piece) => (&mut stderr, bytes_max / COMPLAINTS_SHARE, &piece[..]),
                };
                let room = bytes_max - bytes.len();
                bytes.extend_from_slice(&piece[..room.min(piece.len())]);
                if piece.len() > room {
                    return Some(End::TooMuchOutput);
                }
            }
            None
        };
        let work = async {
            let writing = async move {
                // A command need not read what it is given.
                let _ = input.write_all(&order.bytes()).await;
                let _ = input.write_all(given).await;
                // An engine is told of the end by the one, a pipe by the other.
                let _ = input.shutdown().await;
                drop(input);
            };
            tokio::pin!(reading);
            tokio::select! {
                read = &mut reading => read,
                () = writing => reading.await,
            }
        };
        let stopped = tokio::time::timeout(timeout, work).await.unwrap_or(Some(End::TimedOut));
        let end = match stopped {
            Some(end) => {
                let _ = tokio::time::timeout(GONE_TIMEOUT, hold.end()).await;
                end
            }
            None => match hold.ended().await? {
                Ended::Code { code, .. } if !begun => {
                    let why = format!("the box ended with code {code} before the command: {}", said(&stderr));
                    return Err(Trouble::Failed(match u8::try_from(code) {
                        Ok(NOT_CONFINED) => Failure::refused(format!("nothing was run: {}", said(&stderr))),
                        _ => Failure::overloaded(why),
                    }));
                }
                Ended::Code { out_of_memory: true, .. } => End::OutOfMemory,
                Ended::Code { code, .. } => End::Exited(code),
                Ended::NotStarted(reason) => return Err(Trouble::Failed(not_started(&reason))),
            },
        };
        Ok(Finished { end, stdout, stderr })
    }

    /// Gives a command its order and hands over what it reads and writes.
    pub(super) async fn connect(mut self, order: &Order) -> Result<Connected, Trouble> {
        self.input.write_all(&order.bytes()).await.map_err(|error| Trouble::Lost(error.to_string()))?;
        self.input.flush().await.map_err(|error| Trouble::Lost(error.to_string()))?;
        let Self { input, pieces, hold } = self;
        Ok(Connected { input, pieces, rest: Rest(hold) })
    }
}

/// A command that goes on running: what it reads, and what it writes in turn. Dropping it ends the command.
pub struct Connected {
    input: Pin<Box<dyn AsyncWrite + Send>>,
    pieces: BoxStream<'static, Piece>,
    rest: Rest,
}

/// What is left of a command whose input and output were handed over. Dropping it ends the command.
pub struct Rest(Hold);

impl Rest {
    /// How the command ended, which must be near: its output has.
    pub async fn ended(&mut self) -> Result<End, Failure> {
        match self.0.ended().await {
            Ok(Ended::Code { out_of_memory: true, .. }) => Ok(End::OutOfMemory),
            Ok(Ended::Code { code, .. }) => Ok(End::Exited(code)),
            Ok(Ended::NotStarted(reason)) => Err(not_started(&reason)),
            Err(Trouble::Failed(failure)) => Err(failure),
            Err(Trouble::Lost(why)) => Err(Failure::internal(why)),
        }
    }
}

impl Connected {
    /// What it reads, what it writes to standard output, and the box, which ends when it is dropped. What it writes to
    /// standard error is given to `complain`.
    pub fn split(
        self,
        mut complain: impl FnMut(&[u8]) + Send + 'static,
    ) -> (impl AsyncWrite + Send + Unpin, impl AsyncRead + Send + Unpin, Rest) {
        let mut begun = false;
        let output = self.pieces.filter_map(move |piece| {
            std::future::ready(match piece {
                // The first byte is the runner's.
                Piece::Output(bytes) if !begun => {
                    begun = true;
                    Some(Ok(bytes.slice(usize::from(bytes.first() == Some(&BEGUN))..)))
                }
                Piece::Output(bytes) => Some(Ok::<_, std::io::Error>(bytes)),
                Piece::Complaint(bytes) => {
                    complain(&bytes);
                    None
                }
            })
        });
        (self.input, tokio_util::io::StreamReader::new(output), self.rest)
    }
}

impl Hold {
    /// Waits for the end, which must be near.
    async fn ended(&mut self) -> Result<Ended, Trouble> {
        match self {
            Self::Spawned(held) => match held.ended().await {
                Some(ended) => Ok(ended),
                None => Err(Trouble::Lost("the spawner of boxes went away during the call".to_owned())),
            },
            Self::Container(container) => container.ended().await,
        }
    }

    /// Whether whoever keeps the box is known to be gone.
    fn is_lost(&self) -> bool {
        match self {
            Self::Spawned(held) => held.is_lost(),
            Self::Container(_) => false,
        }
    }

    /// What is said of a box that ended and gave no answer.
    fn cut_off(&self) -> String {
        match self {
            Self::Spawned(_) => "the box was cut off".to_owned(),
            Self::Container(_) => docker::cut_off("the container was cut off"),
        }
    }

    /// Ends the box, and waits until it is gone.
    async fn end(self) {
        match self {
            Self::Spawned(held) => held.end().await,
            // Removed in the background.
            Self::Container(container) => drop(container),
        }
    }
}

/// What a runner says in trouble.
fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().chars().take(300).collect()
}

fn not_started(reason: &str) -> Failure {
    Failure::overloaded(format!("the sandbox did not start: {reason}"))
}
