use super::*;
use crate::dependencies::{ImportRef, resolve};
use crate::imports::ImportKind;

fn import_of(path: &str) -> ImportRef<'_> {
    ImportRef { path, kind: ImportKind::Module, members: &[], at: None, line: 1 }
}

/// A store that two services use, with a test of it.
fn workspace(visit: impl FnOnce(&[SourceFile<'_>], &Dependencies)) {
    let (store, api) = ([import_of("crate::store::Store")], [import_of("crate::api::serve")]);
    let define =
        |kind, name, container, signature, line| Definition { kind, name, container, signature, line, end_line: line };
    let file = |path, imports, symbols, references| SourceFile { path, language: "rust", imports, symbols, references };
    let store_symbols = [
        define("struct", "Store", None, "pub struct Store", 10),
        define("method", "open_store", Some("Store"), "pub fn open_store(path: &Path) -> Result<Store, Error>", 20),
        define("method", "sync_blocks", Some("Store"), "fn sync_blocks(&mut self)", 40),
        define("function", "checksum_block", None, "fn checksum_block(bytes: &[u8]) -> u32", 90),
    ];
    let api_symbols = [
        define("function", "serve", None, "pub fn serve(store: Store)", 5),
        define("function", "route_request", None, "fn route_request(path: &str)", 30),
    ];
    let main_symbols = [define("function", "main", None, "fn main()", 3)];
    let test_symbols = [define("function", "a_store_opens", None, "fn a_store_opens()", 3)];
    let files = [
        file("src/main.rs", &api[..], &main_symbols[..], &["serve"][..]),
        file("src/api.rs", &store[..], &api_symbols[..], &["Store", "Store", "open_store", "route_request"][..]),
        file("src/jobs.rs", &store[..], &[][..], &["Store", "open_store", "sync_blocks"][..]),
        file("src/store.rs", &[][..], &store_symbols[..], &["checksum_block", "Store"][..]),
        file("tests/store.rs", &[][..], &test_symbols[..], &["Store", "open_store"][..]),
        SourceFile { path: "README.md", ..SourceFile::default() },
    ];
    visit(&files, &resolve(&files, &[]));
}

#[test]
fn the_most_referenced_comes_first_and_what_is_left_out_is_told() {
    workspace(|files, dependencies| {
        let outline = outline_of_repository(files, dependencies, TokenBudget(260), &[]);
        assert_eq!(
            outline,
            "6 files (5 rust), 8 definitions; the most referenced first, with their lines\n\
             programs begin in src/main.rs\n\
             src/store.rs, used by 2\n\
             \x20 10 pub struct Store\n\
             \x20 20   pub fn open_store(path: &Path) -> Result<Store, Error>\n\
             \x20 40   fn sync_blocks(&mut self)\n\
             \x20 90 fn checksum_block(bytes: &[u8]) -> u32\n\
             src/api.rs, used by 1\n\
             \x20 5 pub fn serve(store: Store)\n\
             \x20 30 fn route_request(path: &str)\n\
             src/main.rs\n\
             \x20 3 fn main()\n\
             left out: 1 definitions, and 3 files: . 1, src 1, tests 1\n"
        );
    });
}

#[test]
fn what_the_focus_names_comes_first() {
    workspace(|files, dependencies| {
        let first = |focus: &str| {
            let outline = outline_of_repository(files, dependencies, TokenBudget(200), &[focus.to_owned()]);
            outline.lines().nth(2).unwrap().to_owned()
        };
        assert_eq!(first("tests/"), "tests/store.rs");
        assert_eq!(first("api.rs"), "src/api.rs, used by 1");
        assert_eq!(first("route_request"), "src/api.rs, used by 1");
        assert_eq!(first("no such thing"), "src/store.rs, used by 2");
    });
}

#[test]
fn an_outline_keeps_to_its_budget_whatever_that_is() {
    workspace(|files, dependencies| {
        for tokens in 0..400 {
            let outline = outline_of_repository(files, dependencies, TokenBudget(tokens), &[]);
            assert!(TokenBudget::estimate(&outline) <= tokens, "{tokens}: {outline}");
        }
    });
}

#[test]
fn the_order_of_files_changes_nothing() {
    workspace(|files, dependencies| {
        let expected = outline_of_repository(files, dependencies, TokenBudget(150), &[]);
        let mut files = files.to_vec();
        for _ in 0..files.len() {
            files.rotate_left(1);
            assert_eq!(outline_of_repository(&files, dependencies, TokenBudget(150), &[]), expected);
        }
    });
}

#[test]
fn a_name_that_is_everybodys_does_not_lift_the_file_that_has_it_too() {
    let define = |name| [Definition { kind: "method", name, container: None, signature: name, line: 1, end_line: 1 }];
    let (expect, engine) = (define("expect"), define("ignite"));
    let import = [import_of("crate::engine")];
    let file = |path, imports, symbols, references| SourceFile { path, language: "rust", imports, symbols, references };
    let paths: Vec<String> = (0..20).map(|n| format!("src/part{n}.rs")).collect();
    // All of them call `expect` of the standard library, and two use the engine.
    let parts = paths.iter().enumerate().map(|(n, path)| match n {
        0 | 1 => file(&**path, &import[..], &[][..], &["ignite", "expect", "expect"][..]),
        _ => file(&**path, &[][..], &[][..], &["expect", "expect", "expect"][..]),
    });
    let named = [
        file("src/engine.rs", &[][..], &engine[..], &[][..]),
        file("src/check.rs", &[][..], &expect[..], &[][..]),
        file("src/lib.rs", &[][..], &[][..], &[][..]),
    ];
    let files: Vec<SourceFile<'_>> = parts.chain(named).collect();
    let outline = outline_of_repository(&files, &resolve(&files, &[]), TokenBudget(200), &[]);
    assert_eq!(outline.lines().nth(1), Some("src/engine.rs, used by 2"), "{outline}");
}
