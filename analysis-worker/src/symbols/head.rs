//! The head of a definition: what stands before its body, on one line.

use tree_sitter::Node;

use super::nesting::one_line;
use super::{SymbolKind, children, text};

/// Longest head kept; longer ones are cut, they stay recognisable.
const HEAD_CHARS_MAX: usize = 160;

/// The head on one line, decorators and annotations left out. What has no body and is no function shows its first line.
pub(super) fn head(node: Node<'_>, code: &str, kind: SymbolKind) -> String {
    let whole = node.child_by_field_name("definition").unwrap_or(node);
    let start = after_decorators(whole, code);
    let body = body(whole, VALUES_DEEP_MAX).map(|body| body.start_byte().max(start));
    let written = code.get(start..body.unwrap_or(whole.end_byte())).unwrap_or_default();
    let written = match body {
        None if !kind.is_callable() => written.trim_start().lines().next().unwrap_or_default(),
        _ => written,
    };
    let mut line = one_line(written, HEAD_CHARS_MAX);
    let kept = line.trim_end_matches([' ', '{', ':', ';', ',']);
    let kept = kept.strip_suffix("=>").or_else(|| kept.strip_suffix('=')).unwrap_or(kept).trim_end().len();
    line.truncate(kept);
    line
}

/// Where the words of a definition begin.
fn after_decorators(node: Node<'_>, code: &str) -> usize {
    let start = node.start_byte();
    if !text(node, code).starts_with(['@', '#', '[']) {
        return start;
    }
    let mut end = start;
    for child in children(node) {
        match child.kind() {
            "decorator" | "attribute" | "attribute_list" | "attribute_item" => end = child.end_byte(),
            "modifiers" => {
                let annotation = |child: &Node<'_>| child.kind().contains("annotation") || child.kind() == "attribute";
                return children(child).filter(annotation).last().map_or(end, |last| last.end_byte());
            }
            _ => break,
        }
    }
    end
}

/// `export const open = async () => { … }` has its body three steps down.
const VALUES_DEEP_MAX: usize = 3;

/// Children looked at: a statement that binds thousands of names is read once for each of them.
const CHILDREN_MAX: usize = 64;

/// Where a definition stops being a head.
fn body(node: Node<'_>, deep: usize) -> Option<Node<'_>> {
    if let Some(body) = node.child_by_field_name("body") {
        return Some(body);
    }
    let mut cursor = node.walk();
    let mut more = cursor.goto_first_child();
    for _ in 0..CHILDREN_MAX {
        if !more {
            break;
        }
        let child = cursor.node();
        if child.is_named() && BODIES.contains(&child.kind()) {
            return Some(child);
        }
        let value = matches!(cursor.field_name(), Some("value" | "right" | "type")) || VALUES.contains(&child.kind());
        if deep > 0
            && value
            && let Some(body) = body(child, deep - 1)
        {
            return Some(body);
        }
        more = cursor.goto_next_sibling();
    }
    None
}

/// Bodies that their grammar does not call so.
const BODIES: [&str; 12] = [
    "class_body",
    "enum_class_body",
    "function_body",
    "block",
    "accessor_list",
    "field_declaration_list",
    "column_definitions",
    "property_hook_list",
    "getter",
    "computed_property",
    "create_query",
    "object",
];

/// What may stand between a definition and the function it is bound to.
const VALUES: [&str; 4] = ["variable_declarator", "assignment_expression", "assignment_statement", "expression_list"];
