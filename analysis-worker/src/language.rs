//! Which grammar reads a file.
//!
//! The name decides; a file without a telling name is judged by its first line (`#!`). Content is never guessed
//! at beyond that: a wrong grammar gives wrong symbols, and a wrong answer is worse than none. The one exception is
//! `.h`, which says C and C++ alike.
//!
//! All that is known of a language stands in its row of the [table](self::table): to add one is to add a variant, a
//! row, and a query in `queries/`.

mod table;

use std::fmt;
use std::path::Path;

use self::table::{Row, TABLE};

/// A language this worker can parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant is the language it is named after; its files are told in the table")]
pub enum Language {
    Rust,
    Python,
    JavaScript,
    TypeScript,
    Tsx,
    Go,
    Java,
    C,
    Cpp,
    CSharp,
    Ruby,
    Php,
    Bash,
    Kotlin,
    Swift,
    Scala,
    Lua,
    Sql,
    Html,
    Css,
    Json,
    Yaml,
    Toml,
    Markdown,
}

impl Language {
    /// Every language, in the order it is listed to people.
    pub const ALL: [Self; 24] = [
        Self::Rust,
        Self::Python,
        Self::JavaScript,
        Self::TypeScript,
        Self::Tsx,
        Self::Go,
        Self::Java,
        Self::C,
        Self::Cpp,
        Self::CSharp,
        Self::Ruby,
        Self::Php,
        Self::Bash,
        Self::Kotlin,
        Self::Swift,
        Self::Scala,
        Self::Lua,
        Self::Sql,
        Self::Html,
        Self::Css,
        Self::Json,
        Self::Yaml,
        Self::Toml,
        Self::Markdown,
    ];

    /// The language of a file, by its name and, failing that, by the first line of its code.
    #[must_use]
    pub fn detect(path: &str, code: &str) -> Option<Self> {
        let path = Path::new(path);
        let name = path.file_name()?.to_str()?;
        if let Some(row) = TABLE.iter().find(|row| row.file_names.contains(&name)) {
            return Some(row.language);
        }
        let Some(extension) = path.extension() else {
            return from_interpreter(code.lines().next()?);
        };
        let extension = extension.to_str()?.to_ascii_lowercase();
        let row = TABLE.iter().find(|row| row.extensions.contains(&extension.as_str()))?;
        Some(if extension == "h" && is_cpp(code) { Self::Cpp } else { row.language })
    }

    /// The name in lower case, as written in answers and in an index's payload.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The language of that [name](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.language)
    }

    /// What the language writes between a container and its member: `::`, `\` or `.`.
    pub(crate) fn separator(self) -> &'static str {
        self.row().separator
    }

    pub(crate) fn grammar(self) -> tree_sitter::Language {
        self.row().grammar.into()
    }

    /// The texts of its query, to be joined.
    pub(crate) fn queries(self) -> &'static [&'static str] {
        self.row().queries
    }

    /// Whether a variable in capital letters is a constant, for want of a word that says so.
    pub(crate) fn shouts_constants(self) -> bool {
        matches!(self, Self::Python | Self::Bash | Self::Lua)
    }

    /// Whether an import inside a module of the file is that module's own affair, as one inside a function is.
    pub(crate) fn confines_imports(self) -> bool {
        matches!(self, Self::Rust | Self::TypeScript | Self::Tsx)
    }

    /// Whether names are wrapped in declarators that say what is declared: `*f(int)`.
    pub(crate) fn has_declarators(self) -> bool {
        matches!(self, Self::C | Self::Cpp)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
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
    TABLE.iter().find(|row| row.interpreters.contains(&name)).map(|row| row.language)
}

/// How much of a header is read to tell C from C++.
const HEADER_BYTES_READ: usize = 64 << 10;

/// Whether a header says something that only C++ says, at the beginning of a line.
fn is_cpp(header: &str) -> bool {
    let end = (0..=header.len().min(HEADER_BYTES_READ)).rev().find(|end| header.is_char_boundary(*end));
    header[..end.unwrap_or(0)].lines().map(str::trim).any(|line| {
        let opens = line.ends_with(['{', ';']);
        let name = line.strip_prefix("class ").unwrap_or_default();
        // Prose has words in lower case; `class Store`, `class EXPORT Store` and `class store {` are code.
        let named =
            name.starts_with(char::is_uppercase) || name.split_whitespace().nth(1).is_none_or(|word| word == "{");
        (!name.is_empty() && named && (opens || name.contains(" : ")))
            || (line.starts_with("namespace ") && (opens || !line[10..].contains(' ')))
            || (line.starts_with("using ") && opens)
            || ["template<", "template <", "public:", "private:", "protected:"]
                .iter()
                .any(|word| line.starts_with(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_stands_in_its_own_row() {
        for (at, language) in Language::ALL.into_iter().enumerate() {
            assert_eq!(language as usize, at);
            assert_eq!(language.row().language, language);
            assert_eq!(Language::from_name(language.name()), Some(language));
        }
        assert_eq!(TABLE.len(), Language::ALL.len());
        assert_eq!(Language::from_name("cobol"), None);
    }

    #[test]
    fn no_name_belongs_to_two_languages() {
        let names = |of: fn(&Row) -> &'static [&'static str]| {
            let mut all: Vec<&str> = TABLE.iter().flat_map(of).copied().collect();
            let number = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), number);
        };
        names(|row| row.extensions);
        names(|row| row.file_names);
        names(|row| row.interpreters);
    }

    #[test]
    fn the_name_decides() {
        for (path, language) in [
            ("src/lib.rs", Language::Rust),
            ("a/b.PY", Language::Python),
            ("x.mjs", Language::JavaScript),
            ("x.d.ts", Language::TypeScript),
            ("App.tsx", Language::Tsx),
            ("main.go", Language::Go),
            ("a.h", Language::C),
            ("a.hpp", Language::Cpp),
            ("README.md", Language::Markdown),
            ("home/.bashrc", Language::Bash),
            ("Gemfile", Language::Ruby),
            ("Cargo.lock", Language::Toml),
        ] {
            assert_eq!(Language::detect(path, ""), Some(language), "{path}");
        }
        assert_eq!(Language::detect("notes.txt", "#!/usr/bin/python"), None, "a telling name is not overruled");
        assert_eq!(Language::detect("Dockerfile", "FROM scratch\n"), None);
    }

    #[test]
    fn a_nameless_script_is_judged_by_its_interpreter() {
        assert_eq!(Language::detect("bin/run", "#!/usr/bin/env python3.12\n"), Some(Language::Python));
        assert_eq!(Language::detect("bin/run", "#!/usr/bin/env -S node --harmony\n"), Some(Language::JavaScript));
        assert_eq!(Language::detect("bin/run", "#!/bin/sh\n"), Some(Language::Bash));
        assert_eq!(Language::detect("bin/run", "#!/usr/bin/awk -f\n"), None);
        assert_eq!(Language::detect("Makefile", "all:\n"), None);
        assert_eq!(Language::detect("empty", ""), None);
    }

    #[test]
    fn a_header_is_c_unless_it_is_clearly_cpp() {
        let c = "/* a\n class of things;\n*/\n#ifdef __cplusplus\nextern \"C\" {\n#endif\nint f(void);\n";
        assert_eq!(Language::detect("a.h", c), Some(Language::C));
        for cpp in ["namespace a {\n}\n", "class A : public B\n{\n};\n", "template <class T> T f();\n", " public:\n"] {
            assert_eq!(Language::detect("a.h", cpp), Some(Language::Cpp), "{cpp}");
        }
    }
}
