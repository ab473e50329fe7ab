//! One file, understood: its language, what it imports, defines and uses, and the pieces it is cut into.
//!
//! One parse and one query serve everything. Both are bounded twice, because the code is anybody's: by size before
//! they start, and by a deadline that the caller holds (this module has no clock). Syntax errors are no refusal; what
//! could be read is reported.

use std::cell::RefCell;
use std::ops::ControlFlow;

use tree_sitter::{ParseOptions, ParseState, Parser, Tree};

use crate::chunk::{self, Chunk};
use crate::imports::Import;
use crate::language::Language;
use crate::references::{self, Reference};
use crate::symbols::{self, Symbol};
use crate::tags;

/// How much work one file may cause, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest code that is parsed. Hand-written files above a megabyte are rare enough to be generated ones.
    pub code_bytes_max: usize,
    /// Mean bytes of a line above which code counts as minified. Wide hand-written code stays below 100.
    pub line_bytes_mean_max: usize,
    /// Symbols kept of one file.
    pub symbols_max: usize,
    /// Imports kept of one file.
    pub imports_max: usize,
    /// References kept of one file.
    pub references_max: usize,
    /// How long a chunk should be, bytes. An embedding model of 256 tokens reads about so much code.
    pub chunk_bytes: usize,
    /// How long a chunk may be, bytes, so that a function is not cut. Only a single line may be longer.
    pub chunk_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            code_bytes_max: 1 << 20,
            line_bytes_mean_max: 500,
            symbols_max: 10_000,
            imports_max: 500,
            references_max: 20_000,
            chunk_bytes: 1_200,
            chunk_bytes_max: 2_000,
        }
    }
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analysis {
    /// The grammar that read it.
    pub language: Language,
    /// How many lines it has.
    pub lines: usize,
    /// What it imports at its top level, in order.
    pub imports: Vec<Import>,
    /// What it defines, in order of appearance.
    pub symbols: Vec<Symbol>,
    /// The names it uses, in order of appearance.
    pub references: Vec<Reference>,
    /// The pieces it is cut into, in order.
    pub chunks: Vec<Chunk>,
    /// Whether the grammar met something it could not read; the rest was read all the same.
    pub has_syntax_errors: bool,
}

/// Why a file was not analysed. The text is written to be read by a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No grammar for this name.
    #[error("cannot analyze {path}: its language is not supported (supported: {})", supported())]
    UnknownLanguage {
        /// The file as named by the caller.
        path: String,
    },
    /// The content is not text.
    #[error("cannot analyze {path}: it is a binary file")]
    Binary {
        /// The file as named by the caller.
        path: String,
    },
    /// The content is text that no person wrote this way.
    #[error("cannot analyze {path}: it looks minified or generated")]
    Minified {
        /// The file as named by the caller.
        path: String,
    },
    /// More code than one analysis may cost.
    #[error("cannot analyze {path}: {bytes} bytes is more than the limit of {limit}")]
    TooLarge {
        /// The file as named by the caller.
        path: String,
        /// Its size.
        bytes: usize,
        /// The size allowed.
        limit: usize,
    },
    /// The deadline passed while parsing.
    #[error("cannot analyze {path}: parsing took too long")]
    TimedOut {
        /// The file as named by the caller.
        path: String,
    },
}

/// Code shorter than this is never called minified: a one-line script is no bundle.
const MINIFIED_BYTES_MIN: usize = 5_000;

/// Analyses one file. `expired` is asked now and then while parsing and searching; once it says yes, the work is
/// abandoned. Code that is no UTF-8 is given with its broken bytes replaced (`String::from_utf8_lossy`).
pub fn analyze(
    path: &str,
    code: &str,
    limits: &Limits,
    mut expired: impl FnMut() -> bool,
) -> Result<Analysis, Refusal> {
    let (language, lines) = admit(path, code, limits)?;
    let timed_out = || Refusal::TimedOut { path: path.to_owned() };
    let tree = parse(code, language, &mut expired).ok_or_else(timed_out)?;
    let root = tree.root_node();
    let found = tags::find(root, code, language, &mut expired).ok_or_else(timed_out)?;
    let contents = symbols::contents(&found.tags, &found.comments, code, language, limits);
    Ok(Analysis {
        language,
        lines,
        references: references::extract(found.references, &contents.defined, code, limits.references_max),
        chunks: chunk::chunks(path, code, root, &contents.symbols, &contents.scopes, limits),
        imports: contents.imports,
        symbols: contents.symbols,
        has_syntax_errors: root.has_error(),
    })
}

/// Decides whether a file is worth a parser at all; tells its language and its number of lines.
fn admit(path: &str, code: &str, limits: &Limits) -> Result<(Language, usize), Refusal> {
    let named = || path.to_owned();
    if code.as_bytes().contains(&0) {
        return Err(Refusal::Binary { path: named() });
    }
    let language = Language::detect(path, code).ok_or_else(|| Refusal::UnknownLanguage { path: named() })?;
    if code.len() > limits.code_bytes_max {
        return Err(Refusal::TooLarge { path: named(), bytes: code.len(), limit: limits.code_bytes_max });
    }
    let lines = code.lines().count();
    if code.len() >= MINIFIED_BYTES_MIN && code.len() / lines.max(1) > limits.line_bytes_mean_max {
        return Err(Refusal::Minified { path: named() });
    }
    Ok((language, lines))
}

thread_local! {
    /// Reused, because a parser keeps its memory from file to file.
    static PARSER: RefCell<Parser> = RefCell::new(Parser::new());
}

/// Parses with whatever time is left; `None` when it ran out.
fn parse(code: &str, language: Language, expired: &mut impl FnMut() -> bool) -> Option<Tree> {
    let mut watch = |_: &ParseState| if expired() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let options = ParseOptions::new().progress_callback(&mut watch);
    let bytes = code.as_bytes();
    PARSER.with_borrow_mut(|parser| {
        // What an abandoned parse left behind belongs to another file.
        parser.reset();
        parser.set_language(&language.grammar()).expect("every grammar in the workspace speaks this parser's ABI");
        parser.parse_with_options(&mut |offset, _| bytes.get(offset..).unwrap_or_default(), None, Some(options))
    })
}

fn supported() -> String {
    Language::ALL.map(Language::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str, code: &str) -> Refusal {
        analyze(path, code, &Limits::default(), || false).unwrap_err()
    }

    #[test]
    fn binary_unknown_minified_and_huge_files_are_refused_in_words() {
        assert_eq!(refusal("a.rs", "fn a() {}\0").to_string(), "cannot analyze a.rs: it is a binary file");
        assert_eq!(
            refusal("notes.txt", "hello").to_string(),
            "cannot analyze notes.txt: its language is not supported (supported: rust, python, javascript, typescript, tsx, \
             go, java, c, cpp, csharp, ruby, php, bash, kotlin, swift, scala, lua, sql, html, css, json, yaml, toml, markdown)"
        );
        let bundle = "var a=1;".repeat(2_000);
        assert_eq!(refusal("a.js", &bundle), Refusal::Minified { path: "a.js".into() });
        let huge = "// line\n".repeat(140_000);
        assert!(matches!(refusal("a.rs", &huge), Refusal::TooLarge { bytes: 1_120_000, limit: 1_048_576, .. }));
    }

    #[test]
    fn an_expired_deadline_stops_the_parser() {
        let code = "fn f() { let x = vec![1, 2, 3]; }\n".repeat(5_000);
        let mut asked = 0;
        let outcome = analyze("a.rs", &code, &Limits::default(), || {
            asked += 1;
            true
        });
        assert_eq!(outcome, Err(Refusal::TimedOut { path: "a.rs".into() }));
        assert_eq!(asked, 1, "abandoned at the first question");
    }

    #[test]
    fn broken_code_is_read_as_far_as_it_goes() {
        let code = "fn good() {}\nfn broken( {{{\nstruct Later { a: u8 }\n";
        let analysis = analyze("a.rs", code, &Limits::default(), || false).unwrap();
        assert!(analysis.has_syntax_errors);
        assert!(analysis.symbols.iter().any(|symbol| symbol.name == "good"));
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_fails() {
        let code = format!("{}fn deep() {{}}{}", "mod m { ".repeat(5_000), "}".repeat(5_000));
        let code = code.replace("mod m { ", "mod m {\n");
        let analysis = analyze("a.rs", &code, &Limits::default(), || false).unwrap();
        assert!(!analysis.symbols.is_empty());
    }

    #[test]
    fn brackets_without_end_neither_overflow_nor_hang() {
        let outcome = |path: &str, open: &str, close: &str, questions_max: usize| {
            let code = format!("{}{}", open.repeat(100_000), close.repeat(100_000));
            let mut asked = 0;
            analyze(path, &code, &Limits::default(), || {
                asked += 1;
                asked > questions_max
            })
        };
        for (path, open, close) in [("a.json", "[\n", "]"), ("a.rs", "{\n", "}")] {
            assert!(!outcome(path, open, close, 100_000).unwrap().chunks.is_empty(), "{path}");
        }
        // What is never closed takes the parser longer than anybody waits.
        for (path, open) in [("a.json", "[\n"), ("a.py", "[\n"), ("a.js", "(\n")] {
            assert_eq!(outcome(path, open, "", 300), Err(Refusal::TimedOut { path: path.into() }));
        }
    }

    #[test]
    fn what_nests_or_repeats_without_end_takes_no_memory_without_end() {
        let nested = format!("{}{}", "mod module {\n".repeat(5_000), "}".repeat(5_000));
        let analysis = analyze("a.rs", &nested, &Limits::default(), || false).unwrap();
        let longest = analysis.symbols.iter().filter_map(|symbol| symbol.container_path.as_deref()).map(str::len).max();
        assert_eq!((analysis.symbols.len(), longest.is_some_and(|bytes| bytes < 1_000)), (5_000, true));
        let names: String = (0..12_000).map(|number| format!("n{number} = 1,\n")).collect();
        let analysis = analyze("a.js", &format!("const {names} last = 1;"), &Limits::default(), || false).unwrap();
        assert_eq!(analysis.symbols.len(), Limits::default().symbols_max);
    }

    #[test]
    fn the_deadline_is_kept_while_searching_too() {
        let code = "fn f() { g(1); }\n".repeat(20_000);
        let mut asked = 0;
        let count = analyze("a.rs", &code, &Limits::default(), || {
            asked += 1;
            false
        });
        assert!(count.is_ok());
        let last = asked;
        let mut asked = 0;
        let outcome = analyze("a.rs", &code, &Limits::default(), || {
            asked += 1;
            asked >= last
        });
        assert_eq!(outcome, Err(Refusal::TimedOut { path: "a.rs".into() }));
    }

    #[test]
    fn one_parse_serves_everything() {
        let code = "use std::fs;\n/// Opens.\nfn open() { close(); }\nfn close() {}\n";
        let analysis = analyze("a.rs", code, &Limits::default(), || false).unwrap();
        assert_eq!((analysis.language, analysis.lines, analysis.imports.len()), (Language::Rust, 4, 1));
        assert_eq!((analysis.symbols.len(), analysis.references.len(), analysis.chunks.len()), (2, 1, 1));
        assert_eq!(analysis.symbols[0].doc.as_deref(), Some("Opens."));
        assert_eq!((analysis.references[0].name.as_str(), analysis.references[0].line), ("close", 3));
        assert_eq!(analysis.chunks[0].symbols, ["open", "close"]);
    }

    #[test]
    fn the_number_of_symbols_kept_is_bounded() {
        let limits = Limits { symbols_max: 10, imports_max: 2, ..Limits::default() };
        let code = format!("{}{}", "use a::b;\n".repeat(5), "fn f() {}\n".repeat(50));
        let analysis = analyze("a.rs", &code, &limits, || false).unwrap();
        assert_eq!((analysis.symbols.len(), analysis.imports.len()), (10, 2));
    }
}
