//! The files of a workspace, found by path, by name and by directory.

use super::{SourceFile, path};
use crate::lookup::Lookup;

/// Files of one name that are looked at to find one by the end of its path. With more, the name tells nothing.
const NAMESAKES_MAX: usize = 1_000;

/// The files in the order of their paths; a file is known by its place in that order.
pub(super) struct Files<'a> {
    sources: Vec<SourceFile<'a>>,
    by_path: Lookup<&'a str, usize>,
    by_name: Lookup<&'a str, Vec<usize>>,
    /// Files that lie directly in a directory. Every directory that leads to a file is here.
    by_directory: Lookup<&'a str, Vec<usize>>,
    /// Names that a file defines outside of everything else.
    definitions: Lookup<(usize, &'a str), ()>,
}

impl<'a> Files<'a> {
    pub(super) fn new(files: &[SourceFile<'a>]) -> Self {
        let mut sources: Vec<SourceFile<'a>> = files.iter().filter(|file| path::is_plain(file.path)).copied().collect();
        sources.sort_by_key(|source| source.path);
        sources.dedup_by_key(|source| source.path);
        let mut by_path = Lookup::default();
        let mut by_name = Lookup::<_, Vec<usize>>::default();
        let mut by_directory = Lookup::<_, Vec<usize>>::default();
        let mut definitions = Lookup::default();
        for (file, source) in sources.iter().enumerate() {
            by_path.insert(source.path, file);
            by_name.entry(path::name(source.path)).or_default().push(file);
            by_directory.entry(path::directory(source.path)).or_default().push(file);
            for above in path::upwards(path::directory(source.path)).skip(1) {
                if by_directory.contains_key(above) {
                    break;
                }
                by_directory.insert(above, Vec::new());
            }
            for definition in source.symbols.iter().filter(|definition| definition.container.is_none()) {
                definitions.insert((file, definition.name), ());
            }
        }
        Self { sources, by_path, by_name, by_directory, definitions }
    }

    pub(super) fn sources(&self) -> &[SourceFile<'a>] {
        &self.sources
    }

    pub(super) fn path(&self, file: usize) -> &'a str {
        self.sources[file].path
    }

    pub(super) fn directory(&self, file: usize) -> &'a str {
        path::directory(self.path(file))
    }

    pub(super) fn get(&self, path: &str) -> Option<usize> {
        self.by_path.get(path).copied()
    }

    /// The file that `relative` names as seen from `directory`.
    pub(super) fn at(&self, directory: &str, relative: &str) -> Option<usize> {
        self.get(&path::join(directory, relative)?)
    }

    pub(super) fn has_directory(&self, directory: &str) -> bool {
        self.by_directory.contains_key(directory)
    }

    /// Files directly in a directory, in order.
    pub(super) fn inside(&self, directory: &str) -> &[usize] {
        self.by_directory.get(directory).map_or(&[], Vec::as_slice)
    }

    /// Files of this name, in order.
    pub(super) fn named(&self, name: &str) -> &[usize] {
        let files = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        &files[..files.len().min(NAMESAKES_MAX)]
    }

    /// Files whose path ends in these components, in order.
    pub(super) fn ending<'s>(&'s self, end: &'s str) -> impl Iterator<Item = usize> + 's {
        let ends = move |&file: &usize| {
            let rest = self.path(file).strip_suffix(end);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        self.named(path::name(end)).iter().copied().filter(ends)
    }

    /// The one that shares most of its directories with `from`. None when several share as much.
    pub(super) fn nearest(&self, from: usize, candidates: impl Iterator<Item = usize>) -> Option<usize> {
        let mut best = None;
        let mut tied = false;
        for file in candidates.filter(|&file| file != from) {
            let shared = shared_directories(self.path(from), self.path(file));
            match best {
                Some((_, most)) if shared < most => {}
                Some((_, most)) if shared == most => tied = true,
                _ => (best, tied) = (Some((file, shared)), false),
            }
        }
        best.filter(|_| !tied).map(|(file, _)| file)
    }

    /// Whether a file defines a name outside of everything else.
    pub(super) fn defines(&self, file: usize, name: &str) -> bool {
        self.definitions.contains_key(&(file, name))
    }
}

fn shared_directories(left: &str, right: &str) -> usize {
    let (left, right) = (path::directory(left).split('/'), path::directory(right).split('/'));
    left.zip(right).take_while(|(left, right)| left == right).count()
}
