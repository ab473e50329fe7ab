//! A workspace of 5,000 files with 50,000 imports in five languages: everything is resolved, and the time it takes is
//! that of the test (`cargo test -p analysis-worker --release --test large_workspace`).

use analysis_worker::{
    Definition, Graph, ImportKind, ImportRef, SourceFile, Target, TokenBudget, outline_of_repository, resolve,
};

const MODULES: usize = 10;
const FILES_PER_MODULE: usize = 100;
const IMPORTS_PER_FILE: usize = 10;

/// One of the five languages: how file `n` of module `m` is called, how it is imported, and something outside.
struct Shape {
    language: &'static str,
    path: fn(usize, usize) -> String,
    import: fn(usize, usize) -> String,
    outside: &'static str,
}

const SHAPES: [Shape; 5] = [
    Shape {
        language: "rust",
        path: |m, n| format!("rust/module{m}/src/file{n}.rs"),
        import: |m, n| format!("module_{m}::file{n}::Name{n}"),
        outside: "serde::Serialize",
    },
    Shape {
        language: "python",
        path: |m, n| format!("python/src/module{m}/file{n}.py"),
        import: |m, n| format!("module{m}.file{n}"),
        outside: "numpy",
    },
    Shape {
        language: "typescript",
        path: |m, n| format!("web/module{m}/file{n}.ts"),
        import: |m, n| format!("@web/module{m}/file{n}"),
        outside: "react",
    },
    Shape {
        language: "java",
        path: |m, n| format!("java/src/main/java/com/acme/module{m}/File{n}.java"),
        import: |m, n| format!("com.acme.module{m}.File{n}"),
        outside: "org.junit.jupiter.api.Test",
    },
    Shape {
        language: "c",
        path: |m, n| format!("c/module{m}/file{n}.h"),
        import: |m, n| format!("module{m}/file{n}.h"),
        outside: "openssl/ssl.h",
    },
];

fn manifests() -> Vec<(String, String)> {
    let rust = (0..MODULES).map(|m| {
        let others = (0..MODULES).map(|other| format!("module-{other} = {{ path = \"../module{other}\" }}\n"));
        let dependencies: String = others.collect();
        let text = format!("[package]\nname = \"module-{m}\"\n[dependencies]\nserde = \"1\"\n{dependencies}");
        (format!("rust/module{m}/Cargo.toml"), text)
    });
    let names = "{ \"compilerOptions\": { \"paths\": { \"@web/*\": [\"./*\"] } } }";
    rust.chain([("web/tsconfig.json".to_owned(), names.to_owned())]).collect()
}

#[test]
fn fifty_thousand_imports_are_resolved() {
    let mut written: Vec<(String, &Shape, Vec<String>, String)> = Vec::new();
    for shape in &SHAPES {
        for m in 0..MODULES {
            for n in 0..FILES_PER_MODULE {
                let inside = (1..IMPORTS_PER_FILE)
                    .map(|step| (shape.import)((m + step) % MODULES, (n * 7 + step * 13) % FILES_PER_MODULE));
                let imports = inside.chain([shape.outside.to_owned()]).collect();
                written.push(((shape.path)(m, n), shape, imports, format!("Name{n}")));
            }
        }
    }
    for m in 0..MODULES {
        written.push((format!("rust/module{m}/src/lib.rs"), &SHAPES[0], Vec::new(), "Lib".to_owned()));
    }
    let parts: Vec<(Vec<ImportRef<'_>>, [Definition<'_>; 1], Vec<&str>)> = written
        .iter()
        .map(|(_, _, imports, name)| {
            let kind = |path: &str| {
                if path == "openssl/ssl.h" { ImportKind::Include { angled: true } } else { ImportKind::Module }
            };
            let imports =
                imports.iter().map(|path| ImportRef { path, kind: kind(path), members: &[], at: None, line: 1 });
            let definition =
                Definition { kind: "struct", name, container: None, signature: name, line: 1, end_line: 1 };
            (imports.collect(), [definition], written.iter().step_by(50).map(|(.., name)| &**name).collect())
        })
        .collect();
    let files: Vec<SourceFile<'_>> = written
        .iter()
        .zip(&parts)
        .map(|((path, shape, ..), (imports, symbols, references))| SourceFile {
            path,
            language: shape.language,
            imports,
            symbols,
            references,
        })
        .collect();
    let dependencies = resolve(&files, &manifests());
    let targets = dependencies.files.values().flatten().map(|import| &import.target);
    let (mut inside, mut outside) = (0, 0);
    for target in targets {
        match target {
            Target::File(_) => inside += 1,
            Target::External(_) => outside += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((inside, outside), (45_000, 5_000));
    assert_eq!(Graph::of(&dependencies).dependencies("c/module0/file0.h").count(), IMPORTS_PER_FILE - 1);
    let outline = outline_of_repository(&files, &dependencies, TokenBudget(1_000), &[]);
    assert!(outline.starts_with("5010 files (1010 rust, "), "{outline}");
}
