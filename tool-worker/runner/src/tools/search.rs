//! `search_code`: ripgrep's engine over a workspace, with lines that define the wanted name on top.

use std::path::Path;

use grep_matcher::Matcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, SearcherBuilder, sinks};
use serde::Deserialize;

use super::{cut, walk};
use crate::confined::Confined;
use crate::failure::Failure;

/// Arguments of `search_code`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    query: String,
    path: Option<String>,
    regex: Option<bool>,
    max: Option<usize>,
}

/// Lines shown unless asked otherwise; small models read the first one.
const SHOWN_DEFAULT: usize = 5;
/// Matches counted; beyond it the number says nothing.
const COUNTED_MAX: usize = 1_000;
/// Matches looked at in the hope of a definition.
const SCANNED_MAX: usize = 20_000;
/// Larger files are data.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Longer lines are cut.
const LINE_CHARS_MAX: usize = 90;
/// Memory of a compiled pattern, so that a pattern cannot be the attack.
const REGEX_BYTES_MAX: usize = 1 << 20;

struct Hit {
    rank: u8,
    line: String,
}

/// `N matches`, then `path:line: code`.
pub(super) fn search(root: &Path, workspace: &Confined, arguments: &Arguments) -> Result<String, Failure> {
    let matcher = pattern(arguments)?;
    let definitions = Definitions::of(arguments);
    let below = match arguments.path.as_deref() {
        None | Some("." | "./") => root.to_owned(),
        Some(path) => root.join(workspace.resolve(path)?),
    };
    let shown_max = arguments.max.unwrap_or(SHOWN_DEFAULT);
    let mut searcher = SearcherBuilder::new().binary_detection(BinaryDetection::quit(0)).line_number(true).build();
    let mut count = 0;
    // Best of each rank, in the order found; no more than can be shown.
    let mut hits: [Vec<Hit>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let walk = walk(&below).max_filesize(Some(FILE_BYTES_MAX)).sort_by_file_path(Path::cmp).build();
    for entry in walk.filter_map(Result::ok).filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file())) {
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path()).display().to_string();
        let sink = sinks::Lossy(|number, line| {
            count += 1;
            let line = line.trim();
            let rank = definitions.rank(line);
            let list = &mut hits[usize::from(rank)];
            if list.len() < shown_max {
                list.push(Hit { rank, line: format!("{path}:{number}: {}", cut(line, LINE_CHARS_MAX)) });
            }
            Ok(count < SCANNED_MAX)
        });
        // A file that cannot be read is no reason to hide what the others hold.
        let _ = searcher.search_path(&matcher, entry.path(), sink);
        if count >= SCANNED_MAX {
            break;
        }
    }
    if count == 0 {
        return Ok("no matches".to_owned());
    }
    let total = if count > COUNTED_MAX { format!("{COUNTED_MAX}+") } else { count.to_string() };
    let mut hits: Vec<Hit> = hits.into_iter().flatten().collect();
    hits.sort_by_key(|hit| hit.rank);
    let lines = hits.into_iter().take(shown_max).map(|hit| hit.line);
    Ok(std::iter::once(format!("{total} matches")).chain(lines).collect::<Vec<_>>().join("\n"))
}

fn pattern(arguments: &Arguments) -> Result<RegexMatcher, Failure> {
    RegexMatcherBuilder::new()
        .case_smart(true)
        .fixed_strings(!arguments.regex.unwrap_or(false))
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .line_terminator(Some(b'\n'))
        .build(&arguments.query)
        .map_err(|error| Failure::bad_request(format!("query is not a valid pattern: {error}")))
}

/// How much a line looks like the definition of the queried name.
struct Definitions {
    strong: Option<RegexMatcher>,
    weak: Option<RegexMatcher>,
}

impl Definitions {
    fn of(arguments: &Arguments) -> Self {
        // The last name in the query: `Store::open` is defined where `open` is.
        let name = arguments
            .query
            .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')
            .rfind(|word| !word.is_empty());
        let Some(name) = name else {
            return Self { strong: None, weak: None };
        };
        let name = name.replace('$', r"\$");
        let keywords = "fn|struct|enum|union|trait|mod|type|const|static|macro_rules!|class|def|function\\*?|interface|namespace|func(?:\\s*\\([^)]*\\))?";
        let strong = format!(r"^(?:[\w()<>:@,.*]+\s+)*(?:{keywords})\s+(?:mut\s+)?{name}(?:\W|$)");
        let weak = format!(
            r"^(?:export\s+)?(?:impl\b.*\b{name}\b|(?:let|var)\s+(?:mut\s+)?{name}\b|{name}\s*(?::=|=[^=>]|:\s))"
        );
        Self { strong: RegexMatcher::new(&strong).ok(), weak: RegexMatcher::new(&weak).ok() }
    }

    fn rank(&self, line: &str) -> u8 {
        let matches = |pattern: &Option<RegexMatcher>| {
            pattern.as_ref().is_some_and(|pattern| pattern.is_match(line.as_bytes()).unwrap_or(false))
        };
        if matches(&self.strong) {
            0
        } else if matches(&self.weak) {
            1
        } else {
            2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
        let base = tempfile::Builder::new().prefix("ws").tempdir().unwrap();
        for (path, content) in files {
            let path = base.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        base
    }

    fn found(base: &tempfile::TempDir, arguments: serde_json::Value) -> Result<String, String> {
        let confined = Confined::open(base.path()).unwrap();
        search(base.path(), &confined, &serde_json::from_value(arguments).unwrap()).map_err(|failure| failure.detail)
    }

    #[test]
    fn definitions_come_first_and_ignored_files_stay_out() {
        let base = workspace(&[
            (".gitignore", "target\n"),
            ("a.rs", "use crate::open_store;\nlet s = open_store(1);\n"),
            ("src/store.rs", "// fn open_store is here\n    pub(crate) async fn open_store(n: u8) {\n"),
            ("target/x.rs", "fn open_store() {}\n"),
            ("bin.dat", "open_store\0\0"),
        ]);
        assert_eq!(
            found(&base, serde_json::json!({"query": "open_store"})).unwrap(),
            "4 matches\nsrc/store.rs:2: pub(crate) async fn open_store(n: u8) {\na.rs:1: use crate::open_store;\n\
             a.rs:2: let s = open_store(1);\nsrc/store.rs:1: // fn open_store is here"
        );
        assert_eq!(found(&base, serde_json::json!({"query": "nowhere"})).unwrap(), "no matches");
        assert_eq!(
            found(&base, serde_json::json!({"query": "open_\\w+\\(n", "regex": true, "path": "src"})).unwrap(),
            "1 matches\nsrc/store.rs:2: pub(crate) async fn open_store(n: u8) {"
        );
        assert_eq!(
            found(&base, serde_json::json!({"query": "(", "path": "src/store.rs"})).unwrap().lines().next(),
            Some("1 matches")
        );
        assert!(
            found(&base, serde_json::json!({"query": "(", "regex": true}))
                .unwrap_err()
                .starts_with("query is not a valid pattern")
        );
        assert!(
            found(&base, serde_json::json!({"query": "x", "path": "../"})).unwrap_err().starts_with("path is outside")
        );
        assert_eq!(found(&base, serde_json::json!({"query": "x", "path": "none"})).unwrap_err(), "no such file: none");
    }

    #[test]
    fn every_language_has_its_definitions() {
        for line in [
            "func (s *Store) find(x int) {",
            "export default function find() {",
            "class find(Base):",
            "async def find(self):",
            "export const find = () => {",
            "pub const fn find() {",
            "pub unsafe extern fn find() {",
            "macro_rules! find {",
        ] {
            assert_eq!(
                Definitions::of(&Arguments { query: "find".into(), path: None, regex: None, max: None }).rank(line),
                0,
                "{line}"
            );
        }
    }

    #[test]
    fn the_number_is_true_and_few_lines_are_shown() {
        let base = workspace(&[("a.txt", &"x\n".repeat(1500)), ("b.txt", &"y\n".repeat(20))]);
        assert!(found(&base, serde_json::json!({"query": "x"})).unwrap().starts_with("1000+ matches\na.txt:1: x\n"));
        let text = found(&base, serde_json::json!({"query": "y"})).unwrap();
        assert_eq!((text.lines().next(), text.lines().count()), (Some("20 matches"), 1 + SHOWN_DEFAULT));
        assert_eq!(found(&base, serde_json::json!({"query": "y", "max": 2})).unwrap().lines().count(), 3);
        assert_eq!(found(&base, serde_json::json!({"query": "Y"})).unwrap(), "no matches", "capitals are meant");
    }
}
