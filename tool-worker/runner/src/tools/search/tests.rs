//! Searches of small trees: what is found, in which order, and how it is told.

use super::*;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;

fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
    let base = tempfile::Builder::new().prefix("ws").tempdir().unwrap();
    for (path, content) in files {
        let path = base.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    base
}

fn found(base: &tempfile::TempDir, arguments: Value) -> Result<String, String> {
    told(base, arguments, false)
}

fn told(base: &tempfile::TempDir, arguments: Value, brief: bool) -> Result<String, String> {
    let confined = Confined::open(base.path()).unwrap();
    let crew = Crew::start().unwrap();
    let arguments = serde_json::from_value(arguments).unwrap();
    search(base.path(), &confined, &arguments, brief, &crew).map_err(|failure| failure.detail)
}

#[test]
fn definitions_come_first_and_ignored_files_stay_out() {
    let base = workspace(&[
        (".gitignore", "target\n"),
        ("a.rs", "use crate::open_store;\nlet s = open_store(1);\n"),
        ("src/store.rs", "// fn open_store is here\n    pub(crate) async fn open_store(n: u8) {\n"),
        ("target/x.rs", "fn open_store() {}\n"),
        ("bin.dat", "open_store\0\0"),
    ]);
    assert_eq!(
        found(&base, json!({"query": "open_store"})).unwrap(),
        "4 matches\nsrc/store.rs:2: pub(crate) async fn open_store(n: u8) {\na.rs:1: use crate::open_store;\n\
         a.rs:2: let s = open_store(1);\nsrc/store.rs:1: // fn open_store is here"
    );
    assert_eq!(found(&base, json!({"query": "nowhere"})).unwrap(), "no matches");
    assert_eq!(
        found(&base, json!({"query": "open_\\w+\\(n", "regex": true, "path": "src"})).unwrap(),
        "1 matches\nsrc/store.rs:2: pub(crate) async fn open_store(n: u8) {"
    );
    assert_eq!(found(&base, json!({"query": "(", "path": "src/store.rs"})).unwrap().lines().next(), Some("1 matches"));
    let invalid = found(&base, json!({"query": "(", "regex": true})).unwrap_err();
    assert!(invalid.starts_with("query is not a valid pattern"));
    assert!(found(&base, json!({"query": "x", "path": "../"})).unwrap_err().starts_with("path is outside"));
    assert_eq!(found(&base, json!({"query": "x", "path": "none"})).unwrap_err(), "no such file: none");
}

#[test]
fn all_are_counted_and_few_are_shown() {
    let base = workspace(&[("a.txt", &"x\n".repeat(1500)), ("b.txt", &"y\n".repeat(20))]);
    assert!(found(&base, json!({"query": "x"})).unwrap().starts_with("1500 matches\na.txt:1: x\n"));
    let text = found(&base, json!({"query": "y"})).unwrap();
    let last = "... (15 more; go on with \"offset\": 5)";
    assert_eq!((text.lines().next(), text.lines().count()), (Some("20 matches"), 1 + SHOWN_DEFAULT + 1));
    assert_eq!(text.lines().next_back(), Some(last));
    assert_eq!(found(&base, json!({"query": "y", "max": 2})).unwrap().lines().count(), 4);
    assert_eq!(told(&base, json!({"query": "y", "max": 1}), true).unwrap(), "20 matches\nb.txt:1: y");
    assert_eq!(found(&base, json!({"query": "Y"})).unwrap(), "no matches", "capitals are meant");
}

#[test]
fn pages_follow_each_other_without_a_gap_or_a_repeat() {
    let code = "store(1)\nfn store() {}\nlet store = 2;\n".repeat(4);
    let base = workspace(&[("b/two.rs", &code), ("a.rs", &code), ("c.rs", "store(3)\n")]);
    let page = |offset: u64, max: u64| found(&base, json!({"query": "store", "offset": offset, "max": max})).unwrap();
    let whole: Vec<String> = page(0, 50).lines().skip(1).map(str::to_owned).collect();
    assert_eq!(whole.len(), 25);
    assert_eq!((whole[0].as_str(), whole[8].as_str()), ("a.rs:2: fn store() {}", "a.rs:3: let store = 2;"));
    assert_eq!((whole[16].as_str(), whole[24].as_str()), ("a.rs:1: store(1)", "c.rs:1: store(3)"));
    for max in [1, 2, 7, 24] {
        let (mut offset, mut read) = (0, Vec::new());
        loop {
            let text = page(offset, max);
            let (mark, lines): (Vec<&str>, Vec<&str>) =
                text.lines().skip(1).partition(|line| line.starts_with("... ("));
            read.extend(lines.into_iter().map(str::to_owned));
            let Some(next) = mark.first().and_then(|mark| mark.strip_suffix(')')?.rsplit(' ').next()) else { break };
            offset = next.parse().unwrap();
        }
        assert_eq!(read, whole, "pages of {max}");
    }
    assert_eq!(page(99, 5), "25 matches");
}

#[test]
fn context_is_told_from_matches_and_shown_once() {
    let base = workspace(&[("a.rs", "one\n  find(1)\n    two\n  find(2)\nthree\nfour\nfive\nsix\n  find(3)\n")]);
    let text = found(&base, json!({"query": "find", "context": 1})).unwrap();
    let expected = "3 matches\na.rs-1- one\na.rs:2:   find(1)\na.rs-3-     two\na.rs:4:   find(2)\na.rs-5- three\n--\n\
                    a.rs-8- six\na.rs:9:   find(3)";
    assert_eq!(text, expected);
    let text = found(&base, json!({"query": "find", "context": 3, "max": 1})).unwrap();
    let expected = "3 matches\na.rs-1- one\na.rs:2:   find(1)\na.rs-3-     two\na.rs:4:   find(2)\na.rs-5- three\n\
                    ... (2 more; go on with \"offset\": 1)";
    assert_eq!(text, expected);
}

#[test]
fn columns_globs_and_case_do_as_they_say() {
    let base = workspace(&[("a.rs", "é find, Find\n"), ("b.py", "find\n"), ("sub/c.rs", "FIND\n")]);
    let of = |arguments: Value| found(&base, arguments).unwrap();
    assert_eq!(of(json!({"query": "find", "columns": true, "globs": ["a*"]})), "1 matches\na.rs:1:4,10: é find, Find");
    assert_eq!(of(json!({"query": "find", "globs": ["*.rs", "!sub/**"]})), "1 matches\na.rs:1: é find, Find");
    assert_eq!(of(json!({"query": "find", "globs": ["!*.rs"]})), "1 matches\nb.py:1: find");
    assert_eq!(of(json!({"query": "find", "case": "sensitive", "path": "sub"})), "no matches");
    assert_eq!(of(json!({"query": "Find", "case": "ignore", "path": "sub"})), "1 matches\nsub/c.rs:1: FIND");
    assert!(found(&base, json!({"query": "x", "globs": ["{a"]})).unwrap_err().starts_with("a glob is not valid: "));
}

#[test]
fn a_binary_file_that_was_named_says_so() {
    let base = workspace(&[("bin.dat", "find\nfind\0find\n")]);
    assert_eq!(found(&base, json!({"query": "find"})).unwrap(), "no matches");
    let named = found(&base, json!({"query": "find", "path": "bin.dat"})).unwrap();
    assert_eq!(named, "1 matches\nbin.dat: binary file matches (zero byte at 9)");
}

#[test]
fn names_that_could_be_taken_for_lines_are_written_as_in_json() {
    let base = workspace(&[("two\nlines.rs:1: fn x", "find\n"), ("a\u{202e}\u{1b}[31m\\.rs", "find\n")]);
    std::fs::write(base.path().join(OsStr::from_bytes(b"inv\xffalid")), "find\n").unwrap();
    let text = found(&base, json!({"query": "find"})).unwrap();
    let expected = "3 matches\na\\u202e\\u001b[31m\\\\.rs:1: find\ninv\u{fffd}alid:1: find\n\
                    two\\nlines.rs:1: fn x:1: find";
    assert_eq!(text, expected);
    let name = "a\\u202e\\u001b[31m\\\\.rs";
    let name: String = serde_json::from_str(&format!("\"{name}\"")).unwrap();
    assert!(base.path().join(name).exists(), "it can be copied into a call");
}

#[test]
fn what_cannot_be_searched_is_said_and_hides_nothing() {
    let base = workspace(&[("a.rs", "find\n"), ("c.rs", "find\n")]);
    let long = std::fs::File::create(base.path().join("b.txt")).unwrap();
    // A line of 100 MiB without a zero byte.
    for _ in 0..100 {
        std::io::Write::write_all(&mut &long, &[b'x'; 1 << 20]).unwrap();
    }
    let text = found(&base, json!({"query": "find"})).unwrap();
    let said = text.lines().nth(3).unwrap_or_default();
    assert!(text.starts_with("2 matches\na.rs:1: find\nc.rs:1: find\n"), "{text}");
    assert!(said.starts_with("(not searched: ") && said.ends_with("b.txt: a line is longer than 96 MiB)"), "{said}");
}

#[test]
fn a_search_that_takes_too_long_tells_what_it_found_so_far() {
    let base = workspace(&[("a.rs", "find\n")]);
    let search = |time| Search {
        pattern: pattern::pattern("find", false, Case::Smart).unwrap(),
        definitions: Definitions::of("find"),
        context: 0,
        budget: Budget::new(time),
    };
    let count = |search| {
        let search = Arc::new(search);
        tally::count(walk(base.path(), base.path(), &[]).unwrap(), &search, &Crew::start().unwrap()).unwrap()
    };
    let arguments = serde_json::from_value(json!({"query": "find"})).unwrap();
    let over = search(Duration::ZERO);
    let text = Text { root: base.path(), arguments: &arguments, brief: false, search: &over };
    let said = "(stopped after 7 s; search less with \"path\" or \"globs\")";
    assert_eq!(text.of(&count(search(Duration::ZERO))), format!("no matches so far\n{said}"));
    let some = Counted { unfinished: true, ..count(search(COUNT_TIME_MAX)) };
    assert_eq!(text.of(&some), format!("1+ matches\na.rs:1: find\n{said}"));
}

#[test]
fn a_sparse_file_of_ten_gigabytes_is_data_like_any_other() {
    let base = workspace(&[("a.rs", "find\n"), ("huge.log", "find\n")]);
    let huge = std::fs::OpenOptions::new().write(true).open(base.path().join("huge.log")).unwrap();
    huge.set_len(10 << 30).unwrap();
    assert_eq!(found(&base, json!({"query": "find"})).unwrap(), "1 matches\na.rs:1: find");
}

#[test]
fn a_tree_as_deep_as_paths_can_be_is_searched_to_its_end() {
    let base = workspace(&[("a.rs", "find\n")]);
    let deep = base.path().join("d/".repeat(1_900));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("b.rs"), "find\n").unwrap();
    assert!(found(&base, json!({"query": "find"})).unwrap().starts_with("2 matches\na.rs:1: find\nd/d/"));
}

#[test]
fn data_is_told_from_text_alike_whatever_was_searched_before() {
    let late = "find\n".repeat(20_000) + "\0";
    let alone = workspace(&[("z.bin", &late)]);
    let text = found(&alone, json!({"query": "find", "max": 1})).unwrap();
    assert!(text.starts_with("13107 matches\n"), "what was read before the zero byte counts: {text}");
    let wide: Vec<u8> =
        "\u{feff}x".chars().chain("y".repeat(200_000).chars()).flat_map(|c| (c as u16).to_le_bytes()).collect();
    let after = workspace(&[("a.txt", &"x".repeat(1 << 20)), ("z.bin", &late)]);
    assert_eq!(found(&after, json!({"query": "find", "max": 1})).unwrap(), text);
    std::fs::write(after.path().join("a.txt"), wide).unwrap();
    assert_eq!(found(&after, json!({"query": "find", "max": 1})).unwrap(), text);
}
