//! `read_file`: numbered lines of a text file.

use serde::Deserialize;

use super::cut;
use crate::confined::Confined;
use crate::failure::Failure;

/// Arguments of `read_file`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    pub(super) path: String,
    pub(super) start: Option<usize>,
    end: Option<usize>,
}

/// Largest file read; beyond it nobody reads line by line.
const FILE_BYTES_MAX: u64 = 16 << 20;
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

/// `N: code` lines; a last line says how many were left out.
pub(super) fn read(workspace: &Confined, arguments: &Arguments) -> Result<String, Failure> {
    let content = workspace.read(&arguments.path, FILE_BYTES_MAX)?;
    lines(&content, arguments)
}

/// The same of a content that is at hand.
pub(super) fn lines(content: &[u8], arguments: &Arguments) -> Result<String, Failure> {
    let Arguments { path, start, end } = arguments;
    if content.iter().take(8192).any(|byte| *byte == 0) {
        return Err(Failure::bad_request(format!("{path} is a binary file")));
    }
    let text = String::from_utf8_lossy(content);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = text.lines().collect();
    let start = start.unwrap_or(1);
    if let Some(end) = end.filter(|end| *end < start) {
        return Err(Failure::bad_request(format!("end {end} is before start {start}")));
    }
    if lines.is_empty() {
        return Ok("the file is empty".to_owned());
    }
    if start > lines.len() {
        return Err(Failure::bad_request(format!(
            "start {start} is beyond the end of {path}, it has {} lines",
            lines.len()
        )));
    }
    let wanted = &lines[start - 1..end.unwrap_or(lines.len()).min(lines.len())];
    let (lines_max, bytes_max) =
        if end.is_some() { (LINES_MAX, TEXT_BYTES_MAX) } else { (LINES_DEFAULT, TEXT_BYTES_DEFAULT) };
    let mut shown: Vec<String> = Vec::new();
    let mut bytes = 0;
    for (offset, line) in wanted.iter().take(lines_max).enumerate() {
        let line = format!("{}: {}", start + offset, cut(line, LINE_CHARS_MAX));
        bytes += line.len() + 1;
        if bytes > bytes_max {
            break;
        }
        shown.push(line);
    }
    match wanted.len() - shown.len() {
        0 => {}
        more => shown.push(format!("... ({more} more lines)")),
    }
    Ok(shown.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_it(content: &[u8], start: Option<usize>, end: Option<usize>) -> Result<String, String> {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("f"), content).unwrap();
        let confined = Confined::open(base.path()).unwrap();
        read(&confined, &Arguments { path: "f".into(), start, end }).map_err(|failure| failure.detail)
    }

    #[test]
    fn lines_are_numbered_and_the_rest_is_counted() {
        assert_eq!(read_it(b"a\n  b\r\nc", None, None).unwrap(), "1: a\n2:   b\n3: c");
        assert_eq!(read_it(b"a\nb\nc\n", Some(2), Some(9)).unwrap(), "2: b\n3: c");
        let long = "x\n".repeat(50);
        assert!(read_it(long.as_bytes(), None, None).unwrap().ends_with("40: x\n... (10 more lines)"));
        assert!(read_it(long.as_bytes(), Some(1), Some(50)).unwrap().ends_with("50: x"));
        assert!(read_it("y".repeat(1000).as_bytes(), None, None).unwrap().ends_with("y…"));
    }

    #[test]
    fn what_cannot_be_shown_is_said() {
        assert_eq!(read_it(b"", None, None).unwrap(), "the file is empty");
        assert_eq!(read_it(b"a\n", Some(5), None).unwrap_err(), "start 5 is beyond the end of f, it has 1 lines");
        assert_eq!(read_it(b"a\n", Some(5), Some(2)).unwrap_err(), "end 2 is before start 5");
        assert_eq!(read_it(b"\x7fELF\0\0", None, None).unwrap_err(), "f is a binary file");
        assert_eq!(read_it(b"caf\xe9", None, None).unwrap(), "1: caf\u{fffd}");
    }
}
