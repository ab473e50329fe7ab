//! The graph of a workspace's files: what each depends on, what depends on it, and which depend on each other in a
//! circle.

use std::sync::Arc;

use crate::dependencies::{Dependencies, Target};

/// Files that one file may depend on in the graph. One that depends on more, by imports of whole packages, depends on
/// everything; the first by path are kept.
pub const DEPENDENCIES_PER_FILE_MAX: usize = 1_000;

/// Files and their dependencies, in the order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    paths: Vec<Arc<str>>,
    /// Without the files themselves, each once.
    dependencies: Vec<Vec<usize>>,
    dependents: Vec<Vec<usize>>,
    /// Files that use each other in a circle, and single ones that use themselves.
    cycles: Vec<Vec<usize>>,
}

impl Graph {
    /// The graph of resolved imports. Parts that a file declares count as its dependencies, and never towards a circle:
    /// that a module and its parent know each other is how they are meant.
    #[must_use]
    pub fn of(dependencies: &Dependencies) -> Self {
        let paths: Vec<Arc<str>> = dependencies.files.keys().cloned().collect();
        let place = |path: &Arc<str>| paths.binary_search(path).ok();
        let targets = |with_own: bool| -> Vec<Vec<usize>> {
            let of = dependencies.files.iter().map(|(file, imports)| {
                let counted = imports.iter().filter(|import| with_own || !import.own);
                let files = counted.flat_map(|import| {
                    // A file that imports the package it lies in does not mean itself.
                    let several = matches!(import.target, Target::Files(_));
                    import.target.files().iter().filter(move |&target| !several || target != file)
                });
                let mut targets: Vec<usize> = files.filter_map(place).collect();
                targets.sort_unstable();
                targets.dedup();
                targets.truncate(DEPENDENCIES_PER_FILE_MAX);
                targets
            });
            of.collect()
        };
        let cycles = cycles(&targets(false));
        let mut all = targets(true);
        let mut dependents = vec![Vec::new(); paths.len()];
        for (file, targets) in all.iter_mut().enumerate() {
            targets.retain(|&target| target != file);
            targets.iter().for_each(|&target| dependents[target].push(file));
        }
        Self { paths, dependencies: all, dependents, cycles }
    }

    /// Files that `path` depends on directly, by path. None for a file that is not in the workspace.
    pub fn dependencies(&self, path: &str) -> impl Iterator<Item = &str> {
        self.listed(&self.dependencies, path)
    }

    /// Files that depend directly on `path`, by path.
    pub fn dependents(&self, path: &str) -> impl Iterator<Item = &str> {
        self.listed(&self.dependents, path)
    }

    /// Groups of files that all reach each other, each by path, in the order of their first. A file that uses itself is
    /// a group of its own.
    pub fn cycles(&self) -> impl Iterator<Item = Vec<&str>> {
        self.cycles.iter().map(|cycle| cycle.iter().map(|&file| &*self.paths[file]).collect())
    }

    fn listed<'g>(&'g self, lists: &'g [Vec<usize>], path: &str) -> impl Iterator<Item = &'g str> + use<'g> {
        let place = self.paths.binary_search_by(|known| (**known).cmp(path)).ok();
        place.into_iter().flat_map(|file| &lists[file]).map(|&file| &*self.paths[file])
    }
}

/// Strongly connected components of more than one file, and files that have themselves as target, in order.
fn cycles(targets: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut walk = Walk {
        targets,
        found: vec![None; targets.len()],
        lowest: vec![0; targets.len()],
        open: Vec::new(),
        is_open: vec![false; targets.len()],
        count: 0,
        cycles: Vec::new(),
    };
    for file in 0..targets.len() {
        if walk.found[file].is_none() {
            walk.from(file);
        }
    }
    walk.cycles.sort_unstable();
    walk.cycles
}

/// Tarjan's algorithm with a stack of its own: a chain of imports may be longer than a thread's stack is deep.
struct Walk<'a> {
    targets: &'a [Vec<usize>],
    /// When a file was met, counted from 0.
    found: Vec<Option<usize>>,
    /// The earliest file, by when it was met, that a file reaches.
    lowest: Vec<usize>,
    /// Files whose component is not complete.
    open: Vec<usize>,
    is_open: Vec<bool>,
    count: usize,
    cycles: Vec<Vec<usize>>,
}

impl Walk<'_> {
    fn from(&mut self, start: usize) {
        let mut path = vec![(start, 0)];
        self.meet(start);
        while let Some((file, next)) = path.last_mut() {
            let file = *file;
            let Some(&target) = self.targets[file].get(*next) else {
                path.pop();
                self.leave(file);
                if let Some(&(above, _)) = path.last() {
                    self.lowest[above] = self.lowest[above].min(self.lowest[file]);
                }
                continue;
            };
            *next += 1;
            match self.found[target] {
                None => {
                    self.meet(target);
                    path.push((target, 0));
                }
                Some(met) if self.is_open[target] => self.lowest[file] = self.lowest[file].min(met),
                Some(_) => {}
            }
        }
    }

    fn meet(&mut self, file: usize) {
        self.found[file] = Some(self.count);
        self.lowest[file] = self.count;
        self.count += 1;
        self.open.push(file);
        self.is_open[file] = true;
    }

    /// Completes the component of `file` when nothing earlier is reached from it.
    fn leave(&mut self, file: usize) {
        if self.found[file] != Some(self.lowest[file]) {
            return;
        }
        let first = self.open.iter().rposition(|&open| open == file).expect("a file is open until it is left");
        let mut component = self.open.split_off(first);
        component.iter().for_each(|&member| self.is_open[member] = false);
        if component.len() > 1 || self.targets[file].contains(&file) {
            component.sort_unstable();
            self.cycles.push(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dependencies::Dependency;

    fn workspace(edges: &[(&str, &str)]) -> Dependencies {
        let mut dependencies = Dependencies::default();
        for (from, to) in edges {
            dependencies.files.entry(Arc::from(*to)).or_default();
            dependencies.files.entry(Arc::from(*from)).or_default().push(Dependency {
                import: (*to).to_owned(),
                line: 1,
                own: false,
                target: Target::File(Arc::from(*to)),
            });
        }
        dependencies
    }

    #[test]
    fn dependencies_and_dependents_are_told_once_and_in_order() {
        let graph = Graph::of(&workspace(&[("a", "c"), ("a", "b"), ("a", "c"), ("b", "c"), ("c", "c")]));
        assert_eq!(graph.dependencies("a").collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(graph.dependents("c").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(graph.dependencies("z").count(), 0);
    }

    #[test]
    fn circles_and_files_that_use_themselves_are_found() {
        let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d"), ("f", "f"), ("g", "a")];
        let graph = Graph::of(&workspace(&edges));
        assert_eq!(graph.cycles().collect::<Vec<_>>(), [vec!["a", "b", "c"], vec!["d", "e"], vec!["f"]]);
    }

    #[test]
    fn declaring_a_module_makes_no_circle() {
        let mut dependencies = workspace(&[("a.rs", "lib.rs")]);
        let own = Dependency { import: "a".into(), line: 1, own: true, target: Target::File("a.rs".into()) };
        dependencies.files.get_mut("lib.rs").unwrap().push(own);
        let graph = Graph::of(&dependencies);
        assert_eq!(graph.cycles().count(), 0);
        assert_eq!(graph.dependencies("lib.rs").collect::<Vec<_>>(), ["a.rs"]);
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let targets: Vec<Vec<usize>> = (0..200_000).map(|file| vec![(file + 1) % 200_000]).collect();
        assert_eq!(cycles(&targets).iter().map(Vec::len).collect::<Vec<_>>(), [200_000]);
    }

    proptest! {
        #[test]
        fn files_are_in_a_circle_exactly_when_they_reach_themselves(edges in prop::collection::vec((0..12_usize, 0..12_usize), 0..40)) {
            let mut targets = vec![Vec::new(); 12];
            edges.iter().for_each(|&(from, to)| targets[from].push(to));
            let mut reaches = [[false; 12]; 12];
            edges.iter().for_each(|&(from, to)| reaches[from][to] = true);
            for via in 0..12 {
                for from in 0..12 {
                    for to in 0..12 {
                        reaches[from][to] |= reaches[from][via] && reaches[via][to];
                    }
                }
            }
            let mut expected: Vec<Vec<usize>> = (0..12)
                .filter(|&file| reaches[file][file])
                .map(|file| (0..12).filter(|&other| reaches[file][other] && reaches[other][file]).collect())
                .collect();
            expected.sort();
            expected.dedup();
            prop_assert_eq!(cycles(&targets), expected);
        }
    }
}
