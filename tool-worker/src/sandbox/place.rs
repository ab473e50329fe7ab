//! A directory that is what it was when it was looked at.
//!
//! A path is a name, and who may write above it may give the name to another directory. So a box is told which directory
//! it was made for, and refuses to start in another one.

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory, by its path and by what the file system calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// The directory that is at a path now. Its own path is without links.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let directory = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = directory.metadata()?;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let path = std::fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Where it was.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As the runner is told: device and inode.
    pub(super) fn identity(&self) -> String {
        format!("{}:{}", self.device, self.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_by_itself_and_not_by_its_name() {
        let base = tempfile::tempdir().unwrap();
        let (here, link) = (base.path().join("here"), base.path().join("link"));
        std::fs::create_dir(&here).unwrap();
        std::os::unix::fs::symlink(&here, &link).unwrap();
        let place = Place::at(&link).unwrap();
        assert_eq!(place, Place::at(&here).unwrap());
        assert_eq!(place.path(), here.canonicalize().unwrap());
        std::fs::rename(&here, base.path().join("gone")).unwrap();
        std::fs::create_dir(&here).unwrap();
        assert_ne!(place, Place::at(&link).unwrap());
        std::fs::write(base.path().join("file"), "").unwrap();
        assert!(Place::at(&base.path().join("file")).is_err());
    }
}
