//! What each language's syntax nodes mean for the outline: one function a language, from a node to what it
//! [`Defines`]. The kinds are those of the grammars; an unknown node defines nothing.

use tree_sitter::Node;

use super::{SymbolKind, bare_type, children, text};
use crate::language::Language;

/// What one syntax node means for the outline.
pub(super) enum Defines<'t> {
    /// A named thing; its members are found in `members`.
    Symbol {
        kind: SymbolKind,
        name: Node<'t>,
        members: Option<Node<'t>>,
    },
    /// Several names sharing one kind: `const A, B = 1, 2`.
    Names(SymbolKind, Vec<Node<'t>>),
    /// No symbol itself, but its members belong to this name: an `impl` block.
    Members {
        of: Node<'t>,
        members: Node<'t>,
    },
    /// A method written outside its type, as Go does.
    Method {
        of: String,
        name: Node<'t>,
    },
    /// Look at its children as if they stood here.
    Transparent,
    Nothing,
}

/// What `node` defines; `contained` says whether it stands inside a named container.
pub(super) fn defines<'t>(node: Node<'t>, contained: bool, language: Language, code: &str) -> Defines<'t> {
    if transparent(node.kind(), language) {
        return Defines::Transparent;
    }
    let found = match language {
        Language::Rust => rust(node, contained),
        Language::Python => python(node, contained, code),
        Language::JavaScript | Language::TypeScript | Language::Tsx => script(node, code),
        Language::Go => go(node, code),
    };
    found.unwrap_or(Defines::Nothing)
}

/// Nodes that stand around definitions without changing what they are.
pub(crate) fn transparent(kind: &str, language: Language) -> bool {
    if kind == "ERROR" {
        return true;
    }
    match language {
        Language::Rust => matches!(kind, "foreign_mod_item" | "declaration_list"),
        Language::Python => matches!(
            kind,
            "block"
                | "if_statement"
                | "elif_clause"
                | "else_clause"
                | "try_statement"
                | "except_clause"
                | "finally_clause"
                | "with_statement"
        ),
        Language::JavaScript | Language::TypeScript | Language::Tsx => {
            matches!(kind, "export_statement" | "ambient_declaration" | "class_body" | "statement_block")
        }
        Language::Go => matches!(kind, "type_declaration" | "const_declaration" | "var_declaration" | "var_spec_list"),
    }
}

fn symbol<'t>(kind: SymbolKind, node: Node<'t>) -> Option<Defines<'t>> {
    Some(Defines::Symbol { kind, name: node.child_by_field_name("name")?, members: None })
}

fn container<'t>(kind: SymbolKind, node: Node<'t>) -> Option<Defines<'t>> {
    Some(Defines::Symbol { kind, name: node.child_by_field_name("name")?, members: node.child_by_field_name("body") })
}

fn rust(node: Node<'_>, contained: bool) -> Option<Defines<'_>> {
    match node.kind() {
        // A function in a module is a function; only `impl` and `trait` bodies make methods.
        "function_item" | "function_signature_item" => {
            let owner = node.parent().and_then(|list| list.parent()).map(|owner| owner.kind());
            let method = contained && matches!(owner, Some("impl_item" | "trait_item"));
            symbol(if method { SymbolKind::Method } else { SymbolKind::Function }, node)
        }
        "struct_item" | "union_item" => symbol(SymbolKind::Struct, node),
        "enum_item" => symbol(SymbolKind::Enum, node),
        "trait_item" => container(SymbolKind::Trait, node),
        "type_item" | "associated_type" => symbol(SymbolKind::Type, node),
        "const_item" => symbol(SymbolKind::Constant, node),
        "static_item" => symbol(SymbolKind::Variable, node),
        "mod_item" => container(SymbolKind::Module, node),
        "macro_definition" => symbol(SymbolKind::Macro, node),
        "impl_item" => {
            Some(Defines::Members { of: node.child_by_field_name("type")?, members: node.child_by_field_name("body")? })
        }
        _ => None,
    }
}

fn python<'t>(node: Node<'t>, contained: bool, code: &str) -> Option<Defines<'t>> {
    match node.kind() {
        "function_definition" => symbol(if contained { SymbolKind::Method } else { SymbolKind::Function }, node),
        "class_definition" => container(SymbolKind::Class, node),
        "decorated_definition" => match python(node.child_by_field_name("definition")?, contained, code)? {
            Defines::Symbol { kind, name, members } => Some(Defines::Symbol { kind, name, members }),
            _ => None,
        },
        // Only modules: attributes of a class are told by its constructor as often as by its body.
        "expression_statement" if !contained => {
            let assignment = children(node).next().filter(|child| child.kind() == "assignment")?;
            let name = assignment.child_by_field_name("left").filter(|left| left.kind() == "identifier")?;
            let shouted = !text(name, code).contains(|c: char| c.is_lowercase());
            let kind = if shouted { SymbolKind::Constant } else { SymbolKind::Variable };
            Some(Defines::Symbol { kind, name, members: None })
        }
        "type_alias_statement" => {
            let name = node.child_by_field_name("left")?;
            Some(Defines::Symbol { kind: SymbolKind::Type, name, members: None })
        }
        _ => None,
    }
}

fn script<'t>(node: Node<'t>, code: &str) -> Option<Defines<'t>> {
    match node.kind() {
        "function_declaration" | "generator_function_declaration" | "function_signature" => {
            symbol(SymbolKind::Function, node)
        }
        "class_declaration" | "abstract_class_declaration" => container(SymbolKind::Class, node),
        "method_definition" | "abstract_method_signature" => symbol(SymbolKind::Method, node),
        "interface_declaration" => symbol(SymbolKind::Interface, node),
        "type_alias_declaration" => symbol(SymbolKind::Type, node),
        "enum_declaration" => symbol(SymbolKind::Enum, node),
        "internal_module" | "module" => container(SymbolKind::Module, node),
        // A field holding a function is a method in all but spelling; other fields are no part of an outline.
        "field_definition" | "public_field_definition" => {
            let name = node.child_by_field_name("name").or_else(|| node.child_by_field_name("property"))?;
            let value = node.child_by_field_name("value")?;
            (kind_of_value(value) == Some(SymbolKind::Function)).then_some(Defines::Symbol {
                kind: SymbolKind::Method,
                name,
                members: None,
            })
        }
        "lexical_declaration" | "variable_declaration" => declared(node),
        "expression_statement" => {
            let expression = children(node).next()?;
            match expression.kind() {
                "internal_module" => script(expression, code),
                "assignment_expression" => exported(expression, code),
                _ => None,
            }
        }
        _ => None,
    }
}

/// `const a = () => …` is a function, `const A = class …` a class, the rest are constants or variables.
fn declared(node: Node<'_>) -> Option<Defines<'_>> {
    let constant = node.child(0).is_some_and(|keyword| keyword.kind() == "const");
    let mut names = Vec::new();
    let mut kind = None;
    for declarator in children(node).filter(|child| child.kind() == "variable_declarator") {
        let Some(name) = declarator.child_by_field_name("name").filter(|name| name.kind() == "identifier") else {
            continue;
        };
        let plain = if constant { SymbolKind::Constant } else { SymbolKind::Variable };
        kind.get_or_insert(declarator.child_by_field_name("value").and_then(kind_of_value).unwrap_or(plain));
        names.push(name);
    }
    Some(Defines::Names(kind?, names))
}

/// `exports.name = …` and `module.exports.name = …`.
fn exported<'t>(assignment: Node<'t>, code: &str) -> Option<Defines<'t>> {
    let left = assignment.child_by_field_name("left").filter(|left| left.kind() == "member_expression")?;
    let object = text(left.child_by_field_name("object")?, code);
    if !matches!(object, "exports" | "module.exports") {
        return None;
    }
    let kind = kind_of_value(assignment.child_by_field_name("right")?).unwrap_or(SymbolKind::Variable);
    Some(Defines::Symbol { kind, name: left.child_by_field_name("property")?, members: None })
}

fn kind_of_value(value: Node<'_>) -> Option<SymbolKind> {
    match value.kind() {
        "arrow_function" | "function_expression" | "generator_function" | "function" => Some(SymbolKind::Function),
        "class" => Some(SymbolKind::Class),
        _ => None,
    }
}

fn go<'t>(node: Node<'t>, code: &str) -> Option<Defines<'t>> {
    match node.kind() {
        "function_declaration" => symbol(SymbolKind::Function, node),
        "method_declaration" => {
            let receiver = text(node.child_by_field_name("receiver")?, code);
            let of = receiver.trim_matches(['(', ')']).split_whitespace().last().unwrap_or_default();
            Some(Defines::Method { of: bare_type(of).to_owned(), name: node.child_by_field_name("name")? })
        }
        "type_spec" => {
            let kind = match node.child_by_field_name("type")?.kind() {
                "struct_type" => SymbolKind::Struct,
                "interface_type" => SymbolKind::Interface,
                _ => SymbolKind::Type,
            };
            symbol(kind, node)
        }
        "type_alias" => symbol(SymbolKind::Type, node),
        "const_spec" => Some(Defines::Names(SymbolKind::Constant, named(node))),
        "var_spec" => Some(Defines::Names(SymbolKind::Variable, named(node))),
        _ => None,
    }
}

fn named(node: Node<'_>) -> Vec<Node<'_>> {
    node.children_by_field_name("name", &mut node.walk()).filter(Node::is_named).collect()
}
