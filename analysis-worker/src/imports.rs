//! What a file depends on, as it is written: paths, not files. Only the top level counts (and what stands there in
//! an `if` or a `try`); an import inside a function is that function's affair.

use tree_sitter::Node;

use crate::language::Language;
use crate::symbols::{children, text, transparent};

/// One thing imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The path in the language's own writing: `std::fs`, `os.path`, `./store`, `net/http`.
    pub path: String,
    /// Line of the statement, counted from 1.
    pub line: usize,
}

/// The imports of a parsed file, in order, at most `max` of them.
pub(crate) fn extract(root: Node<'_>, code: &str, language: Language, max: usize) -> Vec<Import> {
    let mut found = Found { code, language, max, imports: Vec::new() };
    found.walk(root, 0);
    found.imports
}

/// Nested `use` lists and `if` blocks deeper than this are abuse, not code.
const DEPTH_MAX: usize = 32;

struct Found<'a> {
    code: &'a str,
    language: Language,
    max: usize,
    imports: Vec<Import>,
}

impl Found<'_> {
    fn walk(&mut self, parent: Node<'_>, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        for node in children(parent) {
            match self.language {
                Language::Rust => self.rust(node, depth),
                Language::Python => self.python(node, depth),
                Language::JavaScript | Language::TypeScript | Language::Tsx => {
                    self.script(node, depth);
                }
                Language::Go => self.go(node, depth),
            }
        }
    }

    fn rust(&mut self, node: Node<'_>, depth: usize) {
        match node.kind() {
            "use_declaration" => {
                if let Some(tree) = node.child_by_field_name("argument") {
                    self.use_tree(tree, "", node, depth);
                }
            }
            "extern_crate_declaration" => self.push_field(node, "name", node),
            kind if transparent(kind, self.language) => self.walk(node, depth + 1),
            _ => {}
        }
    }

    /// Spells out `a::{b, c::d}` as `a::b`, `a::c::d`.
    fn use_tree(&mut self, tree: Node<'_>, prefix: &str, statement: Node<'_>, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        let joined = |path: &str| {
            if prefix.is_empty() { path.to_owned() } else { format!("{prefix}::{path}") }
        };
        match tree.kind() {
            "use_list" => {
                for item in children(tree) {
                    self.use_tree(item, prefix, statement, depth + 1);
                }
            }
            "scoped_use_list" => {
                let path = tree
                    .child_by_field_name("path")
                    .map_or_else(|| prefix.to_owned(), |path| joined(text(path, self.code)));
                if let Some(list) = tree.child_by_field_name("list") {
                    self.use_tree(list, &path, statement, depth + 1);
                }
            }
            "use_as_clause" => {
                if let Some(path) = tree.child_by_field_name("path") {
                    self.use_tree(path, prefix, statement, depth + 1);
                }
            }
            "self" if !prefix.is_empty() => self.push(prefix, statement),
            "identifier" | "scoped_identifier" | "use_wildcard" | "self" | "crate" | "super" => {
                let path = joined(text(tree, self.code));
                self.push(&path, statement);
            }
            _ => {}
        }
    }

    fn python(&mut self, node: Node<'_>, depth: usize) {
        match node.kind() {
            "import_statement" => {
                for name in children(node) {
                    match name.kind() {
                        "dotted_name" => self.push(text(name, self.code), node),
                        "aliased_import" => self.push_field(name, "name", node),
                        _ => {}
                    }
                }
            }
            "import_from_statement" => self.push_field(node, "module_name", node),
            "future_import_statement" => self.push("__future__", node),
            kind if transparent(kind, self.language) => self.walk(node, depth + 1),
            _ => {}
        }
    }

    fn script(&mut self, node: Node<'_>, depth: usize) {
        match node.kind() {
            "import_statement" => match node.child_by_field_name("source") {
                Some(source) => self.push_quoted(source, node),
                None => {
                    for clause in children(node).filter(|child| child.kind() == "import_require_clause") {
                        if let Some(source) = clause.child_by_field_name("source") {
                            self.push_quoted(source, node);
                        }
                    }
                }
            },
            "export_statement" => match node.child_by_field_name("source") {
                Some(source) => self.push_quoted(source, node),
                None => self.walk(node, depth + 1),
            },
            "lexical_declaration" | "variable_declaration" => {
                for declarator in children(node).filter(|child| child.kind() == "variable_declarator") {
                    if let Some(value) = declarator.child_by_field_name("value") {
                        self.required(value, node);
                    }
                }
            }
            "expression_statement" => {
                if let Some(value) = children(node).next() {
                    self.required(value, node);
                }
            }
            kind if transparent(kind, self.language) => self.walk(node, depth + 1),
            _ => {}
        }
    }

    /// `require("x")`, also as `require("x").y` and `require("x")(z)`.
    fn required(&mut self, value: Node<'_>, statement: Node<'_>) {
        let mut value = value;
        for _ in 0..DEPTH_MAX {
            let inner = match value.kind() {
                "call_expression" => value.child_by_field_name("function"),
                "member_expression" => value.child_by_field_name("object"),
                _ => None,
            };
            let Some(inner) = inner else { return };
            if value.kind() == "call_expression" && text(inner, self.code) == "require" {
                let argument = value.child_by_field_name("arguments").and_then(|arguments| children(arguments).next());
                if let Some(argument) = argument.filter(|argument| argument.kind() == "string") {
                    self.push_quoted(argument, statement);
                }
                return;
            }
            value = inner;
        }
    }

    fn go(&mut self, node: Node<'_>, depth: usize) {
        match node.kind() {
            "import_declaration" | "import_spec_list" => self.walk(node, depth + 1),
            "import_spec" => {
                if let Some(path) = node.child_by_field_name("path") {
                    self.push_quoted(path, node);
                }
            }
            kind if transparent(kind, self.language) => self.walk(node, depth + 1),
            _ => {}
        }
    }

    fn push_field(&mut self, node: Node<'_>, field: &str, statement: Node<'_>) {
        if let Some(value) = node.child_by_field_name(field) {
            self.push(text(value, self.code), statement);
        }
    }

    fn push_quoted(&mut self, literal: Node<'_>, statement: Node<'_>) {
        self.push(text(literal, self.code).trim_matches(['"', '\'', '`']), statement);
    }

    fn push(&mut self, path: &str, statement: Node<'_>) {
        if self.imports.len() < self.max && !path.is_empty() {
            let path = path.split_whitespace().collect::<String>();
            self.imports.push(Import { path, line: statement.start_position().row + 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::analysis::{Limits, analyze};

    fn imports(path: &str, code: &str) -> Vec<String> {
        let analysis = analyze(path, code, &Limits::default(), || false).unwrap();
        analysis.imports.into_iter().map(|import| import.path).collect()
    }

    #[test]
    fn rust_use_lists_are_spelled_out() {
        let code = "extern crate alloc;\nuse std::{fs, io::{self, Read as _}};\nuse super::*;\npub use crate::store::Store;\n\
                    use serde;\nfn f() { use hidden::x; }";
        assert_eq!(
            imports("a.rs", code),
            ["alloc", "std::fs", "std::io", "std::io::Read", "super::*", "crate::store::Store", "serde"]
        );
    }

    #[test]
    fn python_imports_of_every_kind() {
        let code = "from __future__ import annotations\nimport os.path, sys as system\nfrom .store import (a, b)\nfrom .. import up\n\
                    try:\n    import tomllib\nexcept ImportError:\n    import tomli as tomllib\n\ndef f():\n    import hidden\n";
        assert_eq!(imports("a.py", code), ["__future__", "os.path", "sys", ".store", "..", "tomllib", "tomli"]);
    }

    #[test]
    fn script_imports_exports_and_requires() {
        let code = "import fs, { join } from 'node:fs';\nimport './side.css';\nexport * from \"./all\";\n\
                    const { a } = require('./a').deep;\nvar b = require('b')(1);\nrequire('./c');\n";
        assert_eq!(imports("a.js", code), ["node:fs", "./side.css", "./all", "./a", "b", "./c"]);
        assert_eq!(imports("a.ts", "import type { T } from './t';\nimport old = require('old');\n"), ["./t", "old"]);
    }

    #[test]
    fn go_imports_with_and_without_parentheses() {
        let code = "package a\nimport \"fmt\"\nimport (\n\t_ \"embed\"\n\thttp \"net/http\"\n)\n";
        assert_eq!(imports("a.go", code), ["fmt", "embed", "net/http"]);
    }
}
