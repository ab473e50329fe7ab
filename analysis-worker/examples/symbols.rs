//! Measures the analysis of a whole tree, and compares it with universal-ctags.
//!
//!     symbols DIRECTORY                           one line of JSON: time, speed, symbols a language
//!     symbols DIRECTORY --list FILE               and writes down which files were read, for `ctags -L FILE`
//!     symbols DIRECTORY --ctags TAGS [--misses N] and how many of the functions and types that ctags finds are found, in all
//!                                                 files and in those without syntax errors; some misses on stderr
//!
//! `TAGS` is what `ctags --output-format=json --fields=+nK -f TAGS -R DIRECTORY` writes, with the same `DIRECTORY`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use analysis_worker::{Analysis, Language, Limits, Refusal, analyze};
use rayon::prelude::*;
use runtime::clock;
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let Some(directory) = arguments.first() else {
        eprintln!("usage: symbols DIRECTORY [--list FILE] [--ctags TAGS [--misses N]]");
        return;
    };
    let files = walk(Path::new(directory));
    let started = clock::instant();
    let outcomes: Vec<Outcome> = files.par_iter().filter_map(|path| outcome(path)).collect();
    let seconds = clock::instant().duration_since(started).as_secs_f64();
    let mut summary = summary(&outcomes, seconds);
    if let Some(tags) = option("--ctags") {
        let misses = option("--misses").and_then(|number| number.parse().ok()).unwrap_or(0);
        summary["compared"] = compare(&outcomes, &fs::read_to_string(tags).expect("the tags can be read"), misses);
    }
    if let Some(list) = option("--list") {
        let read = outcomes.iter().filter(|outcome| outcome.result.is_ok());
        let paths: String = read.map(|outcome| format!("{}\n", outcome.path)).collect();
        fs::write(list, paths).expect("the list can be written");
    }
    println!("{summary}");
}

/// What became of one file.
struct Outcome {
    path: String,
    bytes: usize,
    result: Result<Analysis, Refusal>,
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    // What ctags would read: nothing is hidden, nothing ignored.
    let walk = ignore::WalkBuilder::new(directory).standard_filters(false).build();
    let entries = walk.filter_map(Result::ok).filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()));
    entries.map(ignore::DirEntry::into_path).collect()
}

/// `None` for a file that cannot be read, or whose language is not known.
fn outcome(path: &Path) -> Option<Outcome> {
    let bytes = fs::read(path).ok()?;
    let code = String::from_utf8_lossy(&bytes);
    let name = path.to_string_lossy().into_owned();
    let result = analyze(&name, &code, &Limits::default(), || false);
    let known = !matches!(result, Err(Refusal::UnknownLanguage { .. }));
    known.then_some(Outcome { path: name, bytes: bytes.len(), result })
}

fn summary(outcomes: &[Outcome], seconds: f64) -> Value {
    let mut languages: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut bytes = 0;
    for outcome in outcomes {
        match &outcome.result {
            Ok(analysis) => {
                bytes += outcome.bytes;
                let counts = languages.entry(analysis.language.name()).or_default();
                counts[0] += 1;
                counts[1] += analysis.symbols.len();
                counts[2] += analysis.references.len();
                counts[3] += analysis.chunks.len();
                counts[4] += usize::from(analysis.has_syntax_errors);
            }
            Err(refusal) => *refused.entry(reason(refusal)).or_default() += 1,
        }
    }
    let languages: serde_json::Map<String, Value> = languages
        .into_iter()
        .map(|(name, [files, symbols, references, chunks, broken])| {
            let counts = json!({"files": files, "symbols": symbols, "references": references, "chunks": chunks, "with_errors": broken});
            (name.to_owned(), counts)
        })
        .collect();
    let megabytes = bytes as f64 / 1e6;
    json!({
        "seconds": seconds,
        "megabytes": megabytes,
        "megabytes_per_second": megabytes / seconds,
        "files": outcomes.len(),
        "refused": refused,
        "languages": languages,
    })
}

fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownLanguage { .. } => "unknown",
        Refusal::Binary { .. } => "binary",
        Refusal::Minified { .. } => "minified",
        Refusal::TooLarge { .. } => "too large",
        Refusal::TimedOut { .. } => "timed out",
    }
}

/// The kinds of ctags that say function or type in every language.
const CLAIMED: [&str; 23] = [
    "function",
    "method",
    "func",
    "methodSpec",
    "singletonMethod",
    "procedure",
    "constructor",
    "getter",
    "setter",
    "generator",
    "class",
    "struct",
    "union",
    "enum",
    "interface",
    "trait",
    "typedef",
    "type",
    "typealias",
    "talias",
    "object",
    "protocol",
    "subroutine",
];

/// For every language, how many of the functions and types of `tags` are found as well.
fn compare(outcomes: &[Outcome], tags: &str, misses_max: usize) -> Value {
    let analysed: BTreeMap<&str, (&Analysis, BTreeMap<&str, Vec<usize>>)> = outcomes
        .iter()
        .filter_map(|outcome| {
            let analysis = outcome.result.as_ref().ok()?;
            let mut lines: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for symbol in &analysis.symbols {
                lines.entry(&symbol.name).or_default().extend([symbol.name_line, symbol.start_line]);
            }
            Some((outcome.path.as_str(), (analysis, lines)))
        })
        .collect();
    let mut found: BTreeMap<(&str, bool), [usize; 2]> = BTreeMap::new();
    let mut misses: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for tag in tags.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let field = |name: &str| tag.get(name).and_then(Value::as_str).unwrap_or_default();
        let (name, kind, path) = (field("name"), field("kind"), field("path"));
        let Some((analysis, lines)) = analysed.get(path) else { continue };
        let pattern = field("pattern");
        let claimed = match analysis.language {
            Language::Json | Language::Yaml | Language::Toml | Language::Css | Language::Html | Language::Markdown => {
                false
            }
            Language::Python => CLAIMED.contains(&kind) || kind == "member",
            // Every object that is bound to a name is a class to ctags.
            Language::JavaScript if kind == "class" => pattern.contains("class") || pattern.contains("function"),
            // And every call of something whose name begins with "function" is one.
            Language::Lua => {
                CLAIMED.contains(&kind) && ["function ", "function("].iter().any(|word| pattern.contains(word))
            }
            _ => CLAIMED.contains(&kind),
        };
        let nameless = ["__anon", "anonymous", "AnonymousFunction", "AnonymousClass"];
        if !claimed || nameless.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let line = tag.get("line").and_then(Value::as_u64).map_or(0, |line| line as usize);
        let last = name.rsplit(['.', ':', '\\']).next().unwrap_or(name);
        let joined: String = name.split_whitespace().collect();
        let near =
            |name: &str| lines.get(name).is_some_and(|lines| lines.iter().any(|other| other.abs_diff(line) <= 1));
        // What a language writes as part of a name, ctags leaves out: `#private`, `~Destructor`, `operator ==`.
        let operator = joined.strip_prefix("operator").unwrap_or(&joined);
        let private = format!("#{name}");
        let hit = [name, last, &joined, operator, &private, name.trim_start_matches('~')].into_iter().any(near);
        let language = analysis.language.name();
        for broken in [false, true] {
            if !broken || !analysis.has_syntax_errors {
                let counts = found.entry((language, broken)).or_default();
                counts[0] += usize::from(hit);
                counts[1] += 1;
            }
        }
        if !hit {
            misses.entry(language).or_default().push(format!("{path}:{line} {kind} {name}"));
        }
    }
    let mut compared = json!({});
    for ((language, clean), [hits, all]) in &found {
        let files = if *clean { "clean" } else { "all" };
        compared[*language][files] = json!({"found": hits, "of": all});
    }
    for (language, misses) in misses {
        // Spread over the tree: neighbours are missed for one reason.
        let step = misses.len().div_ceil(misses_max.max(1)).max(1);
        for miss in misses.iter().step_by(step).take(misses_max) {
            eprintln!("missed in {language}: {miss}");
        }
    }
    compared
}
