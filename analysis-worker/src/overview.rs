//! What is asked of a workspace as a whole: its outline, and what a file depends on. Both follow from the entries of the
//! catalogue; resolving all imports takes some time, so what was resolved is kept until a file changes.

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use schemas::code::{AskCode, IndexedFile, WhatOfCode};
use schemas::rpc::Refusal;

use crate::catalogue::Code;
use crate::dependencies::{Definition, Dependencies, ImportRef, SourceFile, Target, resolve};
use crate::graph::Graph;
use crate::imports::ImportKind;
use crate::map::{TokenBudget, outline_of_repository};
use crate::search::{Search, refusal};

/// Tokens of an outline.
const TOKENS: std::ops::RangeInclusive<u32> = 100..=16_000;
/// Files that are named of one kind; the others are counted.
const LISTED_MAX: usize = 60;
/// How often a name counts in one file.
const REPEATED_MAX: u32 = 8;
/// Longest file that is read as a manifest, bytes.
const MANIFEST_BYTES_MAX: usize = 256 << 10;
/// Names under which a workspace says how it is laid out.
const MANIFESTS: [&str; 7] =
    ["Cargo.toml", "package.json", "go.mod", "pyproject.toml", "setup.cfg", "composer.json", "jsconfig.json"];

/// Answers questions about whole workspaces.
pub(crate) struct Overview {
    search: Arc<Search>,
    resolved: Mutex<Option<Resolved>>,
}

/// What the imports of a workspace lead to, as long as nothing changes there.
#[derive(Clone)]
struct Resolved {
    workspace: String,
    changes: u64,
    dependencies: Arc<Dependencies>,
    graph: Arc<Graph>,
}

impl Overview {
    pub(crate) fn new(search: Arc<Search>) -> Self {
        Self { search, resolved: Mutex::default() }
    }

    pub(crate) async fn answer(self: Arc<Self>, question: AskCode) -> Result<String, Refusal> {
        let (code, below) = self.search.place_of(&question.workspace).await?;
        let answered = tokio::task::spawn_blocking(move || match question.what {
            WhatOfCode::Outline { tokens_max, focus } => {
                let focus: Vec<String> = focus.into_iter().chain((!below.is_empty()).then(|| below.clone())).collect();
                Ok(self.outline(&code, tokens_max.clamp(*TOKENS.start(), *TOKENS.end()) as usize, &focus))
            }
            WhatOfCode::Dependencies { path } => self.dependencies(&code, &format!("{below}{path}")),
        });
        answered.await.map_err(|_| refusal("internal", "the answer was not found"))?
    }

    fn outline(&self, code: &Code, tokens: usize, focus: &[String]) -> String {
        let resolved = self.resolved(code);
        with_sources(code, |sources| outline_of_repository(sources, &resolved.dependencies, TokenBudget(tokens), focus))
    }

    fn dependencies(&self, code: &Code, path: &str) -> Result<String, Refusal> {
        let resolved = self.resolved(code);
        let Some(imports) = resolved.dependencies.files.get(path) else {
            return Err(refusal(
                "bad_request",
                &format!("{path} is not indexed; name a file, relative to the workspace"),
            ));
        };
        let mut text = format!("{path}\n");
        let uses: Vec<&str> = resolved.graph.dependencies(path).collect();
        listed(&mut text, "depends on", &uses);
        let mut outside: Vec<&str> = Vec::new();
        let mut unresolved: Vec<&str> = Vec::new();
        for import in imports {
            match &import.target {
                Target::External(name) => outside.push(name),
                Target::Unresolved => unresolved.push(&import.import),
                Target::File(_) | Target::Files(_) => {}
            }
        }
        for (what, mut names) in [("uses from outside", outside), ("imports and cannot be found", unresolved)] {
            names.sort_unstable();
            names.dedup();
            listed(&mut text, what, &names);
        }
        let used_by: Vec<&str> = resolved.graph.dependents(path).collect();
        listed(&mut text, "is used by", &used_by);
        if let Some(cycle) = resolved.graph.cycles().find(|cycle| cycle.contains(&path)) {
            listed(&mut text, "lies in a circle of", &cycle);
        }
        Ok(text)
    }

    fn resolved(&self, code: &Code) -> Resolved {
        let changes = code.read().changes();
        let known = self.resolved.lock().expect("no panic while the lock is held").clone();
        if let Some(known) = known.filter(|known| known.workspace == code.workspace && known.changes == changes) {
            return known;
        }
        let manifests = manifests(code);
        let dependencies = Arc::new(with_sources(code, |sources| resolve(sources, &manifests)));
        let graph = Arc::new(Graph::of(&dependencies));
        let resolved = Resolved { workspace: code.workspace.clone(), changes, dependencies, graph };
        *self.resolved.lock().expect("no panic while the lock is held") = Some(resolved.clone());
        resolved
    }
}

/// A list under a heading; nothing when it is empty.
fn listed(text: &mut String, what: &str, names: &[&str]) {
    if names.is_empty() {
        return;
    }
    let _ = writeln!(text, "{what} ({}):", names.len());
    for name in names.iter().take(LISTED_MAX) {
        let _ = writeln!(text, "  {name}");
    }
    if names.len() > LISTED_MAX {
        let _ = writeln!(text, "  and {} more", names.len() - LISTED_MAX);
    }
}

/// The files that say how the workspace is laid out.
fn manifests(code: &Code) -> Vec<(String, String)> {
    let held = code.read();
    let is_manifest = |file: &IndexedFile| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let of_typescript = name.starts_with("tsconfig") && name.ends_with(".json");
        file.text.len() <= MANIFEST_BYTES_MAX && (MANIFESTS.contains(&name) || of_typescript)
    };
    let found = held.files.values().map(|file| &file.entry).filter(|file| is_manifest(file));
    found.map(|file| (file.path.clone(), file.text.clone())).collect()
}

/// Lends the entries of a workspace as sources.
fn with_sources<T>(code: &Code, then: impl FnOnce(&[SourceFile<'_>]) -> T) -> T {
    let held = code.read();
    let entries: Vec<&IndexedFile> = held.files.values().map(|file| &file.entry).collect();
    let parts: Vec<_> = entries.iter().map(|file| (imports(file), definitions(file), references(file))).collect();
    let sources: Vec<SourceFile<'_>> = entries
        .iter()
        .zip(&parts)
        .map(|(file, (imports, symbols, references))| SourceFile {
            path: &file.path,
            language: &file.language,
            imports,
            symbols,
            references,
        })
        .collect();
    then(&sources)
}

fn imports(file: &IndexedFile) -> Vec<ImportRef<'_>> {
    let known = file.imports.iter().filter_map(|import| Some((import, kind_of(&import.kind)?)));
    let imports = known.map(|(import, kind)| ImportRef {
        path: &import.path,
        kind,
        members: &import.members,
        at: import.at.as_deref(),
        line: import.line as usize,
    });
    imports.collect()
}

/// The name under which a kind of import is kept.
pub(crate) fn name_of(kind: ImportKind) -> &'static str {
    match kind {
        ImportKind::Module => "module",
        ImportKind::Relative => "relative",
        ImportKind::Include { angled: false } => "include",
        ImportKind::Include { angled: true } => "system_include",
        ImportKind::ModuleDeclaration => "declaration",
        ImportKind::File => "file",
    }
}

fn kind_of(name: &str) -> Option<ImportKind> {
    Some(match name {
        "module" => ImportKind::Module,
        "relative" => ImportKind::Relative,
        "include" => ImportKind::Include { angled: false },
        "system_include" => ImportKind::Include { angled: true },
        "declaration" => ImportKind::ModuleDeclaration,
        "file" => ImportKind::File,
        _ => return None,
    })
}

fn definitions(file: &IndexedFile) -> Vec<Definition<'_>> {
    let symbols = file.symbols.iter().map(|symbol| Definition {
        kind: &symbol.kind,
        name: &symbol.name,
        container: symbol.container.as_deref(),
        signature: &symbol.signature,
        line: symbol.start_line as usize,
        end_line: symbol.end_line as usize,
    });
    symbols.collect()
}

/// Names, each as often as it stands there, up to a bound beyond which it says no more.
fn references(file: &IndexedFile) -> Vec<&str> {
    let names = file.references.iter();
    names.flat_map(|(name, count)| std::iter::repeat_n(name.as_str(), (*count).min(REPEATED_MAX) as usize)).collect()
}
