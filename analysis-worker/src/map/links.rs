//! Who refers to whom, and along which names: what ranks flow along.

use std::collections::BTreeMap;

use crate::dependencies::{Dependencies, FILES_PER_IMPORT_MAX, SourceFile, Target};
use crate::lookup::Lookup;

/// A name that is defined in more files than this tells nothing where none of them is imported: `new`, `get`, `name`.
const DEFINERS_MAX: usize = 16;
/// Weight of a reference to a name that the file does not import: most of them are methods, and names of libraries that
/// are met here by accident.
const NOT_IMPORTED: f64 = 0.1;
/// Weight of an import, against 1 for a reference to a name that one file defines.
const IMPORT: f64 = 1.0;
/// Weight of following no link at all. It keeps a file that refers to little from lending its whole rank to that.
const STAYING: f64 = 4.0;

/// Where a file's rank flows to.
pub(super) struct Links<'a> {
    /// Other files, each once and in order, with their shares of the rank; together less than one.
    pub(super) files: Vec<(usize, f64)>,
    /// The names along which it flows, with the file that defines each.
    pub(super) names: Vec<(&'a str, usize, f64)>,
}

/// Links of every file, in the order of the files.
pub(super) fn links<'a>(
    files: &[&SourceFile<'a>],
    dependencies: &Dependencies,
    definers: &Lookup<&'a str, Vec<usize>>,
) -> Vec<Links<'a>> {
    let places: Vec<&str> = files.iter().map(|file| file.path).collect();
    let mut trust = Lookup::<&str, Trust>::default();
    let mut found = Vec::with_capacity(files.len());
    for (file, source) in files.iter().enumerate() {
        let imports = imports(file, files, &places, dependencies);
        let mentions = mentions(file, source, files, &imports, definers);
        for mention in &mentions {
            let trust = trust.entry(mention.name).or_default();
            trust.mentioned += 1.0;
            trust.imported += if mention.imported { 1.0 } else { 0.0 };
        }
        found.push((imports, mentions));
    }
    let linked = found.into_iter().map(|(imports, mentions)| linked(&imports, &mentions, &trust, definers));
    linked.collect()
}

/// How far a name is the workspace's own: how many files mention it, and how many of these import what defines it.
/// `expect` is a method that some file defines, and meant almost nowhere.
#[derive(Default)]
struct Trust {
    mentioned: f64,
    imported: f64,
}

/// A name that a file mentions, and the files that may be meant.
struct Mention<'a> {
    name: &'a str,
    times: usize,
    imported: bool,
    meant: Vec<usize>,
}

/// Files that one imports, with the weight of the import: one for several files is shared among them. In languages of
/// packages, a file sees those beside it as if it imported them.
fn imports(
    file: usize,
    files: &[&SourceFile<'_>],
    places: &[&str],
    dependencies: &Dependencies,
) -> BTreeMap<usize, f64> {
    let source = files[file];
    let mut imports = BTreeMap::new();
    for import in dependencies.files[source.path].iter().filter(|import| !import.own) {
        let weight = match &import.target {
            Target::Files(files) => IMPORT / files.len() as f64,
            _ => IMPORT,
        };
        let targets = import.target.files().iter().filter_map(|path| places.binary_search(&&**path).ok());
        targets.for_each(|target| *imports.entry(target).or_default() += weight);
    }
    if matches!(source.language, "go" | "java" | "kotlin" | "scala" | "csharp" | "swift") {
        let beside = |&other: &usize| directory(files[other].path) == directory(source.path);
        let before = (0..file).rev().take_while(beside).take(FILES_PER_IMPORT_MAX);
        let after = (file + 1..files.len()).take_while(beside).take(FILES_PER_IMPORT_MAX);
        before.chain(after).for_each(|other| _ = imports.entry(other).or_default());
    }
    imports.remove(&file);
    imports
}

fn directory(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..slash])
}

/// Names that a file mentions and that others define. What it defines itself it means itself, unless it imports another.
fn mentions<'a>(
    file: usize,
    source: &SourceFile<'a>,
    files: &[&SourceFile<'_>],
    imports: &BTreeMap<usize, f64>,
    definers: &Lookup<&'a str, Vec<usize>>,
) -> Vec<Mention<'a>> {
    let mut references = source.references.to_vec();
    references.sort_unstable();
    let mut mentions = Vec::new();
    for same in references.chunk_by(|left, right| left == right) {
        let name = same[0];
        let Some(of) = definers.get(name) else { continue };
        let imported: Vec<usize> = if of.len() < imports.len() {
            of.iter().copied().filter(|definer| imports.contains_key(definer)).collect()
        } else {
            imports.keys().copied().filter(|import| of.binary_search(import).is_ok()).collect()
        };
        let is_imported = !imported.is_empty();
        let meant = if is_imported {
            imported
        } else if of.binary_search(&file).is_ok() {
            continue;
        } else if of.len() > DEFINERS_MAX {
            Vec::new()
        } else {
            let possible = |definer: &usize| family(files[*definer]) == family(source);
            of.iter().copied().filter(possible).collect()
        };
        let imported = is_imported || (is_seen_everywhere(name, source) && !meant.is_empty());
        mentions.push(Mention { name, times: same.len(), imported, meant });
    }
    mentions
}

/// Whether a name is known without naming the file it is in: types, where a program loads its files on its own or
/// imports no more than namespaces.
fn is_seen_everywhere(name: &str, source: &SourceFile<'_>) -> bool {
    let loads_all = matches!(source.language, "ruby" | "csharp" | "swift");
    loads_all && name.starts_with(char::is_uppercase) && !STANDARD.contains(&name)
}

/// Types that every program has: those that a file defines by the same names are rarely meant.
const STANDARD: [&str; 24] = [
    "Array",
    "Bool",
    "Class",
    "Date",
    "Dictionary",
    "Error",
    "Exception",
    "File",
    "Float",
    "Hash",
    "Int",
    "Integer",
    "List",
    "Module",
    "Object",
    "Proc",
    "Range",
    "Set",
    "String",
    "Struct",
    "Symbol",
    "Thread",
    "Time",
    "Type",
];

/// Weights of the links, as shares of all that a file refers to.
fn linked<'a>(
    imports: &BTreeMap<usize, f64>,
    mentions: &[Mention<'a>],
    trust: &Lookup<&str, Trust>,
    definers: &Lookup<&'a str, Vec<usize>>,
) -> Links<'a> {
    let mut weights = imports.clone();
    let mut names = Vec::new();
    for mention in mentions {
        let trust = &trust[mention.name];
        let own = (trust.imported + 1.0) / (trust.mentioned + 1.0);
        let certainty = own * own * if mention.imported { 1.0 } else { NOT_IMPORTED };
        let rarity = (definers[mention.name].len() as f64).sqrt();
        let weight = (mention.times as f64).sqrt() * certainty * telling(mention.name) / rarity;
        for &target in &mention.meant {
            let weight = weight / mention.meant.len() as f64;
            *weights.entry(target).or_default() += weight;
            names.push((mention.name, target, weight));
        }
    }
    let total = weights.values().sum::<f64>() + STAYING;
    names.iter_mut().for_each(|(.., weight)| *weight /= total);
    Links { files: weights.into_iter().map(|(file, weight)| (file, weight / total)).collect(), names }
}

/// How much a name tells by itself: short ones and those that begin with `_` are met by accident.
fn telling(name: &str) -> f64 {
    match name.len() {
        _ if name.starts_with('_') => 0.1,
        0..=3 => 0.2,
        4..=5 => 0.6,
        _ => 1.0,
    }
}

/// Languages whose files may refer to each other's names.
fn family<'a>(file: &SourceFile<'a>) -> &'a str {
    match file.language {
        "javascript" | "typescript" | "tsx" => "script",
        "java" | "kotlin" | "scala" => "jvm",
        "c" | "cpp" => "c",
        language => language,
    }
}
