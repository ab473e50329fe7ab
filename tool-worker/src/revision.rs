//! What a tool that only reads would see: a fingerprint that differs whenever a file it could read has changed.
//!
//! What git calls the head is not enough: tools read what lies on disk, committed or not, ignored or not. So the
//! fingerprint is made of what the file system says of each file: device, inode, size, and the times of the last change of
//! content and of anything. The last of these cannot be set by a program, so putting a content or a date back gives
//! another fingerprint. A tool that reads one file depends on that file alone; one that searches, on the whole tree.
//!
//! A file that changed a moment ago could change again within the same tick of its file system's clock, unnoticed; while
//! there is such a file, there is no fingerprint. What no fingerprint of this kind sees is a program that goes on writing
//! through a memory map without telling the kernel.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt as _};
use ignore::WalkBuilder;
use schemas::wire::Nanos;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A fingerprint.
pub(crate) type Revision = [u8; 32];

/// How long a file must have been left alone: the coarsest clock of a file system ticks every two seconds.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Entries of a tree that are looked at: beyond it, looking costs more than calling.
const ENTRIES_MAX: usize = 20_000;

/// What of a workspace decides the result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The file at the argument `path`.
    File,
    /// Any file.
    Tree,
}

impl Sight {
    /// Of a tool that only reads.
    pub(crate) fn of(tool: &str) -> Self {
        match tool {
            "read_file" | "analyze_code" => Self::File,
            _ => Self::Tree,
        }
    }
}

/// The fingerprint at the moment `now`; none while something is unsettled, unreadable or too large. It blocks.
pub(crate) fn revision(workspace: &Path, sight: Sight, arguments: &Map<String, Value>, now: Nanos) -> Option<Revision> {
    let mut hash = Fingerprint { hash: Sha256::new(), settled_before: settled_before(now) };
    match sight {
        Sight::File => {
            let path = arguments.get("path")?.as_str()?;
            let dir = Dir::open_ambient_dir(workspace, ambient_authority()).ok()?;
            // Links are followed as the tool follows them, and no further.
            let file = dir.metadata(path).ok().filter(cap_std::fs::Metadata::is_file)?;
            let times = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
            hash.file(path.as_bytes(), [file.dev(), file.ino(), file.size(), u64::from(file.mode())], times)?;
        }
        Sight::Tree => tree(workspace, &mut hash)?,
    }
    Some(hash.hash.finalize().into())
}

/// Every entry below, in an order of its own.
fn tree(workspace: &Path, hash: &mut Fingerprint) -> Option<()> {
    let walk =
        WalkBuilder::new(workspace).standard_filters(false).follow_links(false).sort_by_file_name(Ord::cmp).build();
    for (count, entry) in walk.enumerate() {
        if count >= ENTRIES_MAX {
            return None;
        }
        let described = |entry: &ignore::DirEntry| -> io::Result<Metadata> { std::fs::symlink_metadata(entry.path()) };
        let entry = entry.ok()?;
        let of = described(&entry).ok()?;
        let times = [(of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())];
        let path = entry.path().as_os_str().as_bytes();
        hash.file(path, [of.dev(), of.ino(), of.size(), u64::from(of.mode())], times)?;
    }
    Some(())
}

fn settled_before(now: Nanos) -> Nanos {
    now.saturating_sub(Nanos::try_from(SETTLED_AFTER.as_nanos()).unwrap_or(Nanos::MAX))
}

struct Fingerprint {
    hash: Sha256,
    settled_before: Nanos,
}

impl Fingerprint {
    /// Adds a file; none when it has not settled.
    fn file(&mut self, path: &[u8], numbers: [u64; 4], times: [(i64, i64); 2]) -> Option<()> {
        self.hash.update((path.len() as u64).to_le_bytes());
        self.hash.update(path);
        for number in numbers {
            self.hash.update(number.to_le_bytes());
        }
        for (seconds, nanoseconds) in times {
            let at = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
            self.hash.update(at.to_le_bytes());
        }
        // Only the time of the last change of anything is the system's own; the other is anybody's.
        let (seconds, nanoseconds) = times[1];
        let changed = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        (changed < self.settled_before).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use runtime::clock;
    use serde_json::json;

    use super::*;

    /// An hour from now, everything has settled.
    fn later() -> Nanos {
        clock::now() + 3_600_000_000_000
    }

    fn workspace() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("src/.hidden")).unwrap();
        fs::write(base.path().join("src/a.rs"), "one").unwrap();
        fs::write(base.path().join("src/.hidden/b"), "two").unwrap();
        fs::write(base.path().join(".gitignore"), "ignored").unwrap();
        fs::write(base.path().join("ignored"), "three").unwrap();
        base
    }

    fn of(base: &tempfile::TempDir, sight: Sight) -> Option<Revision> {
        let arguments = json!({"path": "src/a.rs"}).as_object().cloned().unwrap();
        revision(base.path(), sight, &arguments, later())
    }

    #[test]
    fn every_change_of_any_file_is_another_revision() {
        let base = workspace();
        let path = |name: &str| base.path().join(name);
        let mut seen = vec![of(&base, Sight::Tree).unwrap()];
        assert_eq!(of(&base, Sight::Tree), Some(seen[0]), "nothing changed");
        let changes: [(&str, &dyn Fn()); 9] = [
            ("same size", &|| fs::write(path("src/a.rs"), "eno").unwrap()),
            ("put back", &|| fs::write(path("src/a.rs"), "one").unwrap()),
            ("hidden", &|| fs::write(path("src/.hidden/b"), "owt").unwrap()),
            ("ignored", &|| fs::write(path("ignored"), "eerht").unwrap()),
            ("new", &|| fs::write(path("new"), "").unwrap()),
            ("renamed", &|| fs::rename(path("new"), path("old")).unwrap()),
            ("removed", &|| fs::remove_file(path("old")).unwrap()),
            ("permissions", &|| {
                let mut permissions = fs::metadata(path("ignored")).unwrap().permissions();
                permissions.set_readonly(true);
                fs::set_permissions(path("ignored"), permissions).unwrap();
            }),
            ("date put back", &|| {
                let file = fs::File::options().append(true).open(path("src/a.rs")).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                io::Write::write_all(&mut &file, b"!").unwrap();
                file.set_len(3).unwrap();
                file.set_modified(before).unwrap();
            }),
        ];
        for (what, change) in changes {
            wait_for_a_tick(base.path());
            change();
            let now = of(&base, Sight::Tree).unwrap();
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        }
    }

    /// Until the file system's clock gives another time than the last change has.
    fn wait_for_a_tick(base: &Path) {
        let probe = tempfile::NamedTempFile::new_in(base.parent().unwrap()).unwrap();
        let first = probe.as_file().metadata().unwrap();
        loop {
            fs::write(probe.path(), "x").unwrap();
            let now = probe.as_file().metadata().unwrap();
            if (now.ctime(), now.ctime_nsec()) != (first.ctime(), first.ctime_nsec()) {
                return;
            }
        }
    }

    #[test]
    fn who_reads_one_file_depends_on_that_file_alone() {
        let base = workspace();
        let before = of(&base, Sight::File).unwrap();
        fs::write(base.path().join("ignored"), "else").unwrap();
        assert_eq!(of(&base, Sight::File), Some(before));
        wait_for_a_tick(base.path());
        fs::write(base.path().join("src/a.rs"), "eno").unwrap();
        let after = of(&base, Sight::File).unwrap();
        assert_ne!(after, before);
        // Another file under the same name, and the same file behind a link that turns.
        fs::write(base.path().join("src/c.rs"), "eno").unwrap();
        fs::rename(base.path().join("src/c.rs"), base.path().join("src/a.rs")).unwrap();
        assert_ne!(of(&base, Sight::File).unwrap(), after);
        for path in ["../x", "/etc/passwd", "src", "none"] {
            let arguments = json!({"path": path}).as_object().cloned().unwrap();
            assert_eq!(revision(base.path(), Sight::File, &arguments, later()), None, "{path}");
        }
    }

    #[test]
    fn what_changed_a_moment_ago_has_no_revision_yet() {
        let base = workspace();
        for sight in [Sight::File, Sight::Tree] {
            assert_eq!(
                revision(base.path(), sight, &json!({"path": "src/a.rs"}).as_object().cloned().unwrap(), clock::now()),
                None
            );
            assert!(of(&base, sight).is_some());
        }
    }

    /// Prints the cost over this repository; machines differ, so nothing is held against it.
    #[test]
    fn the_cost_of_looking_is_measured() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let arguments = json!({"path": "Cargo.toml"}).as_object().cloned().unwrap();
        for sight in [Sight::File, Sight::Tree] {
            let since = clock::instant();
            let found = revision(repository, sight, &arguments, later()).is_some();
            println!("{sight:?} of this repository: {:?} (found: {found})", clock::instant().duration_since(since));
        }
    }
}
