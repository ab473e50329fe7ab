//! Go: an import path begins with a module's path, and the rest is a directory of that module.

use std::collections::BTreeMap;

use super::files::Files;
use super::manifests::{self, Manifests};
use super::{Found, path};

pub(super) struct Go<'a> {
    files: &'a Files<'a>,
    /// Directories by the path of the module that lies in them.
    modules: BTreeMap<&'a str, String>,
    /// Modules that are required from elsewhere.
    required: BTreeMap<&'a str, ()>,
}

impl<'a> Go<'a> {
    pub(super) fn new(files: &'a Files<'a>, manifests: &'a Manifests) -> Self {
        let mut go = Self { files, modules: BTreeMap::new(), required: BTreeMap::new() };
        for (directory, text) in manifests::named(&manifests.text, "go.mod") {
            go.read(directory, text);
        }
        go
    }

    fn read(&mut self, directory: &str, text: &'a str) {
        let mut block = "";
        for line in text.lines() {
            let line = line.split("//").next().unwrap_or(line);
            let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('"')).collect();
            match words.as_slice() {
                [directive, "("] => block = directive,
                [")"] => block = "",
                ["module", module] => {
                    self.modules.insert(module, directory.to_owned());
                }
                ["require", module, _] => {
                    self.required.insert(module, ());
                }
                ["replace", rest @ ..] => self.replace(directory, rest),
                [module, _] if block == "require" => {
                    self.required.insert(module, ());
                }
                rest if block == "replace" => self.replace(directory, rest),
                _ => {}
            }
        }
    }

    /// `old [version] => ./directory`; what is replaced by another module stays elsewhere.
    fn replace(&mut self, directory: &str, words: &[&'a str]) {
        if let [module, .., "=>", at] = words
            && at.starts_with('.')
            && let Some(at) = path::join(directory, at)
        {
            self.modules.entry(module).or_insert(at);
        }
    }

    pub(super) fn resolve(&self, file: usize, import: &str) -> Found {
        if import.starts_with("./") || import.starts_with("../") {
            let directory = path::join(self.files.directory(file), import);
            return directory.map_or(Found::Unresolved, |directory| self.package(&directory));
        }
        for module in path::upwards(import).filter(|module| !module.is_empty()) {
            if let Some(directory) = self.modules.get(module) {
                let rest = path::strip(import, module).unwrap_or_default();
                return path::join(directory, rest).map_or(Found::Unresolved, |directory| self.package(&directory));
            }
        }
        let vendored = path::upwards(self.files.directory(file)).map(|above| path::below(above, "vendor"));
        let vendored = vendored.map(|vendor| path::below(&vendor, import)).find(|at| self.files.has_directory(at));
        match vendored.map(|directory| self.package(&directory)) {
            Some(Found::Files(files)) => Found::Files(files),
            _ => Found::external(self.module_elsewhere(import)),
        }
    }

    /// The files of a package, without its tests.
    fn package(&self, directory: &str) -> Found {
        let inside = self.files.inside(directory).iter().copied();
        let belongs = |&file: &usize| {
            let at = self.files.path(file);
            at.ends_with(".go") && !at.ends_with("_test.go")
        };
        Found::files(inside.filter(belongs).collect())
    }

    /// The module of a package elsewhere: as it is required, else by the custom of its host. Packages of the standard
    /// library are named themselves.
    fn module_elsewhere<'i>(&self, import: &'i str) -> &'i str {
        let mut above = path::upwards(import).filter(|module| !module.is_empty());
        if let Some(module) = above.find(|module| self.required.contains_key(module)) {
            return module;
        }
        let host = import.split('/').next().unwrap_or(import);
        let parts = match host {
            "github.com" | "gitlab.com" | "bitbucket.org" | "golang.org" => 3,
            "gopkg.in" | "google.golang.org" | "go.uber.org" | "k8s.io" => 2,
            _ => return import,
        };
        import.match_indices('/').nth(parts - 1).map_or(import, |(end, _)| &import[..end])
    }
}
