//! The files of a workspace that are worth indexing: not hidden, not ignored by `.gitignore` and its relatives, no links.

use std::path::Path;

use ignore::WalkBuilder;
use schemas::code::Skipped;

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoundFile {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// In the order of their paths.
    pub(crate) files: Vec<FoundFile>,
    pub(crate) skipped: Vec<Skipped>,
    /// There are more files than are indexed.
    pub(crate) cut: bool,
}

/// Looks through a workspace. Links are not followed, so that no loop and no way out is met.
pub(crate) fn walk(workspace: &str, files_max: usize) -> Walk {
    let mut walk = Walk::default();
    let entries = WalkBuilder::new(workspace)
        .follow_links(false)
        .require_git(false)
        // Settings of whoever started the worker say nothing about the workspace.
        .git_global(false)
        .sort_by_file_name(std::ffi::OsStr::cmp)
        .build();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let reason = error.to_string();
                walk.skipped.push(Skipped { path: relative_of_error(&error, workspace), reason });
                continue;
            }
        };
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let relative = entry.path().strip_prefix(workspace).unwrap_or(entry.path());
        let Some(path) = relative.to_str().map(str::to_owned) else {
            let path = relative.to_string_lossy().into_owned();
            walk.skipped.push(Skipped { path, reason: "its name is not UTF-8".to_owned() });
            continue;
        };
        if walk.files.len() == files_max {
            walk.cut = true;
            break;
        }
        // Gone since it was listed: whoever reads it will see.
        let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
        walk.files.push(FoundFile { path, bytes });
    }
    walk.files.sort();
    walk
}

fn relative_of_error(error: &ignore::Error, workspace: &str) -> String {
    let path = match error {
        ignore::Error::WithPath { path, .. } => Some(path.as_path()),
        ignore::Error::WithDepth { err, .. } => match &**err {
            ignore::Error::WithPath { path, .. } => Some(path.as_path()),
            _ => None,
        },
        _ => None,
    };
    let relative = |path: &Path| path.strip_prefix(workspace).unwrap_or(path).display().to_string();
    path.map(relative).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_ignored_files_and_links_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(".gitignore", "target/\n*.log\n");
        write("src/a.rs", "fn a() {}");
        write("target/b.rs", "fn b() {}");
        write("x.log", "x");
        write(".secret/key", "x");
        std::os::unix::fs::symlink("..", root.path().join("src/loop")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("src/link")).unwrap();
        let found = walk(root.path().to_str().unwrap(), 10);
        assert_eq!(found.files, [FoundFile { path: "src/a.rs".into(), bytes: 9 }]);
        assert!(found.skipped.is_empty() && !found.cut);
        write("src/b.rs", "");
        assert!(walk(root.path().to_str().unwrap(), 1).cut);
    }
}
