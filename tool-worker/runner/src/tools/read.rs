//! `read_file`: numbered lines of a text file, of any size.
//!
//! A file is read as a stream up to the lines that are asked for, so that a range of a file far larger than memory costs time
//! alone, and that is bounded. UTF-8 is taken as it is, UTF-16 by its byte order mark; what is neither is read as Latin-1,
//! which is said.

use std::io::{self, Read};
use std::time::Duration;

use encoding_rs_io::DecodeReaderBytesBuilder;
use serde::Deserialize;

use super::budget::Budget;
use super::cut;
use super::kind::kind;
use crate::confined::Confined;
use crate::failure::Failure;

/// Arguments of `read_file`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    pub(super) path: String,
    pub(super) start: Option<usize>,
    end: Option<usize>,
}

/// Lines shown unless an end is given.
const LINES_DEFAULT: usize = 40;
/// Lines shown at most.
const LINES_MAX: usize = 400;
/// Text shown unless an end is given.
const TEXT_BYTES_DEFAULT: usize = 8 << 10;
/// Text shown at most.
const TEXT_BYTES_MAX: usize = 24 << 10;
/// Longer lines are cut.
const LINE_CHARS_MAX: usize = 400;
/// What is kept of a line: characters that are shown and one that is not, and the rest of a line break.
const LINE_BYTES_MAX: usize = (LINE_CHARS_MAX + 1) * 4 + 1;
/// Bytes that are looked at to tell text from data.
const HEAD_BYTES: usize = 8 << 10;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes behind the lines shown in which further ones are counted.
const COUNTED_BYTES_MAX: usize = 16 << 20;
/// Time to get to the lines; below the wall time of a tool, so that there is something to tell.
const TIME_MAX: Duration = Duration::from_secs(8);

/// `N: code` lines; a last line says how many were left out and, unless that should be brief, how to read on.
pub(super) fn read(workspace: &Confined, arguments: &Arguments, brief: bool) -> Result<String, Failure> {
    let (file, bytes) = workspace.open_file(&arguments.path)?;
    lines(file, bytes, arguments, brief)
}

/// The same of a content that is at hand.
pub(super) fn lines(mut content: impl Read, bytes: u64, arguments: &Arguments, brief: bool) -> Result<String, Failure> {
    let Arguments { path, start, end } = arguments;
    let start = start.unwrap_or(1);
    if let Some(end) = end.filter(|end| *end < start) {
        return Err(Failure::bad_request(format!("end {end} is before start {start}")));
    }
    let unreadable = |error: io::Error| Failure::internal(format!("{path} cannot be read: {error}"));
    let mut head = Vec::with_capacity(HEAD_BYTES);
    content.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(unreadable)?;
    if let Some(kind) = kind(&head) {
        return Err(Failure::bad_request(format!("{path} is a binary file ({kind}, {bytes} bytes)")));
    }
    let decoded = DecodeReaderBytesBuilder::new()
        .bom_sniffing(true)
        .bom_override(true)
        .strip_bom(true)
        .utf8_passthru(true)
        .build(head.chain(content));
    let lines_max = if end.is_some() { LINES_MAX } else { LINES_DEFAULT };
    let mut window = Window::new(start, end.unwrap_or(usize::MAX), lines_max);
    match window.fill(decoded, &Budget::new(TIME_MAX)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let (seconds, reached) = (TIME_MAX.as_secs(), window.line);
            let detail =
                format!("line {start} of {path} ({bytes} bytes) was not reached in {seconds} s, only {reached}");
            return Err(Failure::bad_request(detail));
        }
        Err(error) => return Err(unreadable(error)),
    }
    if window.line == 0 {
        return Ok("the file is empty".to_owned());
    }
    if window.kept.first().is_some_and(|line| line.contains(&0)) {
        return Err(Failure::bad_request(format!("{path} holds binary data in line {start} ({bytes} bytes in all)")));
    }
    if window.kept.is_empty() {
        let detail = format!("start {start} is beyond the end of {path}, it has {} lines", window.line);
        return Err(Failure::bad_request(detail));
    }
    let bytes_max = if end.is_some() { TEXT_BYTES_MAX } else { TEXT_BYTES_DEFAULT };
    Ok(shown(&window, start, bytes, bytes_max, brief))
}

fn shown(window: &Window, start: usize, file_bytes: u64, bytes_max: usize, brief: bool) -> String {
    let encoding = Encoding::of(&window.kept);
    let mut shown: Vec<String> = Vec::new();
    let mut bytes = 0;
    for (offset, line) in window.kept.iter().enumerate() {
        if line.contains(&0) {
            shown.push(format!("(binary data in line {})", start + offset));
            return shown.join("\n");
        }
        let line = format!("{}: {}", start + offset, cut(&encoding.text(line), LINE_CHARS_MAX));
        bytes += line.len() + 1;
        if bytes > bytes_max {
            break;
        }
        shown.push(line);
    }
    let on = match brief {
        true => String::new(),
        false => format!("; go on with \"start\": {}", start + shown.len()),
    };
    match window.wanted - shown.len() {
        _ if window.is_open => {
            shown.push(format!("... (more lines, the file has {file_bytes} bytes{on})"));
        }
        0 => {}
        more => shown.push(format!("... ({more} more lines{on})")),
    }
    shown.extend(encoding.said());
    shown.join("\n")
}

/// The lines that are asked for, as they pass.
struct Window {
    first: usize,
    last: usize,
    lines_max: usize,
    /// The beginnings of the lines kept.
    kept: Vec<Vec<u8>>,
    /// The number of the last line that has begun.
    line: usize,
    /// How many of the lines that have begun are asked for.
    wanted: usize,
    /// Whether more lines may follow that are asked for, and nobody counts them.
    is_open: bool,
}

impl Window {
    fn new(first: usize, last: usize, lines_max: usize) -> Self {
        Self { first, last, lines_max, kept: Vec::new(), line: 0, wanted: 0, is_open: false }
    }

    /// Reads until the last line asked for, or as far as lines are counted. Fails when the time is up before the first.
    fn fill(&mut self, mut text: impl Read, budget: &Budget) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let (mut at_start, mut counted) = (true, 0);
        loop {
            if budget.is_over() {
                self.is_open = true;
                return if self.kept.is_empty() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) };
            }
            let read = match text.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                if at_start {
                    if self.line == self.last {
                        return Ok(());
                    }
                    self.begin();
                }
                let end = memchr::memchr(b'\n', rest);
                self.take(&rest[..end.unwrap_or(rest.len())]);
                at_start = end.is_some();
                rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
            }
            if self.wanted > self.lines_max {
                counted += read;
                if counted > COUNTED_BYTES_MAX {
                    self.is_open = true;
                    return Ok(());
                }
            }
        }
    }

    fn begin(&mut self) {
        self.line += 1;
        if self.line >= self.first {
            self.wanted += 1;
            if self.wanted <= self.lines_max {
                self.kept.push(Vec::new());
            }
        }
    }

    fn take(&mut self, part: &[u8]) {
        if (1..=self.lines_max).contains(&self.wanted)
            && let Some(line) = self.kept.last_mut()
        {
            let room = LINE_BYTES_MAX - line.len();
            line.extend_from_slice(&part[..part.len().min(room)]);
        }
    }
}

/// How bytes that are shown become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    /// Mostly, but for some bytes.
    BrokenUtf8,
    Latin1,
}

impl Encoding {
    fn of(lines: &[Vec<u8>]) -> Self {
        let valid = |line: &Vec<u8>| match std::str::from_utf8(line) {
            Ok(_) => true,
            // Only the beginning of a long line is here, and its last character may be cut in two.
            Err(error) => error.error_len().is_none() && line.len() == LINE_BYTES_MAX,
        };
        let has_utf8 = |line: &Vec<u8>| line.utf8_chunks().any(|chunk| !chunk.valid().is_ascii());
        match lines.iter().all(valid) {
            true => Self::Utf8,
            false if lines.iter().any(has_utf8) => Self::BrokenUtf8,
            false => Self::Latin1,
        }
    }

    fn text(self, line: &[u8]) -> String {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self {
            Self::Utf8 | Self::BrokenUtf8 => String::from_utf8_lossy(line).into_owned(),
            Self::Latin1 => line.iter().copied().map(char::from).collect(),
        }
    }

    fn said(self) -> Option<String> {
        match self {
            Self::Utf8 => None,
            Self::BrokenUtf8 => Some("(some bytes are not UTF-8 and shown as \u{fffd})".to_owned()),
            Self::Latin1 => Some("(these lines are not UTF-8, they were read as Latin-1)".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn read_in(base: &std::path::Path, start: Option<usize>, end: Option<usize>) -> Result<String, String> {
        let confined = Confined::open(base).unwrap();
        read(&confined, &Arguments { path: "f".into(), start, end }, false).map_err(|failure| failure.detail)
    }

    fn read_it(content: &[u8], start: Option<usize>, end: Option<usize>) -> Result<String, String> {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("f"), content).unwrap();
        read_in(base.path(), start, end)
    }

    fn brief(content: &[u8]) -> String {
        let arguments = Arguments { path: "f".into(), start: None, end: None };
        lines(content, content.len() as u64, &arguments, true).unwrap()
    }

    #[test]
    fn lines_are_numbered_and_the_rest_is_counted() {
        assert_eq!(read_it(b"a\n  b\r\nc", None, None).unwrap(), "1: a\n2:   b\n3: c");
        assert_eq!(read_it(b"a\nb\nc\n", Some(2), Some(9)).unwrap(), "2: b\n3: c");
        let long = "x\n".repeat(50);
        let text = read_it(long.as_bytes(), None, None).unwrap();
        assert!(text.ends_with("40: x\n... (10 more lines; go on with \"start\": 41)"), "{text}");
        assert!(brief(long.as_bytes()).ends_with("40: x\n... (10 more lines)"));
        assert_eq!(read_it(long.as_bytes(), Some(41), None).unwrap().lines().count(), 10);
        assert!(read_it(long.as_bytes(), Some(1), Some(50)).unwrap().ends_with("50: x"));
        assert!(read_it("y".repeat(1000).as_bytes(), None, None).unwrap().ends_with("y…"));
        let text = read_it("z\n".repeat(1000).as_bytes(), Some(11), Some(900)).unwrap();
        assert!(text.ends_with("410: z\n... (490 more lines; go on with \"start\": 411)"), "{text}");
    }

    #[test]
    fn what_cannot_be_shown_is_said() {
        assert_eq!(read_it(b"", None, None).unwrap(), "the file is empty");
        assert_eq!(read_it(b"\xef\xbb\xbf", None, None).unwrap(), "the file is empty");
        assert_eq!(read_it(b"a\n", Some(5), None).unwrap_err(), "start 5 is beyond the end of f, it has 1 lines");
        assert_eq!(read_it(b"a\n", Some(5), Some(2)).unwrap_err(), "end 2 is before start 5");
        let program = read_it(b"\x7fELF\x02\x01\x01\0\0", None, None).unwrap_err();
        assert_eq!(program, "f is a binary file (ELF program or library, 9 bytes)");
        assert_eq!(read_it(b"\x1f\x8b\x08abc", None, None).unwrap_err(), "f is a binary file (gzip archive, 6 bytes)");
        assert_eq!(read_it(b"a\0b", None, None).unwrap_err(), "f is a binary file (it holds zero bytes, 3 bytes)");
        let late = [&b"text\n".repeat(3_000)[..], b"a\0b\n"].concat();
        assert!(read_it(&late, Some(2_999), None).unwrap().ends_with("3000: text\n(binary data in line 3001)"));
        let refused = read_it(&late, Some(3_001), None).unwrap_err();
        assert_eq!(refused, "f holds binary data in line 3001 (15004 bytes in all)");
    }

    #[test]
    fn every_encoding_is_read_or_said_to_be_none() {
        let utf16 = |text: &str, big: bool| -> Vec<u8> {
            let units = std::iter::once(0xfeff).chain(text.encode_utf16());
            units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        for big in [false, true] {
            let text = utf16("caf\u{e9} \u{1f389}\r\nend", big);
            assert_eq!(read_it(&text, None, None).unwrap(), "1: caf\u{e9} \u{1f389}\n2: end");
        }
        assert_eq!(read_it(b"\xef\xbb\xbfa\nb", None, None).unwrap(), "1: a\n2: b");
        let said = "(these lines are not UTF-8, they were read as Latin-1)";
        assert_eq!(read_it(b"caf\xe9\n", None, None).unwrap(), format!("1: caf\u{e9}\n{said}"));
        let broken = "(some bytes are not UTF-8 and shown as \u{fffd})";
        let mixed = b"caf\xc3\xa9\n\xff\n";
        assert_eq!(read_it(mixed, None, None).unwrap(), format!("1: caf\u{e9}\n2: \u{fffd}\n{broken}"));
        // A long line is cut between two characters, wherever its bytes are cut.
        for shift in 0..4 {
            let long = "x".repeat(shift) + &"\u{1f389}".repeat(1_000);
            let text = read_it(long.as_bytes(), None, None).unwrap();
            assert!(text.ends_with("\u{1f389}…") && text.chars().count() == 3 + 401, "{text}");
        }
    }

    #[test]
    fn a_range_of_a_huge_file_is_read_without_the_rest() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("f");
        std::fs::write(&path, "line\n".repeat(200_000)).unwrap();
        let huge = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        huge.set_len(10 << 30).unwrap();
        let text = read_in(base.path(), None, None).unwrap();
        let end = "40: line\n... (more lines, the file has 10737418240 bytes; go on with \"start\": 41)";
        assert!(text.ends_with(end), "{text}");
        assert_eq!(read_in(base.path(), Some(200_000), Some(200_000)).unwrap(), "200000: line");
        let hole = read_in(base.path(), Some(200_001), Some(200_001)).unwrap_err();
        assert_eq!(hole, "f holds binary data in line 200001 (10737418240 bytes in all)");
        huge.write_all_at(b"\nend\n", (10 << 30) - 5).unwrap();
        // Behind the hole: as far as the time goes, and else it is said how far.
        match read_in(base.path(), Some(200_002), None) {
            Ok(text) => assert_eq!(text, "200002: end"),
            Err(said) => assert!(said.ends_with("was not reached in 8 s, only 200001"), "{said}"),
        }
    }
}
