//! C#: a namespace is wherever files say that they belong to it. Where no file's definitions are known, it is by custom
//! the path of a directory, with a project's own name, dots and all, as one directory of it.

use std::collections::BTreeSet;

use super::files::Files;
use super::{Found, path};
use crate::lookup::Lookup;

pub(super) struct CSharp<'a> {
    files: &'a Files<'a>,
    /// Files by the namespaces that they define.
    defined: Lookup<&'a str, Vec<usize>>,
    /// Directories by each end of their path in dots: `App.Core.Models` and `Core.Models` of `src/App.Core/Models`.
    namespaces: Lookup<String, BTreeSet<&'a str>>,
    /// What namespaces of the workspace begin with.
    first: BTreeSet<String>,
}

/// Components of a directory that are taken for a namespace.
const PARTS_MAX: usize = 8;

impl<'a> CSharp<'a> {
    pub(super) fn new(files: &'a Files<'a>) -> Self {
        let mut csharp =
            Self { files, defined: Lookup::default(), namespaces: Lookup::default(), first: BTreeSet::new() };
        for (file, source) in files.sources().iter().enumerate().filter(|(_, source)| is_csharp(source.path)) {
            let namespaces =
                source.symbols.iter().filter(|symbol| symbol.kind == "module" && symbol.container.is_none());
            namespaces.for_each(|namespace| csharp.defined.entry(namespace.name).or_default().push(file));
        }
        let classes = files.sources().iter().filter(|source| is_csharp(source.path));
        let directories: BTreeSet<&str> = classes.map(|source| path::directory(source.path)).collect();
        for directory in directories.into_iter().filter(|directory| !directory.is_empty()) {
            let dotted = directory.replace('/', ".");
            let mut end = &*dotted;
            for _ in 0..PARTS_MAX {
                csharp.namespaces.entry(end.to_owned()).or_default().insert(directory);
                csharp.first.extend(end.split('.').next().map(str::to_owned));
                match end.split_once('.') {
                    Some((_, rest)) => end = rest,
                    None => break,
                }
            }
        }
        csharp
    }

    pub(super) fn resolve(&self, import: &str) -> Found {
        let first = import.split('.').next().unwrap_or(import);
        if !self.defined.is_empty() {
            return self.as_defined(import).unwrap_or_else(|| Found::external(first));
        }
        // `using static A.B.Class` names a class after its namespace.
        let holder = import.rsplit_once('.').map(|(holder, _)| holder);
        let namespace = self.namespaces.get(import).map(|found| (found, None));
        let class = holder.and_then(|holder| self.namespaces.get(holder));
        let class = class.map(|found| (found, import.rsplit('.').next()));
        let Some((directories, class)) = namespace.or(class) else {
            return if self.first.contains(first) { Found::Unresolved } else { Found::external(first) };
        };
        let files = directories.iter().flat_map(|directory| self.files.inside(directory)).copied();
        let files = files.filter(|&file| {
            let at = self.files.path(file);
            is_csharp(at) && class.is_none_or(|class| path::stem(at) == class)
        });
        let files: Vec<usize> = files.collect();
        match (class, files.as_slice()) {
            (Some(_), [file]) => Found::File(*file),
            (Some(_), _) => Found::Unresolved,
            _ => Found::files(files),
        }
    }

    /// The files of a namespace, or the one of a class in it.
    fn as_defined(&self, import: &str) -> Option<Found> {
        if let Some(files) = self.defined.get(import) {
            return Some(Found::files(files.clone()));
        }
        let (holder, class) = import.rsplit_once('.')?;
        let mut files = self.defined.get(holder)?.iter().copied();
        let defines = |file: &usize| self.files.sources()[*file].symbols.iter().any(|symbol| symbol.name == class);
        Some(Found::file(files.find(defines)))
    }
}

fn is_csharp(at: &str) -> bool {
    path::extension(at) == "cs"
}
