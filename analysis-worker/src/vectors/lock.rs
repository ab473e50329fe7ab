//! Who may open the directory of the vectors: one process, as long as it lives.
//!
//! The lock is the kernel's and ends with the process however that ends, so that another can take over at once.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use runtime::clock;

/// Locked by the keeper.
const LOCK: &str = "lock";
/// Names the directory to those who share it.
const NAME: &str = "name";
/// Names who keeps it, or did last.
const KEEPER: &str = "keeper";

/// The right to open a directory of vectors. It ends when this is dropped.
#[derive(Debug)]
pub struct Lock {
    directory: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of `directory`, which is made when it is not there; none when another process has it.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub fn take(directory: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(directory)?;
        let file = File::options().create(true).truncate(false).write(true).open(directory.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { directory: directory.to_owned(), _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Lets the others know who has the lock now, by a name that no other keeper has. Only who has it may.
pub(super) fn sign(directory: &Path, keeper: &str) -> io::Result<()> {
    let file = directory.join(format!("{KEEPER}.new"));
    fs::write(&file, keeper)?;
    fs::rename(file, directory.join(KEEPER))
}

/// Who signed last; empty when nobody did.
pub(super) fn keeper(directory: &Path) -> String {
    fs::read_to_string(directory.join(KEEPER)).unwrap_or_default()
}

/// The name of a directory that its workers use on the bus, where others share the bus and not the directory. Whoever
/// comes first gives it.
pub(super) fn name(directory: &Path) -> io::Result<String> {
    fs::create_dir_all(directory)?;
    let (named, file) = (directory.join(format!("{NAME}.{}", clock::process_token())), directory.join(NAME));
    if !file.exists() {
        // A link appears with its content, and only where there is none.
        fs::write(&named, clock::random_hex())?;
        let linked = fs::hard_link(&named, &file);
        fs::remove_file(&named)?;
        linked.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })?;
    }
    fs::read_to_string(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_lock_until_it_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vectors");
        let lock = Lock::take(&path).expect("made").expect("free");
        assert!(Lock::take(&path).expect("there").is_none());
        sign(&path, "first").expect("signed");
        drop(lock);
        assert!(Lock::take(&path).expect("there").is_some());
        assert_eq!(keeper(&path), "first");
    }

    #[test]
    fn a_directory_has_one_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = name(directory.path()).expect("named");
        assert_eq!(first.len(), 32);
        assert_eq!(name(directory.path()).expect("named"), first);
    }
}
