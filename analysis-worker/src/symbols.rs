//! What a file defines: functions, types, constants, and the members of those types.
//!
//! The walk follows containers (modules, classes, `impl` blocks) and stops at function bodies: what is local to a
//! function is no part of the outline. Each language is one function from a syntax node to what it [`Defines`].

mod definitions;

use std::fmt;

use tree_sitter::Node;

use self::definitions::{Defines, defines};
use crate::language::Language;

pub(crate) use self::definitions::transparent;

/// One definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// What it is.
    pub kind: SymbolKind,
    /// Its own name, without its container.
    pub name: String,
    /// The type or module it belongs to, when it belongs to one.
    pub container: Option<String>,
    /// Its head on one line, without its body: `pub fn open(path: &Path) -> Store`.
    pub signature: String,
    /// First line, counted from 1.
    pub start_line: usize,
    /// Last line, counted from 1 and included.
    pub end_line: usize,
}

/// What a definition is, in words shared by all languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the programming word it is named after")]
pub enum SymbolKind {
    Function,
    Method,
    Struct,
    Enum,
    Trait,
    Interface,
    Class,
    Type,
    Constant,
    Variable,
    Module,
    Macro,
}

impl SymbolKind {
    /// The kind in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Method => "method",
            Self::Struct => "struct",
            Self::Enum => "enum",
            Self::Trait => "trait",
            Self::Interface => "interface",
            Self::Class => "class",
            Self::Type => "type",
            Self::Constant => "constant",
            Self::Variable => "variable",
            Self::Module => "module",
            Self::Macro => "macro",
        }
    }
}

impl fmt::Display for SymbolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Longest signature kept; longer ones are cut, they stay recognisable.
const SIGNATURE_CHARS_MAX: usize = 160;
/// Containers nested deeper than this are abuse, not code; the walk is recursive and must end.
const DEPTH_MAX: usize = 32;

/// The definitions of a parsed file in order of appearance, at most `max` of them.
pub(crate) fn extract(root: Node<'_>, code: &str, language: Language, max: usize) -> Vec<Symbol> {
    let mut walk = Walk { code, language, max, symbols: Vec::new() };
    walk.inside(root, None, 0);
    walk.symbols
}

/// Named children; unnamed ones are punctuation.
pub(crate) fn children(node: Node<'_>) -> impl Iterator<Item = Node<'_>> {
    let mut cursor = node.walk();
    let mut more = cursor.goto_first_child();
    std::iter::from_fn(move || {
        while more {
            let child = cursor.node();
            more = cursor.goto_next_sibling();
            if child.is_named() {
                return Some(child);
            }
        }
        None
    })
}

pub(crate) fn text<'a>(node: Node<'_>, code: &'a str) -> &'a str {
    code.get(node.byte_range()).unwrap_or_default()
}

struct Walk<'a> {
    code: &'a str,
    language: Language,
    max: usize,
    symbols: Vec<Symbol>,
}

impl Walk<'_> {
    fn inside(&mut self, parent: Node<'_>, container: Option<&str>, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        for node in children(parent) {
            if self.symbols.len() >= self.max {
                return;
            }
            match defines(node, container.is_some(), self.language, self.code) {
                Defines::Symbol { kind, name, members } => {
                    self.push(kind, name, container, node);
                    if let Some(members) = members {
                        let name = text(name, self.code).to_owned();
                        self.inside(members, Some(&name), depth + 1);
                    }
                }
                Defines::Names(kind, names) => {
                    for name in names {
                        self.push(kind, name, container, node);
                    }
                }
                Defines::Members { of, members } => {
                    let name = bare_type(text(of, self.code)).to_owned();
                    self.inside(members, Some(&name), depth + 1);
                }
                Defines::Method { of, name } => {
                    self.push(SymbolKind::Method, name, Some(&of), node);
                }
                Defines::Transparent => self.inside(node, container, depth + 1),
                Defines::Nothing => {}
            }
        }
    }

    fn push(&mut self, kind: SymbolKind, name: Node<'_>, container: Option<&str>, whole: Node<'_>) {
        let name = text(name, self.code).trim_matches(['"', '\'']);
        if name.is_empty() {
            return;
        }
        self.symbols.push(Symbol {
            kind,
            name: name.to_owned(),
            container: container.map(str::to_owned),
            signature: signature(whole, self.code),
            start_line: whole.start_position().row + 1,
            end_line: whole.end_position().row + 1,
        });
    }
}

/// `Store` of `&'a mut Store<T>`, `*Store` or `store::Store`.
fn bare_type(written: &str) -> &str {
    let head = written.split(['<', '[']).next().unwrap_or(written);
    let head = head.split_whitespace().last().unwrap_or(head);
    head.rsplit("::").next().unwrap_or(head).trim_start_matches(['*', '&'])
}

/// The head of a definition on one line, decorators left out.
fn signature(node: Node<'_>, code: &str) -> String {
    let node = node.child_by_field_name("definition").unwrap_or(node);
    let start = children(node)
        .take_while(|child| child.kind() == "decorator")
        .last()
        .map_or(node.start_byte(), |last| last.end_byte());
    let body = node.child_by_field_name("body").map_or(node.end_byte(), |body| body.start_byte());
    let head = code.get(start..body.max(start)).unwrap_or_default();
    let head = if body == node.end_byte() { head.trim_start().lines().next().unwrap_or_default() } else { head };
    let line = head.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches([' ', '{', ':', ';']);
    line.chars().take(SIGNATURE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
