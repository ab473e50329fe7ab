//! Python: a dotted name leads from one of the directories in which packages lie to a module's file.
//!
//! Where packages lie is told by `__init__.py` (a package lies in the first directory without one), by the manifest,
//! and by custom: `src`, and the directories above the importing file.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::files::Files;
use super::manifests::{self, Manifests};
use super::{Found, ImportRef, path};
use crate::lookup::Lookup;

/// Directories above a file that are looked into.
const ABOVE_MAX: usize = 12;
/// Names taken out of one module that are looked at.
const MEMBERS_MAX: usize = 256;
/// Directories of packages that are looked into, besides those above the file.
const ROOTS_MAX: usize = 64;
/// Names of a dotted name; longer ones are abuse, not code.
const NAMES_MAX: usize = 32;

pub(super) struct Python<'a> {
    files: &'a Files<'a>,
    /// Directories in which packages lie as far as the workspace tells, by the names that are found there.
    roots: Lookup<&'a str, BTreeSet<&'a str>>,
    /// Every name on the way to a module: what is not among them is not in the workspace.
    names: Lookup<&'a str, ()>,
}

impl<'a> Python<'a> {
    pub(super) fn new(files: &'a Files<'a>, manifests: &Manifests) -> Self {
        let told = told(manifests);
        let mut python = Self { files, roots: Lookup::default(), names: Lookup::default() };
        let modules = files.sources().iter().map(|source| source.path);
        for module in modules.filter(|at| matches!(path::extension(at), "py" | "pyi")) {
            python.names.extend(path::without_extension(module).split('/').map(|name| (name, ())));
            let root = python.package_root(path::directory(module));
            for above in path::upwards(path::directory(module)) {
                let is_root = told.contains(above) || (above == root && root != path::directory(module));
                if let Some(rest) = path::strip(module, above).filter(|_| is_root) {
                    let name = rest.split('/').next().unwrap_or(rest);
                    python
                        .roots
                        .entry(name.trim_end_matches(".pyi").trim_end_matches(".py"))
                        .or_default()
                        .insert(above);
                }
            }
        }
        python
    }

    /// The directory in which the outermost package around `directory` lies; `directory` itself outside of packages.
    fn package_root<'p>(&self, directory: &'p str) -> &'p str {
        let mut above = path::upwards(directory);
        above.find(|directory| !self.is_package(directory)).unwrap_or_default()
    }

    fn is_package(&self, directory: &str) -> bool {
        !directory.is_empty() && self.files.get(&path::below(directory, "__init__.py")).is_some()
    }

    pub(super) fn resolve(&self, file: usize, import: &ImportRef<'_>) -> Found {
        let mut files = Vec::new();
        for member in import.members.iter().take(MEMBERS_MAX) {
            match self.named(file, import.path, Some(member)) {
                Found::File(module) => files.push(module),
                Found::Files(modules) => files.extend(modules),
                Found::External(_) | Found::Unresolved => return self.named(file, import.path, None),
            }
        }
        match files.split_first() {
            None => self.named(file, import.path, None),
            Some((first, others)) if others.iter().all(|other| other == first) => Found::File(*first),
            Some(_) => Found::files(files),
        }
    }

    /// The module of a dotted name, or what is taken out of it: a module as well, or else a name of its own.
    fn named(&self, file: usize, import: &str, member: Option<&str>) -> Found {
        let directory = self.files.directory(file);
        let name = import.trim_start_matches('.');
        let dots = import.len() - name.len();
        let parts: Vec<&str> = name.split('.').chain(member).filter(|part| !part.is_empty()).collect();
        if parts.len() > NAMES_MAX {
            return Found::Unresolved;
        }
        if dots > 0 {
            let base = path::upwards(directory).nth(dots - 1);
            return base.and_then(|base| self.module(base, &parts)).unwrap_or(Found::Unresolved);
        }
        let Some(&first) = parts.first().filter(|first| self.names.contains_key(**first)) else {
            return Found::external(parts.first().unwrap_or(&import));
        };
        let root = self.package_root(directory);
        if STANDARD.split(' ').any(|known| known == first) {
            // Only a script's own directory comes before the standard library.
            let beside = (root == directory).then(|| self.module(root, &parts)).flatten();
            return beside.filter(|found| matches!(found, Found::File(_))).unwrap_or_else(|| Found::external(first));
        }
        let above = path::upwards(root).take(ABOVE_MAX).filter(|directory| !self.is_package(directory));
        let above = above.flat_map(|directory| [directory.to_owned(), path::below(directory, "src")]);
        let others = self.roots.get(first).into_iter().flatten().take(ROOTS_MAX).map(|&root| root.to_owned());
        let roots: Vec<String> = above.chain(others).filter(|root| self.begins(root, first)).collect();
        let found = roots.iter().find_map(|root| self.module(root, &parts));
        found.unwrap_or_else(|| if roots.is_empty() { Found::external(first) } else { Found::Unresolved })
    }

    /// Whether a module or package of this name lies in a directory.
    fn begins(&self, root: &str, name: &str) -> bool {
        let at = path::below(root, name);
        self.file(&at).is_some() || !self.modules(&at).is_empty() || self.is_namespace(&at)
    }

    /// Whether a directory holds packages without being one: it has directories, and no file of another kind.
    fn is_namespace(&self, directory: &str) -> bool {
        self.files.has_directory(directory) && self.files.inside(directory).is_empty()
    }

    /// The file of a module below `base`. The last name may be one that the module defines.
    fn module(&self, base: &str, parts: &[&str]) -> Option<Found> {
        let at = parts.iter().fold(base.to_owned(), |at, part| path::below(&at, part));
        if let Some(file) = self.file(&at) {
            return Some(Found::File(file));
        }
        let modules = self.modules(&at);
        if !modules.is_empty() {
            return Some(Found::files(modules.to_vec()));
        }
        let (_, holder) = parts.split_last()?;
        let at = holder.iter().fold(base.to_owned(), |at, part| path::below(&at, part));
        let holding = self.file(&at).filter(|_| !at.is_empty());
        holding.or_else(|| self.plain_module(base, holder)).map(Found::File)
    }

    /// A module that is no package, and yet has modules in it: `six.moves.urllib` is made when `six` is run.
    fn plain_module(&self, base: &str, parts: &[&str]) -> Option<usize> {
        let mut at = base.to_owned();
        parts.iter().find_map(|part| {
            at = path::below(&at, part);
            self.files.get(&format!("{at}.py"))
        })
    }

    fn file(&self, at: &str) -> Option<usize> {
        let candidates = ["/__init__.py", ".py", "/__init__.pyi", ".pyi"];
        candidates.iter().find_map(|end| self.files.get(format!("{at}{end}").trim_start_matches('/')))
    }

    /// The modules that lie in a directory without `__init__.py`.
    fn modules(&self, directory: &str) -> Vec<usize> {
        let inside = self.files.inside(directory).iter().copied();
        inside.filter(|&file| matches!(path::extension(self.files.path(file)), "py" | "pyi")).collect()
    }
}

/// Directories in which the manifests say that packages lie.
fn told(manifests: &Manifests) -> BTreeSet<String> {
    let mut roots = BTreeSet::new();
    for (directory, table) in manifests::named(&manifests.toml, "pyproject.toml") {
        roots.extend(told_by_project(table).iter().filter_map(|told| path::join(directory, told)));
        roots.insert(path::below(directory, "src"));
    }
    for (directory, text) in manifests::named(&manifests.text, "setup.cfg") {
        roots.extend(told_by_setup(text).filter_map(|told| path::join(directory, told)));
        roots.insert(path::below(directory, "src"));
    }
    roots
}

/// Directories that a `pyproject.toml` names for its packages, by the words of setuptools, poetry and hatch.
fn told_by_project(table: &Table) -> Vec<&str> {
    let tool = |names: &[&str]| names.iter().try_fold(table.get("tool")?, |value, name| value.get(name));
    let mut told = Vec::new();
    let found = tool(&["setuptools", "packages", "find", "where"]);
    told.extend(found.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
    told.extend(tool(&["setuptools", "package-dir", ""]).and_then(Value::as_str));
    let packages = tool(&["poetry", "packages"]).and_then(Value::as_array).into_iter().flatten();
    told.extend(packages.filter_map(|package| package.get("from")?.as_str()));
    let wheel = tool(&["hatch", "build", "targets", "wheel", "packages"]).and_then(Value::as_array);
    told.extend(wheel.into_iter().flatten().filter_map(Value::as_str).map(path::directory));
    told
}

/// Directories that a `setup.cfg` names for its packages.
fn told_by_setup(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        matches!(key.trim(), "" | "where").then_some(value.trim())
    })
}

/// Modules of the standard library.
const STANDARD: &str = "__future__ _thread abc aifc annotationlib argparse array ast asynchat asyncio asyncore atexit audioop base64 bdb \
    binascii bisect builtins bz2 cProfile calendar cgi cgitb chunk cmath cmd code codecs codeop collections colorsys \
    compileall compression concurrent configparser contextlib contextvars copy copyreg crypt csv ctypes curses \
    dataclasses datetime dbm decimal difflib dis distutils doctest email encodings ensurepip enum errno faulthandler \
    fcntl filecmp fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob graphlib grp gzip \
    hashlib heapq hmac html http imaplib imghdr imp importlib inspect io ipaddress itertools json keyword linecache \
    locale logging lzma mailbox mailcap marshal math mimetypes mmap modulefinder msvcrt multiprocessing netrc \
    nntplib ntpath numbers operator optparse os pathlib pdb pickle pickletools pipes pkgutil platform plistlib \
    poplib posix posixpath pprint profile pstats pty pwd py_compile pyclbr pydoc pyexpat queue quopri random re \
    readline reprlib resource rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site smtpd \
    smtplib sndhdr socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess sunau \
    symtable sys sysconfig syslog tabnanny tarfile telnetlib tempfile termios textwrap threading time timeit tkinter \
    token tokenize tomllib trace traceback tracemalloc tty turtle types typing unicodedata unittest urllib uu uuid \
    venv warnings wave weakref webbrowser winreg wsgiref xdrlib xml xmlrpc zipapp zipfile zipimport zlib zoneinfo";
