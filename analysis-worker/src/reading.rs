//! Files read for the index: their text, what it defines and imports, and the pieces it is cut into. Whatever lies in a
//! workspace, reading it costs bounded time and memory; what is left out is named.

use std::collections::BTreeMap;
use std::time::Duration;

use rayon::prelude::*;
use runtime::clock;
use schemas::code::{IndexedFile, IndexedImport, IndexedPiece, Skipped};
use schemas::rpc;
use schemas::wire::Schema;

use crate::analysis::{Analysis, Limits, Refusal, analyze};
use crate::catalogue::lines;
use crate::chunk::{Chunk, chunk_text};
use crate::indexer::hash_of;
use crate::workspace::{Unread, Workspace};
use crate::{outline, overview};

/// Bytes in which a zero tells a binary file.
const LOOKED_AT: usize = 8 << 10;
/// Names that are remembered as referred to by one file.
const REFERENCES_MAX: usize = 2_000;

/// How much reading may cost.
pub(crate) struct Bounds {
    pub(crate) bytes_max: u64,
    pub(crate) limits: Limits,
    pub(crate) parse_within: Duration,
}

/// A file that was read.
pub(crate) struct Read {
    pub(crate) entry: IndexedFile,
    /// What is embedded of each piece, header included.
    embedded: Vec<String>,
}

/// What came of a list of files.
#[derive(Default)]
pub(crate) struct Reading {
    pub(crate) read: Vec<Read>,
    pub(crate) skipped: Vec<Skipped>,
    /// Files of which nothing can be indexed, the skipped ones among them.
    pub(crate) gone: Vec<String>,
}

impl Read {
    /// What is embedded, by its hash.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        let hashes = self.entry.pieces.iter().map(|piece| piece.hash.as_str());
        hashes.zip(self.embedded.iter().map(String::as_str))
    }

    /// The lines of a piece.
    pub(crate) fn code(&self, number: usize) -> &str {
        let piece = &self.entry.pieces[number];
        lines(&self.entry.text, piece.start_line, piece.end_line)
    }
}

/// Whether content is no text.
pub(crate) fn is_binary(content: &[u8]) -> bool {
    memchr::memchr(0, &content[..content.len().min(LOOKED_AT)]).is_some()
}

/// Reads files side by side.
pub(crate) fn read_all(workspace: &Workspace, paths: &[String], bounds: &Bounds) -> Reading {
    let outcomes: Vec<Result<Read, Option<String>>> =
        paths.par_iter().map(|path| read(workspace, path, bounds)).collect();
    let mut reading = Reading::default();
    for (path, outcome) in paths.iter().zip(outcomes) {
        match outcome {
            Ok(read) => reading.read.push(read),
            Err(reason) => {
                reading.skipped.extend(reason.map(|reason| Skipped { path: path.clone(), reason }));
                reading.gone.push(path.clone());
            }
        }
    }
    reading
}

/// One file, or why it is left out; no reason where nobody asks for one.
fn read(workspace: &Workspace, path: &str, bounds: &Bounds) -> Result<Read, Option<String>> {
    let content = workspace.read(path, bounds.bytes_max).map_err(|unread| match unread {
        Unread::Gone | Unread::NoFile => None,
        unread => Some(unread.to_string()),
    })?;
    if is_binary(&content) {
        return Err(None);
    }
    let hash = hash_of(&content);
    // What is no UTF-8 is replaced; lines stay where they are.
    let text = String::from_utf8(content).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
    let began = clock::instant();
    let expired = || clock::instant().duration_since(began) > bounds.parse_within;
    match analyze(path, &text, &bounds.limits, expired) {
        Ok(analysis) => Ok(of_code(path, hash, text, analysis)),
        Err(Refusal::UnknownLanguage { .. }) => {
            let chunks = chunk_text(path, &text, &bounds.limits);
            Ok(assembled(empty(path, hash, "text", text), chunks))
        }
        Err(refusal) => Err(Some(refusal.to_string())),
    }
}

fn of_code(path: &str, hash: String, text: String, analysis: Analysis) -> Read {
    let Analysis { language, imports, symbols, references, chunks, .. } = analysis;
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for reference in references {
        if counts.len() < REFERENCES_MAX || counts.contains_key(&reference.name) {
            *counts.entry(reference.name).or_default() += 1;
        }
    }
    let imports = imports.into_iter().map(|import| IndexedImport {
        kind: overview::name_of(import.kind).to_owned(),
        members: import.members,
        at: import.at,
        line: u32::try_from(import.line).unwrap_or(u32::MAX),
        path: import.path,
    });
    let entry = IndexedFile {
        symbols: symbols.iter().filter(|symbol| !symbol.local).map(outline::symbol).collect::<Vec<rpc::Symbol>>(),
        references: counts.into_iter().collect(),
        imports: imports.collect(),
        ..empty(path, hash, language.name(), text)
    };
    assembled(entry, chunks)
}

fn empty(path: &str, hash: String, language: &str, text: String) -> IndexedFile {
    IndexedFile {
        schema: IndexedFile::SCHEMA.to_owned(),
        path: path.to_owned(),
        hash,
        language: language.to_owned(),
        model: None,
        text,
        pieces: Vec::new(),
        symbols: Vec::new(),
        references: Vec::new(),
        imports: Vec::new(),
    }
}

fn assembled(mut entry: IndexedFile, chunks: Vec<Chunk>) -> Read {
    let mut embedded = Vec::new();
    for chunk in chunks {
        let line = |line: usize| u32::try_from(line).unwrap_or(u32::MAX);
        let (start_line, end_line) = (line(chunk.start_line), line(chunk.end_line));
        let text = format!("{}\n{}", chunk.header, lines(&entry.text, start_line, end_line));
        let mut kinds: Vec<String> = chunk.kinds.iter().map(|kind| kind.name().to_owned()).collect();
        kinds.sort();
        kinds.dedup();
        let hash = hash_of(text.as_bytes())[..32].to_owned();
        entry.pieces.push(IndexedPiece { start_line, end_line, hash, symbols: chunk.symbols, kinds });
        embedded.push(text);
    }
    Read { entry, embedded }
}
