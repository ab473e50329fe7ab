//! The text a model reads about a file.
//!
//! The shape is fixed, small models are trained on it: three lines, values to be copied from them, the most telling
//! ones first. Everything else that is known stays in [`Analysis`].

use std::collections::BTreeSet;

use crate::analysis::Analysis;
use crate::language::Language;

/// Names shown on one line; a small model copies from the front and loses itself in long lists.
const NAMES_SHOWN_MAX: usize = 12;

/// `12 lines`, `imports: a, b`, `symbols: x, y`.
#[must_use]
pub fn outline(analysis: &Analysis) -> String {
    let imports = distinct(
        analysis
            .imports
            .iter()
            .map(|import| short_import(&import.path, analysis.language)),
    );
    let (top, nested): (Vec<_>, Vec<_>) = analysis
        .symbols
        .iter()
        .partition(|symbol| symbol.container.is_none());
    let symbols = distinct(top.iter().chain(&nested).map(|symbol| symbol.name.as_str()));
    format!(
        "{} lines\nimports: {}\nsymbols: {}",
        analysis.lines,
        listed(&imports),
        listed(&symbols)
    )
}

/// Rust paths are told by their first two segments (`std::collections`), which is what one depends on.
fn short_import(path: &str, language: Language) -> &str {
    if language != Language::Rust {
        return path;
    }
    path.match_indices("::")
        .nth(1)
        .map_or(path, |(end, _)| &path[..end])
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(*name)).collect()
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown = names[..names.len().min(NAMES_SHOWN_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} (+{more} more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Limits, analyze};

    fn text(path: &str, code: &str) -> String {
        outline(&analyze(path, code, &Limits::default(), || false).unwrap())
    }

    #[test]
    fn three_lines_with_top_level_definitions_first() {
        let code = "use std::collections::{BTreeMap, BTreeSet};\nuse serde::Serialize;\n\
                    impl Store { fn get(&self) {} }\nstruct Store;\nfn open() {}\n";
        assert_eq!(
            text("a.rs", code),
            "5 lines\nimports: std::collections, serde::Serialize\nsymbols: Store, open, get"
        );
    }

    #[test]
    fn nothing_found_is_said_as_none() {
        assert_eq!(text("a.py", ""), "0 lines\nimports: none\nsymbols: none");
    }

    #[test]
    fn long_lists_are_cut_and_the_rest_counted() {
        let code: String = (0..15).map(|n| format!("fn f{n}() {{}}\n")).collect();
        assert_eq!(
            text("a.rs", &code),
            "15 lines\nimports: none\nsymbols: f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11 (+3 more)"
        );
    }
}
