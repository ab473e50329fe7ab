//! The lines of a file, and cuts between them. Rows are counted from 0; ranges of rows exclude their end.

use std::ops::Range;

use super::Sizes;

/// Where each line of a code begins.
pub(super) struct Lines<'a> {
    code: &'a str,
    /// One more than there are lines: the last is the length of the code.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(code: &'a str) -> Self {
        let mut starts = vec![0];
        starts.extend(code.match_indices('\n').map(|(at, _)| at + 1));
        if starts.last() != Some(&code.len()) {
            starts.push(code.len());
        }
        Self { code, starts }
    }

    pub(super) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    pub(super) fn bytes(&self, rows: Range<usize>) -> usize {
        self.starts[rows.end] - self.starts[rows.start]
    }

    pub(super) fn text(&self, rows: Range<usize>) -> &'a str {
        &self.code[self.starts[rows.start]..self.starts[rows.end]]
    }

    pub(super) fn is_blank(&self, row: usize) -> bool {
        self.text(row..row + 1).trim().is_empty()
    }

    /// Cuts at blank lines where pieces are long enough, and elsewhere where they would become too long.
    pub(super) fn cut(&self, rows: Range<usize>, sizes: Sizes, cuts: &mut Vec<Range<usize>>) {
        let mut start = rows.start;
        for row in rows.clone() {
            if row > start && self.bytes(start..row + 1) > sizes.target {
                cuts.push(start..row);
                start = row;
            } else if self.is_blank(row) && self.bytes(start..row) >= sizes.target / 2 {
                cuts.push(start..row + 1);
                start = row + 1;
            }
        }
        if start < rows.end {
            cuts.push(start..rows.end);
        }
    }

    /// The pieces without blank lines around them, none too long, none too slight if that can be helped.
    pub(super) fn tidy(&self, cuts: Vec<Range<usize>>, sizes: Sizes) -> Vec<Range<usize>> {
        let mut short = Vec::with_capacity(cuts.len());
        for rows in cuts {
            if self.bytes(rows.clone()) > sizes.max {
                self.cut(rows, sizes, &mut short);
            } else {
                short.push(rows);
            }
        }
        let mut tidy: Vec<Range<usize>> = Vec::with_capacity(short.len());
        for rows in short {
            let Some(rows) = self.trimmed(rows) else { continue };
            if let Some(last) = tidy.last_mut() {
                let bytes = self.bytes(rows.clone());
                let together = self.bytes(last.start..rows.end);
                // Closing brackets say nothing by themselves.
                let empty = !self.text(rows.clone()).contains(char::is_alphanumeric);
                if (empty && together <= sizes.max) || (sizes.is_slight(bytes) && together <= sizes.target) {
                    last.end = rows.end;
                    continue;
                }
            }
            tidy.push(rows);
        }
        tidy
    }

    fn trimmed(&self, rows: Range<usize>) -> Option<Range<usize>> {
        let start = rows.clone().find(|row| !self.is_blank(*row))?;
        let end = rows.rev().find(|row| !self.is_blank(*row))? + 1;
        Some(start..end)
    }
}
