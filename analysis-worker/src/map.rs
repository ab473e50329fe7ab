//! The outline of a repository: what an engineer would read first, within so many tokens.
//!
//! Files and definitions are ranked by how much the rest refers to them, and the best are shown by their signatures.
//! Names are matched, not resolved: where a name is defined in several files, those that the referring file imports are
//! meant, else all of them a little.

mod links;
mod rank;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use self::rank::Ranked;
use crate::dependencies::{Definition, Dependencies, SourceFile};
use crate::graph::Graph;

/// How long an outline may be, tokens. They are estimated, as no tokenizer is at hand: five bytes of code are about two
/// tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBudget(pub usize);

impl TokenBudget {
    /// Tokens that a text has by this estimate.
    #[must_use]
    pub fn estimate(text: &str) -> usize {
        text.len() * 2 / 5
    }

    fn bytes(self) -> usize {
        self.0.saturating_mul(5) / 2
    }
}

/// Longest signature shown; longer ones are cut.
const SIGNATURE_CHARS_MAX: usize = 110;
/// Programs named.
const PROGRAMS_MAX: usize = 4;
/// Bytes kept for saying what was left out.
const TAIL_BYTES: usize = 200;
/// How much less each further definition of one file counts: an outline shows many files before it shows much of one.
const FURTHER: f64 = 0.9;

/// The outline of a repository, the most referenced files first, each with the signatures of its most referenced
/// definitions in order of appearance, and before each its line. It begins with where programs begin, and ends with what
/// was left out.
///
/// `focus` names files, directories or definitions; they and what they use count more. The same files give the same
/// text in whatever order they come. The text has no more tokens than `budget`, by its estimate.
#[must_use]
pub fn outline_of_repository(
    files: &[SourceFile<'_>],
    dependencies: &Dependencies,
    budget: TokenBudget,
    focus: &[String],
) -> String {
    let mut files: Vec<&SourceFile<'_>> =
        files.iter().filter(|file| dependencies.files.contains_key(file.path)).collect();
    files.sort_by_key(|file| file.path);
    files.dedup_by_key(|file| file.path);
    let ranked = rank::rank(&files, dependencies, focus);
    let graph = Graph::of(dependencies);
    let mut outline = heading(&files);
    outline.push_str(&programs(&files, &graph));
    let room = budget.bytes().saturating_sub(outline.len() + TAIL_BYTES);
    let chosen = choose(&files, &ranked, room);
    for (file, definitions) in in_order(&chosen) {
        show(&mut outline, files[file], graph.dependents(files[file].path).count(), &definitions);
    }
    left_out(&mut outline, &files, &chosen, budget.bytes());
    cut(outline, budget.bytes())
}

/// A definition that is shown.
struct Chosen<'a> {
    file: usize,
    definition: &'a Definition<'a>,
    score: f64,
}

/// Takes the best definitions as long as there is room for them.
fn choose<'a>(files: &[&'a SourceFile<'a>], ranked: &Ranked, room: usize) -> Vec<Chosen<'a>> {
    let mut candidates = Vec::new();
    for (file, source) in files.iter().enumerate() {
        let scores = ranked.definitions[file].iter().copied();
        let mut best: Vec<(f64, &Definition<'_>)> = scores.zip(source.symbols).collect();
        best.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.line.cmp(&right.1.line)));
        let mut weight = 1.0;
        for (score, definition) in best {
            candidates.push(Chosen { file, definition, score: score * weight });
            weight *= FURTHER;
        }
    }
    candidates.sort_by(|left, right| right.score.total_cmp(&left.score).then(left.file.cmp(&right.file)));
    let mut room = room;
    let mut begun = vec![false; files.len()];
    candidates.retain(|candidate| {
        let heading =
            if begun[candidate.file] { 0 } else { files[candidate.file].path.len() + ", used by 12345\n".len() };
        let cost = heading + line(candidate.definition, None).len();
        let fits = cost <= room && candidate.score > 0.0;
        if fits {
            room -= cost;
            begun[candidate.file] = true;
        }
        fits
    });
    candidates
}

/// Files by the sum of what is shown of them, best first; their definitions by line.
fn in_order<'a>(chosen: &[Chosen<'a>]) -> Vec<(usize, Vec<&'a Definition<'a>>)> {
    let mut files = BTreeMap::<usize, (f64, Vec<&Definition<'_>>)>::new();
    for one in chosen {
        let (score, definitions) = files.entry(one.file).or_default();
        *score += one.score;
        definitions.push(one.definition);
    }
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by(|(left, (score, _)), (right, (other, _))| other.total_cmp(score).then(left.cmp(right)));
    let sorted = files.into_iter().map(|(file, (_, mut definitions))| {
        definitions.sort_by_key(|definition| definition.line);
        (file, definitions)
    });
    sorted.collect()
}

fn heading(files: &[&SourceFile<'_>]) -> String {
    let mut languages = BTreeMap::<&str, usize>::new();
    for file in files.iter().filter(|file| !file.language.is_empty()) {
        *languages.entry(file.language).or_default() += 1;
    }
    let mut languages: Vec<(&str, usize)> = languages.into_iter().collect();
    languages.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
    let languages: Vec<String> = languages.iter().take(4).map(|(name, count)| format!("{count} {name}")).collect();
    let definitions: usize = files.iter().map(|file| file.symbols.len()).sum();
    let counted = format!("{} files ({}), {definitions} definitions", files.len(), languages.join(", "));
    format!("{counted}; the most referenced first, with their lines\n")
}

/// Where programs begin, one of each directory, those that depend on most files first: what refers to much is referred
/// to by nothing, and no rank would show it.
fn programs(files: &[&SourceFile<'_>], graph: &Graph) -> String {
    let begins = |file: &&&SourceFile<'_>| {
        let main = |symbol: &Definition<'_>| matches!(symbol.name, "main" | "Main") && symbol.kind == "function";
        !rank::is_test(file.path) && file.symbols.iter().any(main)
    };
    let mut programs: Vec<&str> = files.iter().filter(begins).map(|file| file.path).collect();
    programs.sort_by_key(|path| std::cmp::Reverse(graph.dependencies(path).count()));
    let mut seen = BTreeSet::new();
    programs.retain(|path| seen.insert(path.rsplit_once('/').map(|(directory, _)| directory)));
    programs.truncate(PROGRAMS_MAX);
    if programs.is_empty() { String::new() } else { format!("programs begin in {}\n", programs.join(", ")) }
}

fn show(outline: &mut String, file: &SourceFile<'_>, dependents: usize, definitions: &[&Definition<'_>]) {
    match dependents {
        0 => outline.push_str(file.path),
        count => write!(outline, "{}, used by {count}", file.path).expect("a string takes all text"),
    }
    outline.push('\n');
    let mut inside = None;
    for definition in definitions {
        outline.push_str(&line(definition, inside));
        inside = definition.container.or(Some(definition.name));
    }
}

/// One definition, with what contains it unless that was just named.
fn line(definition: &Definition<'_>, inside: Option<&str>) -> String {
    let mut signature: String = definition.signature.chars().take(SIGNATURE_CHARS_MAX).collect();
    if signature.len() < definition.signature.len() {
        signature.push('…');
    }
    match definition.container {
        Some(container) if inside == Some(container) => format!("  {}   {signature}\n", definition.line),
        Some(container) => format!("  {} {container}: {signature}\n", definition.line),
        None => format!("  {} {signature}\n", definition.line),
    }
}

/// Says how much is not shown, and where most of it lies, as far as there is room.
fn left_out(outline: &mut String, files: &[&SourceFile<'_>], chosen: &[Chosen<'_>], bytes_max: usize) {
    let definitions: usize = files.iter().map(|file| file.symbols.len()).sum();
    let mut shown = vec![false; files.len()];
    chosen.iter().for_each(|one| shown[one.file] = true);
    let mut directories = BTreeMap::<&str, usize>::new();
    let mut count = 0;
    for (file, _) in files.iter().zip(shown).filter(|(_, shown)| !shown) {
        let directory = file.path.rfind('/').map_or(".", |slash| &file.path[..slash]);
        *directories.entry(directory).or_default() += 1;
        count += 1;
    }
    if count == 0 && chosen.len() == definitions {
        return;
    }
    let mut directories: Vec<(&str, usize)> = directories.into_iter().collect();
    directories.sort_by_key(|&(directory, count)| (std::cmp::Reverse(count), directory));
    write!(outline, "left out: {} definitions, and {count} files", definitions - chosen.len())
        .expect("a string takes all text");
    for (at, (directory, count)) in directories.iter().enumerate() {
        let next = format!("{} {directory} {count}", if at == 0 { ":" } else { "," });
        if outline.len() + next.len() + ", …\n".len() > bytes_max {
            outline.push_str(if at == 0 { "" } else { ", …" });
            break;
        }
        outline.push_str(&next);
    }
    outline.push('\n');
}

/// Holds the text to the budget when even what is always said is too long.
fn cut(mut outline: String, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(outline.len())).rev().find(|&at| outline.is_char_boundary(at)).unwrap_or(0);
    outline.truncate(end);
    outline
}

#[cfg(test)]
mod tests;
