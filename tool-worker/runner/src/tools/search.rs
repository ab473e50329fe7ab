//! `search_code`: ripgrep's engine over a workspace, with lines that define the wanted name on top.
//!
//! The matches are those that `rg --no-require-git --no-ignore-global --no-mmap --smart-case` prints in the workspace, with
//! `--fixed-strings` unless `regex` is true: the same files, lines and columns. That holds for `.gitignore`, `.ignore` and
//! `.rgignore`, hidden files, encodings (a byte order mark tells UTF-16), and data: a zero byte ends the search of a file
//! that was met on the walk; of a file that was named it ends the lines, and that more matches behind it is said. What
//! lies above the workspace does not count, because the box does not see it.
//!
//! All matches are counted, a page of them is shown. The first look counts, with all threads ([`tally`]); the second one
//! reads the lines of the page ([`page`]).

mod page;
mod pattern;
mod scan;
mod tally;

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ignore::Walk;
use ignore::overrides::OverrideBuilder;
use serde::Deserialize;

use super::budget::Budget;
use super::{cut, shown_name};
use crate::confined::Confined;
use crate::crew::Crew;
use crate::failure::Failure;
use page::Line;
use pattern::{Case, Definitions};
use tally::{Counted, Search, Tally};

/// Arguments of `search_code`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    query: String,
    path: Option<String>,
    regex: Option<bool>,
    max: Option<usize>,
    offset: Option<u64>,
    #[serde(default)]
    globs: Vec<String>,
    #[serde(default)]
    case: Case,
    #[serde(default)]
    context: usize,
    #[serde(default)]
    columns: bool,
}

/// Lines shown unless asked otherwise; small models read the first one.
const SHOWN_DEFAULT: usize = 5;
/// Longer lines are cut.
const LINE_CHARS_MAX: usize = 90;
/// Text of a page, whatever was asked for.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Time after which counting ends, and time to read the lines of the page; together below the wall time of a tool, so that
/// what was found so far is told.
const COUNT_TIME_MAX: Duration = Duration::from_secs(7);
const PAGE_TIME_MAX: Duration = Duration::from_secs(2);
/// Files named that could not be searched.
const FAILED_SHOWN_MAX: usize = 3;

/// `N matches`, then `path:line: code`.
pub(super) fn search(
    root: &Path,
    workspace: &Confined,
    arguments: &Arguments,
    brief: bool,
    crew: &Crew,
) -> Result<String, Failure> {
    let below = match arguments.path.as_deref() {
        None | Some("." | "./") => root.to_owned(),
        Some(path) => root.join(workspace.resolve(path)?),
    };
    let search = Arc::new(Search {
        pattern: pattern::pattern(&arguments.query, arguments.regex.unwrap_or(false), arguments.case)?,
        definitions: Definitions::of(&arguments.query),
        context: arguments.context,
        budget: Budget::new(COUNT_TIME_MAX),
    });
    let counted = tally::count(walk(root, &below, &arguments.globs)?, &search, crew)?;
    let text = Text { root, arguments, brief, search: &search };
    Ok(text.of(&counted))
}

/// What is searched: everything below, as ripgrep chooses.
pub(super) fn walk(root: &Path, below: &Path, globs: &[String]) -> Result<Walk, Failure> {
    let mut overrides = OverrideBuilder::new(root);
    for glob in globs {
        let added = overrides.add(glob);
        added.map_err(|error| Failure::bad_request(format!("a glob is not valid: {error}")))?;
    }
    let overrides = overrides.build();
    let overrides = overrides.map_err(|error| Failure::bad_request(format!("the globs are too much: {error}")))?;
    Ok(super::walk(below).overrides(overrides).sort_by_file_name(OsStr::cmp).build())
}

/// How an answer is written.
struct Text<'a> {
    root: &'a Path,
    arguments: &'a Arguments,
    /// Whether nothing is said of how to go on.
    brief: bool,
    search: &'a Search,
}

impl Text<'_> {
    fn of(&self, counted: &Counted) -> String {
        let files = &counted.files;
        let lines: u64 = files.iter().flat_map(|tally| tally.ranks).sum();
        let binary: Vec<String> = files.iter().filter_map(|tally| self.binary(tally)).collect();
        let mut parts = vec![match (lines + binary.len() as u64, counted.unfinished) {
            (0, false) => "no matches".to_owned(),
            (0, true) => "no matches so far".to_owned(),
            (total, false) => format!("{total} matches"),
            (total, true) => format!("{total}+ matches"),
        }];
        let offset = self.arguments.offset.unwrap_or(0).min(lines);
        let end = offset.saturating_add(self.arguments.max.unwrap_or(SHOWN_DEFAULT) as u64).min(lines);
        let (page, shown) = self.page(files, offset..end);
        parts.extend(page);
        parts.extend(binary);
        let next = offset + shown;
        if next < lines && !self.brief {
            parts.push(format!("... ({} more; go on with \"offset\": {next})", lines - next));
        }
        if counted.unfinished {
            let seconds = COUNT_TIME_MAX.as_secs();
            parts.push(format!("(stopped after {seconds} s; search less with \"path\" or \"globs\")"));
        }
        parts.extend(self.failed(counted));
        parts.join("\n")
    }

    /// The lines of a page, and how many of its matches are in them.
    fn page(&self, files: &[Tally], wanted: Range<u64>) -> (Vec<String>, u64) {
        let blocks = page::page(self.search, files, wanted.clone(), &Budget::new(PAGE_TIME_MAX));
        let (mut text, mut bytes, mut shown): (Vec<String>, _, _) = (Vec::new(), 0, 0);
        for (nth, block) in blocks.iter().enumerate() {
            let mut lines: Vec<String> = block.lines.iter().map(|line| self.line(&files[line.file], line)).collect();
            if nth > 0 && self.search.context > 0 && !blocks[nth - 1].is_continued_by(block) {
                lines.insert(0, "--".to_owned());
            }
            bytes += lines.iter().map(String::len).sum::<usize>();
            if bytes > PAGE_BYTES_MAX && nth > 0 {
                return (text, shown);
            }
            text.extend(lines);
            shown += block.matches;
        }
        // A match that is gone since it was counted is not missing.
        (text, wanted.end - wanted.start)
    }

    /// `path:line: code`, `path:line:column,column: code`, and `path-line- code` for a line around a match.
    fn line(&self, tally: &Tally, line: &Line) -> String {
        let (path, number, code) = (self.path(tally), line.number, cut(&line.text, LINE_CHARS_MAX));
        if line.columns.is_empty() {
            return format!("{path}-{number}- {code}");
        }
        if !self.arguments.columns {
            return format!("{path}:{number}: {code}");
        }
        let columns: Vec<String> = line.columns.iter().map(u64::to_string).collect();
        format!("{path}:{number}:{}: {code}", columns.join(","))
    }

    fn binary(&self, tally: &Tally) -> Option<String> {
        let at = tally.binary_at?;
        Some(format!("{}: binary file matches (zero byte at {at})", self.path(tally)))
    }

    fn failed(&self, counted: &Counted) -> Option<String> {
        let failed = &counted.failed;
        let told: Vec<String> = failed.iter().take(FAILED_SHOWN_MAX).map(|why| shown_name(why)).collect();
        let more = match failed.len() - told.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!told.is_empty()).then(|| format!("(not searched: {}{more})", told.join("; ")))
    }

    fn path(&self, tally: &Tally) -> String {
        let path = &tally.file.path;
        shown_name(&path.strip_prefix(self.root).unwrap_or(path).to_string_lossy())
    }
}

#[cfg(test)]
mod equality;
#[cfg(test)]
mod tests;
