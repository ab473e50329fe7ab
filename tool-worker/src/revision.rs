//! What a tool that only reads would see: a fingerprint that differs whenever a file it could read has changed.
//!
//! What git calls the head is not enough: tools read what lies on disk, committed or not, ignored or not. So the
//! fingerprint is made of what the file system says of each file: device, inode, size, and the times of the last change of
//! content and of anything. The last of these cannot be set by a program, so putting a content or a date back gives
//! another fingerprint. A tool that reads one file depends on that file alone; one that searches, on the files it looks at;
//! any other on the whole tree. It costs one look at each of these files.
//!
//! A file that changed a moment ago could change again within the same tick of its file system's clock, unnoticed; while
//! there is such a file, there is no fingerprint. What no fingerprint of this kind sees is a program that goes on writing
//! through a memory map without telling the kernel.

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
use tool_runner::tools;

/// A fingerprint.
pub(crate) type Revision = [u8; 32];

/// How long a file must have been left alone: the coarsest clock of a file system ticks every two seconds.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Entries of a tree that are looked at: beyond it, looking costs more than calling.
const ENTRIES_MAX: usize = 20_000;

/// What of a workspace decides the result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sight {
    /// The file at the argument `path`.
    File,
    /// Every file that a search of the whole workspace looks at.
    Searched,
    /// Any file at or below the argument `path`, and what is ignored there.
    Below,
    /// Any file.
    Tree,
}

/// Why there is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// Something changed a moment ago, or cannot be looked at: later there may be one.
    Unsettled,
    /// There is too much to look at.
    TooMuch,
}

impl Sight {
    /// Of a tool that only reads.
    pub(crate) fn of(tool: &str, arguments: &Map<String, Value>) -> Self {
        match (tool, arguments.get("path").and_then(Value::as_str)) {
            ("read_file" | "analyze_code", _) => Self::File,
            // A glob may name what is ignored or hidden.
            ("search_code", _) if arguments.contains_key("globs") => Self::Tree,
            ("search_code", None | Some("." | "./")) => Self::Searched,
            ("search_code", Some(_)) => Self::Below,
            _ => Self::Tree,
        }
    }
}

/// The fingerprint at the moment `now`. It blocks.
pub(crate) fn revision(
    workspace: &Path,
    sight: Sight,
    arguments: &Map<String, Value>,
    now: Nanos,
) -> Result<Revision, Unseen> {
    let mut hash = Fingerprint { hash: Sha256::new(), settled_before: settled_before(now), entries: 0 };
    match sight {
        Sight::File => {
            let (dir, path) = place(workspace, arguments)?;
            // Links are followed as the tool follows them, and no further.
            let file = dir.metadata(path).ok().filter(cap_std::fs::Metadata::is_file).ok_or(Unseen::Unsettled)?;
            let times = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
            hash.file(path.as_bytes(), [file.dev(), file.ino(), file.size(), u64::from(file.mode())], times)?;
        }
        // What stands above the workspace a box does not see.
        Sight::Searched => hash.walk(tools::walk(workspace).parents(false))?,
        Sight::Below => {
            let (dir, path) = place(workspace, arguments)?;
            let below = workspace.join(dir.canonicalize(path).map_err(|_| Unseen::Unsettled)?);
            for above in below.ancestors().skip(1).take_while(|above| above.starts_with(workspace)) {
                IGNORE_FILES.iter().try_for_each(|name| hash.ignore_file(&above.join(name)))?;
            }
            hash.walk(WalkBuilder::new(&below).standard_filters(false).follow_links(false))?;
        }
        Sight::Tree => hash.walk(WalkBuilder::new(workspace).standard_filters(false).follow_links(false))?,
    }
    Ok(hash.hash.finalize().into())
}

/// What a search takes for rules about files below.
const IGNORE_FILES: [&str; 4] = [".gitignore", ".ignore", ".rgignore", ".git/info/exclude"];

/// The place that the arguments name, within the workspace.
fn place<'a>(workspace: &Path, arguments: &'a Map<String, Value>) -> Result<(Dir, &'a str), Unseen> {
    let path = arguments.get("path").and_then(Value::as_str).ok_or(Unseen::Unsettled)?;
    let dir = Dir::open_ambient_dir(workspace, ambient_authority()).map_err(|_| Unseen::Unsettled)?;
    Ok((dir, path))
}

fn settled_before(now: Nanos) -> Nanos {
    now.saturating_sub(Nanos::try_from(SETTLED_AFTER.as_nanos()).unwrap_or(Nanos::MAX))
}

struct Fingerprint {
    hash: Sha256,
    settled_before: Nanos,
    entries: usize,
}

impl Fingerprint {
    /// Adds every entry of a walk, in an order of its own.
    fn walk(&mut self, walk: &mut WalkBuilder) -> Result<(), Unseen> {
        for entry in walk.sort_by_file_name(Ord::cmp).build() {
            let entry = entry.map_err(|_| Unseen::Unsettled)?;
            self.entry(entry.path())?;
        }
        Ok(())
    }

    /// Adds a file of rules, or that there is none.
    fn ignore_file(&mut self, path: &Path) -> Result<(), Unseen> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.hash.update([0]);
                Ok(())
            }
            _ => self.entry(path),
        }
    }

    fn entry(&mut self, path: &Path) -> Result<(), Unseen> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(Unseen::TooMuch);
        }
        let of = std::fs::symlink_metadata(path).map_err(|_| Unseen::Unsettled)?;
        let times = [(of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec())];
        self.file(path.as_os_str().as_bytes(), [of.dev(), of.ino(), of.size(), u64::from(of.mode())], times)
    }

    /// Adds a file, unless it has not settled.
    fn file(&mut self, path: &[u8], numbers: [u64; 4], times: [(i64, i64); 2]) -> Result<(), Unseen> {
        self.hash.update((path.len() as u64).to_le_bytes());
        self.hash.update(path);
        for number in numbers {
            self.hash.update(number.to_le_bytes());
        }
        let in_nanoseconds =
            |(seconds, nanoseconds): (i64, i64)| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        for time in times {
            self.hash.update(in_nanoseconds(time).to_le_bytes());
        }
        // Only the time of the last change of anything is the system's own; the other is anybody's.
        (in_nanoseconds(times[1]) < self.settled_before).then_some(()).ok_or(Unseen::Unsettled)
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

    fn of(base: &tempfile::TempDir, sight: Sight) -> Result<Revision, Unseen> {
        let path = if sight == Sight::Below { "src" } else { "src/a.rs" };
        revision(base.path(), sight, &at(path), later())
    }

    fn at(path: &str) -> Map<String, Value> {
        json!({"path": path}).as_object().cloned().unwrap()
    }

    #[test]
    fn every_change_of_any_file_is_another_revision() {
        let base = workspace();
        let path = |name: &str| base.path().join(name);
        let mut seen = vec![of(&base, Sight::Tree).unwrap()];
        assert_eq!(of(&base, Sight::Tree), Ok(seen[0]), "nothing changed");
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
        assert_eq!(of(&base, Sight::File), Ok(before));
        wait_for_a_tick(base.path());
        fs::write(base.path().join("src/a.rs"), "eno").unwrap();
        let after = of(&base, Sight::File).unwrap();
        assert_ne!(after, before);
        // Another file under the same name, and the same file behind a link that turns.
        fs::write(base.path().join("src/c.rs"), "eno").unwrap();
        fs::rename(base.path().join("src/c.rs"), base.path().join("src/a.rs")).unwrap();
        assert_ne!(of(&base, Sight::File).unwrap(), after);
        for path in ["../x", "/etc/passwd", "src", "none"] {
            assert_eq!(revision(base.path(), Sight::File, &at(path), later()), Err(Unseen::Unsettled), "{path}");
        }
    }

    #[test]
    fn a_search_depends_on_what_it_looks_at() {
        let base = workspace();
        let path = |name: &str| base.path().join(name);
        let sights = [Sight::Searched, Sight::Below, Sight::Tree];
        let seen = || sights.map(|sight| of(&base, sight).unwrap());
        // What changes, and for whom that is another revision.
        type Change<'a> = (&'static str, [bool; 3], &'a dyn Fn());
        let changes: [Change<'_>; 6] = [
            ("ignored", [false, false, true], &|| fs::write(path("ignored"), "else").unwrap()),
            ("hidden", [false, true, true], &|| fs::write(path("src/.hidden/b"), "else").unwrap()),
            ("seen", [true, true, true], &|| fs::write(path("src/a.rs"), "else").unwrap()),
            ("beside", [true, false, true], &|| fs::write(path("beside"), "else").unwrap()),
            ("new rule", [true, true, true], &|| fs::write(path(".gitignore"), "ignored\nbeside\n").unwrap()),
            ("now ignored", [false, false, true], &|| fs::write(path("beside"), "other").unwrap()),
        ];
        for (what, expected, change) in changes {
            let before = seen();
            wait_for_a_tick(base.path());
            change();
            let after = seen();
            let changed = [0, 1, 2].map(|n| before[n] != after[n]);
            assert_eq!(changed, expected, "{what}");
        }
        let sight = |tool: &str, path: Option<&str>| Sight::of(tool, &path.map(at).unwrap_or_default());
        assert_eq!(sight("search_code", None), Sight::Searched);
        assert_eq!(sight("search_code", Some("src")), Sight::Below);
        let globs = json!({"path": "src", "globs": ["*.log"]});
        assert_eq!(Sight::of("search_code", globs.as_object().unwrap()), Sight::Tree, "which may name what is ignored");
        assert_eq!((sight("read_file", Some("a")), sight("plugin", Some("a"))), (Sight::File, Sight::Tree));
        // Nothing outside is looked at.
        for outside in ["..", "/etc", "src/../.."] {
            assert_eq!(revision(base.path(), Sight::Below, &at(outside), later()), Err(Unseen::Unsettled), "{outside}");
        }
    }

    #[test]
    fn what_changed_a_moment_ago_has_no_revision_yet_and_what_is_too_much_never() {
        let base = workspace();
        for sight in [Sight::File, Sight::Searched, Sight::Tree] {
            assert_eq!(revision(base.path(), sight, &at("src/a.rs"), clock::now()), Err(Unseen::Unsettled));
            assert!(of(&base, sight).is_ok());
        }
        let many = base.path().join("many");
        fs::create_dir(&many).unwrap();
        for n in 0..=ENTRIES_MAX {
            std::os::unix::fs::symlink("x", many.join(n.to_string())).unwrap();
        }
        assert_eq!(of(&base, Sight::Tree), Err(Unseen::TooMuch));
    }

    /// Prints the cost over this repository; machines differ, so nothing is held against it.
    #[test]
    fn the_cost_of_looking_is_measured() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for sight in [Sight::File, Sight::Searched, Sight::Tree] {
            let since = clock::instant();
            let found = revision(repository, sight, &at("Cargo.toml"), later()).is_ok();
            println!("{sight:?} of this repository: {:?} (found: {found})", clock::instant().duration_since(since));
        }
    }
}
