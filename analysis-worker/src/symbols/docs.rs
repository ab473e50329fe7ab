//! What an author says of a definition: the comments right above it, or the string it begins with.

use std::ops::Range;

use super::nesting::one_line;

/// Longest text kept: the first paragraph, which is enough to find a thing by.
const DOC_CHARS_MAX: usize = 400;
/// Lines of comments read above one definition.
const COMMENTS_MAX: usize = 64;
/// Between a comment and its definition there may be the words that begin the statement, and attributes.
const GAP_BYTES_MAX: usize = 300;

/// The comments that end right above `start`; `comments` are all of the file's, in order.
pub(super) fn doc_before(start: usize, comments: &[Range<usize>], code: &str) -> Option<String> {
    let after = comments.partition_point(|comment| comment.start < start);
    let mut first = after;
    let mut edge = start;
    while first > 0 && after - first < COMMENTS_MAX {
        let comment = &comments[first - 1];
        let written = code.get(comment.clone()).unwrap_or_default();
        let end = comment.start + written.trim_end().len();
        let attached = end <= edge && is_attached(code.get(end..edge).unwrap_or_default(), first == after);
        let inner = written.starts_with("//!") || written.starts_with("/*!") || written.starts_with("#!");
        if !attached || inner || !begins_line(code, comment.start) {
            break;
        }
        edge = comment.start;
        first -= 1;
    }
    let lines = comments[first..after].iter().flat_map(|comment| code.get(comment.clone()).unwrap_or_default().lines());
    first_paragraph(lines.map(without_marks))
}

/// The text of a string that documents what it stands in.
pub(super) fn docstring(literal: &str) -> Option<String> {
    let written = literal.trim_start_matches(|c: char| c.is_ascii_alphabetic()).trim_matches(['"', '\'']);
    first_paragraph(written.lines().map(str::trim))
}

/// Whether what stands between a comment and what follows lets the comment belong to it.
fn is_attached(gap: &str, before_definition: bool) -> bool {
    let mut lines = gap.split('\n').map(str::trim);
    if !before_definition {
        return gap.trim().is_empty() && lines.count() <= 2;
    }
    // The first line is what is left of the comment's, the last one begins the definition's, those between stand alone.
    let beginning = lines.next_back().unwrap_or_default();
    let words = |c: char| c.is_alphanumeric() || c.is_whitespace() || c == '_';
    let begins = beginning.chars().all(words) || is_attribute(beginning);
    begins && gap.len() <= GAP_BYTES_MAX && lines.skip(1).all(is_attribute)
}

fn is_attribute(line: &str) -> bool {
    ["@", "#[", "[", "template"].iter().any(|mark| line.starts_with(mark)) && !line.contains([';', '{', '}'])
}

fn begins_line(code: &str, at: usize) -> bool {
    let before = code.get(..at).unwrap_or_default();
    let line = &before[before.rfind('\n').map_or(0, |end| end + 1)..];
    line.trim().is_empty()
}

fn without_marks(line: &str) -> &str {
    const MARKS: [&str; 12] = ["///", "//", "/**", "/*", "--[[", "---", "--", "##", "#", "*/", "*", "<!--"];
    let line = line.trim();
    let line = MARKS.iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line).trim();
    let line = line.strip_suffix("*/").or_else(|| line.strip_suffix("]]")).unwrap_or(line).trim();
    let line = line.strip_prefix("<summary>").unwrap_or(line);
    line.strip_suffix("</summary>").unwrap_or(line).trim()
}

fn first_paragraph<'a>(lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut paragraph = String::new();
    for line in lines {
        if line.is_empty() && paragraph.is_empty() {
            continue;
        }
        if line.is_empty() || paragraph.len() > DOC_CHARS_MAX * 4 {
            break;
        }
        paragraph.push_str(line);
        paragraph.push(' ');
    }
    let line = one_line(&paragraph, DOC_CHARS_MAX);
    line.contains(char::is_alphanumeric).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(code: &str) -> Option<String> {
        let mut at = 0;
        let mut comments = Vec::new();
        for line in code.split_inclusive('\n') {
            if let Some(mark) = line.find("//").or_else(|| line.find("/*")) {
                comments.push(at + mark..at + line.len());
            }
            at += line.len();
        }
        doc_before(code.find("fn").unwrap(), &comments, code)
    }

    #[test]
    fn comments_right_above_belong_to_what_follows() {
        assert_eq!(doc("/// Opens\n/// a store.\n///\n/// More.\nfn f").as_deref(), Some("Opens a store."));
        assert_eq!(doc("/* Opens. */\n#[inline]\npub fn f").as_deref(), Some("Opens."));
        assert_eq!(doc("// far\n\nfn f"), None);
        assert_eq!(doc("let a = 1; // of a\nfn f"), None);
        assert_eq!(doc("//! of the file\nfn f"), None);
        assert_eq!(doc("// of a\nlet a = 1;\nfn f"), None);
        assert_eq!(doc("// of store\nstore:\n    fn f"), None);
        assert_eq!(doc("// one\n\n// two\r\nfn f").as_deref(), Some("two"));
    }

    #[test]
    fn a_docstring_is_told_without_its_quotes() {
        assert_eq!(docstring("r\"\"\"Opens\n    a store.\n\n    More.\"\"\"").as_deref(), Some("Opens a store."));
        assert_eq!(docstring("''"), None);
    }
}
