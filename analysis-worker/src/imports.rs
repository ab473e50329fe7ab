//! What a file depends on, as it is written: paths, not files. Only the top level counts (and what stands there in
//! an `if` or a `try`); an import inside a function is that function's affair.

use tree_sitter::Node;

use crate::language::Language;
use crate::symbols::text;

/// One thing imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The path in the language's own writing: `std::fs`, `os.path`, `./store`, `net/http`, `java.util.*`.
    pub path: String,
    /// How the path is meant.
    pub kind: ImportKind,
    /// The names taken out of it, where such a name may be a module itself: `store` of Python's `from . import store`.
    /// Other languages leave this empty.
    pub members: Vec<String>,
    /// Where the file of a declared module lies, if the declaration says so: Rust's `#[path = "…"] mod x;`.
    pub at: Option<String>,
    /// Line of the statement, counted from 1.
    pub line: usize,
}

/// How the path of an import is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportKind {
    /// A name in the language's space of modules, packages or types: `std::fs`, `super::store`, `os.path`, `react`,
    /// `net/http`, `java.util.List`, Ruby's `json`, Lua's `lib.store`.
    Module,
    /// Counted from the file that imports: `./store` of JavaScript, `.store` of Python (one dot is the file's own
    /// package), `store` of Ruby's `require_relative`.
    Relative,
    /// `#include`, with angle brackets (the system's directories) or with quotes (the file's own directory first).
    Include {
        /// Whether the path stood in angle brackets.
        angled: bool,
    },
    /// A child module that this file declares and another one holds: Rust's `mod store;`.
    ModuleDeclaration,
    /// A file by its path, or a URL, as written: PHP's `require`, Bash's `source`, CSS's `@import`, HTML's `src` and
    /// `href`, Lua's `dofile`. Variables in it are not replaced: `$HERE/lib.sh`, `__DIR__ . '/lib.php'`.
    File,
}

/// What a query says of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImportTag {
    Module,
    Relative,
    Include,
    Declaration,
    File,
}

impl ImportTag {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "module" => Self::Module,
            "relative" => Self::Relative,
            "include" => Self::Include,
            "declaration" => Self::Declaration,
            "file" => Self::File,
            _ => return None,
        })
    }
}

/// Lists in lists deeper than this are abuse, not code; spelling them out is recursive and must end.
const DEPTH_MAX: usize = 32;
/// Longest path kept; what is longer is data (`data:` URLs).
const PATH_BYTES_MAX: usize = 1_024;

/// The imports of a file in the order they are found, at most `max` of them.
pub(crate) struct Imports<'a> {
    code: &'a str,
    language: Language,
    max: usize,
    /// Where the path of the last one begins: two findings of one path are one import with several members.
    last: usize,
    imports: Vec<Import>,
}

impl<'a> Imports<'a> {
    pub(crate) fn new(code: &'a str, language: Language, max: usize) -> Self {
        Self { code, language, max, last: usize::MAX, imports: Vec::new() }
    }

    pub(crate) fn finish(self) -> Vec<Import> {
        self.imports
    }

    /// Takes one finding. Without a `path` of its own the statement is read as words, a path, and perhaps a list.
    pub(crate) fn take(
        &mut self,
        tag: ImportTag,
        statement: Node<'_>,
        path: Option<Node<'_>>,
        member: Option<Node<'_>>,
    ) {
        let line = statement.start_position().row + 1;
        if let Some(path) = path {
            if path.start_byte() != self.last {
                self.last = path.start_byte();
                let written = text(path, self.code);
                let quoted = written.starts_with(['"', '\'', '`']);
                if tag == ImportTag::Module && !quoted && written.contains(['{', ' ']) {
                    self.spell_out("", &without_comments(written), line, 0);
                } else {
                    self.push(written, tag, line);
                }
                if tag == ImportTag::Declaration
                    && let Some(import) = self.imports.last_mut().filter(|import| import.line == line)
                {
                    import.at = placed_at(statement, self.code);
                }
            }
            if let (Some(member), Some(import)) = (member, self.imports.last_mut())
                && import.line == line
            {
                import.members.push(text(member, self.code).to_owned());
            }
        } else {
            let written = without_comments(text(statement, self.code));
            let written = written.trim_end_matches([';', ' ', '\n', '\r', '\t']);
            self.spell_out("", without_keywords(written), line, 0);
        }
    }

    /// Spells out `a::{b, c::d}` as `a::b`, `a::c::d`, for all languages that write lists in braces.
    fn spell_out(&mut self, prefix: &str, written: &str, line: usize, depth: usize) {
        if depth > DEPTH_MAX || prefix.len() > PATH_BYTES_MAX || self.imports.len() >= self.max {
            return;
        }
        for item in split_list(written) {
            let item = item.trim();
            if let Some((head, list)) = item.split_once('{') {
                let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
                self.spell_out(&format!("{prefix}{}", head.trim()), list, line, depth + 1);
                continue;
            }
            let path = without_alias(item);
            let separator = self.language.separator();
            let path = match path {
                // `a::{self}` is `a`.
                "self" if !prefix.is_empty() => prefix.trim_end_matches(separator).to_owned(),
                path => format!("{prefix}{path}"),
            };
            self.push(&path, ImportTag::Module, line);
        }
    }

    fn push(&mut self, written: &str, tag: ImportTag, line: usize) {
        let angled = written.starts_with('<');
        let path = unquoted(written);
        if self.imports.len() >= self.max || path.is_empty() || path.len() > PATH_BYTES_MAX {
            return;
        }
        let kind = match tag {
            ImportTag::Module if self.is_relative(path) => ImportKind::Relative,
            ImportTag::Module => ImportKind::Module,
            ImportTag::Relative => ImportKind::Relative,
            ImportTag::Include => ImportKind::Include { angled },
            ImportTag::Declaration => ImportKind::ModuleDeclaration,
            ImportTag::File => ImportKind::File,
        };
        let path = if tag == ImportTag::Module { path.split_whitespace().collect() } else { path.to_owned() };
        self.imports.push(Import { path, kind, members: Vec::new(), at: None, line });
    }

    fn is_relative(&self, path: &str) -> bool {
        let dotted = [Language::Python, Language::JavaScript, Language::TypeScript, Language::Tsx];
        path.starts_with('.') && dotted.contains(&self.language)
    }
}

/// What `#[path = "…"]` above a declaration says. Other attributes and comments may stand between.
fn placed_at(declaration: Node<'_>, code: &str) -> Option<String> {
    let above = std::iter::successors(declaration.prev_sibling(), Node::prev_sibling);
    let attributes =
        above.take_while(|node| matches!(node.kind(), "attribute_item" | "line_comment" | "block_comment"));
    attributes.into_iter().find_map(|attribute| {
        let inner = text(attribute, code).strip_prefix("#[")?.strip_suffix(']')?.trim();
        let value = inner.strip_prefix("path")?.trim_start().strip_prefix('=')?.trim();
        let path = unquoted(value);
        (path.len() < value.len() && path.len() <= PATH_BYTES_MAX).then(|| path.to_owned())
    })
}

/// Without the quotes or brackets around it; an expression that only ends with a quote keeps it.
fn unquoted(written: &str) -> &str {
    let quotes = [('"', '"'), ('\'', '\''), ('`', '`'), ('<', '>')];
    let inner = quotes.iter().find_map(|(open, close)| written.strip_prefix(*open)?.strip_suffix(*close));
    inner.unwrap_or(written)
}

/// Splits at the commas that stand in no braces.
fn split_list(written: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    written.split(move |c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

/// Without the words before the path: `import static`, `global using`, `@testable import struct`, `use function`.
fn without_keywords(statement: &str) -> &str {
    const WORDS: [&str; 19] = [
        "import",
        "static",
        "global",
        "using",
        "unsafe",
        "use",
        "function",
        "const",
        "type",
        "typealias",
        "struct",
        "class",
        "enum",
        "protocol",
        "func",
        "let",
        "var",
        "public",
        "module",
    ];
    let mut rest = statement.trim_start();
    while let Some((word, after)) = rest.split_once(char::is_whitespace) {
        let attribute = word.starts_with('@');
        if !attribute && !WORDS.contains(&word) {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// The path of `path as alias`, `path => alias` and `alias = path`; `given` and the like stay as they are.
fn without_alias(item: &str) -> &str {
    let item = item.split_once(" as ").map_or(item, |(path, _)| path);
    let item = item.split_once("=>").map_or(item, |(path, _)| path);
    let item = item.split_once('=').map_or(item, |(_, path)| path).trim();
    without_keywords(item)
}

/// Comments may stand anywhere in a list; `//` and `/*` are in no path that is read this way.
fn without_comments(written: &str) -> String {
    let mut kept = String::with_capacity(written.len());
    let mut rest = written;
    while let Some(at) = rest.find('/') {
        let (before, after) = rest.split_at(at);
        kept.push_str(before);
        if after.starts_with("//") {
            rest = after.find('\n').map_or("", |end| &after[end..]);
        } else if after.starts_with("/*") {
            rest = after.find("*/").map_or("", |end| &after[end + 2..]);
        } else {
            kept.push('/');
            rest = &after[1..];
        }
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests;
