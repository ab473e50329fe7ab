//! How a definition is called: names inside declarators, and names with their container before them.

use tree_sitter::Node;

use super::{SymbolKind, children};

/// The name inside a declarator, and what is declared.
pub(super) struct Declared<'t> {
    pub(super) node: Node<'t>,
    pub(super) kind: SymbolKind,
}

/// Declarators wrapped around a name more often than this are abuse, not code.
const DECLARATORS_MAX: usize = 32;

/// Unwraps the declarators of C and C++: `*open(int)` declares a function `open`, `(*handler)(int)` a variable.
pub(super) fn declared<'t>(name: Node<'t>, whole: Node<'t>, kind: SymbolKind) -> Declared<'t> {
    let (mut node, mut function) = (name, false);
    for _ in 0..DECLARATORS_MAX {
        let inner = match node.kind() {
            "function_declarator" => {
                function = true;
                node.child_by_field_name("declarator")
            }
            "pointer_declarator" | "array_declarator" | "init_declarator" => {
                function = false;
                node.child_by_field_name("declarator")
            }
            "reference_declarator" => {
                function = false;
                children(node).last()
            }
            "parenthesized_declarator" => children(node).last(),
            "attributed_declarator" => children(node).next(),
            _ => None,
        };
        let Some(inner) = inner else { break };
        node = inner;
    }
    let kind = match kind {
        SymbolKind::Variable | SymbolKind::Field if function => SymbolKind::Function,
        // `class EXPORT Store { … }` reads as a function that returns a class, because EXPORT is no word of C++.
        SymbolKind::Function if !function => match whole.child_by_field_name("type").map(|returned| returned.kind()) {
            Some("class_specifier") => SymbolKind::Class,
            Some("struct_specifier") => SymbolKind::Struct,
            _ => kind,
        },
        kind => kind,
    };
    Declared { node, kind }
}

/// The container and the name of `Store<T>::open`; the name of a specialisation is without its arguments.
pub(super) fn split_qualified(written: &str) -> (Option<&str>, &str) {
    if !written.contains("::") && !written.ends_with('>') {
        return (None, written);
    }
    let bytes = written.as_bytes();
    let (mut depth, mut name, mut at) = (0usize, 0, 0);
    let mut arguments = None;
    while at < bytes.len() {
        match bytes[at] {
            b'o' if depth == 0 && name == at && written[at..].starts_with("operator") => {
                arguments = None;
                break;
            }
            b'<' => {
                if depth == 0 {
                    arguments = Some(at);
                }
                depth += 1;
            }
            b'>' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && bytes.get(at + 1) == Some(&b':') => {
                at += 1;
                name = at + 1;
                arguments = None;
            }
            _ => {}
        }
        at += 1;
    }
    let arguments = arguments.filter(|at| *at > name && written.ends_with('>'));
    let end = arguments.unwrap_or(written.len());
    let container = name.checked_sub(2).map(|end| &written[..end]).filter(|container| !container.is_empty());
    (container, written[name..end].trim())
}

/// What is written as the container of a method, if it is a name and not an expression that gives an object. `exports`
/// and `this` stand for the file itself.
pub(super) fn is_path(written: &str) -> Option<&str> {
    let written = written.trim().strip_suffix(".prototype").unwrap_or(written.trim());
    let written = written.trim_start_matches(['*', '&', '(']).trim_end_matches(')');
    // Arguments of templates and generics are no part of it.
    let written = written.split(['<', '[']).next().unwrap_or(written).trim();
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | ':' | '\\');
    let outside = ["exports", "module.exports", "this", "self", "window", "global"];
    (!written.is_empty() && written.chars().all(plain) && !outside.contains(&written)).then_some(written)
}

/// `Store` of `&'a mut Store<T>`, `*Store` or `store::Store`.
pub(super) fn bare_type(written: &str) -> &str {
    let head = written.split(['<', '[']).next().unwrap_or(written);
    let head = head.split_whitespace().last().unwrap_or(head);
    let head = head.rsplit("::").next().unwrap_or(head).trim_start_matches(['*', '&']);
    head.rsplit('.').next().unwrap_or(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qualified_name_has_a_container() {
        for (written, container, name) in [
            ("open", None, "open"),
            ("Store::open", Some("Store"), "open"),
            ("a::Store<b::T>::open", Some("a::Store<b::T>"), "open"),
            ("open<a::T>", None, "open"),
            ("Store::operator<<", Some("Store"), "operator<<"),
            ("Store::operator std::string", Some("Store"), "operator std::string"),
            ("operator>", None, "operator>"),
            ("Store::~Store", Some("Store"), "~Store"),
            ("::open", None, "open"),
            ("<=>", None, "<=>"),
        ] {
            assert_eq!(split_qualified(written), (container, name), "{written}");
        }
    }

    #[test]
    fn a_type_is_told_without_what_surrounds_it() {
        for (written, bare) in
            [("&'a mut Store<T>", "Store"), ("*Store", "Store"), ("store::Store", "Store"), ("a.B", "B")]
        {
            assert_eq!(bare_type(written), bare);
        }
    }
}
