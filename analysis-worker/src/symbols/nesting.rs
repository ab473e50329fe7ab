//! What lies in what. The findings of a query are read once, in order, with a stack of what is open: so a definition
//! gets its containers, a function in a type becomes a method, what is local is marked or dropped, and an import
//! inside a function is left to that function.

use std::collections::HashSet;
use std::ops::Range;

use tree_sitter::Node;

use crate::analysis::Limits;
use crate::imports::{Import, ImportTag, Imports};
use crate::language::Language;
use crate::tags::{Tag, What};

use super::docs::{doc_before, docstring};
use super::head::head;
use super::names::{Declared, bare_type, declared, is_path, split_qualified};
use super::{Symbol, SymbolKind, text};

/// What a file holds, but for its references.
pub(crate) struct Contents {
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) imports: Vec<Import>,
    /// What is long enough to be cut into chunks, in order.
    pub(crate) scopes: Vec<Scope>,
    /// The first byte of every name that is defined, sorted.
    pub(crate) defined: Vec<usize>,
}

/// Something that other things lie in: a definition, or an `impl` block.
pub(crate) struct Scope {
    pub(crate) start_line: usize,
    pub(crate) end_line: usize,
    /// Its own name, and those of its containers before it.
    pub(crate) path: String,
    pub(crate) signature: String,
    /// Name and kind, unless it is no definition.
    pub(crate) symbol: Option<(String, SymbolKind)>,
}

/// Reads the findings (`tags` and `comments`, in order).
pub(crate) fn contents(
    tags: &[Tag<'_>],
    comments: &[Range<usize>],
    code: &str,
    language: Language,
    limits: &Limits,
) -> Contents {
    let mut reading = Reading {
        code,
        language,
        limits,
        comments,
        open: Vec::new(),
        seen: HashSet::new(),
        imports: Imports::new(code, language, limits.imports_max),
        symbols: Vec::new(),
        scopes: Vec::new(),
    };
    for tag in tags {
        reading.read(tag);
    }
    let mut defined: Vec<usize> = reading.seen.into_iter().collect();
    defined.sort_unstable();
    Contents { symbols: reading.symbols, imports: reading.imports.finish(), scopes: reading.scopes, defined }
}

/// Longest name kept. Selectors and headings can be long; they stay recognisable.
const NAME_CHARS_MAX: usize = 128;

struct Reading<'a> {
    code: &'a str,
    language: Language,
    limits: &'a Limits,
    comments: &'a [Range<usize>],
    /// What is open, the outermost first.
    open: Vec<Open>,
    /// The first bytes of the names that are taken.
    seen: HashSet<usize>,
    imports: Imports<'a>,
    symbols: Vec<Symbol>,
    scopes: Vec<Scope>,
}

/// One thing whose end has not been passed.
struct Open {
    bytes: Range<usize>,
    what: What,
    /// Its name, if what lies in it belongs to it.
    name: Option<String>,
    /// The names of all that is open, joined.
    path: Option<String>,
    /// Whether a function is open.
    local: bool,
    /// Its place among the symbols.
    symbol: Option<usize>,
}

impl Reading<'_> {
    fn read(&mut self, tag: &Tag<'_>) {
        let bytes = tag.node.byte_range();
        while self.open.last().is_some_and(|open| open.bytes.end <= bytes.start) {
            self.open.pop();
        }
        match tag.what {
            What::Symbol(kind) => self.symbol(kind, tag),
            What::Scope => self.scope(tag),
            What::Local => self.push_open(tag, None, None, None),
            What::Doc => {
                if let Some(symbol) = self.open.iter().rev().find_map(|open| open.symbol) {
                    let doc = docstring(text(tag.node, self.code));
                    self.symbols[symbol].doc = doc.or_else(|| self.symbols[symbol].doc.take());
                }
            }
            What::Import(import) => {
                let confined = |open: &Open| match open.what {
                    What::Symbol(SymbolKind::Module) => self.language.confines_imports(),
                    What::Symbol(kind) => kind.is_callable() || kind.is_type(),
                    What::Scope | What::Local => true,
                    What::Doc | What::Import(_) => false,
                };
                // A header is pasted in wherever it is named. `mod a;`, a module and a declaration, does not confine itself.
                if import == ImportTag::Include || !self.open.iter().any(|open| open.bytes != bytes && confined(open)) {
                    self.imports.take(import, tag.node, tag.name, tag.other);
                }
            }
        }
    }

    fn symbol(&mut self, kind: SymbolKind, tag: &Tag<'_>) {
        let Some(name) = tag.name else { return };
        let around = self.around(&tag.node.byte_range());
        let (outer, outer_path, outer_what, local) = match around {
            Some(open) => (open.name.clone(), open.path.clone(), Some(open.what), open.local),
            None => (None, None, None, false),
        };
        // What a function or a value holds inside is its own affair.
        let in_body = match outer_what {
            Some(What::Symbol(outer)) => outer.is_callable() || outer.is_data(),
            Some(What::Local) => true,
            _ => false,
        };
        if (kind.is_data() && in_body) || !self.seen.insert(name.start_byte()) {
            return;
        }
        let Declared { node: name, kind } = if self.language.has_declarators() {
            declared(name, tag.node, kind)
        } else {
            Declared { node: name, kind }
        };
        self.seen.insert(name.start_byte());
        let (written_container, name_text) = split_qualified(text(name, self.code));
        let written_container = tag.other.map(|node| text(node, self.code)).or(written_container).and_then(is_path);
        let name_text = one_line(name_text.trim_matches(['"', '\'', '`', ':']), NAME_CHARS_MAX);
        if name_text.is_empty() || (name_text == "_" && !kind.is_callable()) {
            return;
        }
        let separator = self.language.separator();
        let (container, container_path) = match written_container {
            None => (outer, outer_path),
            Some(written) => {
                let path = outer_path.map_or_else(|| written.to_owned(), |path| format!("{path}{separator}{written}"));
                (Some(bare_type(written).to_owned()), Some(path))
            }
        };
        let typed = written_container.is_some()
            || matches!(outer_what, Some(What::Scope))
            || matches!(outer_what, Some(What::Symbol(outer)) if outer.is_type());
        let kind = match kind {
            SymbolKind::Function if typed => SymbolKind::Method,
            SymbolKind::Variable if typed && written_container.is_none() => SymbolKind::Field,
            SymbolKind::Variable if self.language.shouts_constants() && is_shouted(&name_text) => SymbolKind::Constant,
            kind => kind,
        };
        let whole = tag.node;
        let (start_line, end_line) = lines(whole);
        let symbol = Symbol {
            kind,
            name: name_text,
            container,
            container_path,
            signature: head(whole, self.code, kind),
            doc: doc_before(whole.start_byte(), self.comments, self.code),
            start_line,
            end_line,
            name_line: name.start_position().row + 1,
            local,
        };
        let place = (self.symbols.len() < self.limits.symbols_max).then_some(self.symbols.len());
        let path = join(symbol.container_path.as_deref(), &symbol.name, separator);
        self.keep_scope(tag, &path, &symbol.signature, Some((&symbol.name, kind)));
        let name = kind.contains().then(|| symbol.name.clone());
        if place.is_some() {
            self.symbols.push(symbol);
        }
        let mut tag = *tag;
        tag.what = What::Symbol(kind);
        self.push_open(&tag, name, Some(path), place);
    }

    fn scope(&mut self, tag: &Tag<'_>) {
        let Some(written) = tag.name.map(|name| text(name, self.code)) else { return };
        let name = Some(bare_type(written)).filter(|name| !name.is_empty());
        let name = name.map_or_else(|| one_line(written, NAME_CHARS_MAX), str::to_owned);
        let outer = self.around(&tag.node.byte_range()).and_then(|open| open.path.as_deref());
        let path = join(outer, &name, self.language.separator());
        let signature = head(tag.node, self.code, SymbolKind::Class);
        self.keep_scope(tag, &path, &signature, None);
        self.push_open(tag, Some(name), Some(path), None);
    }

    /// What lies around `bytes`; several names of one statement do not lie in one another.
    fn around(&self, bytes: &Range<usize>) -> Option<&Open> {
        self.open.iter().rev().find(|open| open.bytes != *bytes && open.bytes.end >= bytes.end)
    }

    fn push_open(&mut self, tag: &Tag<'_>, name: Option<String>, path: Option<String>, symbol: Option<usize>) {
        let bytes = tag.node.byte_range();
        let around = self.around(&bytes);
        let callable = matches!(tag.what, What::Local) || matches!(tag.what, What::Symbol(kind) if kind.is_callable());
        let local = callable || around.is_some_and(|open| open.local);
        // What has no name of its own passes on the one it lies in.
        let (name, path) = match name {
            Some(name) => (Some(name), path),
            None => (around.and_then(|open| open.name.clone()), around.and_then(|open| open.path.clone())),
        };
        self.open.push(Open { bytes, what: tag.what, name, path, local, symbol });
    }

    /// Scopes that are shorter than a chunk are never cut, so no chunk begins inside them.
    fn keep_scope(&mut self, tag: &Tag<'_>, path: &str, signature: &str, symbol: Option<(&str, SymbolKind)>) {
        if tag.node.end_byte() - tag.node.start_byte() <= self.limits.chunk_bytes {
            return;
        }
        let (start_line, end_line) = lines(tag.node);
        self.scopes.push(Scope {
            start_line,
            end_line,
            path: path.to_owned(),
            signature: signature.to_owned(),
            symbol: symbol.map(|(name, kind)| (name.to_owned(), kind)),
        });
    }
}

/// First and last line, counted from 1; a node that ends with a line break ends on the line before it.
fn lines(node: Node<'_>) -> (usize, usize) {
    let (start, end) = (node.start_position(), node.end_position());
    let last = if end.column == 0 && end.row > start.row { end.row } else { end.row + 1 };
    (start.row + 1, last)
}

fn join(container: Option<&str>, name: &str, separator: &str) -> String {
    container.map_or_else(|| name.to_owned(), |container| format!("{container}{separator}{name}"))
}

fn is_shouted(name: &str) -> bool {
    !name.contains(char::is_lowercase)
}

/// Words separated by single spaces, at most `chars_max` characters.
pub(super) fn one_line(written: &str, chars_max: usize) -> String {
    let mut line = String::new();
    // Every word has a character, so this many are enough.
    for word in written.split_whitespace().take(chars_max) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() >= chars_max * 4 {
            break;
        }
    }
    if line.len() > chars_max {
        line = line.chars().take(chars_max).collect();
    }
    line
}
