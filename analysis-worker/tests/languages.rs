//! Every language on a small file: `samples/*` beside what is expected of it in `samples/expected/*.txt`, one line for
//! each import, symbol and reference. A changed query is always a visible diff.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use analysis_worker::{Analysis, ImportKind, Language, Limits, Symbol, analyze};

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn analysed(sample: &Path) -> Analysis {
    let code = fs::read_to_string(sample).unwrap();
    analyze(sample.file_name().unwrap().to_str().unwrap(), &code, &Limits::default(), || false).unwrap()
}

fn expected(sample: &Path) -> PathBuf {
    let name = format!("{}.txt", sample.file_name().unwrap().to_str().unwrap());
    sample.parent().unwrap().join("expected").join(name)
}

/// All that was found, in words.
fn written(analysis: &Analysis) -> String {
    let mut lines = String::new();
    for import in &analysis.imports {
        let kind = match import.kind {
            ImportKind::Module => "module",
            ImportKind::Relative => "relative",
            ImportKind::Include { angled: true } => "angled",
            ImportKind::Include { angled: false } => "quoted",
            ImportKind::ModuleDeclaration => "declaration",
            ImportKind::File => "file",
        };
        let members = import.members.join(" ");
        writeln!(lines, "{}", format!("{} import {kind} {} {members}", import.line, import.path).trim_end()).unwrap();
    }
    for symbol in &analysis.symbols {
        let Symbol { kind, name, container, container_path, signature, doc, start_line, end_line, name_line, local } =
            symbol;
        let path = container_path.as_ref().map(|path| format!("({path}) ")).unwrap_or_default();
        let local = if *local { "local " } else { "" };
        write!(lines, "{start_line}-{end_line}@{name_line} {local}{kind} {path}{name}: {signature}").unwrap();
        if let Some(doc) = doc {
            write!(lines, " -- {doc}").unwrap();
        }
        lines.push('\n');
        let separated = |path: &String| path.ends_with(container.as_deref().unwrap_or_default());
        assert!(container_path.as_ref().is_none_or(separated), "{name}: {container:?} ends {container_path:?}");
        assert_eq!(container.is_some(), container_path.is_some(), "{name}");
    }
    for reference in &analysis.references {
        writeln!(lines, "{} {} {}", reference.line, reference.kind.name(), reference.name).unwrap();
    }
    lines
}

#[test]
fn every_language_has_a_sample_that_parses_without_error() {
    let mut seen: Vec<Language> = Vec::new();
    for sample in samples() {
        let analysis = analysed(&sample);
        assert!(!analysis.has_syntax_errors, "{}", sample.display());
        seen.push(analysis.language);
    }
    seen.sort_unstable();
    assert_eq!(seen, Language::ALL);
}

#[test]
fn what_is_found_in_the_samples_is_what_is_expected() {
    for sample in samples() {
        let found = written(&analysed(&sample));
        let expected = fs::read_to_string(expected(&sample)).unwrap_or_default();
        assert!(found == expected, "{}:\n{found}\ninstead of\n{expected}", sample.display());
    }
}

#[test]
#[ignore = "writes what is expected anew; read the diff"]
fn bless() {
    for sample in samples() {
        fs::write(expected(&sample), written(&analysed(&sample))).unwrap();
    }
}
