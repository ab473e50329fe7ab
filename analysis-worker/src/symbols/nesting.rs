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

/// Containers are told to about this length.
const PATH_BYTES_MAX: usize = 512;

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
    /// Whether something is open that keeps its imports to itself.
    confines: bool,
    /// Its place among the symbols.
    symbol: Option<usize>,
}

/// What a definition lies in.
#[derive(Default)]
struct Outer {
    what: Option<What>,
    name: Option<String>,
    path: Option<String>,
    local: bool,
}

impl Open {
    fn as_outer(&self) -> Outer {
        Outer { what: Some(self.what), name: self.name.clone(), path: self.path.clone(), local: self.local }
    }
}

impl Outer {
    /// Whether it is a function or a value: what these hold inside is their own affair.
    fn is_body(&self) -> bool {
        match self.what {
            Some(What::Symbol(kind)) => kind.is_callable() || kind.is_data(),
            Some(What::Local) => true,
            _ => false,
        }
    }

    fn is_type(&self) -> bool {
        match self.what {
            Some(What::Symbol(kind)) => kind.is_type(),
            Some(What::Scope) => true,
            _ => false,
        }
    }
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
                // A header is pasted in wherever it is named.
                let confined = self.around(&bytes).is_some_and(|open| open.confines);
                if import == ImportTag::Include || !confined {
                    self.imports.take(import, tag.node, tag.name, tag.other);
                }
            }
        }
    }

    fn symbol(&mut self, kind: SymbolKind, tag: &Tag<'_>) {
        let Some(name) = tag.name else { return };
        let outer = self.around(&tag.node.byte_range()).map_or_else(Outer::default, Open::as_outer);
        if (kind.is_data() && outer.is_body()) || !self.seen.insert(name.start_byte()) {
            return;
        }
        let Declared { node: name, kind } = if self.language.has_declarators() {
            declared(name, tag.node, kind)
        } else {
            Declared { node: name, kind }
        };
        self.seen.insert(name.start_byte());
        let (qualifier, own_name) = split_qualified(text(name, self.code));
        let qualifier = tag.other.map(|node| text(node, self.code)).or(qualifier).and_then(is_path);
        let own_name = one_line(own_name.trim_matches(['"', '\'', '`', ':']), NAME_CHARS_MAX);
        if own_name.is_empty() || (own_name == "_" && !kind.is_callable()) {
            return;
        }
        let kind = self.refined(kind, &own_name, &outer, qualifier.is_some());
        let (container, container_path) = match qualifier {
            None => (outer.name, outer.path),
            Some(written) => {
                let path = join(outer.path.as_deref(), written, self.language.separator());
                (Some(bare_type(written).to_owned()), Some(path))
            }
        };
        let (start_line, end_line) = lines(tag.node);
        let symbol = Symbol {
            kind,
            name: own_name,
            container,
            container_path,
            signature: head(tag.node, self.code, kind),
            doc: doc_before(tag.node.start_byte(), self.comments, self.code),
            start_line,
            end_line,
            name_line: name.start_position().row + 1,
            local: outer.local,
        };
        self.keep(symbol, tag);
    }

    /// What a definition is where it stands: a function of a type is a method, a variable of a type a field.
    fn refined(&self, kind: SymbolKind, name: &str, outer: &Outer, qualified: bool) -> SymbolKind {
        match kind {
            SymbolKind::Function if qualified || outer.is_type() => SymbolKind::Method,
            SymbolKind::Variable if !qualified && outer.is_type() => SymbolKind::Field,
            SymbolKind::Variable if self.language.shouts_constants() && is_shouted(name) => SymbolKind::Constant,
            kind => kind,
        }
    }

    fn keep(&mut self, symbol: Symbol, tag: &Tag<'_>) {
        let mut tag = *tag;
        tag.what = What::Symbol(symbol.kind);
        let path = join(symbol.container_path.as_deref(), &symbol.name, self.language.separator());
        self.keep_scope(&tag, &path, &symbol.signature, Some((&symbol.name, symbol.kind)));
        let name = symbol.kind.contains().then(|| symbol.name.clone());
        let place = (self.symbols.len() < self.limits.symbols_max).then_some(self.symbols.len());
        if place.is_some() {
            self.symbols.push(symbol);
        }
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
        let (callable, confines) = match tag.what {
            What::Symbol(SymbolKind::Module) => (false, self.language.confines_imports()),
            What::Symbol(kind) => (kind.is_callable(), kind.is_callable() || kind.is_type()),
            What::Scope => (false, true),
            What::Local => (true, true),
            What::Doc | What::Import(_) => (false, false),
        };
        let local = callable || around.is_some_and(|open| open.local);
        let confines = confines || around.is_some_and(|open| open.confines);
        // What has no name of its own passes on the one it lies in.
        let (name, path) = match name {
            Some(name) => (Some(name), path),
            None => (around.and_then(|open| open.name.clone()), around.and_then(|open| open.path.clone())),
        };
        // Of several names of one statement the last stays open: a thousand of them are no deeper than one.
        let symbols = |open: &Open| matches!((open.what, tag.what), (What::Symbol(_), What::Symbol(_)));
        self.open.pop_if(|open| open.bytes == bytes && symbols(open));
        self.open.push(Open { bytes, what: tag.what, name, path, local, confines, symbol });
    }

    /// Scopes that are shorter than a chunk are never cut, so no chunk begins inside them.
    fn keep_scope(&mut self, tag: &Tag<'_>, path: &str, signature: &str, symbol: Option<(&str, SymbolKind)>) {
        let short = tag.node.end_byte() - tag.node.start_byte() <= self.limits.chunk_bytes;
        if short || self.scopes.len() >= self.limits.symbols_max {
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

/// A path that is too long already does not grow: what nests without end would take memory without end.
fn join(container: Option<&str>, name: &str, separator: &str) -> String {
    match container {
        None => name.to_owned(),
        Some(container) if container.len() > PATH_BYTES_MAX => container.to_owned(),
        Some(container) => format!("{container}{separator}{name}"),
    }
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
