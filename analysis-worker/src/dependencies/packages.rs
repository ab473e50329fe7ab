//! Packages of JavaScript as `package.json` describes them: names, entries, and what they let others import.

use std::collections::BTreeMap;

use serde_json::Value;

use super::manifests::{self, Manifests};

/// Conditions under which a package offers a file, those that name sources first.
const CONDITIONS: [&str; 9] =
    ["source", "development", "types", "import", "module", "node", "browser", "default", "require"];
/// Conditions nested deeper than this are abuse.
const DEPTH_MAX: usize = 8;

/// Packages by directory.
pub(super) fn packages(manifests: &Manifests) -> BTreeMap<&str, Package<'_>> {
    let packages = manifests::named(&manifests.json, "package.json");
    packages.map(|(directory, manifest)| (directory, Package { manifest })).collect()
}

/// A `package.json`.
#[derive(Clone, Copy)]
pub(super) struct Package<'m> {
    manifest: &'m Value,
}

impl<'m> Package<'m> {
    pub(super) fn name(self) -> Option<&'m str> {
        self.manifest.get("name").and_then(Value::as_str)
    }

    /// Files that importing the package itself may mean, relative to it, the likeliest first.
    pub(super) fn entries(self) -> Vec<String> {
        let mut entries = Vec::new();
        if let Some(exports) = self.manifest.get("exports") {
            let has_paths = exports.as_object().is_some_and(|map| map.keys().any(|key| key.starts_with('.')));
            offered(if has_paths { &exports["."] } else { exports }, "", DEPTH_MAX, &mut entries);
        }
        let fields = ["source", "module", "main", "types", "typings", "svelte"];
        let named = fields.into_iter().filter_map(|field| self.manifest.get(field)?.as_str());
        entries.extend(named.map(str::to_owned));
        entries
    }

    /// Files that a path inside the package may mean by its `exports`: `./button` of `@scope/ui/button`.
    pub(super) fn exported(self, subpath: &str) -> Vec<String> {
        self.mapped("exports", subpath)
    }

    /// Files or packages that a name of the package's own, `#name`, may mean.
    pub(super) fn imported(self, name: &str) -> Vec<String> {
        self.mapped("imports", name)
    }

    fn mapped(self, field: &str, name: &str) -> Vec<String> {
        let mut files = Vec::new();
        let map = self.manifest.get(field).and_then(Value::as_object);
        for (pattern, value) in map.into_iter().flatten() {
            if let Some(matched) = matched(pattern, name) {
                offered(value, matched, DEPTH_MAX, &mut files);
            }
        }
        files
    }
}

/// What `*` stands for in `pattern` when it matches `name`; empty when there is none.
pub(super) fn matched<'n>(pattern: &str, name: &'n str) -> Option<&'n str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((before, after)) => name.strip_prefix(before)?.strip_suffix(after),
    }
}

/// Collects what an export offers, with `*` filled in.
fn offered(value: &Value, star: &str, depth: usize, files: &mut Vec<String>) {
    match value {
        Value::String(file) => files.push(file.replacen('*', star, 1)),
        Value::Array(choices) if depth > 0 => {
            choices.iter().for_each(|choice| offered(choice, star, depth - 1, files));
        }
        Value::Object(conditions) if depth > 0 => {
            let known = CONDITIONS.iter().filter_map(|condition| conditions.get(*condition));
            known.for_each(|value| offered(value, star, depth - 1, files));
        }
        _ => {}
    }
}
