//! The text of an analysed file. Small models are trained on exactly this shape: three lines, values copied from them.

use schemas::rpc::Outline;

/// Names shown on one line; a small model copies from the front and loses itself in long lists.
const NAMES_SHOWN_MAX: usize = 12;

/// `12 lines`, `imports: a, b`, `symbols: x, y`; definitions of the top level come first.
#[must_use]
pub(crate) fn outline_text(outline: &Outline) -> String {
    let imports: Vec<&str> = outline.imports.iter().map(String::as_str).collect();
    let (top, nested): (Vec<_>, Vec<_>) = outline
        .symbols
        .iter()
        .partition(|symbol| symbol.container.is_none());
    let mut symbols: Vec<&str> = Vec::new();
    for symbol in top.into_iter().chain(nested) {
        if !symbols.contains(&symbol.name.as_str()) {
            symbols.push(&symbol.name);
        }
    }
    format!(
        "{} lines\nimports: {}\nsymbols: {}",
        outline.lines,
        listed(&imports),
        listed(&symbols)
    )
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
