//! What is looked for: the pattern of a query, and which of the lines that match it look like a definition.

use grep_matcher::Matcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use serde::Deserialize;

use crate::failure::Failure;

/// Whether the case of letters counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::tools) enum Case {
    /// It counts if the query has a capital.
    #[default]
    Smart,
    /// It counts.
    Sensitive,
    /// It does not.
    Ignore,
}

/// Memory of a compiled pattern, so that a pattern cannot be the attack.
const REGEX_BYTES_MAX: usize = 10 << 20;
/// Memory in which each thread keeps what it has found out about a pattern. With more a pattern of many states is faster.
const REGEX_CACHE_BYTES_MAX: usize = 4 << 20;
/// How deep a pattern may nest.
const REGEX_NESTING_MAX: u32 = 100;

/// The pattern of a query. It finds in time linear in the text, whatever it is.
pub(super) fn pattern(query: &str, regex: bool, case: Case) -> Result<RegexMatcher, Failure> {
    RegexMatcherBuilder::new()
        .case_smart(case == Case::Smart)
        .case_insensitive(case == Case::Ignore)
        .fixed_strings(!regex)
        .multi_line(true)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_CACHE_BYTES_MAX)
        .nest_limit(REGEX_NESTING_MAX)
        .line_terminator(Some(b'\n'))
        .build(query)
        .map_err(|error| Failure::bad_request(format!("query is not a valid pattern: {error}")))
}

/// How many ranks there are.
pub(super) const RANKS: usize = 3;

/// How much a line looks like the definition of the queried name.
#[derive(Debug, Clone)]
pub(super) struct Definitions {
    strong: Option<RegexMatcher>,
    weak: Option<RegexMatcher>,
}

impl Definitions {
    pub(super) fn of(query: &str) -> Self {
        // The last name in the query: `Store::open` is defined where `open` is.
        let name = query.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').rfind(|word| !word.is_empty());
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

    /// 0 for a line that defines the name, 1 for one that may, 2 for the others.
    pub(super) fn rank(&self, line: &[u8]) -> usize {
        let line = line.trim_ascii();
        let matches = |pattern: &Option<RegexMatcher>| {
            pattern.as_ref().is_some_and(|pattern| pattern.is_match(line).unwrap_or(false))
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
            "  macro_rules! find {\r\n",
        ] {
            assert_eq!(Definitions::of("find").rank(line.as_bytes()), 0, "{line}");
        }
        assert_eq!(Definitions::of("find").rank(b"let find = 1;"), 1);
        assert_eq!(Definitions::of("find").rank(b"self.find(1)"), 2);
    }

    #[test]
    fn a_pattern_that_would_explode_is_refused_before_it_does() {
        let deep = format!("{}a{}", "(".repeat(400), ")".repeat(400));
        for query in [r"(?:\w{1000}){1000}", r"((a{100}){100}){100}", &deep, "(", "a\\"] {
            let refused = pattern(query, true, Case::Smart).expect_err(query);
            assert!(refused.detail.starts_with("query is not a valid pattern: "), "{refused}");
        }
        let refused = pattern("two\nlines", false, Case::Smart).expect_err("a line break");
        assert!(refused.detail.starts_with("query is not a valid pattern: "), "{refused}");
    }
}
