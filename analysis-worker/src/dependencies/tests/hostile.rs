use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const EXTENSIONS: [&str; 17] =
    ["rs", "py", "js", "ts", "tsx", "go", "java", "kt", "scala", "c", "cpp", "php", "cs", "rb", "lua", "sh", "html"];
const MANIFESTS: [(&str, &str); 8] = [
    ("Cargo.toml", "[package]\nname = \"a\"\n[lib]\npath = \"../../etc/passwd\"\n[dependencies]\nb = { path = \"b\" }"),
    ("a/Cargo.toml", "[package]\nname = \"b\"\n"),
    ("package.json", "{\"name\":\"a\",\"main\":\"../../../b\",\"exports\":{\"./*\":\"./../*\"}}"),
    (
        "tsconfig.json",
        "{\"extends\":\"./tsconfig.json\",\"compilerOptions\":{\"baseUrl\":\"../..\",\"paths\":{\"*\":[\"../*\",\"a/*\"]}}}",
    ),
    ("go.mod", "module a\nreplace b => ../../b\n"),
    ("pyproject.toml", "[tool.setuptools.packages.find]\nwhere = [\"../..\", \"a\"]\n"),
    ("composer.json", "{\"autoload\":{\"psr-4\":{\"\":\"../\",\"a\\\\\":\"a\"}}}"),
    ("b/package.json", "not json"),
];

fn part() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "src", "lib", "mod", "main", "__init__", "index", "include"])
        .prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    (prop::collection::vec(part(), 1..4), prop::sample::select(EXTENSIONS.to_vec()))
        .prop_map(|(parts, extension)| format!("{}.{extension}", parts.join("/")))
}

fn import() -> impl Strategy<Value = (String, u8)> {
    let word = prop_oneof![
        4 => part(),
        1 => prop::sample::select(vec!["..", ".", "crate", "super", "self", "*", "", "~", "@", "#a", "$A", "é", "\0"])
            .prop_map(str::to_owned),
    ];
    let separator = prop::sample::select(vec!["/", "::", ".", "\\", "/../", ":"]);
    (prop::collection::vec(word, 1..6), separator, 0_u8..5).prop_map(|(words, by, kind)| (words.join(by), kind))
}

type Written = Vec<(String, Vec<(String, u8)>)>;

fn workspace() -> impl Strategy<Value = Written> {
    let file = (path(), prop::collection::vec(import(), 0..6));
    prop::collection::vec(file, 1..24).prop_map(|files| {
        // Each path once.
        files.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
    })
}

fn dependencies_of(written: &Written, manifests: &[(&str, &str)]) -> Dependencies {
    let members = &["a".to_owned(), "..".to_owned()];
    let imports: Vec<Vec<ImportRef<'_>>> = written
        .iter()
        .map(|(_, imports)| {
            let imports = imports.iter().map(|(path, kind)| {
                let (kind, at) = match kind {
                    0 => (ImportKind::Module, None),
                    1 => (ImportKind::Relative, None),
                    2 => (ImportKind::Include { angled: path.len() % 2 == 0 }, None),
                    3 => (ImportKind::ModuleDeclaration, Some(&**path).filter(|path| path.len() % 2 == 0)),
                    _ => (ImportKind::File, None),
                };
                ImportRef { path, kind, members: if path.len() % 3 == 0 { members } else { &[] }, at, line: 1 }
            });
            imports.collect()
        })
        .collect();
    let files = written.iter().zip(&imports).map(|((path, _), imports)| SourceFile {
        path,
        language: language(path),
        imports,
        ..SourceFile::default()
    });
    let manifests = manifests.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    resolve(&files.collect::<Vec<_>>(), &manifests.collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn an_import_leads_to_files_of_the_workspace_only(written in workspace()) {
        let known: BTreeSet<&str> = written.iter().map(|(path, _)| &**path).collect();
        let dependencies = dependencies_of(&written, &MANIFESTS);
        prop_assert_eq!(dependencies.files.len(), written.len());
        for import in dependencies.files.values().flatten() {
            for path in import.target.files() {
                prop_assert!(known.contains(&**path), "{} leads to {path}", import.import);
            }
        }
    }

    #[test]
    fn the_order_of_files_and_manifests_changes_nothing(written in workspace(), turn in 0_usize..24) {
        let mut other = written.clone();
        other.reverse();
        let turn = turn % other.len();
        other.rotate_left(turn);
        let mut manifests = MANIFESTS;
        manifests.reverse();
        prop_assert_eq!(dependencies_of(&written, &MANIFESTS), dependencies_of(&other, &manifests));
    }
}

#[test]
fn paths_that_are_not_of_a_workspace_are_left_out() {
    let paths = ["../a.rs", "/etc/passwd", "a//b.rs", "./a.rs", "", "a\\b.rs", "ok.rs"];
    let deep = format!("{}a.rs", "a/".repeat(5_000));
    let paths = paths.into_iter().chain([&*deep]);
    let files: Vec<SourceFile<'_>> = paths.map(|path| SourceFile { path, ..SourceFile::default() }).collect();
    let dependencies = resolve(&files, &[]);
    assert_eq!(dependencies.files.keys().map(|path| &**path).collect::<Vec<_>>(), ["ok.rs"]);
}

#[test]
fn a_file_full_of_imports_is_read_as_far_as_the_limit() {
    let imports = vec![import_of("crate::a", 1); IMPORTS_PER_FILE_MAX + 1];
    let files = [SourceFile { path: "lib.rs", language: "rust", imports: &imports, ..SourceFile::default() }];
    assert_eq!(resolve(&files, &[]).files["lib.rs"].len(), IMPORTS_PER_FILE_MAX);
}

#[test]
fn names_passed_around_in_a_circle_end() {
    check(
        &[
            ("lib.rs", &[("mod a", "a.rs"), ("mod b", "b.rs"), ("a::X", "a.rs"), ("X::Y", "b.rs"), ("b::*", "b.rs")]),
            ("a.rs", &[("crate::b::X", "b.rs"), ("crate::b::*", "b.rs")]),
            ("b.rs", &[("crate::a::X", "a.rs"), ("crate::a::*", "a.rs")]),
        ],
        &[],
    );
}

#[test]
fn a_broken_manifest_costs_only_what_it_would_have_told() {
    let workspace: &[Expected<'_>] = &[("src/a.ts", &[("./b", "src/b.ts"), ("@lib/b", "(@lib/b)")]), ("src/b.ts", &[])];
    let dependencies = resolved(workspace, &[("tsconfig.json", "{ \"compilerOptions\": "), ("Cargo.toml", "= 1")]);
    let found: Vec<String> = dependencies.files.iter().flat_map(|(path, imports)| described(path, imports)).collect();
    assert_eq!(found, wanted(workspace));
    assert_eq!(dependencies.problems.keys().collect::<Vec<_>>(), ["Cargo.toml", "tsconfig.json"]);
}
