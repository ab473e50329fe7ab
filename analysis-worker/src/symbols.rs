//! What a file defines: functions, types, constants, and the members of those types.
//!
//! The queries tell what is a definition; [`nesting`] tells what lies in what, [`names`] how a definition is called,
//! [`head`] what its head says, [`docs`] what its author says of it.

mod docs;
mod head;
mod names;
mod nesting;

use std::fmt;

use tree_sitter::Node;

pub(crate) use self::nesting::{Scope, contents};

/// One definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// What it is.
    pub kind: SymbolKind,
    /// Its own name, without its container.
    pub name: String,
    /// The type, module or function it belongs to, when it belongs to one.
    pub container: Option<String>,
    /// All it belongs to, outermost first, joined as the language joins them: `store::Store` of `keep` in
    /// `mod store { impl Store { fn keep() } }`.
    pub container_path: Option<String>,
    /// Its head on one line, without its body: `pub fn open(path: &Path) -> Store`.
    pub signature: String,
    /// The first paragraph of what its author wrote about it, on one line, at most some hundred characters.
    pub doc: Option<String>,
    /// First line, counted from 1.
    pub start_line: usize,
    /// Last line, counted from 1 and included.
    pub end_line: usize,
    /// The line its name stands on, counted from 1: below decorators and annotations.
    pub name_line: usize,
    /// Whether it lies in the body of a function; an index knows it, an outline leaves it out.
    pub local: bool,
}

/// What a definition is, in words shared by all languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// A field or a property of a type, a column of a table.
    Field,
    /// One of the values of an enumeration.
    Variant,
    /// A table or a view of a database.
    Table,
    /// A key at the top level of a file of data.
    Key,
    /// A heading of a text; it reaches to the next one of its rank.
    Heading,
    /// What a style rule applies to.
    Selector,
    /// The `id` of an element.
    Anchor,
}

impl SymbolKind {
    /// Every kind.
    pub const ALL: [Self; 19] = [
        Self::Function,
        Self::Method,
        Self::Struct,
        Self::Enum,
        Self::Trait,
        Self::Interface,
        Self::Class,
        Self::Type,
        Self::Constant,
        Self::Variable,
        Self::Module,
        Self::Macro,
        Self::Field,
        Self::Variant,
        Self::Table,
        Self::Key,
        Self::Heading,
        Self::Selector,
        Self::Anchor,
    ];

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
            Self::Field => "field",
            Self::Variant => "variant",
            Self::Table => "table",
            Self::Key => "key",
            Self::Heading => "heading",
            Self::Selector => "selector",
            Self::Anchor => "anchor",
        }
    }

    /// The kind of that [name](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it has a body that runs.
    pub(crate) fn is_callable(self) -> bool {
        matches!(self, Self::Function | Self::Method)
    }

    /// Whether functions in it are methods, and variables fields.
    pub(crate) fn is_type(self) -> bool {
        matches!(self, Self::Struct | Self::Enum | Self::Trait | Self::Interface | Self::Class)
    }

    /// Whether it holds a value.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Constant | Self::Variable | Self::Field)
    }

    /// Whether what lies in it belongs to it by name.
    pub(crate) fn contains(self) -> bool {
        !matches!(self, Self::Type | Self::Macro | Self::Field | Self::Key | Self::Selector | Self::Anchor)
    }
}

impl fmt::Display for SymbolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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

#[cfg(test)]
mod tests;
