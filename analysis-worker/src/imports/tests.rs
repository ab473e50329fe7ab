use crate::analysis::{Limits, analyze};

use super::ImportKind;

fn imports(path: &str, code: &str) -> Vec<String> {
    let analysis = analyze(path, code, &Limits::default(), || false).unwrap();
    analysis.imports.into_iter().map(|import| import.path).collect()
}

fn kinds(path: &str, code: &str) -> Vec<ImportKind> {
    let analysis = analyze(path, code, &Limits::default(), || false).unwrap();
    analysis.imports.into_iter().map(|import| import.kind).collect()
}

#[test]
fn rust_use_lists_are_spelled_out() {
    let code = "extern crate alloc;\nuse std::{fs, io::{self, Read as _}};\nuse super::*;\npub use crate::store::Store;\n\
                use serde;\nuse a::{b, // why\n c /* and */};\nuse x as y;\nfn f() { use hidden::x; }\nmod m { use hidden::y; }";
    assert_eq!(
        imports("a.rs", code),
        [
            "alloc",
            "std::fs",
            "std::io",
            "std::io::Read",
            "super::*",
            "crate::store::Store",
            "serde",
            "a::b",
            "a::c",
            "x"
        ]
    );
}

#[test]
fn rust_says_where_a_module_lies() {
    let code = "#[path = \"../a/b.rs\"]\n#[cfg(test)]\n// elsewhere\nmod b;\n#[cfg(test)]\nmod c;\nmod d;\n";
    let analysis = analyze("x.rs", code, &Limits::default(), || false).expect("Rust");
    let at: Vec<_> = analysis.imports.iter().map(|import| (import.path.as_str(), import.at.as_deref())).collect();
    assert_eq!(at, [("b", Some("../a/b.rs")), ("c", None), ("d", None)]);
}

#[test]
fn rust_modules_that_are_declared_are_told_apart() {
    let code = "pub mod a;\nmod b { mod hidden; }\nuse a::c;\n";
    assert_eq!(imports("a.rs", code), ["a", "a::c"]);
    assert_eq!(kinds("a.rs", code), [ImportKind::ModuleDeclaration, ImportKind::Module]);
}

#[test]
fn python_imports_of_every_kind() {
    let code = "from __future__ import annotations\nimport os.path, sys as system\nfrom .store import (a, b)\nfrom .. import up\n\
                try:\n    import tomllib\nexcept ImportError:\n    import tomli as tomllib\n\ndef f():\n    import hidden\n";
    assert_eq!(imports("a.py", code), ["__future__", "os.path", "sys", ".store", "..", "tomllib", "tomli"]);
    let analysis = analyze("a.py", code, &Limits::default(), || false).unwrap();
    assert_eq!(analysis.imports[3].members, ["a", "b"]);
    assert_eq!((analysis.imports[3].kind, analysis.imports[1].kind), (ImportKind::Relative, ImportKind::Module));
}

#[test]
fn script_imports_exports_and_requires() {
    let code = "import fs, { join } from 'node:fs';\nimport './side.css';\nexport * from \"./all\";\n\
                const { a } = require('./a').deep;\nvar b = require('b')(1);\nrequire('./c');\nfunction f() { require('hidden'); }\n";
    assert_eq!(imports("a.js", code), ["node:fs", "./side.css", "./all", "./a", "b", "./c"]);
    assert_eq!(imports("a.ts", "import type { T } from './t';\nimport old = require('old');\n"), ["./t", "old"]);
    assert_eq!(kinds("a.js", code)[..2], [ImportKind::Module, ImportKind::Relative]);
}

#[test]
fn go_imports_with_and_without_parentheses() {
    let code = "package a\nimport \"fmt\"\nimport (\n\t_ \"embed\"\n\thttp \"net/http\"\n)\n";
    assert_eq!(imports("a.go", code), ["fmt", "embed", "net/http"]);
}

#[test]
fn includes_tell_their_brackets_wherever_they_stand() {
    let code = "#include <stdio.h>\nvoid f(void) {\n#include \"body.inc\"\n}\n";
    assert_eq!(imports("a.c", code), ["stdio.h", "body.inc"]);
    assert_eq!(kinds("a.c", code), [true, false].map(|angled| ImportKind::Include { angled }));
}

#[test]
fn lists_nested_without_end_are_cut_off() {
    let code = format!("use {}x{};\n", "a::{".repeat(5_000), "}".repeat(5_000));
    let analysis = analyze("a.rs", &code, &Limits { line_bytes_mean_max: 1 << 20, ..Limits::default() }, || false);
    assert!(analysis.unwrap().imports.is_empty());
}
