//! One small workspace for each family of languages, with what each import leads to; and what holds for any input.

mod compiled;
mod hostile;
mod scripts;

use super::*;

/// A file, its imports, and where each is expected to lead. An import is written `mod name`, `mod name at path`,
/// `include path`, `<path>`, `relative path`, `file path`, or as it is; `def name` and `def kind name` are no imports but
/// definitions. Where it leads is a path, several of
/// them with `+` between, `(name)` for something outside, or `?`.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// Resolves a workspace and compares everything that it imports.
#[track_caller]
fn check(workspace: &[Expected<'_>], manifests: &[(&str, &str)]) {
    let (dependencies, wanted) = (resolved(workspace, manifests), wanted(workspace));
    assert_eq!(dependencies.problems, BTreeMap::new());
    let found: Vec<String> = dependencies.files.iter().flat_map(|(path, imports)| described(path, imports)).collect();
    assert_eq!(found, wanted);
}

fn resolved(workspace: &[Expected<'_>], manifests: &[(&str, &str)]) -> Dependencies {
    let parts: Vec<(Vec<ImportRef<'_>>, Vec<Definition<'_>>)> = workspace
        .iter()
        .map(|(_, written)| {
            let imports = written.iter().filter(|(import, _)| !import.starts_with("def "));
            let imports = imports.enumerate().map(|(at, (import, _))| import_of(import, at + 1)).collect();
            (imports, written.iter().filter_map(|(definition, _)| definition_of(definition)).collect())
        })
        .collect();
    let files: Vec<SourceFile<'_>> = workspace
        .iter()
        .zip(&parts)
        .map(|((path, _), (imports, symbols))| SourceFile {
            path,
            language: language(path),
            imports,
            symbols,
            references: &[],
        })
        .collect();
    let manifests: Vec<(String, String)> =
        manifests.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    resolve(&files, &manifests)
}

fn import_of(written: &str, line: usize) -> ImportRef<'_> {
    let (path, kind, at) = match written.split_once(' ') {
        Some(("mod", named)) => match named.split_once(" at ") {
            Some((name, at)) => (name, ImportKind::ModuleDeclaration, Some(at)),
            None => (named, ImportKind::ModuleDeclaration, None),
        },
        Some(("include", path)) => (path, ImportKind::Include { angled: false }, None),
        Some(("relative", path)) => (path, ImportKind::Relative, None),
        Some(("file", path)) => (path, ImportKind::File, None),
        _ if written.starts_with('<') => (written.trim_matches(['<', '>']), ImportKind::Include { angled: true }, None),
        _ => (written, ImportKind::Module, None),
    };
    ImportRef { path, kind, members: &[], at, line }
}

fn definition_of(written: &str) -> Option<Definition<'_>> {
    let written = written.strip_prefix("def ")?;
    let (kind, name) = written.split_once(' ').unwrap_or(("function", written));
    Some(Definition { kind, name, container: None, signature: name, line: 1, end_line: 1 })
}

fn language(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "rs" => "rust",
        "py" => "python",
        "js" | "mjs" | "cjs" | "jsx" => "javascript",
        "ts" | "mts" => "typescript",
        "tsx" => "tsx",
        "go" => "go",
        "java" => "java",
        "kt" => "kotlin",
        "scala" => "scala",
        "c" | "h" => "c",
        "cpp" | "hpp" | "cc" => "cpp",
        "php" => "php",
        "cs" => "csharp",
        "rb" => "ruby",
        "lua" => "lua",
        "sh" => "bash",
        "swift" => "swift",
        "css" => "css",
        "html" => "html",
        _ => "",
    }
}

fn wanted(workspace: &[Expected<'_>]) -> Vec<String> {
    let mut workspace = workspace.to_vec();
    workspace.sort_by_key(|(path, _)| *path);
    let of = |(path, imports): Expected<'_>| -> Vec<String> {
        let imports = imports.iter().filter(|(import, _)| !import.starts_with("def "));
        imports.map(|(import, target)| format!("{path}: {} -> {target}", import_of(import, 1).path)).collect()
    };
    workspace.into_iter().flat_map(of).collect()
}

fn described(path: &str, imports: &[Dependency]) -> Vec<String> {
    let target = |target: &Target| match target {
        Target::File(path) => path.to_string(),
        Target::Files(paths) => paths.join("+"),
        Target::External(name) => format!("({name})"),
        Target::Unresolved => "?".to_owned(),
    };
    imports.iter().map(|import| format!("{path}: {} -> {}", import.import, target(&import.target))).collect()
}
