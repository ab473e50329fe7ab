//! What the files of a workspace depend on: each import, resolved to the files that it names or to the package
//! outside.
//!
//! Imports are resolved by what can be known from paths, manifests and definitions. Nothing is executed and nothing
//! is read: build scripts, search paths of a compiler and generated code are unknown here, and an import that needs
//! them is [`Target::Unresolved`], never a guess among equals.
//!
//! What must always be true: a target is a path of the workspace as it was given, whatever an import says; a broken
//! manifest costs what it would have told, and nothing else; the order of the input changes nothing.

mod c;
mod cargo;
mod csharp;
mod files;
mod go;
mod jvm;
mod manifests;
mod packages;
mod path;
mod php;
mod python;
mod rust;
mod script;
mod scripting;
mod tsconfig;
mod web;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::files::Files;
use self::manifests::Manifests;
use crate::imports::ImportKind;

/// A file of the workspace, and what its parser found in it. A file without a grammar has only a path: others may
/// import it all the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceFile<'a> {
    /// Relative to the workspace, with `/`, without `.` and `..`. Files with other paths are left out.
    pub path: &'a str,
    /// The language's name, lower case, as [`Language::name`](crate::Language::name) writes it.
    pub language: &'a str,
    /// What it imports, in order.
    pub imports: &'a [ImportRef<'a>],
    /// What it defines, in order.
    pub symbols: &'a [Definition<'a>],
    /// Names that it mentions, each as often as it does.
    pub references: &'a [&'a str],
}

/// An import as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportRef<'a> {
    /// The path in the language's own writing, without quotes: `crate::store::Store`, `..models`, `./store.js`.
    pub path: &'a str,
    /// How the path is meant.
    pub kind: ImportKind,
    /// The names taken out of it, where such a name may be a module itself: `store` of Python's `from . import store`.
    pub members: &'a [String],
    /// Where the file of a declared module lies, if the declaration says so: Rust's `#[path = "…"] mod x;`.
    pub at: Option<&'a str>,
    /// Line of the statement, from 1.
    pub line: usize,
}

/// A definition in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition<'a> {
    /// `function`, `struct`, `class`, …
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The definition that contains it.
    pub container: Option<&'a str>,
    /// Its head on one line.
    pub signature: &'a str,
    /// First line, from 1.
    pub line: usize,
    /// Last line, included.
    pub end_line: usize,
}

/// What the files of a workspace depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dependencies {
    /// By path of the importing file, each with its imports in order; every file of the workspace is here.
    pub files: BTreeMap<Arc<str>, Vec<Dependency>>,
    /// Manifests that told nothing, and why, by path.
    pub problems: BTreeMap<String, String>,
}

/// One import and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The import as it is written.
    pub import: String,
    /// Line of the statement, from 1.
    pub line: usize,
    /// Whether it names a part of the importing file instead of something it uses: Rust's `mod x;`, and names of the
    /// file's own, `use self::Kind::*`.
    pub own: bool,
    /// What it leads to.
    pub target: Target,
}

/// What an import leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file of the workspace.
    File(Arc<str>),
    /// Several files that are imported as one, by path: a Go package, `import a.b.*`. At most [`FILES_PER_IMPORT_MAX`].
    Files(Arc<[Arc<str>]>),
    /// Something that is not in the workspace: its package, crate or module.
    External(String),
    /// It should be in the workspace, and is not found; or it could be any of several.
    Unresolved,
}

impl Target {
    /// The files of the workspace it stands for.
    #[must_use]
    pub fn files(&self) -> &[Arc<str>] {
        match self {
            Self::File(path) => std::slice::from_ref(path),
            Self::Files(paths) => paths,
            Self::External(_) | Self::Unresolved => &[],
        }
    }
}

/// Imports that are resolved of one file; the parser keeps fewer.
pub const IMPORTS_PER_FILE_MAX: usize = 2_000;
/// Longest import that is resolved, bytes.
pub const IMPORT_BYTES_MAX: usize = 1_024;
/// Files that one import may stand for: the largest packages that people write by hand have about a hundred.
pub const FILES_PER_IMPORT_MAX: usize = 256;

/// Resolves every import of the workspace's files. `manifests` are paths and texts of the files that say how a
/// workspace is laid out: `Cargo.toml`, `package.json`, `tsconfig.json` and what it extends, `jsconfig.json`,
/// `go.mod`, `pyproject.toml`, `setup.cfg`, `composer.json`. Others are passed over.
#[must_use]
pub fn resolve(files: &[SourceFile<'_>], manifests: &[(String, String)]) -> Dependencies {
    let manifests = Manifests::read(manifests);
    let files = Files::new(files);
    let resolvers = Resolvers::new(&files, &manifests);
    let mut answer = Answer::new(&files);
    for (file, source) in files.sources().iter().enumerate() {
        let imports = source.imports.iter().take(IMPORTS_PER_FILE_MAX);
        let dependencies = imports.map(|import| answer.dependency(source, import, resolvers.resolve(file, import)));
        let dependencies = dependencies.collect();
        answer.files.insert(Arc::clone(&answer.paths[file]), dependencies);
    }
    Dependencies { files: answer.files, problems: manifests.problems }
}

/// What a resolver answers: files by their index in [`Files`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    File(usize),
    Files(Vec<usize>),
    External(String),
    Unresolved,
}

impl Found {
    /// A file, when there is one.
    fn file(file: Option<usize>) -> Self {
        file.map_or(Self::Unresolved, Self::File)
    }

    fn files(mut files: Vec<usize>) -> Self {
        files.sort_unstable();
        files.dedup();
        files.truncate(FILES_PER_IMPORT_MAX);
        if files.is_empty() { Self::Unresolved } else { Self::Files(files) }
    }

    fn external(name: &str) -> Self {
        Self::External(name.to_owned())
    }
}

/// One resolver for each family of languages, with what it knows of the workspace.
struct Resolvers<'a> {
    rust: rust::Rust<'a>,
    python: python::Python<'a>,
    script: script::Script<'a>,
    go: go::Go<'a>,
    jvm: jvm::Jvm<'a>,
    php: php::Php<'a>,
    csharp: csharp::CSharp<'a>,
    files: &'a Files<'a>,
}

impl<'a> Resolvers<'a> {
    fn new(files: &'a Files<'a>, manifests: &'a Manifests) -> Self {
        Self {
            rust: rust::Rust::new(files, manifests),
            python: python::Python::new(files, manifests),
            script: script::Script::new(files, manifests),
            go: go::Go::new(files, manifests),
            jvm: jvm::Jvm::new(files),
            php: php::Php::new(files, manifests),
            csharp: csharp::CSharp::new(files),
            files,
        }
    }

    fn resolve(&self, file: usize, import: &ImportRef<'_>) -> Found {
        if import.path.is_empty() || import.path.len() > IMPORT_BYTES_MAX {
            return Found::Unresolved;
        }
        match self.files.sources()[file].language {
            "rust" => self.rust.resolve(file, import),
            "python" => self.python.resolve(file, import),
            "javascript" | "typescript" | "tsx" | "jsx" | "vue" | "svelte" => self.script.resolve(file, import.path),
            "go" => self.go.resolve(file, import.path),
            "java" | "kotlin" | "scala" => self.jvm.resolve(file, import.path),
            "c" | "cpp" | "c++" | "objc" => c::resolve(self.files, file, import),
            "php" => self.php.resolve(file, import),
            "csharp" | "c-sharp" | "c_sharp" | "c#" => self.csharp.resolve(import.path),
            "ruby" => scripting::ruby(self.files, file, import),
            "lua" => scripting::lua(self.files, file, import),
            "bash" | "shell" | "sh" => scripting::bash(self.files, file, import.path),
            "swift" => Found::external(import.path.split('.').next().unwrap_or(import.path)),
            "css" | "scss" | "less" => web::css(self.files, file, import.path),
            _ => web::html(self.files, file, import.path),
        }
    }
}

/// The answer while it is put together: paths are shared, and so are lists of files that many imports lead to.
struct Answer {
    paths: Vec<Arc<str>>,
    lists: BTreeMap<Vec<usize>, Arc<[Arc<str>]>>,
    files: BTreeMap<Arc<str>, Vec<Dependency>>,
}

impl Answer {
    fn new(files: &Files<'_>) -> Self {
        let paths = files.sources().iter().map(|source| Arc::from(source.path)).collect();
        Self { paths, lists: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn dependency(&mut self, from: &SourceFile<'_>, import: &ImportRef<'_>, found: Found) -> Dependency {
        let target = self.target(found);
        let names_itself = from.language == "rust" && matches!(&target, Target::File(path) if **path == *from.path);
        let own = import.kind == ImportKind::ModuleDeclaration || names_itself;
        Dependency { import: import.path.to_owned(), line: import.line, own, target }
    }

    fn target(&mut self, found: Found) -> Target {
        match found {
            Found::File(file) => Target::File(Arc::clone(&self.paths[file])),
            Found::Files(files) => {
                let paths = &self.paths;
                let list = self
                    .lists
                    .entry(files)
                    .or_insert_with_key(|files| files.iter().map(|&file| Arc::clone(&paths[file])).collect());
                Target::Files(Arc::clone(list))
            }
            Found::External(name) => Target::External(name),
            Found::Unresolved => Target::Unresolved,
        }
    }
}

#[cfg(test)]
mod tests;
