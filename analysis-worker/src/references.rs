//! Where a file uses names: calls and types, as written, without saying what they resolve to.

use tree_sitter::Node;

use crate::symbols::text;

/// One use of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The last part of what is written: `open` of `store.open(path)`.
    pub name: String,
    /// How it is used.
    pub kind: ReferenceKind,
    /// The line the name stands on, counted from 1.
    pub line: usize,
}

/// How a name is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// Called or constructed: a function, a method, a macro, a class, a component.
    Call,
    /// Named as a type, a base class or an implemented interface.
    Type,
}

impl ReferenceKind {
    /// The kind in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Type => "type",
        }
    }

    /// The kind of that [name](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Call, Self::Type].into_iter().find(|kind| kind.name() == name)
    }
}

/// Longest name kept; what is longer is no name.
const NAME_BYTES_MAX: usize = 128;

/// The references in order, at most `max`; names that are being defined (`defined`, by their first byte, sorted) are
/// no references, and one name is one reference: a class that is constructed is called.
pub(crate) fn extract(
    mut found: Vec<(Node<'_>, ReferenceKind)>,
    defined: &[usize],
    code: &str,
    max: usize,
) -> Vec<Reference> {
    found.sort_unstable_by_key(|(node, kind)| (node.start_byte(), *kind));
    found.dedup_by_key(|(node, _)| node.start_byte());
    let references = found.into_iter().filter(|(node, _)| defined.binary_search(&node.start_byte()).is_err());
    let references = references.filter_map(|(node, kind)| {
        let name = text(node, code);
        (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then(|| Reference {
            name: name.to_owned(),
            kind,
            line: node.start_position().row + 1,
        })
    });
    references.take(max).collect()
}
