//! The text of an analysed file. Small models are trained on exactly this shape: three lines, values copied from them.

use schemas::rpc::Outline;

/// Names shown on one line; a small model copies from the front and loses itself in long lists.
const NAMES_SHOWN_MAX: usize = 12;

/// `12 lines`, `imports: a, b`, `symbols: x, y`; definitions of the top level come first.
#[must_use]
pub(crate) fn outline_text(outline: &Outline) -> String {
    let imports: Vec<&str> = outline.imports.iter().map(String::as_str).collect();
    let (top, nested): (Vec<_>, Vec<_>) = outline.symbols.iter().partition(|symbol| symbol.container.is_none());
    let mut symbols: Vec<&str> = Vec::new();
    for symbol in top.into_iter().chain(nested) {
        if !symbols.contains(&symbol.name.as_str()) {
            symbols.push(&symbol.name);
        }
    }
    format!("{} lines\nimports: {}\nsymbols: {}", outline.lines, listed(&imports), listed(&symbols))
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
    use schemas::rpc::Symbol;

    fn symbol(name: &str, container: Option<&str>) -> Symbol {
        Symbol {
            kind: "function".to_owned(),
            name: name.to_owned(),
            container: container.map(str::to_owned),
            signature: String::new(),
            start_line: 1,
            end_line: 1,
        }
    }

    fn outline(imports: &[&str], symbols: Vec<Symbol>) -> Outline {
        Outline {
            language: "rust".to_owned(),
            lines: 7,
            imports: imports.iter().map(|path| (*path).to_owned()).collect(),
            symbols,
            note: None,
        }
    }

    #[test]
    fn three_lines_with_top_level_definitions_first() {
        let symbols =
            vec![symbol("get", Some("Store")), symbol("Store", None), symbol("open", None), symbol("open", None)];
        assert_eq!(
            outline_text(&outline(&["std::fs", "serde"], symbols)),
            "7 lines\nimports: std::fs, serde\nsymbols: Store, open, get"
        );
        assert_eq!(outline_text(&outline(&[], vec![])), "7 lines\nimports: none\nsymbols: none");
    }

    #[test]
    fn long_lists_are_cut_and_the_rest_counted() {
        let symbols = (0..15).map(|n| symbol(&format!("f{n}"), None)).collect();
        let text = outline_text(&outline(&[], symbols));
        assert!(text.ends_with("f10, f11 (+3 more)"), "{text}");
    }
}
