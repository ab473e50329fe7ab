//! Files of a workspace, reached by capability.
//!
//! Every lookup starts at an open directory and the kernel is told to stay beneath it, so `..`, absolute paths and
//! symbolic links cannot lead out, not even when they change during the lookup. Strings are only checked for what
//! can be said about them without looking.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirEntry, File, OpenOptions, OpenOptionsExt};

use crate::failure::Failure;
use crate::tools::shown_name;

/// The kernel's limit of a path.
const PATH_BYTES_MAX: usize = 4096;
/// Entries of a directory that are named to somebody who took it for a file.
const ENTRIES_SHOWN_MAX: usize = 20;
/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// An open workspace.
#[derive(Debug)]
pub(crate) struct Confined {
    dir: Dir,
}

impl Confined {
    /// Opens a workspace.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let dir = Dir::open_ambient_dir(root, ambient_authority())
            .map_err(|error| Failure::internal(format!("the workspace cannot be opened: {error}")))?;
        Ok(Self { dir })
    }

    /// Opens a regular file, and says how many bytes it has.
    pub(crate) fn open_file(&self, path: &str) -> Result<(File, u64), Failure> {
        admit(path)?;
        let mut options = OpenOptions::new();
        // A pipe without a writer would hold the open forever.
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = self.dir.open_with(path, &options).map_err(|error| in_words(path, &error))?;
        let metadata = file.metadata().map_err(|error| in_words(path, &error))?;
        if metadata.is_dir() {
            return Err(Failure::bad_request(format!("{path} is a directory, not a file{}", self.holds(path))));
        }
        if !metadata.is_file() {
            return Err(Failure::refused(format!("{path} is not a regular file")));
        }
        Ok((file, metadata.len()))
    }

    /// Reads a regular file of at most `bytes_max` bytes.
    pub(crate) fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let (file, bytes) = self.open_file(path)?;
        let mut content = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut content).map_err(|error| in_words(path, &error))?;
        if content.len() as u64 > bytes_max {
            return Err(Failure::bad_request(format!("{path} is {bytes} bytes, more than the limit of {bytes_max}")));
        }
        Ok(content)
    }

    /// What a directory holds, for somebody who took it for a file: `; it holds a.rs, b/ and 3 more`.
    fn holds(&self, path: &str) -> String {
        let Ok(entries) = self.dir.read_dir(path) else { return String::new() };
        let name = |entry: DirEntry| {
            let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
            format!("{}{slash}", shown_name(&entry.file_name().to_string_lossy()))
        };
        let mut names: Vec<String> = entries.filter_map(Result::ok).take(ENTRIES_MAX).map(name).collect();
        names.sort();
        let more = match names.len().saturating_sub(ENTRIES_SHOWN_MAX) {
            0 => String::new(),
            more if names.len() == ENTRIES_MAX => format!(" and {more} or more"),
            more => format!(" and {more} more"),
        };
        names.truncate(ENTRIES_SHOWN_MAX);
        match names.as_slice() {
            [] => "; it is empty".to_owned(),
            names => format!("; it holds {}{more}", names.join(", ")),
        }
    }

    /// The path of a file or directory within the workspace, links resolved.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf, Failure> {
        admit(path)?;
        self.dir.canonicalize(path).map_err(|error| in_words(path, &error))
    }
}

/// What can be refused without looking.
fn admit(path: &str) -> Result<(), Failure> {
    if path.is_empty() || path.len() >= PATH_BYTES_MAX || path.contains('\0') || Path::new(path).is_absolute() {
        return Err(outside(path));
    }
    Ok(())
}

/// The one refusal of a path that leads out, however it tries to.
fn outside(path: &str) -> Failure {
    let shown: String = path.chars().take(100).collect();
    Failure::refused(format!(
        "path is outside the workspace: {} (give a path relative to the workspace)",
        shown.escape_debug()
    ))
}

fn in_words(path: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::bad_request(format!("no such file: {path}")),
        // The confinement's own refusal carries no number of the system's.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => outside(path),
        io::ErrorKind::PermissionDenied => Failure::refused(format!("no permission to read {path}")),
        io::ErrorKind::InvalidFilename => outside(path),
        _ if error.raw_os_error() == Some(libc::EXDEV) => outside(path),
        _ if error.raw_os_error() == Some(libc::ELOOP) => Failure::bad_request(format!("{path} is a loop of links")),
        _ => Failure::internal(format!("{path} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::fact::FailureClass;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_way_out_is_refused_with_one_error() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(base.path().join("secret"), "canary").unwrap();
        std::fs::write(root.join("sub/in.txt"), "inside").unwrap();
        symlink(base.path().join("secret"), root.join("absolute")).unwrap();
        symlink("../secret", root.join("relative")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        symlink("sub/in.txt", root.join("good")).unwrap();
        let confined = Confined::open(&root).unwrap();

        let long = "a/".repeat(3000);
        for path in [
            "../secret",
            "sub/../../secret",
            "/etc/passwd",
            "absolute",
            "relative",
            "slash/etc/passwd",
            "a\0b",
            "",
            &long,
        ] {
            let failure = confined.read(path, 1000).unwrap_err();
            assert_eq!(failure.class, FailureClass::Refused, "{path}: {failure}");
            assert!(failure.detail.starts_with("path is outside the workspace: "), "{failure}");
            assert_eq!(confined.resolve(path).unwrap_err().class, FailureClass::Refused);
        }
        assert_eq!(confined.read("good", 1000).unwrap(), b"inside");
        assert_eq!(confined.read("sub/../sub/in.txt", 1000).unwrap(), b"inside");
        assert_eq!(confined.read("..%2fsecret", 1000).unwrap_err().detail, "no such file: ..%2fsecret");
        assert_eq!(confined.read("sub", 1000).unwrap_err().detail, "sub is a directory, not a file; it holds in.txt");
        assert_eq!(confined.read("good", 3).unwrap_err().detail, "good is 6 bytes, more than the limit of 3");
    }

    #[test]
    fn a_link_swapped_during_the_lookup_leads_nowhere() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir_all(base.path().join("out")).unwrap();
        std::fs::write(root.join("a/f"), "inside").unwrap();
        std::fs::write(base.path().join("out/f"), "canary").unwrap();
        symlink(base.path().join("out"), root.join("evil")).unwrap();
        let confined = Confined::open(&root).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::rename(root.join("a"), root.join("kept")).unwrap();
                    std::fs::rename(root.join("evil"), root.join("a")).unwrap();
                    std::fs::rename(root.join("a"), root.join("evil")).unwrap();
                    std::fs::rename(root.join("kept"), root.join("a")).unwrap();
                }
            });
            for _ in 0..5_000 {
                if let Ok(content) = confined.read("a/f", 1000) {
                    assert_eq!(content, b"inside");
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
