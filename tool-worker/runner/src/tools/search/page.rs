//! The second look: the lines of one page, read again from the few files they are in.
//!
//! Matches are ordered by rank, then path, then line. After the first look it is known how many of each rank every file has,
//! so a page of that order is a few ranges of matches in a few files, however far down it is.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use grep_matcher::Matcher;
use grep_regex::RegexMatcher;
use grep_searcher::{Searcher, Sink, SinkContext, SinkMatch};

use super::pattern::RANKS;
use super::scan::Scanner;
use super::tally::{Search, Tally, Zero};

/// The matches of one rank in one file that are on the page.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    rank: usize,
    file: usize,
    nth: Range<u64>,
}

/// A line of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The file's place among those with matches.
    pub(super) file: usize,
    pub(super) number: u64,
    pub(super) text: String,
    /// Where in the line the matches begin, in bytes from 1; none for a line of context.
    pub(super) columns: Vec<u64>,
}

/// Matches that are shown together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// How many of the page they are.
    pub(super) matches: u64,
    /// The match and the lines around it that were not shown before.
    pub(super) lines: Vec<Line>,
}

impl Block {
    /// Whether the other one goes on where this one ends.
    pub(super) fn is_continued_by(&self, other: &Self) -> bool {
        let (end, start) = (self.lines.last(), other.lines.first());
        end.zip(start).is_some_and(|(end, start)| end.file == start.file && end.number + 1 == start.number)
    }
}

/// The blocks of a page, in order.
pub(super) fn page(search: &Search, files: &[Tally], wanted: Range<u64>) -> Vec<Block> {
    let stretches = stretches(files, wanted);
    let mut found: BTreeMap<usize, Found> = BTreeMap::new();
    for stretch in &stretches {
        if found.contains_key(&stretch.file) {
            continue;
        }
        let of_file: Vec<&Stretch> = stretches.iter().filter(|other| other.file == stretch.file).collect();
        let lines = read_again(search, &files[stretch.file], stretch.file, &of_file);
        found.insert(stretch.file, lines);
    }
    let mut blocks: Vec<Block> = Vec::new();
    for stretch in stretches {
        let Some(Found { lines, hits }) = found.get_mut(&stretch.file) else { continue };
        for nth in stretch.nth {
            let Some(hit) = hits.get(&(stretch.rank, nth)) else { continue };
            let around = hit.saturating_sub(search.context as u64)..=hit.saturating_add(search.context as u64);
            let numbers: Vec<u64> = lines.range(around).map(|(number, _)| *number).collect();
            // A match that stood in the context of another one has been shown.
            let lines: Vec<Line> = numbers.iter().filter_map(|number| lines.remove(number)).collect();
            match blocks.last_mut() {
                Some(last) if lines.is_empty() => last.matches += 1,
                _ => blocks.push(Block { matches: 1, lines }),
            }
        }
    }
    blocks
}

fn stretches(files: &[Tally], wanted: Range<u64>) -> Vec<Stretch> {
    let (mut stretches, mut before) = (Vec::new(), 0);
    for rank in 0..RANKS {
        for (file, tally) in files.iter().enumerate() {
            let count = tally.ranks[rank];
            let nth = wanted.start.saturating_sub(before)..wanted.end.saturating_sub(before).min(count);
            if nth.start < nth.end {
                stretches.push(Stretch { rank, file, nth });
            }
            before += count;
            if before >= wanted.end {
                return stretches;
            }
        }
    }
    stretches
}

/// What was found again in a file: lines by number, and the numbers of the matches by rank and count.
#[derive(Debug, Default)]
struct Found {
    lines: BTreeMap<u64, Line>,
    hits: BTreeMap<(usize, u64), u64>,
}

/// A file that cannot be read any more has no lines.
fn read_again(search: &Search, tally: &Tally, file: usize, stretches: &[&Stretch]) -> Found {
    let mut lines = Lines {
        search,
        file,
        stretches,
        missing: stretches.iter().map(|stretch| stretch.nth.end - stretch.nth.start).sum(),
        seen: [0; RANKS],
        recent: Vec::new(),
        keep_until: 0,
        zero: Zero::new(&tally.file),
        found: Found::default(),
    };
    let mut scanner = Scanner::new(&search.pattern, search.context, true);
    // What was read before an error is good all the same.
    let _ = scanner.scan(&tally.file, &search.budget, &mut lines);
    lines.found
}

struct Lines<'a> {
    search: &'a Search,
    file: usize,
    stretches: &'a [&'a Stretch],
    missing: u64,
    seen: [u64; RANKS],
    /// The last lines, in case they are the context of the next match.
    recent: Vec<Line>,
    keep_until: u64,
    zero: Zero,
    found: Found,
}

impl Lines<'_> {
    fn line(&self, number: u64, bytes: &[u8], columns: Vec<u64>) -> Line {
        let text = String::from_utf8_lossy(bytes);
        let text = if self.search.context == 0 { text.trim() } else { text.trim_end() };
        Line { file: self.file, number, text: text.to_owned(), columns }
    }

    /// Takes a line of which it is not known yet whether it will be shown.
    fn pass(&mut self, line: Line) -> bool {
        if line.number <= self.keep_until {
            self.found.lines.insert(line.number, line);
        } else if self.search.context > 0 {
            if self.recent.len() == self.search.context {
                self.recent.remove(0);
            }
            self.recent.push(line);
        }
        self.goes_on()
    }

    fn goes_on(&self) -> bool {
        self.missing > 0 || self.found.lines.keys().next_back().is_some_and(|last| *last < self.keep_until)
    }
}

impl Sink for Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, line: &SinkMatch<'_>) -> io::Result<bool> {
        if self.zero.ends_here() {
            return Ok(false);
        }
        let rank = self.search.definitions.rank(line.bytes());
        let nth = self.seen[rank];
        self.seen[rank] += 1;
        let is_wanted = self.stretches.iter().any(|stretch| stretch.rank == rank && stretch.nth.contains(&nth));
        let number = line.line_number().unwrap_or_default();
        if !is_wanted && self.search.context == 0 {
            return Ok(self.goes_on());
        }
        let read = self.line(number, line.bytes(), columns(&self.search.pattern, line.bytes()));
        if !is_wanted {
            return Ok(self.pass(read));
        }
        let first = number.saturating_sub(self.search.context as u64);
        for before in std::mem::take(&mut self.recent).into_iter().filter(|before| before.number >= first) {
            self.found.lines.insert(before.number, before);
        }
        self.found.lines.insert(number, read);
        self.found.hits.insert((rank, nth), number);
        self.keep_until = number + self.search.context as u64;
        self.missing -= 1;
        Ok(self.goes_on())
    }

    fn context(&mut self, _: &Searcher, line: &SinkContext<'_>) -> io::Result<bool> {
        if self.zero.is_behind() {
            return Ok(true);
        }
        let read = self.line(line.line_number().unwrap_or_default(), line.bytes(), Vec::new());
        Ok(self.pass(read))
    }

    fn binary_data(&mut self, _: &Searcher, at: u64) -> io::Result<bool> {
        Ok(self.zero.found(at))
    }
}

/// Where the matches of a line begin, in bytes from 1. An empty match behind the last byte of a file is none.
fn columns(pattern: &RegexMatcher, line: &[u8]) -> Vec<u64> {
    let mut columns = Vec::new();
    let _ = pattern.find_iter(line.strip_suffix(b"\n").unwrap_or(line), |found| {
        if found.start() < line.len() {
            columns.push(found.start() as u64 + 1);
        }
        true
    });
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::search::tally::FileAt;

    #[test]
    fn a_page_is_a_few_stretches_of_the_order_by_rank_and_path() {
        let tally =
            |ranks| Tally { file: FileAt { place: 0, path: "f".into(), is_named: false }, ranks, binary_at: None };
        let files = [tally([0, 1, 3]), tally([2, 0, 4])];
        let all: Vec<(usize, usize, u64)> = (0..10)
            .flat_map(|n| stretches(&files, n..n + 1))
            .flat_map(|s| s.nth.clone().map(move |nth| (s.rank, s.file, nth)))
            .collect();
        let expected = [
            (0, 1, 0),
            (0, 1, 1),
            (1, 0, 0),
            (2, 0, 0),
            (2, 0, 1),
            (2, 0, 2),
            (2, 1, 0),
            (2, 1, 1),
            (2, 1, 2),
            (2, 1, 3),
        ];
        assert_eq!(all, expected);
        let stretch = |rank, file, nth| Stretch { rank, file, nth };
        assert_eq!(stretches(&files, 1..5), [stretch(0, 1, 1..2), stretch(1, 0, 0..1), stretch(2, 0, 0..2)]);
        assert_eq!(stretches(&files, 10..15), []);
    }
}
