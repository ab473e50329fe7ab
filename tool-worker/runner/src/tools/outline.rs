//! The text of an analysed file. Small models are trained on exactly this shape: three lines, values copied from them.

use schemas::rpc::Outline;

use super::{Sources, shown_name};

/// Names shown on one line; a small model copies from the front and loses itself in long lists.
const NAMES_SHOWN_MAX: usize = 8;

/// `12 lines`, `imports: a::{b, c}, d`, `symbols: x, y`; definitions of the top level come first. Imports of one module
/// stand together, as one would write them: shorter, and no beginning is read twice.
#[must_use]
pub fn outline_text(outline: &Outline) -> String {
    let imports: Vec<&str> = outline.imports.iter().map(String::as_str).collect();
    let (imports, symbols) = (listed(&imports, grouped), symbols(outline));
    format!("{} lines\nimports: {imports}\nsymbols: {symbols}", outline.lines)
}

/// The same of a directory: `3 files, 120 lines`, its imports together, a line of symbols for each file, and what was left
/// out. Each outline comes with its file's name, or the reason why there is none.
#[must_use]
pub fn directory_text(outlines: &[(String, Result<Outline, String>)], sources: &Sources) -> String {
    let lines: u64 = outlines.iter().filter_map(|(_, outline)| outline.as_ref().ok()).map(|o| u64::from(o.lines)).sum();
    let mut imports: Vec<&str> = Vec::new();
    for import in outlines.iter().filter_map(|(_, outline)| outline.as_ref().ok()).flat_map(|o| &o.imports) {
        if !imports.contains(&import.as_str()) {
            imports.push(import);
        }
    }
    let of_file = |(path, outline): &(String, Result<Outline, String>)| match outline {
        Ok(outline) => format!("{}: {}", shown_name(path), symbols(outline)),
        Err(reason) => format!("{}: {reason}", shown_name(path)),
    };
    let mut text = vec![format!("{} files, {lines} lines", outlines.len())];
    text.push(format!("imports: {}", listed(&imports, grouped)));
    text.extend(outlines.iter().map(of_file));
    if !sources.left_out.is_empty() {
        let more = match sources.left_out_more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        text.push(format!("(left out: {}{more}; name a directory below or a file)", sources.left_out.join("; ")));
    }
    text.join("\n")
}

/// The names a file defines, those of its top level first.
fn symbols(outline: &Outline) -> String {
    let (top, nested): (Vec<_>, Vec<_>) = outline.symbols.iter().partition(|symbol| symbol.container.is_none());
    let mut symbols: Vec<&str> = Vec::new();
    for symbol in top.into_iter().chain(nested) {
        if !symbols.contains(&symbol.name.as_str()) {
            symbols.push(&symbol.name);
        }
    }
    listed(&symbols, |names| names.join(", "))
}

/// The first names as `text` prints them, and how many more there are.
fn listed(names: &[&str], text: impl Fn(&[&str]) -> String) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let (shown, rest) = names.split_at(names.len().min(NAMES_SHOWN_MAX));
    match rest.len() {
        0 => text(shown),
        more => format!("{} (+{more} more)", text(shown)),
    }
}

/// `std::{fs, io}, crate::Config, serde`: modules in the order in which they first appear.
fn grouped(imports: &[&str]) -> String {
    let mut modules: Vec<(&str, Vec<&str>)> = Vec::new();
    for import in imports {
        let (module, name) = import.rsplit_once("::").unwrap_or((import, "self"));
        match modules.iter_mut().find(|(known, _)| *known == module) {
            Some((_, names)) => names.push(name),
            None => modules.push((module, vec![name])),
        }
    }
    let texts = modules.iter().map(|(module, names)| match names[..] {
        ["self"] => (*module).to_owned(),
        [name] => format!("{module}::{name}"),
        _ => format!("{module}::{{{}}}", names.join(", ")),
    });
    texts.collect::<Vec<_>>().join(", ")
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
    fn a_directory_is_told_file_by_file_with_what_was_left_out() {
        let sources = Sources {
            files: vec![],
            is_directory: true,
            left_out: vec!["c.rs".to_owned(), "d.rs".to_owned()],
            left_out_more: 3,
        };
        let outlines = [
            ("a.rs".to_owned(), Ok(outline(&["std::fs", "serde"], vec![symbol("open", None)]))),
            ("x/b.rs".to_owned(), Ok(outline(&["std::io", "serde"], vec![]))),
            ("x/c\n.rs".to_owned(), Err("it looks minified".to_owned())),
        ];
        assert_eq!(
            directory_text(&outlines, &sources),
            "3 files, 14 lines\nimports: std::{fs, io}, serde\na.rs: open\nx/b.rs: none\nx/c\\n.rs: it looks minified\n\
             (left out: c.rs; d.rs; and 3 more; name a directory below or a file)"
        );
    }

    #[test]
    fn imports_of_one_module_stand_together() {
        let imports = ["std::fs", "serde", "std::io", "std::sync::Arc", "serde::de", "os.path", "::core"];
        let text = outline_text(&outline(&imports, vec![]));
        let expected = "imports: std::{fs, io}, serde::{self, de}, std::sync::Arc, os.path, ::core\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn long_lists_are_cut_and_the_rest_counted() {
        let symbols = (0..15).map(|n| symbol(&format!("f{n}"), None)).collect();
        let text = outline_text(&outline(&[], symbols));
        assert!(text.ends_with("f6, f7 (+7 more)"), "{text}");
        let imports = outline(&["a::b", "a::c", "d", "e", "f", "g", "h", "i", "j", "a::k"], vec![]);
        assert!(outline_text(&imports).contains("imports: a::{b, c}, d, e, f, g, h, i (+2 more)\n"));
    }
}
