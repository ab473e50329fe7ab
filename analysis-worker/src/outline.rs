//! What the worker answers: an analysis in the words of the wire.

use std::collections::BTreeSet;

use schemas::rpc;

use crate::analysis::{Analysis, Refusal};
use crate::imports::ImportKind;
use crate::language::Language;
use crate::symbols::{Symbol, SymbolKind};

/// Symbols of one outline at most: a model reads it.
const SYMBOLS_MAX: usize = 2_000;

/// The outline of an analysed file: what one needs to find the way in it. Fields, variants and what is local to a
/// function are left out, and so are child modules among the imports: they are symbols already.
#[must_use]
pub fn outline(analysis: &Analysis) -> rpc::Outline {
    let mut seen = BTreeSet::new();
    let imports = analysis.imports.iter().filter(|import| import.kind != ImportKind::ModuleDeclaration);
    let imports = imports.map(|import| short_import(&import.path, analysis.language));
    let symbols = analysis.symbols.iter().filter(|symbol| is_landmark(symbol)).take(SYMBOLS_MAX);
    let symbols = symbols.map(symbol);
    rpc::Outline {
        language: analysis.language.name().to_owned(),
        lines: line(analysis.lines),
        imports: imports.filter(|path| seen.insert(*path)).map(str::to_owned).collect(),
        symbols: symbols.collect(),
        note: analysis.has_syntax_errors.then(|| "parts of the file could not be parsed".to_owned()),
    }
}

fn is_landmark(symbol: &Symbol) -> bool {
    !symbol.local && !matches!(symbol.kind, SymbolKind::Field | SymbolKind::Variant)
}

/// A definition in the words of the wire.
pub(crate) fn symbol(symbol: &Symbol) -> rpc::Symbol {
    rpc::Symbol {
        kind: symbol.kind.name().to_owned(),
        name: symbol.name.clone(),
        container: symbol.container.clone(),
        signature: symbol.signature.clone(),
        start_line: line(symbol.start_line),
        end_line: line(symbol.end_line),
    }
}

/// A file without a grammar still has lines; everything else that is refused is no text anybody wrote.
pub(crate) fn refused(refusal: &Refusal, code: &str) -> rpc::Reply<rpc::Outline> {
    match refusal {
        Refusal::UnknownLanguage { .. } => rpc::Reply::Ok(rpc::Outline {
            language: "text".to_owned(),
            lines: line(code.lines().count()),
            imports: Vec::new(),
            symbols: Vec::new(),
            note: Some(refusal.to_string()),
        }),
        _ => rpc::Reply::Err(rpc::Refusal { code: "bad_request".to_owned(), detail: refusal.to_string() }),
    }
}

/// Rust paths are told by their first two segments (`std::collections`), which is what one depends on.
fn short_import(path: &str, language: Language) -> &str {
    if language != Language::Rust {
        return path;
    }
    path.match_indices("::").nth(1).map_or(path, |(end, _)| &path[..end])
}

fn line(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Limits, analyze};

    #[test]
    fn modules_are_named_once_and_definitions_keep_their_order() {
        let code = "use std::collections::{BTreeMap, BTreeSet};\nuse serde::Serialize;\n\
                    impl Store { fn get(&self) {} }\nstruct Store;\n";
        let outline = outline(&analyze("a.rs", code, &Limits::default(), || false).unwrap());
        assert_eq!((outline.language.as_str(), outline.lines), ("rust", 4));
        assert_eq!(outline.imports, ["std::collections", "serde::Serialize"]);
        let names: Vec<&str> = outline.symbols.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["get", "Store"]);
        assert_eq!(outline.symbols[0].container.as_deref(), Some("Store"));
    }

    #[test]
    fn fields_and_what_is_local_are_no_landmarks() {
        let code = "mod child;\nenum State { Open }\nstruct Store { items: u8 }\nfn f() { fn local() {} }\n";
        let outline = outline(&analyze("a.rs", code, &Limits::default(), || false).unwrap());
        let names: Vec<&str> = outline.symbols.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["child", "State", "Store", "f"]);
        assert!(outline.imports.is_empty());
    }

    #[test]
    fn a_file_without_a_grammar_still_has_lines() {
        let refusal = analyze("a.txt", "x\ny\n", &Limits::default(), || false).unwrap_err();
        let rpc::Reply::Ok(outline) = refused(&refusal, "x\ny\n") else { panic!("refused") };
        assert_eq!((outline.language.as_str(), outline.lines), ("text", 2));
    }
}
