//! Indexed code: what an index execution asks of analysis workers, and what can be asked of the index.
//!
//! An index execution asks three things, one after the other: [`PLAN`] compares the workspace with what is indexed and
//! writes down which files have to be read; [`FILES`] reads a part of them, as many parts at once as there are workers;
//! [`FINISH`] takes out what is gone. Arguments and results are JSON texts, as those of tools are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::chat::ToolCall;
use crate::ids::ExecutionId;
use crate::object::Reference;
use crate::rpc::Symbol;
use crate::wire::{Nanos, Schema};

/// Asks for an [`Plan`] with an [`IndexRequest`].
pub const PLAN: &str = "index_plan";
/// Asks for [`FilesDone`] with a [`FilesRequest`].
pub const FILES: &str = "index_files";
/// Asks for the final [`IndexReport`] with a [`FinishRequest`].
pub const FINISH: &str = "index_finish";

/// Files that are named in one report, with the reason why they were left out; the others are counted.
pub const SKIPPED_MAX: usize = 50;
/// Parts of one plan at most. A plan of many files has larger parts.
pub const PARTS_MAX: usize = 256;

/// What is to be indexed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexRequest {
    /// The workspace: a path under an allowed root.
    pub workspace: String,
    /// Files and directories below it, relative; empty means all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Files are read and embedded again even where nothing changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// What is known of a file: an entry `file.<workspace>.<path>` of the bucket `vl_code`, both by their hashes. All that is
/// found by words, by names and by imports follows from these entries, so every worker can answer, vector store or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexedFile {
    /// `indexed-file/1.0`.
    pub schema: String,
    /// Relative to the workspace.
    pub path: String,
    /// SHA-256 of its bytes, hex.
    pub hash: String,
    /// Its language, lower case; `text` when unknown.
    pub language: String,
    /// The model that made the vectors of its pieces; none when they have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its content.
    pub text: String,
    /// The pieces it was cut into, in order.
    pub pieces: Vec<IndexedPiece>,
    /// What it defines, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<Symbol>,
    /// Names that it refers to, and how often.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<(String, u32)>,
    /// What it imports, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<IndexedImport>,
}

impl Schema for IndexedFile {
    const SCHEMA: &'static str = "indexed-file/1.0";
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexedPiece {
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, from 1.
    pub end_line: u32,
    /// Tells what was embedded: equal hashes have equal vectors.
    pub hash: String,
    /// What it defines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<String>,
    /// The kinds of that, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
}

/// Something that a file imports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexedImport {
    /// In the language's own writing.
    pub path: String,
    /// How it is imported: `module`, `relative`, `include`, `system_include`, `declaration` or `file`.
    pub kind: String,
    /// Names taken out of it that may be modules themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// Where the file of a declared module lies, if the declaration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The line.
    pub line: u32,
}

/// What is known of a workspace: an entry `state.<workspace>` of the bucket `vl_code`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexedWorkspace {
    /// `indexed-workspace/1.0`.
    pub schema: String,
    /// Absolute and without symbolic links.
    pub workspace: String,
    /// How it was indexed last; none while that goes on for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexed: Option<Indexed>,
}

impl Schema for IndexedWorkspace {
    const SCHEMA: &'static str = "indexed-workspace/1.0";
}

/// A file that is not indexed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Skipped {
    /// Relative to the workspace.
    pub path: String,
    /// Why, for people.
    pub reason: String,
}

/// What has to be done, in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The workspace, absolute and without symbolic links.
    pub workspace: String,
    /// The list that the parts are cut from, in the object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Reference>,
    /// Files that can be indexed.
    pub files: u64,
    /// Of which are as they were.
    pub unchanged: u64,
    /// Files that are gone.
    pub removed: u64,
    /// Parts of the list: the first file, and the one after the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(u32, u32)>,
    /// Files left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// More of them.
    #[serde(default)]
    pub skipped_more: u64,
}

impl Plan {
    /// The calls that carry it out.
    #[must_use]
    pub fn calls(&self) -> Vec<ToolCall> {
        let Some(list) = &self.list else { return Vec::new() };
        let call = |(number, (from, to)): (usize, &(u32, u32))| {
            let (workspace, list) = (self.workspace.clone(), list.sha256.clone());
            let request = FilesRequest { workspace, list, from: *from, to: *to };
            let arguments = serde_json::to_string(&request).expect("texts and numbers are always written");
            ToolCall::new(format!("files-{number}"), FILES, arguments)
        };
        self.parts.iter().take(PARTS_MAX).enumerate().map(call).collect()
    }
}

/// The list of a plan, an object in MessagePack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedFiles {
    /// Files to read, relative to the workspace.
    pub read: Vec<String>,
    /// Files to take out.
    pub remove: Vec<String>,
    /// Vectors are made anew, even where they are known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

/// A part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilesRequest {
    /// The workspace.
    pub workspace: String,
    /// The plan's list: name of an object.
    pub list: String,
    /// The first file of the part, from 0.
    pub from: u32,
    /// The one after the last.
    pub to: u32,
}

/// What came of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct FilesDone {
    /// Files indexed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pieces they were cut into.
    pub pieces: u64,
    /// Pieces whose vectors were made.
    pub embedded: u64,
    /// Pieces whose vectors were known.
    pub reused: u64,
    /// Definitions found.
    pub symbols: u64,
    /// Wall time, milliseconds.
    pub total_ms: u64,
    /// Of which was waited for vectors.
    pub embedding_ms: u64,
    /// Why pieces have no vectors, if they have none: they are found by their words all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_vectors: Option<String>,
    /// Files left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// More of them.
    #[serde(default)]
    pub skipped_more: u64,
}

/// The end of an index execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FinishRequest {
    /// The workspace.
    pub workspace: String,
    /// The plan's list, if there was anything to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// What came of the plan and its parts.
    pub report: IndexReport,
}

/// What an index execution did: its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct IndexReport {
    /// The workspace.
    pub workspace: String,
    /// Files that can be indexed.
    pub files: u64,
    /// Of which were as they were.
    pub unchanged: u64,
    /// Files taken out of the index.
    pub removed: u64,
    /// What came of the others, all parts together. Times are sums over workers.
    pub done: FilesDone,
    /// Parts that failed, and why. Their files are as they were; indexing again tries them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

impl IndexReport {
    /// Begins with what the plan says.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let (skipped, skipped_more) = (plan.skipped.clone(), plan.skipped_more);
        Self {
            workspace: plan.workspace.clone(),
            files: plan.files,
            unchanged: plan.unchanged,
            done: FilesDone { skipped, skipped_more, ..FilesDone::default() },
            ..Self::default()
        }
    }

    /// Adds a part.
    pub fn add(&mut self, part: FilesDone) {
        let done = &mut self.done;
        let sums = [
            (&mut done.files, part.files),
            (&mut done.bytes, part.bytes),
            (&mut done.pieces, part.pieces),
            (&mut done.embedded, part.embedded),
            (&mut done.reused, part.reused),
            (&mut done.symbols, part.symbols),
            (&mut done.total_ms, part.total_ms),
            (&mut done.embedding_ms, part.embedding_ms),
            (&mut done.skipped_more, part.skipped_more),
        ];
        for (sum, more) in sums {
            *sum = sum.saturating_add(more);
        }
        done.without_vectors = done.without_vectors.take().or(part.without_vectors);
        for skipped in part.skipped {
            skip(&mut done.skipped, &mut done.skipped_more, skipped);
        }
    }
}

/// Names a file that is left out, or counts it.
pub fn skip(named: &mut Vec<Skipped>, more: &mut u64, skipped: Skipped) {
    if named.len() < SKIPPED_MAX {
        named.push(skipped);
    } else {
        *more += 1;
    }
}

/// Question on `vl.v1.rpc.search`; the answer is [`Found`], or a refusal of code `not_indexed`, `unknown_piece` or
/// `bad_request`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchCode {
    /// The workspace, absolute and without symbolic links.
    pub workspace: String,
    /// What is looked for.
    pub about: About,
    /// Languages, lower case; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Globs of paths; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Kinds of definitions that a piece must hold one of; empty means all pieces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Pieces at most.
    pub limit: u32,
    /// By what.
    #[serde(default, skip_serializing_if = "By::is_both")]
    pub by: By,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// Code that this text is about.
    Query(String),
    /// Code like the piece that holds this line.
    Line {
        /// Its file.
        path: String,
        /// The line, from 1.
        line: u32,
    },
    /// Code like this.
    Code(String),
}

/// How pieces are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// By meaning and by words, fused by rank.
    #[default]
    Both,
    /// By meaning: nearness of vectors.
    Meaning,
    /// By words: BM25.
    Words,
}

impl By {
    fn is_both(&self) -> bool {
        *self == Self::Both
    }
}

/// What was found, best first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// The pieces.
    pub pieces: Vec<Piece>,
    /// What the reader should know: that vectors were missing, that the index is older than the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A piece of code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Piece {
    /// Its file, relative to the workspace.
    pub path: String,
    /// Its language, lower case.
    pub language: String,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line, from 1.
    pub end_line: u32,
    /// The lines.
    pub code: String,
    /// What it defines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<String>,
    /// Sum of the reciprocal ranks, or what the one way of searching gave.
    pub score: f64,
    /// Why it was found, for people: `meaning #1 (0.62), words #3 (parse, config)`.
    pub why: String,
}

/// Question on `vl.v1.rpc.code`; the answer is a text ([`String`]), or a refusal as of [`SearchCode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AskCode {
    /// The workspace, absolute and without symbolic links.
    pub workspace: String,
    /// What is asked.
    pub what: WhatOfCode,
}

/// What can be asked of an indexed workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhatOfCode {
    /// Its most referenced definitions, as many as fit.
    Outline {
        /// Tokens of the text at most.
        tokens_max: u32,
        /// Paths and names that weigh more.
        focus: Vec<String>,
    },
    /// What a file depends on, and what depends on it.
    Dependencies {
        /// The file.
        path: String,
    },
}

/// An indexed workspace. Question `vl.v1.rpc.indexes` (empty body) answers `Vec<Indexed>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Indexed {
    /// The workspace.
    pub workspace: String,
    /// Files in the index.
    pub files: u64,
    /// The embedding model, if pieces have vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The execution that indexed it last.
    pub exec: ExecutionId,
    /// When it ended.
    pub at: Nanos,
}
