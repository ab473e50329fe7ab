//! The matches are ripgrep's own, file by file, line by line and column by column: held against the program `rg` where it
//! is installed.

use super::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Columns by file and line.
type Matches = BTreeMap<(PathBuf, u64), Vec<u64>>;

/// What is asked of both.
#[derive(Debug, Clone, Copy)]
struct Question<'a> {
    query: &'a str,
    regex: bool,
    case: Case,
    globs: &'a [&'a str],
    below: &'a str,
    context: usize,
}

const PLAIN: Question<'_> =
    Question { query: "needle", regex: false, case: Case::Smart, globs: &[], below: "", context: 0 };

/// All of ours, as the pages show them.
fn ours(root: &Path, question: Question<'_>) -> Matches {
    let search = Arc::new(Search {
        pattern: pattern::pattern(question.query, question.regex, question.case).unwrap(),
        definitions: Definitions::of(question.query),
        context: question.context,
        budget: Budget::new(Duration::from_secs(600)),
    });
    let globs: Vec<String> = question.globs.iter().map(|glob| (*glob).to_owned()).collect();
    let below = if question.below.is_empty() { root.to_owned() } else { root.join(question.below) };
    let counted = tally::count(walk(root, &below, &globs).unwrap(), &search, &Crew::start().unwrap()).unwrap();
    assert!(!counted.unfinished);
    let total: u64 = counted.files.iter().flat_map(|tally| tally.ranks).sum();
    let lines = page::page(&search, &counted.files, 0..u64::MAX).into_iter().flat_map(|block| block.lines);
    let relative = |line: &Line| counted.files[line.file].file.path.strip_prefix(root).unwrap().to_owned();
    let matches: Matches = lines
        .filter(|line| !line.columns.is_empty())
        .map(|line| ((relative(&line), line.number), line.columns))
        .collect();
    assert_eq!(matches.len() as u64, total, "every match that is counted can be shown");
    matches
}

/// All of ripgrep's; none where it is not installed.
fn theirs(root: &Path, question: Question<'_>) -> Option<Matches> {
    let mut command = Command::new("rg");
    command.args(["--no-config", "--no-require-git", "--no-ignore-global", "--no-mmap", "--no-messages"]);
    command.args(["--vimgrep", "--null", "--color=never"]);
    command.arg(match question.case {
        Case::Smart => "--smart-case",
        Case::Sensitive => "--case-sensitive",
        Case::Ignore => "--ignore-case",
    });
    if !question.regex {
        command.arg("--fixed-strings");
    }
    for glob in question.globs {
        command.args(["--glob", glob]);
    }
    command.arg("--").arg(question.query).arg(Path::new("./").join(question.below));
    let output = command.current_dir(root).stdin(Stdio::null()).output().ok()?;
    assert!(output.status.code().is_some_and(|code| code < 3), "{}", String::from_utf8_lossy(&output.stderr));
    let mut matches = Matches::new();
    let mut rest = output.stdout.as_slice();
    // `PATH`, a zero byte, `LINE:COLUMN:text`. Of data it says that it stopped there, in a line that ends in a bracket.
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let path = match rest[..end].windows(4).rposition(|end| end == b")\n./") {
            Some(said) => &rest[said + 2..end],
            None => &rest[..end],
        };
        let line_end = rest[end..].iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| end + at);
        let line = String::from_utf8_lossy(&rest[end + 1..line_end]).into_owned();
        let mut numbers = line.splitn(3, ':').map(str::parse::<u64>);
        let (number, column) = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        let path = PathBuf::from(OsString::from_vec(path.strip_prefix(b"./").unwrap_or(path).to_vec()));
        matches.entry((path, number)).or_default().push(column);
        rest = &rest[(line_end + 1).min(rest.len())..];
    }
    Some(matches)
}

fn equal(root: &Path, question: Question<'_>) -> usize {
    let Some(theirs) = theirs(root, question) else {
        assert!(!in_ci(), "ripgrep is not installed");
        eprintln!("SKIPPED: ripgrep is not installed");
        return ours(root, question).len();
    };
    let ours = ours(root, question);
    let more: Vec<_> = ours.iter().filter(|(key, value)| theirs.get(key) != Some(value)).take(5).collect();
    let fewer: Vec<_> = theirs.iter().filter(|(key, value)| ours.get(key) != Some(value)).take(5).collect();
    assert!(more.is_empty() && fewer.is_empty(), "{question:?}\nours alone: {more:?}\ntheirs alone: {fewer:?}");
    ours.len()
}

#[expect(clippy::disallowed_methods, reason = "whether a machine must have everything is said in its environment")]
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

/// Everything that makes files hard to search.
fn nasty() -> tempfile::TempDir {
    let base = tempfile::Builder::new().prefix("nasty").tempdir().unwrap();
    let put = |path: &[u8], content: &[u8]| {
        let path = base.path().join(OsString::from_vec(path.to_vec()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    put(b"crlf.txt", b"needle\r\n a needle b\r\n\r\nno\r\nneedle needle\r\n");
    put(b"open_end.txt", b"one\nneedle");
    put(b"empty.txt", b"");
    put(b"blank.txt", b"\n\n\n");
    put(b"returns.txt", b"needle\rneedle\rneedle\n\rneedle\n");
    put(b"mark.txt", b"\xef\xbb\xbfneedle with a mark\nneedle\n");
    put(b"utf16_little.txt", &utf16("é needle\r\nNEEDLE\nend needle", false));
    put(b"utf16_big.txt", &utf16("é needle\nneedle 🎉 needle\n", true));
    put(b"utf16_odd.txt", b"\xff\xfen\0e\0e\0d\0l\0e\0\n\0x");
    put(b"invalid.txt", b"\xff\xfd needle \xc3\x28 needle\n\xe9 needle\n");
    put(b"unicode.txt", "Straße STRASSE needle\nİneedle ſneedle Kneedle\n日本needle語\n".as_bytes());
    put(b"data_early.bin", b"needle\nneedle\0needle\nneedle\n");
    let mut late = b"needle here\nnothing here at all\n".repeat(4_000);
    late.extend_from_slice(b"needle\0needle\nneedle\n");
    put(b"data_late.bin", &late);
    put(b"data_at_the_edge.bin", &[&b"needle\n".repeat(9_362)[..65_530], b"\nneedl\0needle\n"].concat());
    put(b"many.txt", &b"needle needle xneedlex Needle\n".repeat(3_000));
    put(b"new\nline.txt", b"needle\n");
    put(b"esc\x1b[31m.txt", b"needle\n");
    put(b"inv\xff\xfealid.txt", b"needle\n");
    put(b"-dash.txt", b"needle\n");
    put(b"co:lon:7:1:.txt", b"needle\n");
    put(b"sp ace/t\tab.txt", b"needle\n");
    put(b".hidden.txt", b"needle\n");
    put(b".hidden/seen.txt", b"needle\n");
    put(b".gitignore", b"*.log\n!keep.log\n/anchored\nbuild/\n**/deep_ignored\n\\#odd\n sp\n# needle\n");
    put(b"x.log", b"needle\n");
    put(b"keep.log", b"needle\n");
    put(b"anchored", b"needle\n");
    put(b"sub/anchored", b"needle\n");
    put(b"build/out.txt", b"needle\n");
    put(b"sub/build/out.txt", b"needle\n");
    put(b"sub/deep/deep_ignored/f.txt", b"needle\n");
    put(b"sub/.gitignore", b"!x.log\nsecret.*\n!/secret.md\n");
    put(b"sub/x.log", b"needle\n");
    put(b"sub/secret.txt", b"needle\n");
    put(b"sub/secret.md", b"needle\n");
    put(b"sub/more/secret.md", b"needle\n");
    put(b"mixed/.gitignore", b"a.txt\nb.txt\n");
    put(b"mixed/.ignore", b"!a.txt\nc.txt\nd.txt\n");
    put(b"mixed/.rgignore", b"!c.txt\n");
    for name in ["a", "b", "c", "d", "e"] {
        put(format!("mixed/{name}.txt").as_bytes(), b"needle\n");
    }
    put(b".git/info/exclude", b"excluded.txt\n");
    put(b".git/needle", b"needle\n");
    put(b"excluded.txt", b"needle\n");
    put(b"nested/.git/info/exclude", b"inner.txt\n");
    // What the outer repository excludes is not here: releases of ripgrep differ in whether that counts in an inner one.
    put(b"nested/inner.txt", b"needle\n");
    put(&[&b"d/".repeat(60)[..], b"deep.txt"].concat(), b"needle\n");
    symlink("crlf.txt", base.path().join("link_to_file")).unwrap();
    symlink("sub", base.path().join("link_to_folder")).unwrap();
    symlink("missing", base.path().join("dangling")).unwrap();
    symlink("around", base.path().join("around")).unwrap();
    symlink("..", base.path().join("sub/up")).unwrap();
    base
}

/// In a tree of its own: how much `rg` reads of other files before it meets a zero byte depends on the longest line that
/// the same thread met before.
fn long_lines() -> tempfile::TempDir {
    let base = tempfile::Builder::new().prefix("long").tempdir().unwrap();
    let blank = |megabytes: usize| vec![b'x'; megabytes << 20];
    let long = [&blank(3)[..], b"needle", &blank(1), b"needle\nneedle\n", &blank(1), b"\nneedle"].concat();
    fs::write(base.path().join("long.txt"), long).unwrap();
    fs::write(base.path().join("longer.txt"), [&blank(9)[..], b" needle\nneedle\n"].concat()).unwrap();
    let wide = format!("{}needle\nneedle", "é ".repeat(300_000));
    let wide: Vec<u8> = wide.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(base.path().join("wide.txt"), [&b"\xff\xfe"[..], &wide].concat()).unwrap();
    base
}

#[test]
fn a_nasty_tree_has_the_same_matches() {
    let base = nasty();
    let root = base.path();
    assert!(equal(root, PLAIN) > 100);
    for case in [Case::Smart, Case::Sensitive, Case::Ignore] {
        for query in ["needle", "Needle", "ſneedle", "straße", "é", "(", "needle needle", "absent"] {
            equal(root, Question { query, case, ..PLAIN });
        }
        for query in [
            "^needle",
            "needle$",
            r"\bneedle\b",
            r"n.{2}dle",
            "(?i)NEEDLE",
            r"needle\s",
            r"needle\r",
            "^$",
            "x*",
            r"(?:ne+dle\s?){2}",
            r"\w+e\b",
            r"[^a-z]needle",
            r"\xE9",
            r"(?-u)\xE9 needle",
            r"\p{Han}needle",
            "needle|x{100}",
            ".",
        ] {
            equal(root, Question { query, regex: true, case, ..PLAIN });
        }
    }
}

#[test]
fn globs_context_and_places_have_the_same_matches() {
    let base = nasty();
    let root = base.path();
    let globs: &[&[&str]] = &[
        &["*.txt"],
        &["!*.txt"],
        &["*.log"],
        &["*.txt", "!sub/**"],
        &["!sub/**", "*.txt"],
        &["sub/"],
        &["/sub/*.md", "**/e.txt"],
        &["*.{md,log}"],
        &["[!a-m]*.txt"],
        &[".hidden.txt"],
        &["build/**"],
    ];
    for globs in globs {
        equal(root, Question { globs, ..PLAIN });
    }
    for below in ["sub", "sub/", "mixed", "build", ".hidden", "nested", "sub/deep", "d/d"] {
        equal(root, Question { below, ..PLAIN });
        equal(root, Question { below, globs: &["*.txt"], ..PLAIN });
    }
    for below in ["crlf.txt", "x.log", ".hidden.txt", "utf16_big.txt", "many.txt", "mixed/d.txt"] {
        assert!(equal(root, Question { below, ..PLAIN }) > 0);
    }
    for context in [1, 5] {
        equal(root, Question { context, ..PLAIN });
        equal(root, Question { query: "^needle$", regex: true, context, ..PLAIN });
    }
}

#[test]
fn long_lines_have_the_same_matches() {
    let base = long_lines();
    let root = base.path();
    for query in ["needle$", "^needle", "needlex", r"x\s?needle"] {
        assert!(equal(root, Question { query, regex: true, ..PLAIN }) > 0);
    }
    assert!(equal(root, PLAIN) >= 7);
    assert!(equal(root, Question { below: "longer.txt", ..PLAIN }) >= 2);
}

#[test]
fn this_repository_has_the_same_matches() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    for query in ["impl", "unwrap()", "fn main"] {
        assert!(equal(&root, Question { query, ..PLAIN }) > 0);
    }
    for query in [r"\bself\.\w+\(", r"^use std::", r"[A-Z]\w+Builder"] {
        assert!(equal(&root, Question { query, regex: true, ..PLAIN }) > 0);
    }
}
