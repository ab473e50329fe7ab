//! Cuts a stream of bytes into server-sent events, wherever the network cut it.
//!
//! Comments and fields that nobody reads are dropped. What is longer than a line may be ends the stream: a server that
//! sends no line end would fill our memory.

/// Bytes of one line, and of one event: the arguments of a call may come at once.
const EVENT_BYTES_MAX: usize = 4 << 20;
/// Bytes kept of what a stream began with, to show what it is when it is no stream of events.
const BEGINNING_BYTES: usize = 200;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerEvent {
    /// Its name; empty for a plain one.
    pub(super) name: String,
    /// Its data, line by line.
    pub(super) data: String,
}

/// The cutter: `push` bytes as they come, then `end`.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The line that has not ended yet.
    line: Vec<u8>,
    event: ServerEvent,
    beginning: Vec<u8>,
}

impl Events {
    /// Takes bytes and returns the events that ended with them.
    ///
    /// # Errors
    /// A line or an event is too long, or is no UTF-8.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<ServerEvent>, String> {
        let missing = BEGINNING_BYTES.saturating_sub(self.beginning.len()).min(bytes.len());
        self.beginning.extend_from_slice(&bytes[..missing]);
        let mut ended = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.extend(&bytes[..end])?;
            bytes = &bytes[end + 1..];
            ended.extend(self.take_line()?);
        }
        self.extend(bytes)?;
        Ok(ended)
    }

    /// The stream has ended: the event behind which no empty line came.
    ///
    /// # Errors
    /// The last line is no UTF-8.
    pub(super) fn end(&mut self) -> Result<Option<ServerEvent>, String> {
        let last = self.take_line()?;
        Ok(last.or_else(|| self.take_event()))
    }

    /// What the stream began with.
    pub(super) fn beginning(&self) -> String {
        String::from_utf8_lossy(&self.beginning).trim().to_owned()
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.line.len() + self.event.data.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(format!("an event of the stream has more than {EVENT_BYTES_MAX} bytes"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads the line that has ended; an empty one ends an event.
    fn take_line(&mut self) -> Result<Option<ServerEvent>, String> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| "the stream is no UTF-8".to_owned())?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Ok(self.take_event());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.event.name),
            // Some servers write an error as a field of its own.
            "error" => self.event = ServerEvent { name: "error".to_owned(), data: value.to_owned() },
            _ => {}
        }
        Ok(None)
    }

    fn take_event(&mut self) -> Option<ServerEvent> {
        let event = std::mem::take(&mut self.event);
        (!event.data.is_empty()).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        ": ping\r\ndata: {\"a\": \"é🦀\"}\r\n\r\nevent: error\ndata: one\ndata:two\nid: 7\n\nretry: 5\n\ndata: [DONE]";

    fn plain(data: &str) -> ServerEvent {
        ServerEvent { name: String::new(), data: data.to_owned() }
    }

    fn wanted() -> Vec<ServerEvent> {
        let error = ServerEvent { name: "error".to_owned(), data: "one\ntwo".to_owned() };
        vec![plain("{\"a\": \"é🦀\"}"), error, plain("[DONE]")]
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let bytes = STREAM.as_bytes();
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let mut events = Events::default();
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let mut read: Vec<_> = pieces.into_iter().flat_map(|piece| events.push(piece).unwrap()).collect();
                read.extend(events.end().unwrap());
                assert_eq!(read, wanted(), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..5).find_map(|_| events.push(&piece).err());
        assert!(refused.is_some_and(|why| why.contains("4194304 bytes")));
        let mut events = Events::default();
        let lines = [b"data: ".as_slice(), &piece, b"\n"].concat();
        assert!((0..5).any(|_| events.push(&lines).is_err()), "nor may one event have many lines");
    }

    #[test]
    fn what_is_no_stream_of_events_shows_its_beginning() {
        let mut events = Events::default();
        assert_eq!(events.push(b"<html>\n<body>busy</body>\n</html>\n"), Ok(vec![]));
        assert_eq!(events.end(), Ok(None));
        assert_eq!(events.beginning(), "<html>\n<body>busy</body>\n</html>");
        assert!(events.push(b"data: \xff\xfe\n").is_err());
    }
}
