//! The query of a language, compiled once, and what it finds in a tree.
//!
//! A query says what things are by the names of its captures:
//!
//! * `@definition.<kind>` around a definition, `@scope` around what contains definitions without being one (an
//!   `impl` block), `@local` around a function that has no name;
//! * `@import.<kind>` around an import, `@reference.<kind>` around (or on) the use of a name;
//! * inside these, `@name`, `@container` (the type of a method that stands outside of it), `@path` and `@member` of an
//!   import;
//! * `@comment` on every comment and `@doc` on a text that documents what it stands in.
//!
//! Captures that begin with `_` serve predicates only. What the findings mean together is not told here.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::{ControlFlow, Range};
use std::sync::OnceLock;

use tree_sitter::{Node, Query, QueryCursor, QueryCursorOptions, QueryCursorState, QueryMatch, StreamingIterator};

use crate::imports::ImportTag;
use crate::language::Language;
use crate::references::ReferenceKind;
use crate::symbols::SymbolKind;

/// One thing found that has an extent: others may lie inside.
#[derive(Clone, Copy)]
pub(crate) struct Tag<'t> {
    pub(crate) what: What,
    pub(crate) node: Node<'t>,
    /// Its name; the path of an import, where the query tells it.
    pub(crate) name: Option<Node<'t>>,
    /// The type of a method that stands outside of it; what is taken out of an import.
    pub(crate) other: Option<Node<'t>>,
    pattern: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Symbol(SymbolKind),
    Scope,
    Local,
    Doc,
    Import(ImportTag),
}

/// All that a query found in one tree.
#[derive(Default)]
pub(crate) struct Found<'t> {
    /// By where they begin; the outer before the inner, and of equals the one whose pattern comes first.
    pub(crate) tags: Vec<Tag<'t>>,
    pub(crate) references: Vec<(Node<'t>, ReferenceKind)>,
    /// In bytes, in order.
    pub(crate) comments: Vec<Range<usize>>,
}

/// Patterns a query may be in the middle of. Real code needs some tens, five for each level of nesting; each costs time
/// at every node, so beyond this the oldest are dropped, and with them the outermost of hundreds of levels.
const MATCHES_AT_ONCE_MAX: u32 = 1_024;

thread_local! {
    /// Reused, because a cursor keeps its memory from file to file.
    static CURSOR: RefCell<QueryCursor> = {
        let mut cursor = QueryCursor::new();
        cursor.set_match_limit(MATCHES_AT_ONCE_MAX);
        RefCell::new(cursor)
    };
}

/// Runs the language's query; `None` when the time ran out.
pub(crate) fn find<'t>(
    root: Node<'t>,
    code: &str,
    language: Language,
    expired: &mut impl FnMut() -> bool,
) -> Option<Found<'t>> {
    let tags = Tags::of(language);
    let mut found = Found::default();
    let mut stopped = false;
    let mut watch = |_: &QueryCursorState| {
        stopped = expired();
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = QueryCursorOptions::new().progress_callback(&mut watch);
    CURSOR.with_borrow_mut(|cursor| {
        let mut matches = cursor.matches_with_options(&tags.query, root, code.as_bytes(), options);
        while let Some(found_match) = matches.next() {
            tags.take(found_match, &mut found);
        }
    });
    if stopped {
        return None;
    }
    let first_byte = |node: Option<Node<'_>>| node.map_or(0, |node| node.start_byte());
    found.tags.sort_unstable_by_key(|tag| {
        let extent = (tag.node.start_byte(), Reverse(tag.node.end_byte()));
        (extent, tag.pattern, first_byte(tag.name), first_byte(tag.other))
    });
    found.comments.sort_unstable_by_key(|comment| comment.start);
    Some(found)
}

/// A compiled query.
struct Tags {
    query: Query,
    /// What each capture says, by its index.
    roles: Vec<Role>,
}

#[derive(Clone, Copy)]
enum Role {
    Whole(What),
    Reference(ReferenceKind),
    Comment,
    Name,
    Other,
    Ignored,
}

impl Tags {
    fn of(language: Language) -> &'static Self {
        static COMPILED: [OnceLock<Tags>; Language::ALL.len()] = [const { OnceLock::new() }; Language::ALL.len()];
        COMPILED[language as usize].get_or_init(|| {
            let text = language.queries().concat();
            let query = Query::new(&language.grammar(), &text).expect("the test of this module compiles every query");
            let roles = query.capture_names().iter().map(|name| Role::named(name)).collect();
            Self { query, roles }
        })
    }

    fn take<'t>(&self, found_match: &QueryMatch<'_, 't>, found: &mut Found<'t>) {
        let (mut whole, mut reference, mut name, mut other) = (None, None, None, None);
        for capture in found_match.captures() {
            match self.roles[capture.index as usize] {
                Role::Whole(what) => whole = Some((what, capture.node)),
                Role::Reference(kind) => reference = Some((kind, capture.node)),
                Role::Comment => found.comments.push(capture.node.byte_range()),
                Role::Name => name = Some(capture.node),
                Role::Other => other = Some(capture.node),
                Role::Ignored => {}
            }
        }
        if let Some((kind, node)) = reference {
            found.references.push((name.unwrap_or(node), kind));
        }
        if let Some((what, node)) = whole {
            found.tags.push(Tag { what, node, name, other, pattern: found_match.pattern_index });
        }
    }
}

impl Role {
    fn named(capture: &str) -> Self {
        let known = match capture.split_once('.').unwrap_or((capture, "")) {
            ("definition", kind) => SymbolKind::from_name(kind).map(|kind| Self::Whole(What::Symbol(kind))),
            ("reference", kind) => ReferenceKind::from_name(kind).map(Self::Reference),
            ("import", kind) => ImportTag::from_name(kind).map(|kind| Self::Whole(What::Import(kind))),
            ("scope", "") => Some(Self::Whole(What::Scope)),
            ("local", "") => Some(Self::Whole(What::Local)),
            ("doc", "") => Some(Self::Whole(What::Doc)),
            ("comment", "") => Some(Self::Comment),
            ("name" | "path", "") => Some(Self::Name),
            ("container" | "member", "") => Some(Self::Other),
            (name, "") if name.starts_with('_') => Some(Self::Ignored),
            _ => None,
        };
        known.unwrap_or_else(|| panic!("a query captures @{capture}, which has no meaning"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_compiles_and_every_capture_has_a_meaning() {
        for language in Language::ALL {
            let text = language.queries().concat();
            if let Err(error) = Query::new(&language.grammar(), &text) {
                panic!("{language}: {error}");
            }
            assert!(!Tags::of(language).roles.is_empty());
        }
    }
}
