//! Directories of TOML files that are followed while a process runs: what tells that one has changed, and its files. Which
//! of them count, and for what, is the affair of who follows.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often a directory is looked at: a person who saves a file waits no longer.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Files at most; a directory with more is not one of manifests.
const FILES_MAX: usize = 1_000;
/// Bytes of one file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What tells that a directory has changed: of each file its path, size and time, in order.
pub type Signature = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// Looks at the files of a directory whose names end in `.toml`.
///
/// # Errors
/// It cannot be read, or holds more files than a person writes.
pub async fn signature(directory: &Path) -> io::Result<Signature> {
    let mut entries = tokio::fs::read_dir(directory).await?;
    let mut signature = Signature::new();
    while let Some(entry) = entries.next_entry().await? {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        // Through links, as a mounted configuration has them.
        let Ok(found) = tokio::fs::metadata(&path).await else { continue };
        if signature.len() == FILES_MAX {
            return Err(io::Error::other(format!("it has more than {FILES_MAX} files")));
        }
        signature.push((path, found.len(), found.modified().ok()));
    }
    signature.sort();
    Ok(signature)
}

/// The text of a file of so many bytes.
///
/// # Errors
/// Why it is not read, in words for who wrote it.
pub async fn read(path: &Path, bytes: u64) -> Result<String, String> {
    if bytes > FILE_BYTES_MAX {
        return Err(format!("the file has {bytes} bytes, at most {FILE_BYTES_MAX} are read"));
    }
    tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_any_manifest_is_seen_and_other_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let seen = async || signature(directory.path()).await.unwrap();
        let empty = seen().await;
        std::fs::write(path("notes.md"), "no manifest").unwrap();
        assert_eq!(seen().await, empty);
        std::fs::write(path("b.toml"), "b").unwrap();
        std::os::unix::fs::symlink(path("b.toml"), path("a.toml")).unwrap();
        let two = seen().await;
        assert_eq!(two.iter().map(|(path, ..)| path.clone()).collect::<Vec<_>>(), [path("a.toml"), path("b.toml")]);
        std::fs::write(path("b.toml"), "longer").unwrap();
        assert_ne!(seen().await, two, "also behind a link");
        assert_eq!(read(&path("a.toml"), 6).await.as_deref(), Ok("longer"));
        assert!(read(&path("a.toml"), FILE_BYTES_MAX + 1).await.unwrap_err().contains("at most 1048576 are read"));
        assert!(signature(&path("nowhere")).await.is_err());
    }
}
