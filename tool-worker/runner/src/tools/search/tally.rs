//! The first look: how many matches each file has, counted by all threads together.
//!
//! One thread walks, in the order of paths, and hands out files; every thread counts, the walking one too when the others
//! have enough to do. Which thread took which file decides nothing: what is told is in the order of the walk.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use grep_regex::RegexMatcher;
use grep_searcher::{Searcher, Sink, SinkMatch};
use ignore::Walk;

use super::pattern::{Definitions, RANKS};
use super::scan::{self, Scanner};
use crate::crew::Crew;
use crate::failure::Failure;
use crate::queue::Queue;
use crate::tools::budget::Budget;

/// Files handed out together; handing out costs about as much as a small file.
const BATCH: usize = 32;
/// Batches that wait at most.
const BATCHES_MAX: usize = 64;

/// What is looked for, and for how long.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) pattern: RegexMatcher,
    pub(super) definitions: Definitions,
    pub(super) context: usize,
    pub(super) budget: Budget,
}

/// A file with matches.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) file: FileAt,
    /// Lines that match, by rank.
    pub(super) ranks: [u64; RANKS],
    /// The place of a zero byte in a file named by the caller, if something matches behind it: that is no line any more.
    pub(super) binary_at: Option<u64>,
}

/// A file and its place in the order of the walk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileAt {
    pub(super) place: usize,
    pub(super) path: PathBuf,
    /// Whether the caller named it.
    pub(super) is_named: bool,
}

/// All files of a walk, counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Those with matches, in the order of the walk.
    pub(super) files: Vec<Tally>,
    /// Which could not be searched, and why.
    pub(super) failed: Vec<String>,
    /// Whether the time was up before all were.
    pub(super) unfinished: bool,
}

/// Counts the matches in all files of a walk.
pub(super) fn count(walk: Walk, search: &Arc<Search>, crew: &Crew) -> Result<Counted, Failure> {
    let queue = Arc::new(Queue::<Vec<FileAt>>::new(BATCHES_MAX));
    let (sender, parts) = channel();
    let work: Arc<dyn Fn() + Send + Sync> = Arc::new(help(search.clone(), queue.clone(), sender));
    crew.give(&work);
    drop(work);
    let closing = Closing(&queue);
    let mut own = Counter::new(search);
    let (mut walked, mut failed) = (0, Vec::new());
    let mut batch = Vec::with_capacity(BATCH);
    for entry in walk {
        if search.budget.is_over() {
            own.part.unfinished = true;
            break;
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                failed.push(error.to_string());
                continue;
            }
        };
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let is_named = entry.depth() == 0;
        batch.push(FileAt { place: walked, path: entry.into_path(), is_named });
        walked += 1;
        if batch.len() == BATCH {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            if let Some(full) = queue.put(full) {
                own.all(full);
            }
        }
    }
    own.all(batch);
    drop(closing);
    while let Some(batch) = queue.take() {
        own.all(batch);
    }
    let mut counted = parts.iter().fold(own.part, Part::and);
    if counted.taken != walked {
        return Err(Failure::internal("the tool crashed"));
    }
    alone(search, &mut counted, &mut failed);
    counted.files.sort_by_key(|tally| tally.file.place);
    Ok(Counted { files: counted.files, failed, unfinished: counted.unfinished })
}

/// Closes the queue also when the walk panics, so that nobody waits for ever.
struct Closing<'a>(&'a Queue<Vec<FileAt>>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What each thread of the crew does.
fn help(search: Arc<Search>, queue: Arc<Queue<Vec<FileAt>>>, parts: Sender<Part>) -> impl Fn() + Send + Sync {
    let parts = Mutex::new(parts);
    move || {
        let mut counter = Counter::new(&search);
        while let Some(batch) = queue.take() {
            counter.all(batch);
        }
        let parts = parts.lock().expect("no panic while the lock is held");
        // Nobody listens any more when the walk has failed.
        let _ = parts.send(counter.part);
    }
}

/// Files that a thread failed with: perhaps a line was too long to have room for such in every thread.
fn alone(search: &Search, part: &mut Part, failed: &mut Vec<String>) {
    let mut files = std::mem::take(&mut part.again);
    if files.is_empty() {
        return;
    }
    files.sort();
    let mut counter = Counter { scanner: Scanner::new(&search.pattern, search.context, true), ..Counter::new(search) };
    for file in files {
        match counter.one(&file) {
            Ok(tally) => part.files.extend(tally),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => part.unfinished = true,
            Err(error) => failed.push(format!("{}: {}", file.path.display(), scan::in_words(&error))),
        }
    }
}

/// One thread's part of the counting.
#[derive(Debug, Default)]
struct Part {
    files: Vec<Tally>,
    taken: usize,
    again: Vec<FileAt>,
    unfinished: bool,
}

impl Part {
    fn and(mut self, other: Self) -> Self {
        self.files.extend(other.files);
        self.again.extend(other.again);
        self.taken += other.taken;
        self.unfinished |= other.unfinished;
        self
    }
}

struct Counter<'a> {
    search: &'a Search,
    scanner: Scanner,
    part: Part,
}

impl<'a> Counter<'a> {
    fn new(search: &'a Search) -> Self {
        Self { search, scanner: Scanner::new(&search.pattern, search.context, false), part: Part::default() }
    }

    fn all(&mut self, files: Vec<FileAt>) {
        for file in files {
            self.part.taken += 1;
            match self.one(&file) {
                Ok(tally) => self.part.files.extend(tally),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.part.unfinished = true,
                Err(_) => self.part.again.push(file),
            }
        }
    }

    fn one(&mut self, file: &FileAt) -> io::Result<Option<Tally>> {
        let mut lines = Lines { definitions: &self.search.definitions, ranks: [0; RANKS], zero: Zero::new(file) };
        self.scanner.scan(file, &self.search.budget, &mut lines)?;
        let (ranks, binary_at) = (lines.ranks, lines.zero.matched_behind());
        let any = ranks.iter().any(|count| *count > 0) || binary_at.is_some();
        Ok(any.then(|| Tally { file: file.clone(), ranks, binary_at }))
    }
}

struct Lines<'a> {
    definitions: &'a Definitions,
    ranks: [u64; RANKS],
    zero: Zero,
}

impl Sink for Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, line: &SinkMatch<'_>) -> io::Result<bool> {
        if self.zero.ends_here() {
            return Ok(false);
        }
        self.ranks[self.definitions.rank(line.bytes())] += 1;
        Ok(true)
    }

    fn binary_data(&mut self, _: &Searcher, at: u64) -> io::Result<bool> {
        Ok(self.zero.found(at))
    }
}

/// What a zero byte does to the search of a file: matches behind it are no lines.
#[derive(Debug)]
pub(super) struct Zero {
    is_named: bool,
    at: Option<u64>,
    matched_behind: bool,
}

impl Zero {
    pub(super) fn new(file: &FileAt) -> Self {
        Self { is_named: file.is_named, at: None, matched_behind: false }
    }

    /// A zero byte was met; whether the search goes on.
    pub(super) fn found(&mut self, at: u64) -> bool {
        self.at = self.at.or(Some(at));
        true
    }

    /// Asked at each match: whether it is one behind the zero byte, with which a file that the caller named ends.
    pub(super) fn ends_here(&mut self) -> bool {
        self.matched_behind |= self.is_behind();
        self.matched_behind
    }

    /// Whether the lines have ended.
    pub(super) fn is_behind(&self) -> bool {
        self.is_named && self.at.is_some()
    }

    fn matched_behind(&self) -> Option<u64> {
        self.at.filter(|_| self.matched_behind)
    }
}
