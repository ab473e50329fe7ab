use proptest::prelude::*;

use super::{Chunk, chunk_text};
use crate::analysis::{Limits, analyze};

const SMALL: Limits = Limits {
    code_bytes_max: 1 << 20,
    line_bytes_mean_max: 500,
    symbols_max: 10_000,
    imports_max: 500,
    references_max: 20_000,
    chunk_bytes: 120,
    chunk_bytes_max: 200,
};

fn chunks(path: &str, code: &str) -> Vec<Chunk> {
    analyze(path, code, &SMALL, || false).unwrap().chunks
}

fn ranges(chunks: &[Chunk]) -> Vec<(usize, usize)> {
    chunks.iter().map(|chunk| (chunk.start_line, chunk.end_line)).collect()
}

/// Every line that is not blank in exactly one chunk, in order, none longer than allowed unless it is one line.
fn assert_covers(code: &str, chunks: &[Chunk], limits: &Limits) {
    let lines: Vec<&str> = code.split_inclusive('\n').collect();
    let mut next = 1;
    for chunk in chunks {
        assert!(chunk.start_line >= next && chunk.end_line >= chunk.start_line, "{:?}", ranges(chunks));
        assert!(lines[next - 1..chunk.start_line - 1].iter().all(|line| line.trim().is_empty()), "a line is lost");
        let bytes: usize = lines[chunk.start_line - 1..chunk.end_line].iter().map(|line| line.len()).sum();
        assert!(bytes <= limits.chunk_bytes_max || chunk.start_line == chunk.end_line, "{bytes} bytes");
        assert!(!lines[chunk.start_line - 1].trim().is_empty(), "a chunk begins with a blank line");
        assert_eq!(chunk.symbols.len(), chunk.kinds.len());
        next = chunk.end_line + 1;
    }
    assert!(lines[next - 1..].iter().all(|line| line.trim().is_empty()), "the end is lost");
}

#[test]
fn small_neighbours_are_merged_and_functions_stay_whole() {
    let long = "    let a = call(1, 2, 3);\n".repeat(6);
    let code = format!(
        "use a::b;\n\nfn one() {{}}\nfn two() {{}}\n\n/// Long.\n#[inline]\nfn long() {{\n{long}}}\n\nfn end() {{}}\n"
    );
    let chunks = chunks("a.rs", &code);
    assert_eq!(ranges(&chunks), [(1, 4), (6, 15), (17, 17)]);
    assert_eq!(chunks[0].symbols, ["one", "two"]);
    assert_eq!(chunks[1].header, "a.rs");
    assert_covers(&code, &chunks, &SMALL);
}

#[test]
fn a_class_is_cut_at_its_members_and_tells_what_it_lies_in() {
    let body = "        work(1, 2, 3)\n        more(4, 5, 6)\n".repeat(3);
    let code = format!("class Store(Base):\n    def one(self):\n{body}\n    @cached\n    def two(self):\n{body}");
    let chunks = chunks("src/a.py", &code);
    assert_eq!(ranges(&chunks), [(1, 8), (10, 17)]);
    assert_eq!(chunks[1].header, "src/a.py\nStore: class Store(Base)");
    assert_eq!(chunks[1].symbols, ["two"]);
    assert_covers(&code, &chunks, &SMALL);
}

#[test]
fn a_function_longer_than_the_maximum_is_cut_between_statements() {
    let code = format!("fn long() {{\n{}}}\n", "    let a = call(\n        1,\n    );\n".repeat(12));
    let chunks = chunks("a.rs", &code);
    assert!(chunks.len() > 1);
    assert_covers(&code, &chunks, &SMALL);
    for chunk in &chunks[1..] {
        assert_eq!((chunk.start_line - 2) % 3, 0, "statements stay whole");
        assert_eq!(chunk.header, "a.rs\nlong: fn long()");
        assert_eq!(chunk.symbols, ["long"]);
    }
}

#[test]
fn text_is_cut_at_its_paragraphs() {
    let code = format!("{}\n{}\n", "Some words of a text.\n".repeat(4), "And others, later.\n".repeat(4));
    let chunks = chunk_text("notes.txt", &code, &SMALL);
    assert_eq!(ranges(&chunks), [(1, 4), (6, 9)]);
    assert_eq!(chunks[0].header, "notes.txt");
    assert!(chunk_text("a.bin", "a\0b", &SMALL).is_empty());
    assert!(chunk_text("empty.txt", "\n \n", &SMALL).is_empty());
}

#[test]
fn lines_may_end_in_any_way() {
    let code = "fn a() {}\r\n\r\nfn b() {}\r\n".repeat(20);
    assert_covers(&code, &chunks("a.rs", &code), &SMALL);
    let bare = "fn a() {\n1\n}";
    assert_eq!(ranges(&chunks("a.rs", bare)), [(1, 3)]);
}

/// Lines that make code, half code and nonsense when thrown together.
fn any_code() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("fn f() {"),
        Just("}"),
        Just("    let value = call(1, 2);"),
        Just("class A {"),
        Just("  def method(self):"),
        Just("# heading"),
        Just("// a comment"),
        Just("/* open"),
        Just("*/"),
        Just(""),
        Just("   "),
        Just("<div id=\"a\">"),
        Just("key: [1, {2: 3}"),
        Just("\"\"\""),
        Just("`${"),
        Just(
            "a very long line that goes on and on and on and on and on and on and on and on and on and on and on and on"
        ),
        Just("é ü 漢字"),
        Just("@decorator"),
        Just("#[attribute]"),
        Just("};\r"),
    ];
    (proptest::collection::vec(line, 0..60), any::<bool>()).prop_map(|(lines, ended)| {
        let mut code = lines.join("\n");
        if ended {
            code.push('\n');
        }
        code
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_lost_whatever_the_code_is(code in any_code()) {
        for language in ["a.rs", "a.py", "a.tsx", "a.cpp", "a.md", "a.yaml", "a.html", "a.rb", "a.php", "a.sh"] {
            assert_covers(&code, &chunks(language, &code), &SMALL);
        }
        assert_covers(&code, &chunk_text("a.txt", &code, &SMALL), &SMALL);
    }
}
