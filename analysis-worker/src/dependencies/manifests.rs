//! The manifests of a workspace, read leniently: what cannot be read is named and told nothing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::path;

/// Manifests that are read; a monorepo has a few hundred.
const MANIFESTS_MAX: usize = 10_000;
/// Longest manifest that is read. Written by hand, they have a few kilobytes.
const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// What could be read, by path.
#[derive(Default)]
pub(super) struct Manifests {
    pub(super) toml: BTreeMap<String, toml::Table>,
    pub(super) json: BTreeMap<String, Value>,
    /// Those in formats of their own: `go.mod`, `setup.cfg`.
    pub(super) text: BTreeMap<String, String>,
    pub(super) problems: BTreeMap<String, String>,
}

impl Manifests {
    pub(super) fn read(manifests: &[(String, String)]) -> Self {
        let mut sorted: Vec<&(String, String)> = manifests.iter().collect();
        sorted.sort();
        let mut read = Self::default();
        for (count, (at, text)) in sorted.into_iter().enumerate() {
            let outcome = match count < MANIFESTS_MAX {
                true => read.add(at, text.trim_start_matches('\u{feff}')),
                false => Err(format!("only {MANIFESTS_MAX} manifests are read")),
            };
            if let Err(problem) = outcome {
                read.problems.insert(at.clone(), problem);
            }
        }
        read
    }

    fn add(&mut self, at: &str, text: &str) -> Result<(), String> {
        if !path::is_plain(at) {
            return Err("its path is not one of the workspace".to_owned());
        }
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(format!("{} bytes is more than the limit of {MANIFEST_BYTES_MAX}", text.len()));
        }
        match path::extension(at) {
            "toml" => {
                let table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
                self.toml.insert(at.to_owned(), table);
            }
            "json" => {
                let value = serde_json::from_str(&plain_json(text)).map_err(|error| error.to_string())?;
                self.json.insert(at.to_owned(), value);
            }
            _ => {
                self.text.insert(at.to_owned(), text.to_owned());
            }
        }
        Ok(())
    }
}

/// Those of one file name, with the directory each lies in.
pub(super) fn named<'m, T>(
    manifests: &'m BTreeMap<String, T>,
    name: &'m str,
) -> impl Iterator<Item = (&'m str, &'m T)> {
    let matching = manifests.iter().filter(move |(at, _)| path::name(at) == name);
    matching.map(|(at, manifest)| (path::directory(at), manifest))
}

/// JSON as people write it in configurations, without its comments and trailing commas. Lines stay where they are.
fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let taken = match next {
            '"' => {
                let length = string_length(rest);
                plain.push_str(&rest[..length]);
                length
            }
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => {
                let length = rest[2..].find("*/").map_or(rest.len(), |end| end + 4);
                plain.extend(rest[..length].chars().filter(|&c| c == '\n'));
                length
            }
            ']' | '}' => {
                let end = plain.trim_end().len();
                if plain[..end].ends_with(',') {
                    plain.replace_range(end - 1..end, " ");
                }
                plain.push(next);
                1
            }
            _ => {
                plain.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    plain
}

/// Bytes of the string literal at the beginning of `text`, with its quotes; to the end when it is not closed.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_no_part_of_json() {
        let text = "{ // one\n \"a/*\": \"x//y\\\"\", /* two\n */ \"b\": [1, 2, /* three */ ], }";
        let value: Value = serde_json::from_str(&plain_json(text)).unwrap();
        assert_eq!(value, serde_json::json!({ "a/*": "x//y\"", "b": [1, 2] }));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_is_read() {
        let manifest = |at: &str, text: &str| (at.to_owned(), text.to_owned());
        let manifests = Manifests::read(&[
            manifest("package.json", "{ \"name\": "),
            manifest("../Cargo.toml", ""),
            manifest("a/Cargo.toml", "[package\n"),
            manifest("b/Cargo.toml", "\u{feff}[package]\nname = \"b\"\n"),
            manifest("deep.json", &"[".repeat(100_000)),
        ]);
        let named: Vec<&str> = manifests.problems.keys().map(String::as_str).collect();
        assert_eq!(named, ["../Cargo.toml", "a/Cargo.toml", "deep.json", "package.json"]);
        assert_eq!(named_toml(&manifests), ["b"]);
    }

    fn named_toml(manifests: &Manifests) -> Vec<&str> {
        named(&manifests.toml, "Cargo.toml").map(|(directory, _)| directory).collect()
    }
}
