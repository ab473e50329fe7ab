//! Which grammar reads a file.
//!
//! The name decides; a file without a telling name is judged by its first line (`#!`). Content is never guessed
//! at beyond that: a wrong grammar gives wrong symbols, and a wrong answer is worse than none.

use std::fmt;
use std::path::Path;

/// A language this worker can parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// Rust, `.rs`.
    Rust,
    /// Python 3, `.py`, `.pyi`, `.pyw`.
    Python,
    /// JavaScript with JSX, `.js`, `.mjs`, `.cjs`, `.jsx`.
    JavaScript,
    /// TypeScript, `.ts`, `.mts`, `.cts`.
    TypeScript,
    /// TypeScript with JSX, `.tsx`.
    Tsx,
    /// Go, `.go`.
    Go,
}

/// Interpreters named on a `#!` line, and what they read.
const INTERPRETERS: [(&str, Language); 8] = [
    ("python", Language::Python),
    ("pypy", Language::Python),
    ("node", Language::JavaScript),
    ("nodejs", Language::JavaScript),
    ("bun", Language::TypeScript),
    ("deno", Language::TypeScript),
    ("ts-node", Language::TypeScript),
    ("rust-script", Language::Rust),
];

impl Language {
    /// Every language, in the order it is listed to people.
    pub const ALL: [Self; 6] = [Self::Rust, Self::Python, Self::JavaScript, Self::TypeScript, Self::Tsx, Self::Go];

    /// The language of a file, by its name and, failing that, by the first line of its code.
    #[must_use]
    pub fn detect(path: &str, code: &str) -> Option<Self> {
        let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("rs") => Some(Self::Rust),
            Some("py" | "pyi" | "pyw") => Some(Self::Python),
            Some("js" | "mjs" | "cjs" | "jsx") => Some(Self::JavaScript),
            Some("ts" | "mts" | "cts") => Some(Self::TypeScript),
            Some("tsx") => Some(Self::Tsx),
            Some("go") => Some(Self::Go),
            Some(_) => None,
            None => from_interpreter(code.lines().next()?),
        }
    }

    /// The name in lower case, as written in answers and in an index's payload.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Tsx => "tsx",
            Self::Go => "go",
        }
    }

    pub(crate) fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Rust => tree_sitter_rust::LANGUAGE.into(),
            Self::Python => tree_sitter_python::LANGUAGE.into(),
            Self::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into(),
            Self::Tsx => tree_sitter_typescript::LANGUAGE_TSX.into(),
            Self::Go => tree_sitter_go::LANGUAGE.into(),
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads `#!/usr/bin/env -S python3.12 -u` and its simpler relatives.
fn from_interpreter(first_line: &str) -> Option<Language> {
    let command = first_line.strip_prefix("#!")?;
    let program = command
        .split_whitespace()
        .map(|word| word.rsplit('/').next().unwrap_or(word))
        .find(|word| *word != "env" && !word.starts_with('-') && !word.contains('='))?;
    let name = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    INTERPRETERS.iter().find(|(interpreter, _)| *interpreter == name).map(|(_, language)| *language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (path, language) in [
            ("src/lib.rs", Language::Rust),
            ("a/b.PY", Language::Python),
            ("x.mjs", Language::JavaScript),
            ("x.d.ts", Language::TypeScript),
            ("App.tsx", Language::Tsx),
            ("main.go", Language::Go),
        ] {
            assert_eq!(Language::detect(path, ""), Some(language), "{path}");
        }
        assert_eq!(Language::detect("README.md", "#!/usr/bin/python"), None, "a telling name is not overruled");
    }

    #[test]
    fn a_nameless_script_is_judged_by_its_interpreter() {
        assert_eq!(Language::detect("bin/run", "#!/usr/bin/env python3.12\n"), Some(Language::Python));
        assert_eq!(Language::detect("bin/run", "#!/usr/bin/env -S node --harmony\n"), Some(Language::JavaScript));
        assert_eq!(Language::detect("bin/run", "#!/bin/sh\n"), None);
        assert_eq!(Language::detect("Makefile", "all:\n"), None);
        assert_eq!(Language::detect("empty", ""), None);
    }
}
