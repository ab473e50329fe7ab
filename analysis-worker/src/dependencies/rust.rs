//! Rust: a path leads from a crate, through its modules, to the file that holds the last of them.
//!
//! The module tree is not built: a module's file is where the language says it lies, and the manifest says where crates
//! begin. Names that a module only passes on (`pub use`) are followed to where they are defined, so that a file is
//! said to depend on what it uses and not on the shelf it took it from.

use std::collections::BTreeMap;

use super::cargo::{self, Package};
use super::files::Files;
use super::manifests::Manifests;
use super::{Found, ImportKind, ImportRef, path};
use crate::lookup::Lookup;

/// Names passed on more often than this are abuse, not code; following is recursive and must end.
const FOLLOWED_MAX: usize = 6;
/// Modules nested deeper than this are abuse, too.
const DEPTH_MAX: usize = 32;
/// Directories of modules, one in another, whose modules are all written inside one file.
const WRITTEN_INSIDE_MAX: usize = 4;
/// Globs of one module in which a name is looked for.
const GLOBS_MAX: usize = 16;

pub(super) struct Rust<'a> {
    files: &'a Files<'a>,
    packages: BTreeMap<&'a str, Package>,
    /// First files of libraries, by the library's name.
    libraries: BTreeMap<String, usize>,
    /// Files in which a crate begins.
    roots: Vec<bool>,
    roots_inside: Lookup<&'a str, Vec<usize>>,
    /// The file in which the crate of each file begins.
    crates: Vec<usize>,
    /// Modules that a file declares, with the file of those that say it themselves.
    declared: Lookup<(usize, &'a str), Option<usize>>,
    /// The file that declares a module at a path of its own choice.
    placed: Lookup<usize, usize>,
    /// The import that brings a name into a file.
    brought: Lookup<(usize, &'a str), &'a str>,
    globs: Lookup<usize, Vec<&'a str>>,
}

impl<'a> Rust<'a> {
    pub(super) fn new(files: &'a Files<'a>, manifests: &'a Manifests) -> Self {
        let packages = cargo::packages(files, manifests);
        let mut rust = Self {
            files,
            libraries: libraries(&packages),
            packages,
            roots: vec![false; files.sources().len()],
            roots_inside: Lookup::default(),
            crates: Vec::new(),
            declared: Lookup::default(),
            placed: Lookup::default(),
            brought: Lookup::default(),
            globs: Lookup::default(),
        };
        for (file, source) in files.sources().iter().enumerate().filter(|(_, source)| source.language == "rust") {
            if rust.is_root(file) {
                rust.roots[file] = true;
                rust.roots_inside.entry(files.directory(file)).or_default().push(file);
            }
            for import in source.imports {
                rust.note(file, import);
            }
        }
        rust.crates = (0..files.sources().len()).map(|file| rust.climb(file)).collect();
        rust
    }

    fn is_root(&self, file: usize) -> bool {
        let at = self.files.path(file);
        match self.package(file) {
            Some((directory, package)) => path::strip(at, directory).is_some_and(|at| package.begins_in(at)),
            None => matches!(path::name(at), "lib.rs" | "main.rs" | "build.rs"),
        }
    }

    /// The package a file lies in, and its directory.
    fn package(&self, file: usize) -> Option<(&'a str, &Package)> {
        let mut above = path::upwards(self.files.directory(file));
        above
            .find_map(|directory| self.packages.get_key_value(directory))
            .map(|(&directory, package)| (directory, package))
    }

    fn note(&mut self, file: usize, import: &ImportRef<'a>) {
        if import.kind == ImportKind::ModuleDeclaration {
            let placed = import.at.and_then(|at| self.files.at(self.files.directory(file), at));
            self.declared.insert((file, import.path), placed);
            if let Some(module) = placed {
                self.placed.entry(module).or_insert(file);
            }
            return;
        }
        match import.path.rsplit("::").next() {
            Some("*") => self.globs.entry(file).or_default().push(import.path),
            Some(name) => {
                self.brought.entry((file, name)).or_insert(import.path);
            }
            None => {}
        }
    }

    pub(super) fn resolve(&self, file: usize, import: &ImportRef<'_>) -> Found {
        if import.kind == ImportKind::ModuleDeclaration {
            return Found::file(match import.at {
                Some(at) => self.files.at(self.files.directory(file), at),
                None => self.child(file, self.children_directory(file), import.path),
            });
        }
        let mut path = import.path;
        // Inside a module that is written in this file, `super` is the file itself.
        for _ in 0..self.modules_around(file, import.line) {
            path = match path.strip_prefix("super::") {
                Some(rest) if rest.starts_with("super::") => rest,
                Some(rest) => return Found::File(self.descend(file, &segments(rest), 0)),
                None => break,
            };
        }
        self.named(file, path, 0)
    }

    /// How many modules that are written inside the file stand around a line of it.
    fn modules_around(&self, file: usize, line: usize) -> usize {
        let modules = self.files.sources()[file].symbols.iter().filter(|symbol| symbol.kind == "module");
        modules.filter(|module| (module.line..=module.end_line).contains(&line)).count()
    }

    /// What a path written in `file` names.
    fn named(&self, file: usize, written: &str, followed: usize) -> Found {
        let (written, outside) = match written.strip_prefix("::") {
            Some(written) => (written, true),
            None => (written, false),
        };
        let segments = segments(written);
        let (first, rest) = (segments[0], &segments[1..]);
        match first {
            "crate" | "$crate" => Found::File(self.descend(self.crates[file], rest, followed)),
            "self" => Found::File(self.descend(file, rest, followed)),
            "super" => {
                let ups = segments.iter().take_while(|&&segment| segment == "super").count();
                Found::file(self.above(file, ups).map(|above| self.descend(above, &segments[ups..], followed)))
            }
            _ => {
                let scope = (!outside).then(|| self.in_scope(file, written, &segments, followed)).flatten();
                scope.unwrap_or_else(|| self.of_a_crate(file, first, rest, followed))
            }
        }
    }

    /// A path that begins with a name which the file has by declaring or importing it.
    fn in_scope(&self, file: usize, written: &str, segments: &[&str], followed: usize) -> Option<Found> {
        if self.child(file, self.children_directory(file), segments[0]).is_some() {
            return Some(Found::File(self.descend(file, segments, followed)));
        }
        let import = self.brought.get(&(file, segments[0])).filter(|import| **import != written)?;
        if followed >= FOLLOWED_MAX {
            return None;
        }
        match self.named(file, import, followed + 1) {
            Found::File(module) => Some(Found::File(self.descend(module, &segments[1..], followed + 1))),
            Found::External(name) => Some(Found::External(name)),
            Found::Files(_) | Found::Unresolved => None,
        }
    }

    /// A path that begins with a crate's name, or with something that the file itself defines.
    fn of_a_crate(&self, file: usize, first: &str, rest: &[&str], followed: usize) -> Found {
        if matches!(first, "std" | "core" | "alloc" | "proc_macro" | "test") {
            return Found::external(first);
        }
        let package = self.package(file).map(|(_, package)| package);
        let dependency = package.and_then(|package| package.dependencies.get(first));
        let own = package.and_then(|package| package.library.as_ref()).filter(|(name, _)| name == first);
        let library = dependency.and_then(|name| self.libraries.get(name));
        let library = library.or(own.map(|(_, file)| file)).or_else(|| self.libraries.get(first));
        if let Some(&library) = library {
            return Found::File(self.descend(library, rest, followed));
        }
        if dependency.is_some() {
            return Found::external(first);
        }
        if self.files.defines(file, first) {
            return Found::File(file);
        }
        // Until the edition of 2018, paths began at the crate.
        let root = self.crates[file];
        let directory = self.children_directory(root);
        if self.child(root, directory, first).is_some() || self.files.has_directory(&path::below(directory, first)) {
            let segments: Vec<&str> = std::iter::once(first).chain(rest.iter().copied()).collect();
            return Found::File(self.descend(root, &segments, followed));
        }
        if package.is_none() && first.starts_with(|c: char| c.is_lowercase()) {
            return Found::external(first);
        }
        Found::Unresolved
    }

    /// The file of the last module on a path that begins in `file`, or of what the path's next name stands for there.
    fn descend(&self, file: usize, segments: &[&str], followed: usize) -> usize {
        let mut file = file;
        let mut directory = self.children_directory(file).to_owned();
        for (at, &segment) in segments.iter().enumerate() {
            if matches!(segment, "self" | "*" | "") {
                continue;
            }
            if let Some(child) = self.child(file, &directory, segment) {
                file = child;
                self.children_directory(file).clone_into(&mut directory);
                continue;
            }
            // A module written inside this file may have modules in files again.
            let inner = path::below(&directory, segment);
            if at + 1 < segments.len() && self.files.has_directory(&inner) {
                directory = inner;
                continue;
            }
            return self.passed_on(file, segment, &segments[at + 1..], followed);
        }
        file
    }

    /// Where a name of `file` comes from, when the file does not define it itself.
    fn passed_on(&self, file: usize, name: &str, rest: &[&str], followed: usize) -> usize {
        if followed >= FOLLOWED_MAX || self.files.defines(file, name) {
            return file;
        }
        if let Some(import) = self.brought.get(&(file, name)) {
            return match self.named(file, import, followed + 1) {
                Found::File(origin) => self.descend(origin, rest, followed + 1),
                _ => file,
            };
        }
        let globs = self.globs.get(&file).map_or(&[][..], Vec::as_slice);
        let mut origins = globs.iter().take(GLOBS_MAX).filter_map(|glob| {
            match self.named(file, glob.trim_end_matches("::*"), FOLLOWED_MAX) {
                Found::File(origin) => Some(origin),
                _ => None,
            }
        });
        let has = |&origin: &usize| self.files.defines(origin, name) || self.brought.contains_key(&(origin, name));
        let origin = origins.find(has);
        origin.map_or(file, |origin| self.passed_on(origin, name, rest, followed + 1))
    }

    /// The file of a module declared in `file`, whose modules lie in `directory`.
    fn child(&self, file: usize, directory: &str, name: &str) -> Option<usize> {
        if let Some(&Some(placed)) = self.declared.get(&(file, name)) {
            return Some(placed);
        }
        let name = name.trim_start_matches("r#");
        let candidates = [format!("{name}.rs"), format!("{name}/mod.rs")];
        let found = candidates.iter().find_map(|candidate| self.files.get(&path::below(directory, candidate)));
        // A crate is no module of the one beside it: `main.rs` and `lib.rs`, the files under `tests`.
        found.filter(|&found| found != file && (!self.roots[found] || self.declared.contains_key(&(file, name))))
    }

    /// Where the modules of a file lie.
    fn children_directory(&self, file: usize) -> &'a str {
        let at = self.files.path(file);
        let beside = self.roots[file] || path::name(at) == "mod.rs" || self.placed.contains_key(&file);
        if beside { path::directory(at) } else { path::without_extension(at) }
    }

    /// The file of the module so many steps above that of `file`.
    fn above(&self, file: usize, steps: usize) -> Option<usize> {
        let (mut file, mut left) = (file, steps);
        while left > 0 {
            let (parent, between) = self.parent(file)?;
            file = parent;
            left = left.saturating_sub(between);
        }
        Some(file)
    }

    /// The file that declares this one as a module, and how many steps it is above: more than one when the module lies
    /// in others that are written inside that file.
    fn parent(&self, file: usize) -> Option<(usize, usize)> {
        if self.roots[file] {
            return None;
        }
        if let Some(&parent) = self.placed.get(&file) {
            return Some((parent, 1));
        }
        let at = self.files.path(file);
        let module = if path::name(at) == "mod.rs" { path::directory(at) } else { path::without_extension(at) };
        // Directories without a file of their own are modules written inside the file above.
        let mut modules = path::upwards(module).take_while(|module| !module.is_empty()).zip(1..=WRITTEN_INSIDE_MAX);
        modules.find_map(|(module, steps)| {
            let (directory, name) = (path::directory(module), path::name(module));
            let candidates = self.owners(directory, file);
            let declares = candidates.iter().find(|&&owner| self.declared.contains_key(&(owner, name)));
            declares.or(candidates.first()).map(|&owner| (owner, steps))
        })
    }

    /// Files whose modules lie in `directory`, the likeliest first.
    fn owners(&self, directory: &str, of: usize) -> Vec<usize> {
        let named = [
            path::below(directory, "mod.rs"),
            format!("{directory}.rs"),
            path::below(directory, "lib.rs"),
            path::below(directory, "main.rs"),
        ];
        let named = named.iter().filter_map(|at| self.files.get(at));
        let named = named.filter(|&file| self.children_directory(file) == directory);
        let roots = self.roots_inside.get(directory).into_iter().flatten().copied();
        named.chain(roots).filter(|&file| file != of).collect()
    }

    /// The outermost file above this one.
    fn climb(&self, file: usize) -> usize {
        let mut root = file;
        for _ in 0..DEPTH_MAX {
            match self.parent(root) {
                Some((parent, _)) => root = parent,
                None => break,
            }
        }
        root
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.split("::").take(DEPTH_MAX).map(|segment| segment.trim_start_matches("r#")).collect()
}

/// First files of libraries, by the names under which they may be meant: their own, else that of their package.
fn libraries(packages: &BTreeMap<&str, Package>) -> BTreeMap<String, usize> {
    let own = packages.values().filter_map(|package| package.library.clone());
    let named = packages.values().filter_map(|package| Some((package.name.clone(), package.library.as_ref()?.1)));
    named.chain(own).collect()
}
