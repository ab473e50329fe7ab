//! How much a server may say. Whatever comes from it passes here before anything reads it.
//!
//! A message has a largest size; what is said beside calls has a rate; and a program whose lines are no messages is told
//! apart from one that prints a greeting first. Who says more is cut off.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use runtime::clock;
use tokio_util::sync::CancellationToken;

/// One message: a result as long as any tool's output may be, twice over for what escapes it.
pub(super) const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// What may come at once without a call: lists of tools, notifications, what is said in trouble.
const BURST_BYTES: u64 = 8 << 20;
/// What may come in a second in the long run.
const BYTES_PER_SECOND: u64 = 256 << 10;
/// Lines that are no messages; a program may greet.
const ODD_LINES_MAX: u32 = 100;
/// Of the first of them so much is kept, to be shown.
const ODD_BYTES_KEPT: usize = 120;

/// What one connection has said, and what it may.
#[derive(Debug)]
pub(super) struct Meter {
    said: Mutex<Said>,
    /// Falls when the connection is cut off.
    cut: CancellationToken,
}

/// What comes, and how its messages end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Messages, one a line.
    Lines,
    /// Messages as events of a stream, or one as a whole body.
    Events,
    /// No messages.
    Complaints,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self { said: Mutex::new(Said::new(clock::instant())), cut: CancellationToken::new() }
    }

    /// Lets this much come beside what may come anyway: somebody has asked for it.
    pub(super) fn allow(&self, bytes: usize) {
        self.said().room += bytes as u64;
    }

    /// Counts what has come.
    ///
    /// # Errors
    /// It is too much: the connection is cut off, and this is why.
    pub(super) fn take(&self, bytes: &[u8], kind: Kind) -> Result<(), String> {
        let mut said = self.said();
        if let Some(reason) = &said.cut_for {
            return Err(reason.clone());
        }
        let taken = said.take(bytes, kind, clock::instant());
        if let Err(reason) = &taken {
            said.cut_for = Some(reason.clone());
            self.cut.cancel();
        }
        taken
    }

    /// Falls when the connection is cut off.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Why it was cut off, if it was.
    pub(super) fn cut_for(&self) -> Option<String> {
        self.said().cut_for.clone()
    }

    /// The first line that was no message.
    pub(super) fn odd(&self) -> Option<String> {
        let said = self.said();
        (said.odd_lines > 0).then(|| String::from_utf8_lossy(&said.odd).trim().to_owned())
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("no panic while the lock is held")
    }
}

/// The state of it, without a clock.
#[derive(Debug)]
struct Said {
    /// Bytes that may still come now.
    room: u64,
    at: Instant,
    /// Bytes of the present message.
    message: usize,
    /// Whether the present line has begun, and whether it is one that is no message.
    line_begun: bool,
    line_odd: bool,
    odd_lines: u32,
    odd: Vec<u8>,
    cut_for: Option<String>,
}

impl Said {
    fn new(now: Instant) -> Self {
        Self {
            room: BURST_BYTES,
            at: now,
            message: 0,
            line_begun: false,
            line_odd: false,
            odd_lines: 0,
            odd: Vec::new(),
            cut_for: None,
        }
    }

    fn take(&mut self, bytes: &[u8], kind: Kind, now: Instant) -> Result<(), String> {
        self.refill(now);
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else {
            return Err(format!(
                "said more than it may ({} MiB at once, {} KiB a second) and was cut off",
                BURST_BYTES >> 20,
                BYTES_PER_SECOND >> 10
            ));
        };
        self.room = room;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match kind {
                Kind::Complaints => {}
                Kind::Lines => self.line(line)?,
                Kind::Events => self.event(line)?,
            }
        }
        Ok(())
    }

    /// What was not used fills up again, to the burst; what was allowed for calls stays.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).min(Duration::from_secs(3_600));
        let more = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) * BYTES_PER_SECOND / 1_000;
        if more > 0 {
            self.at = now;
            self.room = self.room.max((self.room + more).min(BURST_BYTES));
        }
    }

    /// A line or a part of one.
    fn line(&mut self, part: &[u8]) -> Result<(), String> {
        self.message += part.len();
        if !self.line_begun
            && let Some(first) = part.iter().find(|byte| !byte.is_ascii_whitespace())
        {
            self.line_begun = true;
            self.line_odd = !matches!(first, b'{' | b'[');
            self.odd_lines += u32::from(self.line_odd);
        }
        if self.line_odd && self.odd_lines == 1 {
            let room = ODD_BYTES_KEPT - self.odd.len();
            self.odd.extend_from_slice(&part[..room.min(part.len())]);
        }
        if self.odd_lines > ODD_LINES_MAX {
            let odd = String::from_utf8_lossy(&self.odd).trim().to_owned();
            return Err(format!("wrote line after line that is no message (the first: {odd:?}) and was cut off"));
        }
        self.bounded()?;
        if part.ends_with(b"\n") {
            (self.message, self.line_begun, self.line_odd) = (0, false, false);
        }
        Ok(())
    }

    /// The same where an empty line ends a message.
    fn event(&mut self, part: &[u8]) -> Result<(), String> {
        self.message += part.len();
        self.bounded()?;
        if !self.line_begun && matches!(part, b"\n" | b"\r\n") {
            self.message = 0;
        }
        self.line_begun = !part.ends_with(b"\n");
        Ok(())
    }

    fn bounded(&self) -> Result<(), String> {
        match self.message > MESSAGE_BYTES_MAX {
            true => Err(format!("sent a message of more than {} MiB and was cut off", MESSAGE_BYTES_MAX >> 20)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_without_being_asked_for_has_a_rate() {
        let now = clock::instant();
        let mut said = Said::new(now);
        let line = [b"{".repeat(1 << 20), b"\n".to_vec()].concat();
        for _ in 0..7 {
            said.take(&line, Kind::Lines, now).unwrap();
        }
        let cut = said.take(&line, Kind::Lines, now).unwrap_err();
        assert_eq!(cut, "said more than it may (8 MiB at once, 256 KiB a second) and was cut off");
        said.take(&line, Kind::Lines, now + Duration::from_secs(10)).unwrap();
        // A call brings the room for its own result, which does not run out with time.
        let mut said = Said::new(now);
        said.room += 64 << 20;
        for _ in 0..71 {
            said.take(&line, Kind::Complaints, now + Duration::from_secs(100)).unwrap();
        }
        assert!(said.take(&line, Kind::Complaints, now).is_err());
    }

    #[test]
    fn a_greeting_is_no_reason_to_cut_a_server_off_and_garbage_is() {
        let now = clock::instant();
        let mut said = Said::new(now);
        said.take(b"Welcome to", Kind::Lines, now).unwrap();
        said.take(b" the server\n\n  {\"jsonrpc\"", Kind::Lines, now).unwrap();
        said.take(b": \"2.0\"}\n", Kind::Lines, now).unwrap();
        assert_eq!((said.odd_lines, said.odd.as_slice()), (1, &b"Welcome to the server\n"[..]));
        let cut = said.take(&b"lorem ipsum\n".repeat(100), Kind::Lines, now).unwrap_err();
        assert!(cut.contains("(the first: \"Welcome to the server\")"), "{cut}");
    }

    #[test]
    fn one_message_has_a_largest_size_in_either_form() {
        let now = clock::instant();
        let endless = |kind: Kind, part: &[u8]| {
            let mut said = Said::new(now);
            said.room = u64::MAX / 2;
            (0..64).try_for_each(|_| said.take(part, kind, now))
        };
        let lines = [vec![b'{'; (1 << 20) - 1], vec![b'\n']].concat();
        assert!(endless(Kind::Lines, &vec![b'{'; 1 << 20]).unwrap_err().contains("a message of more than 32 MiB"));
        assert!(endless(Kind::Events, &lines).unwrap_err().contains("a message of more than 32 MiB"));
        assert_eq!(endless(Kind::Lines, &lines), Ok(()));
        assert_eq!(endless(Kind::Events, &[lines, vec![b'\n']].concat()), Ok(()));
    }
}
