//! Java, Kotlin and Scala: the path of a package is the end of a directory's path, and a class lies in the file of its
//! name. Kotlin may leave out the packages that all of a module's files share, and lets functions stand alone.

use std::collections::BTreeSet;

use super::files::Files;
use super::{Found, path};
use crate::lookup::Lookup;

/// Directories that are looked into for one package; a project of many modules has it in each of them.
const DIRECTORIES_MAX: usize = 64;
/// Names that may follow a class: nested classes, and a member.
const INSIDE_MAX: usize = 4;

pub(super) struct Jvm<'a> {
    files: &'a Files<'a>,
    /// Directories with classes, by their last component.
    directories: Lookup<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Jvm<'a> {
    pub(super) fn new(files: &'a Files<'a>) -> Self {
        let mut directories = Lookup::<_, BTreeSet<_>>::default();
        for source in files.sources().iter().filter(|source| is_class(source.path)) {
            let directory = path::directory(source.path);
            directories.entry(path::name(directory)).or_default().insert(directory);
        }
        Self { files, directories }
    }

    pub(super) fn resolve(&self, file: usize, import: &str) -> Found {
        let import = import.trim_start_matches("_root_.");
        let mut names: Vec<&str> = import.split('.').map(str::trim).filter(|name| !name.is_empty()).collect();
        let wildcard = names.pop_if(|name| matches!(*name, "*" | "_" | "given")).is_some();
        if names.is_empty() {
            return Found::Unresolved;
        }
        if wildcard {
            let package = self.package(&names);
            if !package.is_empty() {
                return Found::files(package);
            }
        }
        let class =
            (0..INSIDE_MAX.min(names.len())).find_map(|inside| self.class(file, &names[..names.len() - inside]));
        if let Some(found) = class {
            return Found::File(found);
        }
        let known = names.len() > 1 && !self.package(&names[..names.len() - 1]).is_empty();
        if known { Found::Unresolved } else { Found::External(package_elsewhere(&names)) }
    }

    /// The file of a class, or of a function that stands alone.
    fn class(&self, from: usize, names: &[&str]) -> Option<usize> {
        let (name, package) = names.split_last()?;
        let path = names.join("/");
        let ending = ["java", "kt", "scala"].map(|extension| format!("{path}.{extension}"));
        let found: Vec<usize> = ending.iter().flat_map(|end| self.files.ending(end)).collect();
        if let [only] = found[..] {
            return Some(only);
        }
        if !found.is_empty() {
            return self.files.nearest(from, found.iter().copied()).or(found.first().copied());
        }
        let defines = |&file: &usize| self.files.defines(file, name);
        self.package(package).into_iter().find(defines).or_else(|| self.shortened(from, name, package))
    }

    /// A class whose directory leaves out the first packages. Only below a directory that holds sources by custom.
    fn shortened(&self, from: usize, name: &str, package: &[&str]) -> Option<usize> {
        let named = ["kt", "scala"].map(|extension| format!("{name}.{extension}"));
        let candidates = named.iter().flat_map(|name| self.files.named(name)).copied();
        let fitting = candidates.filter(|&file| {
            let directory = self.files.directory(file);
            let roots = ["kotlin", "scala"].into_iter().filter_map(|root| directory.split_once(&format!("/{root}")));
            let below = roots.map(|(_, below)| below.trim_start_matches('/')).next();
            below.is_some_and(|below| {
                below.is_empty() || format!("/{}", package.join("/")).ends_with(&format!("/{below}"))
            })
        });
        self.files.nearest(from, fitting)
    }

    /// The classes of a package, in all modules.
    fn package(&self, names: &[&str]) -> Vec<usize> {
        let end = names.join("/");
        let directories = names.last().and_then(|name| self.directories.get(name));
        let fitting = directories.into_iter().flatten().filter(|directory| {
            let rest = directory.strip_suffix(&*end);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        });
        let files = fitting.take(DIRECTORIES_MAX).flat_map(|directory| self.files.inside(directory));
        files.copied().filter(|&file| is_class(self.files.path(file))).collect()
    }
}

fn is_class(at: &str) -> bool {
    matches!(path::extension(at), "java" | "kt" | "kts" | "scala" | "sc")
}

/// The package of a class elsewhere, by its first names: `org.junit.jupiter` of `org.junit.jupiter.api.Test`.
fn package_elsewhere(names: &[&str]) -> String {
    let package = names.iter().take_while(|name| !name.starts_with(char::is_uppercase));
    let package: Vec<&str> = package.take(3).copied().collect();
    if package.is_empty() { names[0].to_owned() } else { package.join(".") }
}
