//! JavaScript and TypeScript: paths with every extension that may be left out, names from configurations, and the
//! packages of the workspace.

use std::collections::BTreeMap;

use super::files::Files;
use super::manifests::Manifests;
use super::packages::{self, Package};
use super::tsconfig::{self, Config};
use super::{Found, path};

/// Extensions that an import leaves out, the likeliest first.
const EXTENSIONS: [&str; 13] =
    ["ts", "tsx", "d.ts", "mts", "cts", "js", "jsx", "mjs", "cjs", "json", "vue", "svelte", "css"];
/// What TypeScript calls by the name of what it becomes.
const SOURCES: [(&str, &[&str]); 4] =
    [("js", &["ts", "tsx", "d.ts", "jsx"]), ("jsx", &["tsx"]), ("mjs", &["mts", "d.mts"]), ("cjs", &["cts", "d.cts"])];
/// Directories that hold what is built from `src`, and not in the workspace.
const BUILT: [&str; 6] = ["dist", "lib", "build", "out", "esm", "cjs"];

pub(super) struct Script<'a> {
    files: &'a Files<'a>,
    configs: BTreeMap<&'a str, Config>,
    packages: BTreeMap<&'a str, Package<'a>>,
    /// Directories of packages, by name.
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Script<'a> {
    pub(super) fn new(files: &'a Files<'a>, manifests: &'a Manifests) -> Self {
        let packages = packages::packages(manifests);
        let named = packages.iter().filter_map(|(&directory, package)| Some((package.name()?, directory))).collect();
        Self { files, configs: tsconfig::configs(manifests), packages, named }
    }

    pub(super) fn resolve(&self, file: usize, import: &str) -> Found {
        let directory = self.files.directory(file);
        if let Some((scheme, rest)) = import.split_once(':') {
            return elsewhere(scheme, rest, import);
        }
        if import.starts_with('.') {
            return Found::file(path::join(directory, import).and_then(|at| self.module(&at)));
        }
        if let Some(rest) = import.strip_prefix('/') {
            let above = path::upwards(directory);
            return Found::file(above.into_iter().find_map(|above| self.module(&path::join(above, rest)?)));
        }
        let candidates = self.config(directory).map(|config| config.candidates(import)).unwrap_or_default();
        if let Some(found) = candidates.iter().find_map(|at| self.module(at)) {
            return Found::File(found);
        }
        if import.starts_with('#') {
            return self.of_this_package(directory, import);
        }
        if let Some(rest) = import.strip_prefix("@/").or_else(|| import.strip_prefix("~/")) {
            return Found::file(self.aliased(directory, rest));
        }
        let name = package_name(import);
        match self.named.get(name) {
            Some(at) => Found::file(self.in_package(at, import[name.len()..].trim_start_matches('/'))),
            None => Found::external(name),
        }
    }

    /// The configuration that holds for a directory.
    fn config(&self, directory: &str) -> Option<&Config> {
        path::upwards(directory).find_map(|above| self.configs.get(above))
    }

    /// The package a directory belongs to, and its directory.
    fn package(&self, directory: &str) -> Option<(&'a str, Package<'a>)> {
        let mut above = path::upwards(directory);
        above.find_map(|above| self.packages.get_key_value(above)).map(|(&directory, &package)| (directory, package))
    }

    /// The file of a path without its extension, or of a directory.
    fn module(&self, at: &str) -> Option<usize> {
        self.file(at).or_else(|| {
            let entries = self.packages.get(at).map(|package| package.entries()).unwrap_or_default();
            let mut entries = entries.iter().filter_map(|entry| self.file(&path::join(at, entry)?));
            entries.next().or_else(|| self.file(&path::below(at, "index")))
        })
    }

    fn file(&self, at: &str) -> Option<usize> {
        let at = at.split(['?', '#']).next().filter(|plain| !plain.is_empty())?;
        if let Some(file) = self.files.get(at) {
            return Some(file);
        }
        let built = SOURCES.iter().find(|(extension, _)| *extension == path::extension(at));
        let sources = built.into_iter().flat_map(|(_, sources)| sources.iter());
        let sources = sources.map(|source| format!("{}.{source}", path::without_extension(at)));
        let complete = EXTENSIONS.iter().map(|extension| format!("{at}.{extension}"));
        sources.chain(complete).find_map(|candidate| self.files.get(&candidate))
    }

    /// A name that a package gives to its own files: `#name`.
    fn of_this_package(&self, directory: &str, import: &str) -> Found {
        let Some((at, package)) = self.package(directory) else { return Found::Unresolved };
        let files = package.imported(import);
        Found::file(files.iter().find_map(|file| self.offered(at, file)))
    }

    /// By custom, `@/` and `~/` are the sources of the package.
    fn aliased(&self, directory: &str, rest: &str) -> Option<usize> {
        let at = self.package(directory).map_or("", |(at, _)| at);
        let sources = path::join(&path::below(at, "src"), rest);
        sources.into_iter().chain(path::join(at, rest)).find_map(|at| self.module(&at))
    }

    /// What a package of the workspace is imported for.
    fn in_package(&self, at: &str, subpath: &str) -> Option<usize> {
        let package = self.packages[at];
        if subpath.is_empty() {
            let entry = package.entries().iter().find_map(|entry| self.offered(at, entry));
            let customary = ["index", "src/index", "src/main", "lib/index"];
            return entry.or_else(|| customary.iter().find_map(|entry| self.file(&path::below(at, entry))));
        }
        let exported = package.exported(&format!("./{subpath}"));
        let exported = exported.iter().find_map(|file| self.offered(at, file));
        exported.or_else(|| {
            let direct = path::join(at, subpath).into_iter();
            direct.chain(path::join(&path::below(at, "src"), subpath)).find_map(|at| self.module(&at))
        })
    }

    /// A file that a package names, or the source it is built from.
    fn offered(&self, at: &str, file: &str) -> Option<usize> {
        let relative = path::join("", file)?;
        let here = self.module(&path::below(at, &relative));
        here.or_else(|| {
            let inner = BUILT.iter().find_map(|built| path::strip(&relative, built))?;
            // `dist/esm/index.js` is built from `src/index.ts`, too.
            let deeper = BUILT.iter().find_map(|built| path::strip(inner, built));
            let stem = |inner: &str| inner.trim_end_matches(".js").trim_end_matches(".d.ts").to_owned();
            let candidates = [Some(inner), deeper].into_iter().flatten();
            let mut candidates = candidates.map(|inner| path::below(&path::below(at, "src"), inner));
            candidates.find_map(|source| self.module(&source).or_else(|| self.module(&stem(&source))))
        })
    }
}

/// An import with a scheme: `node:fs`, `npm:react@18`, `https://deno.land/x/oak/mod.ts`.
fn elsewhere(scheme: &str, rest: &str, import: &str) -> Found {
    match scheme {
        "npm" | "jsr" => {
            let name = package_name(rest.trim_start_matches('/'));
            let version = name.rfind('@').filter(|&at| at > 0).unwrap_or(name.len());
            Found::external(&name[..version])
        }
        "http" | "https" => Found::external(rest.trim_start_matches('/').split('/').next().unwrap_or(rest)),
        _ => Found::external(import),
    }
}

/// `@scope/name` of `@scope/name/sub`, `name` of `name/sub`.
fn package_name(import: &str) -> &str {
    let parts = if import.starts_with('@') { 2 } else { 1 };
    import.match_indices('/').nth(parts - 1).map_or(import, |(end, _)| &import[..end])
}
