//! Dependencies and outline of the repository that this is, as a workspace with nothing made up.
//!
//! `cargo test -p analysis-worker --test this_repository -- --nocapture` prints the outline.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use analysis_worker::{
    Analysis, Definition, Graph, ImportRef, Limits, SourceFile, Target, TokenBudget, analyze, outline_of_repository,
    resolve,
};

/// Everything that is read of the repository.
struct Repository {
    manifests: Vec<(String, String)>,
    texts: BTreeMap<String, String>,
    analyses: BTreeMap<String, Analysis>,
}

impl Repository {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
        let mut repository = Self { manifests: Vec::new(), texts: BTreeMap::new(), analyses: BTreeMap::new() };
        let mut directories = vec![PathBuf::from(root)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() && !name.starts_with('.') && name != "target" && name != "samples" {
                    directories.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                    repository.add(path, text);
                }
            }
        }
        repository
    }

    fn add(&mut self, path: String, text: String) {
        if path.ends_with("Cargo.toml") {
            self.manifests.push((path.clone(), text.clone()));
        }
        if let Ok(analysis) = analyze(&path, &text, &Limits::default(), || false) {
            self.analyses.insert(path.clone(), analysis);
        }
        self.texts.insert(path, text);
    }

    fn visit(&self, visit: impl FnOnce(&[SourceFile<'_>])) {
        let parts: Vec<_> = self.texts.keys().map(|path| parts(self.analyses.get(path))).collect();
        let files = self.texts.keys().zip(&parts).map(|(path, (imports, symbols, references))| SourceFile {
            path,
            language: self.analyses.get(path).map_or("", |analysis| analysis.language.name()),
            imports,
            symbols,
            references,
        });
        visit(&files.collect::<Vec<_>>());
    }
}

type Parts<'a> = (Vec<ImportRef<'a>>, Vec<Definition<'a>>, Vec<&'a str>);

fn parts(analysis: Option<&Analysis>) -> Parts<'_> {
    let Some(analysis) = analysis else { return Parts::default() };
    let imports = analysis.imports.iter();
    let imports = imports.map(|import| ImportRef {
        path: &import.path,
        kind: import.kind,
        members: &import.members,
        at: import.at.as_deref(),
        line: import.line,
    });
    let symbols = analysis.symbols.iter().filter(|symbol| !symbol.local).map(|symbol| Definition {
        kind: symbol.kind.name(),
        name: &symbol.name,
        container: symbol.container.as_deref(),
        signature: &symbol.signature,
        line: symbol.start_line,
        end_line: symbol.end_line,
    });
    let references = analysis.references.iter().map(|reference| reference.name.as_str());
    (imports.collect(), symbols.collect(), references.collect())
}

#[test]
fn every_import_of_this_repository_leads_somewhere() {
    Repository::read().visit_with_manifests(|files, manifests| {
        let dependencies = resolve(files, manifests);
        assert_eq!(dependencies.problems, BTreeMap::new());
        let rust = dependencies.files.iter().filter(|(path, _)| path.ends_with(".rs"));
        let imports: Vec<_> =
            rust.flat_map(|(path, imports)| imports.iter().map(move |import| (path, import))).collect();
        let lost: Vec<String> = imports
            .iter()
            .filter(|(_, import)| import.target == Target::Unresolved)
            .map(|(path, import)| format!("{path}:{} {}", import.line, import.import))
            .collect();
        assert_eq!(lost, Vec::<String>::new());
        // What names this workspace leads to a file of it.
        let ours = ["crate", "self", "super", "schemas", "runtime", "gateway", "orchestrator", "analysis_worker"];
        let outside: Vec<_> = imports
            .iter()
            .filter(|(_, import)| import.own || ours.contains(&import.import.split("::").next().unwrap_or_default()))
            .filter(|(_, import)| import.target.files().is_empty())
            .collect();
        assert_eq!(outside, Vec::<&(&std::sync::Arc<str>, &analysis_worker::Dependency)>::new());
        let inside = imports.iter().filter(|(_, import)| !import.target.files().is_empty()).count();
        println!("{} imports of Rust, {inside} lead to files of this workspace", imports.len());
    });
}

#[test]
fn the_outline_of_this_repository_shows_what_the_rest_stands_on() {
    Repository::read().visit_with_manifests(|files, manifests| {
        let dependencies = resolve(files, manifests);
        let outline = outline_of_repository(files, &dependencies, TokenBudget(1_000), &[]);
        println!("{outline}\n{} tokens", TokenBudget::estimate(&outline));
        let focused = outline_of_repository(files, &dependencies, TokenBudget(400), &["gateway/src".to_owned()]);
        println!("gateway/src in focus:\n{focused}");
        for cycle in Graph::of(&dependencies).cycles() {
            println!("circle: {}", cycle.join(" "));
        }
        assert!(outline.contains("\nschemas/src/"), "{outline}");
        assert!(TokenBudget::estimate(&outline) <= 1_000);
    });
}

impl Repository {
    fn visit_with_manifests(&self, visit: impl FnOnce(&[SourceFile<'_>], &[(String, String)])) {
        self.visit(|files| visit(files, &self.manifests));
    }
}
