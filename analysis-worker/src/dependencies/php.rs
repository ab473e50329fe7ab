//! PHP: names by the prefixes of `composer.json` (PSR-4), files by their paths.

use std::collections::BTreeMap;

use serde_json::Value;

use super::files::Files;
use super::manifests::{self, Manifests};
use super::{Found, ImportKind, ImportRef, path};

pub(super) struct Php<'a> {
    files: &'a Files<'a>,
    /// Directories by the prefix of the names that lie in them, without `\` at the end.
    prefixes: BTreeMap<&'a str, Vec<String>>,
}

impl<'a> Php<'a> {
    pub(super) fn new(files: &'a Files<'a>, manifests: &'a Manifests) -> Self {
        let mut prefixes = BTreeMap::<_, Vec<_>>::new();
        for (directory, manifest) in manifests::named(&manifests.json, "composer.json") {
            for field in ["autoload", "autoload-dev"] {
                let psr4 = manifest.get(field).and_then(|autoload| autoload.get("psr-4")?.as_object());
                for (prefix, told) in psr4.into_iter().flatten() {
                    let told = told.as_array().map_or(std::slice::from_ref(told), Vec::as_slice);
                    let told = told.iter().filter_map(Value::as_str);
                    let places = told.filter_map(|told| path::join(directory, told));
                    prefixes.entry(prefix.trim_end_matches('\\')).or_default().extend(places);
                }
            }
        }
        Self { files, prefixes }
    }

    pub(super) fn resolve(&self, file: usize, import: &ImportRef<'_>) -> Found {
        if import.kind == ImportKind::File || import.path.ends_with(".php") {
            return self.included(file, import.path);
        }
        let name = import.path.trim_start_matches('\\');
        let ours = self.prefixes.iter().filter_map(|(prefix, places)| Some((below(name, prefix)?, prefix, places)));
        let mut ours: Vec<_> = ours.collect();
        ours.sort_by_key(|(_, prefix, _)| std::cmp::Reverse(prefix.len()));
        for (rest, _, places) in &ours {
            if let Some(found) = places.iter().find_map(|place| self.class(place, rest)) {
                return Found::File(found);
            }
        }
        match self.by_end(file, name) {
            Some(found) => Found::File(found),
            None if ours.iter().any(|(_, prefix, _)| !prefix.is_empty()) => Found::Unresolved,
            None => Found::external(name.split('\\').next().unwrap_or(name)),
        }
    }

    /// The file of a class below `place`; or of the class or namespace that holds the name.
    fn class(&self, place: &str, rest: &str) -> Option<usize> {
        let at = path::join(place, &rest.replace('\\', "/"))?;
        let holder = path::directory(&at);
        let found = self.files.get(&format!("{at}.php"));
        found.or_else(|| {
            let name = path::name(&at);
            let mut inside = self.files.inside(holder).iter().copied();
            inside.find(|&file| self.files.defines(file, name))
        })
    }

    /// Without a manifest: the only file that lies where the last names of the namespace say.
    fn by_end(&self, file: usize, name: &str) -> Option<usize> {
        if !self.prefixes.is_empty() {
            return None;
        }
        let at = format!("{}.php", name.replace('\\', "/"));
        let ends = std::iter::successors(Some(&*at), |end| end.split_once('/').map(|(_, rest)| rest));
        let mut found =
            ends.filter(|end| end.contains('/')).map(|end| self.files.nearest(file, self.files.ending(end)));
        found.find_map(|found| found)
    }

    /// `require __DIR__ . '/x.php'`, with whatever of it the parser keeps.
    fn included(&self, file: usize, written: &str) -> Found {
        let quoted = written.split(['\'', '"']).nth(1).unwrap_or(written).trim_start_matches('/');
        let above = path::upwards(self.files.directory(file));
        Found::file(above.into_iter().find_map(|above| self.files.at(above, quoted)))
    }
}

/// What is left of a name below a prefix.
fn below<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('\\') }
}
