//! A file cut into pieces for embedding, each about as long as an embedding model reads.
//!
//! Code is cut along its syntax tree ([`tree`]): what belongs together stays together. Text without a grammar is cut
//! at its paragraphs. Either way every line that is not blank lies in exactly one chunk, chunks are whole lines, and
//! they come in order. Only a single line that is longer than a chunk may be makes a longer one.

mod lines;
mod tree;

use std::ops::Range;

use tree_sitter::Node;

use crate::analysis::Limits;
use crate::symbols::{Scope, Symbol, SymbolKind};

use self::lines::Lines;

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// First line, counted from 1.
    pub start_line: usize,
    /// Last line, counted from 1 and included.
    pub end_line: usize,
    /// Where the piece stands, to be embedded before it: the path of the file, and on a second line what the piece is
    /// cut out of, if it is cut out of something: its path and its signature.
    pub header: String,
    /// The names of what it defines or, when it defines nothing, of what it is cut out of. At most some tens.
    pub symbols: Vec<String>,
    /// What each of `symbols` is.
    pub kinds: Vec<SymbolKind>,
}

/// Names kept for one chunk.
const SYMBOLS_MAX: usize = 32;
/// Longest path in a header: the end of it tells more than its beginning.
const PATH_CHARS_MAX: usize = 120;

/// Cuts a text that has no grammar. A binary file has no chunks, and neither has one above the size that is analysed.
#[must_use]
pub fn chunk_text(path: &str, code: &str, limits: &Limits) -> Vec<Chunk> {
    if code.as_bytes().contains(&0) || code.len() > limits.code_bytes_max {
        return Vec::new();
    }
    let lines = Lines::new(code);
    let mut cuts = Vec::new();
    lines.cut(0..lines.count(), Sizes::of(limits), &mut cuts);
    described(path, &lines.tidy(cuts, Sizes::of(limits)), &[], &[])
}

/// Cuts a parsed file; `scopes` are what a piece can be cut out of.
pub(crate) fn chunks(
    path: &str,
    code: &str,
    root: Node<'_>,
    symbols: &[Symbol],
    scopes: &[Scope],
    limits: &Limits,
) -> Vec<Chunk> {
    let lines = Lines::new(code);
    let sizes = Sizes::of(limits);
    let cuts = tree::cut(root, &lines, symbols, sizes);
    described(path, &lines.tidy(cuts, sizes), symbols, scopes)
}

/// How long chunks are, bytes.
#[derive(Clone, Copy)]
struct Sizes {
    /// What small pieces are merged up to, and what larger ones are cut down to.
    target: usize,
    /// What a function may have without being cut.
    max: usize,
}

impl Sizes {
    fn of(limits: &Limits) -> Self {
        let target = limits.chunk_bytes.max(1);
        Self { target, max: limits.chunk_bytes_max.max(target) }
    }

    /// Too little to stand alone.
    fn is_slight(self, bytes: usize) -> bool {
        bytes < self.target / 6
    }
}

/// Adds to pieces (rows, from 0) what they hold and what they stand in.
fn described(path: &str, pieces: &[Range<usize>], symbols: &[Symbol], scopes: &[Scope]) -> Vec<Chunk> {
    let skipped = path.chars().count().saturating_sub(PATH_CHARS_MAX);
    let path: String = path.chars().skip(skipped).collect();
    let mut by_line: Vec<&Symbol> = symbols.iter().collect();
    by_line.sort_by_key(|symbol| symbol.name_line);
    let described = pieces.iter().map(|rows| {
        let (start_line, end_line) = (rows.start + 1, rows.end);
        let around = scopes.iter().rfind(|scope| scope.start_line < start_line && scope.end_line >= start_line);
        let first = by_line.partition_point(|symbol| symbol.name_line < start_line);
        let within = by_line[first..].iter().take_while(|symbol| symbol.name_line <= end_line);
        let mut named: Vec<(String, SymbolKind)> = Vec::new();
        for symbol in within {
            if named.len() < SYMBOLS_MAX
                && !named.iter().any(|(name, kind)| *name == symbol.name && *kind == symbol.kind)
            {
                named.push((symbol.name.clone(), symbol.kind));
            }
        }
        if named.is_empty() {
            named.extend(around.and_then(|scope| scope.symbol.clone()));
        }
        let header = match around {
            Some(scope) => format!("{path}\n{}: {}", scope.path, scope.signature),
            None => path.clone(),
        };
        let (symbols, kinds) = named.into_iter().unzip();
        Chunk { start_line, end_line, header, symbols, kinds }
    });
    described.collect()
}

#[cfg(test)]
mod tests;
