//! One file, searched: how it is opened and read, and what ends that early.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use grep_regex::RegexMatcher;
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink};

use super::tally::FileAt;
use crate::tools::budget::Budget;

/// Longest line that every thread takes.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Longest line that is taken at all; one thread alone has room for it.
const LINE_BYTES_MAX_ALONE: usize = 96 << 20;

/// What a searcher reads at once, until it has met a longer line.
const READ_BYTES: usize = 64 << 10;

/// A thread's own means to search files.
pub(super) struct Scanner {
    pattern: RegexMatcher,
    context: usize,
    line_bytes_max: usize,
    walked: Searcher,
    named: Searcher,
}

impl Scanner {
    /// `alone` says that this thread has all the memory there is.
    pub(super) fn new(pattern: &RegexMatcher, context: usize, alone: bool) -> Self {
        let line_bytes_max = if alone { LINE_BYTES_MAX_ALONE } else { LINE_BYTES_MAX };
        // A copy of a pattern has caches of its own, for which threads do not wait.
        Self {
            pattern: pattern.clone(),
            context,
            line_bytes_max,
            walked: searcher(context, line_bytes_max, false),
            named: searcher(context, line_bytes_max, true),
        }
    }

    /// Searches one file. Files are read and never mapped, for a mapped file that somebody shortens ends the process.
    pub(super) fn scan(
        &mut self,
        file: &FileAt,
        budget: &Budget,
        sink: impl Sink<Error = io::Error>,
    ) -> io::Result<()> {
        if budget.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What was a regular file a moment ago may be a link or a pipe by now.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let content = OpenOptions::new().read(true).custom_flags(flags).open(&file.path)?;
        let mut content = Timed { file: content, budget, has_grown: false };
        let searcher = if file.is_named { &mut self.named } else { &mut self.walked };
        let searched = searcher.search_reader(&self.pattern, &mut content, sink);
        if content.has_grown {
            // How much is read of a file before a zero byte ends it must not depend on the files before it.
            *searcher = self::searcher(self.context, self.line_bytes_max, file.is_named);
        }
        searched
    }
}

/// A searcher of files met on a walk or of files named by the caller, which differ in what a zero byte means: it ends the
/// search of the former, because they are data; in the latter it ends a line.
fn searcher(context: usize, line_bytes_max: usize, named: bool) -> Searcher {
    SearcherBuilder::new()
        .binary_detection(if named { BinaryDetection::convert(0) } else { BinaryDetection::quit(0) })
        .heap_limit(Some(line_bytes_max))
        .before_context(context)
        .after_context(context)
        .line_number(true)
        .build()
}

/// Why a file was not searched. What the system did not say comes from the searcher, which refuses one thing only.
pub(super) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.to_string(),
        None => format!("a line is longer than {} MiB", LINE_BYTES_MAX_ALONE >> 20),
    }
}

/// A file that ends with an error when the time is up.
struct Timed<'a> {
    file: File,
    budget: &'a Budget,
    /// Whether the searcher has made itself more room than it began with. What is decoded goes through a room between, so
    /// that of such a file it is not known.
    has_grown: bool,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget.is_over() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let read = self.file.read(buffer)?;
        self.has_grown |=
            buffer.len() > READ_BYTES || buffer.starts_with(b"\xff\xfe") || buffer.starts_with(b"\xfe\xff");
        Ok(read)
    }
}
