//! `analyze_code`, the first of two steps: the box reads what the analysis worker then parses.

use std::io::Read;
use std::path::{Path, PathBuf};

use encoding_rs_io::DecodeReaderBytes;
use serde::{Deserialize, Serialize};

use super::kind::kind;
use super::{search, shown_name};
use crate::confined::Confined;
use crate::failure::Failure;

/// Arguments of `analyze_code`.
#[derive(Debug, Deserialize)]
pub(super) struct Arguments {
    path: String,
}

/// Most code of one file; a message of the bus holds a megabyte.
const FILE_BYTES_MAX: u64 = 512 << 10;
/// Most code of a directory, so that it leaves the box as one answer however it is escaped.
const DIRECTORY_BYTES_MAX: u64 = 512 << 10;
/// Files of a directory that are analysed.
const FILES_MAX: usize = 50;
/// Files of a directory that are looked at.
const FILES_SEEN_MAX: usize = 100_000;
/// Files named that were left out.
const LEFT_OUT_NAMED_MAX: usize = 5;
/// What source files are called. Of others a directory has too many that nobody means.
const EXTENSIONS: &[&str] = &[
    "rs", "py", "pyi", "pyw", "js", "mjs", "cjs", "jsx", "ts", "mts", "cts", "tsx", "go", "c", "h", "cc", "cpp", "cxx",
    "hh", "hpp", "hxx", "java", "kt", "kts", "swift", "rb", "php", "cs", "fs", "scala", "sh", "bash", "lua", "zig",
    "ex", "exs", "erl", "hs", "ml", "mli", "jl", "r", "dart", "pl", "pm", "clj", "nim", "proto", "sql", "vue",
    "svelte",
];

/// What was read.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The one file, or those of a directory.
    pub files: Vec<SourceFile>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Of a directory: files that were left out, by name and reason, not all of them.
    pub left_out: Vec<String>,
    /// How many more were left out than are named.
    pub left_out_more: usize,
}

/// A file's name, from the workspace, and its text.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its path.
    pub path: String,
    /// What it says.
    pub code: String,
}

/// Reads a file, or the source files below a directory: those nearest to it first.
pub(super) fn sources(root: &Path, workspace: &Confined, arguments: &Arguments) -> Result<Sources, Failure> {
    let path = &arguments.path;
    let resolved = workspace.resolve(path)?;
    if !root.join(&resolved).is_dir() {
        let code = text(workspace, path)?;
        let files = vec![SourceFile { path: path.clone(), code }];
        return Ok(Sources { files, is_directory: false, left_out: Vec::new(), left_out_more: 0 });
    }
    let found = below(root, &root.join(resolved))?;
    let mut read = Sources { files: Vec::new(), is_directory: true, left_out: Vec::new(), left_out_more: 0 };
    let (mut room, mut skipped) = (DIRECTORY_BYTES_MAX, Vec::new());
    for path in found {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if read.files.len() == FILES_MAX || room == 0 {
            skipped.push(shown_name(&relative));
            continue;
        }
        match text(workspace, &relative) {
            Ok(code) if code.len() as u64 <= room => {
                room -= code.len() as u64;
                read.files.push(SourceFile { path: relative, code });
            }
            Ok(_) => skipped.push(shown_name(&relative)),
            Err(failure) => skipped.push(failure.detail),
        }
    }
    read.left_out_more = skipped.len().saturating_sub(LEFT_OUT_NAMED_MAX);
    skipped.truncate(LEFT_OUT_NAMED_MAX);
    read.left_out = skipped;
    Ok(read)
}

fn below(root: &Path, directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let is_source = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
    };
    let files = search::walk(root, directory, &[])?.filter_map(Result::ok);
    let files = files.filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()) && is_source(entry.path()));
    let mut files: Vec<(usize, PathBuf)> =
        files.take(FILES_SEEN_MAX).map(|entry| (entry.depth(), entry.into_path())).collect();
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn text(workspace: &Confined, path: &str) -> Result<String, Failure> {
    let content = workspace.read(path, FILE_BYTES_MAX)?;
    if let Some(kind) = kind(&content) {
        return Err(Failure::bad_request(format!("{path} is a binary file ({kind}, {} bytes)", content.len())));
    }
    let mut text = String::new();
    match DecodeReaderBytes::new(content.as_slice()).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(_) => Ok(String::from_utf8_lossy(&content).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(files: &[(&str, &str)]) -> (tempfile::TempDir, Confined) {
        let base = tempfile::Builder::new().prefix("ws").tempdir().unwrap();
        for (path, content) in files {
            let path = base.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let confined = Confined::open(base.path()).unwrap();
        (base, confined)
    }

    fn read(base: &tempfile::TempDir, confined: &Confined, path: &str) -> Result<Sources, String> {
        sources(base.path(), confined, &Arguments { path: path.to_owned() }).map_err(|failure| failure.detail)
    }

    #[test]
    fn a_directory_gives_its_sources_nearest_first() {
        let (base, confined) = workspace(&[
            ("src/deep/er/a.rs", "fn a() {}"),
            ("src/z.py", "z = 1"),
            ("src/README.md", "no source"),
            ("src/.hidden.rs", "fn hidden() {}"),
            ("src/out/made.rs", "fn made() {}"),
            (".gitignore", "out/\n"),
            ("other.rs", "fn other() {}"),
        ]);
        let found = read(&base, &confined, "src").unwrap();
        let names: Vec<&str> = found.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!((names, found.is_directory), (vec!["src/z.py", "src/deep/er/a.rs"], true));
        assert_eq!(read(&base, &confined, ".").unwrap().files.len(), 3);
        let one = read(&base, &confined, "src/z.py").unwrap();
        assert_eq!(one.files, [SourceFile { path: "src/z.py".to_owned(), code: "z = 1".to_owned() }]);
        assert!(!one.is_directory);
        assert_eq!(read(&base, &confined, "none").unwrap_err(), "no such file: none");
        assert!(read(&base, &confined, "..").unwrap_err().starts_with("path is outside the workspace"));
    }

    #[test]
    fn what_is_left_out_of_a_large_directory_is_said() {
        let (base, confined) = workspace(&[("big.rs", &"// big\n".repeat(90_000)), ("data.rs", "a\0b")]);
        for n in 0..60 {
            std::fs::write(base.path().join(format!("f{n:02}.rs")), "fn f() {}\n").unwrap();
        }
        let found = read(&base, &confined, ".").unwrap();
        assert_eq!(found.files.len(), FILES_MAX);
        assert_eq!(found.left_out[0], "big.rs is 630000 bytes, more than the limit of 524288");
        assert_eq!(found.left_out[1], "data.rs is a binary file (it holds zero bytes, 3 bytes)");
        assert_eq!(found.left_out[2..], ["f50.rs", "f51.rs", "f52.rs"]);
        assert_eq!(found.left_out_more, 7);
    }
}
