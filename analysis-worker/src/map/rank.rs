//! How much each file and each definition is referred to: PageRank over the files, with references and imports as
//! links, and the rank that flows along a name given to what bears it.

use std::collections::{BTreeMap, BTreeSet};

use super::links::{Links, links};
use crate::dependencies::{Definition, Dependencies, SourceFile};
use crate::lookup::Lookup;

/// How much of a file's rank comes from those that refer to it.
const DAMPING: f64 = 0.85;
/// Rounds after which ranks hardly change: 0.85 to this power is below a hundredth.
const ROUNDS: usize = 30;
/// How much a definition in a test counts against one elsewhere.
const IN_TESTS: f64 = 0.05;
/// Where a walk begins: in tests less, as they refer to much, and few begin reading there.
const BEGINS_IN_TESTS: f64 = 0.1;
/// How often a walk begins at what the focus names.
const BEGINS_IN_FOCUS: f64 = 0.8;
/// How much of a file's rank is shared among its definitions without regard to their names.
const UNNAMED: f64 = 0.1;
/// How much more a definition counts in a file that the focus names: it is to be shown itself, and not only what it
/// uses.
const IN_FOCUS: f64 = 8.0;

/// Scores in the order of the files, and of each file's definitions.
pub(super) struct Ranked {
    pub(super) definitions: Vec<Vec<f64>>,
}

pub(super) fn rank(files: &[&SourceFile<'_>], dependencies: &Dependencies, focus: &[String]) -> Ranked {
    let definers = definers(files);
    let links = links(files, dependencies, &definers);
    let focused = focused(files, &definers, focus);
    let ranks = ranks(&links, &begins(files, &focused));
    let mut named = vec![BTreeMap::<&str, f64>::new(); files.len()];
    for (rank, links) in ranks.iter().zip(&links) {
        for &(name, target, share) in &links.names {
            *named[target].entry(name).or_default() += rank * share;
        }
    }
    let scored = files.iter().enumerate().map(|(file, source)| {
        let worth = if focused[file] > 0.0 {
            IN_FOCUS
        } else if is_test(source.path) {
            IN_TESTS
        } else {
            1.0
        };
        let scores = score(source, ranks[file], &named[file], focus).into_iter();
        scores.map(|score| worth * score).collect()
    });
    Ranked { definitions: scored.collect() }
}

/// Files that define a name, in order, each once.
fn definers<'a>(files: &[&SourceFile<'a>]) -> Lookup<&'a str, Vec<usize>> {
    let mut definers = Lookup::<_, Vec<usize>>::default();
    for (file, source) in files.iter().enumerate() {
        for definition in source.symbols.iter().filter(|definition| is_code(definition)) {
            let of = definers.entry(definition.name).or_default();
            if of.last() != Some(&file) {
                of.push(file);
            }
        }
    }
    definers
}

/// Shares of each file in what the focus names, as shares of one; all zero when it names nothing.
fn focused(files: &[&SourceFile<'_>], definers: &Lookup<&str, Vec<usize>>, focus: &[String]) -> Vec<f64> {
    let mut focused = vec![0.0; files.len()];
    for wanted in focus {
        let named = (0..files.len()).filter(|&file| names(wanted, files[file].path));
        let defining = definers.get(&**wanted).into_iter().flatten().copied();
        let matching: BTreeSet<usize> = named.chain(defining).collect();
        matching.iter().for_each(|&file| focused[file] += 1.0 / matching.len() as f64);
    }
    shares(focused)
}

/// Where walks begin, as shares of one.
fn begins(files: &[&SourceFile<'_>], focused: &[f64]) -> Vec<f64> {
    let everywhere = files.iter().map(|file| if is_test(file.path) { BEGINS_IN_TESTS } else { 1.0 });
    let everywhere = shares(everywhere.collect());
    if focused.iter().all(|&share| share == 0.0) {
        return everywhere;
    }
    let both = everywhere.iter().zip(focused);
    both.map(|(all, focus)| all * (1.0 - BEGINS_IN_FOCUS) + focus * BEGINS_IN_FOCUS).collect()
}

fn shares(weights: Vec<f64>) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total.max(f64::MIN_POSITIVE)).collect()
}

/// Whether a focus names a file: its path, the end of it, or a directory above it.
fn names(wanted: &str, path: &str) -> bool {
    let wanted = wanted.trim_start_matches("./").trim_end_matches('/');
    if wanted.is_empty() {
        return false;
    }
    let ends = path.strip_suffix(wanted).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    ends || path.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether a file is a test, by the customs of all languages.
pub(super) fn is_test(path: &str) -> bool {
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
    let in_tests = directories.split('/').any(|part| {
        matches!(part, "test" | "tests" | "__tests__" | "spec" | "benches" | "examples" | "testdata" | "fixtures")
    });
    let stem = name.split('.').next().unwrap_or(name);
    in_tests
        || matches!(stem, "test" | "tests" | "conftest")
        || stem.starts_with("test_")
        || ["_test", "_spec", "Test", "Tests"].iter().any(|end| stem.ends_with(end))
        || name.contains(".test.")
        || name.contains(".spec.")
}

/// The rank of each file: how often a reader is there who follows links and now and then begins anew.
fn ranks(links: &[Links<'_>], begins: &[f64]) -> Vec<f64> {
    let mut ranks = begins.to_vec();
    for _ in 0..ROUNDS {
        let mut next = vec![0.0; ranks.len()];
        let mut lost = 0.0;
        for (links, rank) in links.iter().zip(&ranks) {
            let mut stays = 1.0;
            for &(target, share) in &links.files {
                next[target] += rank * share;
                stays -= share;
            }
            lost += rank * stays;
        }
        for (next, begin) in next.iter_mut().zip(begins) {
            *next = DAMPING * (*next + lost * begin) + (1.0 - DAMPING) * begin;
        }
        ranks = next;
    }
    ranks
}

/// Scores of a file's definitions: what flows to their names, and a share of the file's own rank.
fn score(source: &SourceFile<'_>, rank: f64, named: &BTreeMap<&str, f64>, focus: &[String]) -> Vec<f64> {
    let mut bearers = BTreeMap::<&str, usize>::new();
    source.symbols.iter().for_each(|definition| *bearers.entry(definition.name).or_default() += 1);
    let scores = source.symbols.iter().map(|definition| {
        let flowed = named.get(definition.name).copied().unwrap_or_default() / bearers[definition.name] as f64;
        let shared = UNNAMED * rank / source.symbols.len() as f64;
        let wanted = focus.iter().any(|wanted| wanted == definition.name);
        (flowed + shared) * interest(definition) + if wanted { rank } else { 0.0 }
    });
    scores.collect()
}

/// Whether code may refer to it: not so the keys and headings of data and documents.
fn is_code(definition: &Definition<'_>) -> bool {
    !matches!(definition.kind, "key" | "heading" | "selector" | "anchor")
}

/// How much a kind of definition tells a reader of its file.
fn interest(definition: &Definition<'_>) -> f64 {
    if matches!(definition.container, Some("tests" | "test")) {
        return 0.02;
    }
    match definition.kind {
        // An associated type repeats what its trait says.
        "type" if definition.container.is_some() => 0.1,
        "constant" | "variable" => 0.4,
        "module" | "field" | "variant" => 0.1,
        _ if !is_code(definition) => 0.01,
        "method" => 0.7,
        _ => 1.0,
    }
}
