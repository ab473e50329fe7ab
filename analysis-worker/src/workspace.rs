//! Which directories may be indexed, and reading what lies there: the directory is held open, so that no link and no
//! `..` leads out of it, whatever happens to paths meanwhile.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;

/// The directories under which workspaces may lie, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roots(Vec<PathBuf>);

/// Why there is no such workspace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration allows none.
    #[error("no workspace is allowed on this server; start it with --workspace DIR")]
    NoRoots,
    /// A configured root cannot be used.
    #[error("workspace root {} cannot be used: {reason}", path.display())]
    BadRoot {
        /// The root as configured.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It does not exist, or is no directory.
    #[error("no such workspace: {name} (allowed roots: {})", listed(roots))]
    Missing {
        /// The workspace as named.
        name: String,
        /// What is allowed.
        roots: Vec<PathBuf>,
    },
    /// It lies elsewhere.
    #[error("workspace {name} is not under an allowed root (allowed roots: {})", listed(roots))]
    Outside {
        /// The workspace as named.
        name: String,
        /// What is allowed.
        roots: Vec<PathBuf>,
    },
    /// Its path is no text.
    #[error("the path of workspace {0} is not UTF-8; move it")]
    NoText(String),
}

/// A workspace, open.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Absolute, without links.
    pub(crate) path: String,
    pub(crate) dir: Dir,
}

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    #[error("it is gone")]
    Gone,
    #[error("it is no regular file")]
    NoFile,
    #[error("it has {bytes} bytes, more than the limit of {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("it cannot be read: {0}")]
    Failed(String),
}

impl Roots {
    /// Resolves the configured roots. All of them must exist, so that a mistyped one is found at start.
    pub(crate) fn open(roots: &[PathBuf]) -> Result<Self, Error> {
        let resolve = |path: &PathBuf| {
            let bad = |reason: String| Error::BadRoot { path: path.clone(), reason };
            let root = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            if root.is_dir() { Ok(root) } else { Err(bad("it is not a directory".to_owned())) }
        };
        Ok(Self(roots.iter().map(resolve).collect::<Result<_, _>>()?))
    }

    /// Opens a workspace; a relative name is looked up under the first root.
    pub(crate) fn find(&self, name: &str) -> Result<Workspace, Error> {
        let first = self.0.first().ok_or(Error::NoRoots)?;
        let shown: String = name.chars().take(200).collect();
        let inside = |path: &Path| self.0.iter().any(|root| path.starts_with(root));
        let missing = || Error::Missing { name: shown.clone(), roots: self.0.clone() };
        // A path outside is refused in the same words whether it exists or not; existence elsewhere is nobody's affair.
        let outside = || Error::Outside { name: shown.clone(), roots: self.0.clone() };
        let path = match first.join(name).canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound && inside(&first.join(name)) => return Err(missing()),
            Err(_) => return Err(outside()),
        };
        if !inside(&path) {
            return Err(outside());
        }
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(|_| missing())?;
        let path = path.to_str().ok_or_else(|| Error::NoText(shown.clone()))?.to_owned();
        Ok(Workspace { path, dir })
    }
}

impl Workspace {
    /// The content of a file, at most `limit` bytes. Links that lead out of the workspace are refused, and so is what is
    /// no file: reading a pipe would wait for ever.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Unread> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Unread::Gone,
            _ => Unread::Failed(error.to_string()),
        };
        if !self.dir.metadata(path).map_err(failed)?.is_file() {
            return Err(Unread::NoFile);
        }
        let file = self.dir.open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if bytes > limit {
            return Err(Unread::TooLarge { bytes, limit });
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        // It may grow while it is read.
        file.take(limit + 1).read_to_end(&mut content).map_err(failed)?;
        match content.len() as u64 {
            bytes if bytes > limit => Err(Unread::TooLarge { bytes, limit }),
            _ => Ok(content),
        }
    }
}

fn listed(roots: &[PathBuf]) -> String {
    roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_under_a_root_is_opened() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        let roots = Roots::open(&[root.path().to_owned()]).unwrap();
        assert!(roots.find("in").unwrap().path.ends_with("/in"));
        assert!(roots.find(root.path().to_str().unwrap()).is_ok());
        for name in ["out", "..", "/etc", "/nowhere"] {
            assert!(matches!(roots.find(name), Err(Error::Outside { .. })), "{name}");
        }
        assert!(matches!(roots.find("missing"), Err(Error::Missing { .. })));
        assert!(matches!(Roots::default().find("in"), Err(Error::NoRoots)));
        assert!(matches!(Roots::open(&["/nowhere".into()]), Err(Error::BadRoot { .. })));
    }

    #[test]
    fn links_out_pipes_and_large_files_are_not_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "12345").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        let status = std::process::Command::new("mkfifo").arg(root.path().join("pipe")).status().unwrap();
        assert!(status.success());
        let workspace = Roots::open(&[root.path().to_owned()]).unwrap().find("").unwrap();
        assert_eq!(workspace.read("a", 5).unwrap(), b"12345");
        assert_eq!(workspace.read("a", 4), Err(Unread::TooLarge { bytes: 5, limit: 4 }));
        assert_eq!(workspace.read("pipe", 5), Err(Unread::NoFile));
        assert_eq!(workspace.read("missing", 5), Err(Unread::Gone));
        for path in ["link", "loop", "../../etc/passwd", "/etc/passwd"] {
            assert!(matches!(workspace.read(path, 1_000_000), Err(Unread::Failed(_))), "{path}");
        }
    }
}
