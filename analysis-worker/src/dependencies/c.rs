//! C and C++: where a compiler would look is not known, so an include is looked for beside the file, in the
//! directories above it by custom, and at last by the end of its path.

use super::files::Files;
use super::{Found, ImportKind, ImportRef, path};

/// Directories of headers by custom, below each directory above the including file.
const CUSTOMARY: [&str; 5] = ["", "include", "src", "inc", "lib"];

pub(super) fn resolve(files: &Files<'_>, file: usize, import: &ImportRef<'_>) -> Found {
    let written = import.path.trim_matches(['"', '<', '>']);
    let system = import.kind == (ImportKind::Include { angled: true }) || import.path.starts_with('<');
    if system && is_standard(written) {
        return Found::external(written);
    }
    let directory = files.directory(file);
    let beside = files.at(directory, written).filter(|_| !system);
    let found = beside.or_else(|| above(files, directory, written)).or_else(|| by_end(files, file, written));
    match found {
        Some(found) => Found::File(found),
        None if system => Found::external(written.split('/').next().unwrap_or(written)),
        None => Found::Unresolved,
    }
}

fn above(files: &Files<'_>, directory: &str, written: &str) -> Option<usize> {
    // Headers of others are mostly known by their name alone.
    if files.named(path::name(written)).is_empty() {
        return None;
    }
    let mut places = path::upwards(directory).flat_map(|above| CUSTOMARY.map(|custom| path::below(above, custom)));
    places.find_map(|place| files.at(&place, written))
}

/// The only file with this path at the end of its own, or the nearest of them.
fn by_end(files: &Files<'_>, file: usize, written: &str) -> Option<usize> {
    if !path::is_plain(written) {
        return None;
    }
    files.nearest(file, files.ending(written))
}

/// Headers of the languages themselves and of POSIX, which a workspace may have by the same name for those who lack
/// them. C++ names its own without extension.
fn is_standard(name: &str) -> bool {
    if !name.contains(['.', '/']) {
        return true;
    }
    name.starts_with("sys/")
        || name.strip_suffix(".h").is_some_and(|name| STANDARD.split(' ').any(|known| known == name))
}

/// Without `.h`.
const STANDARD: &str = "aio arpa/inet assert complex ctype dirent dlfcn errno fcntl fenv float fnmatch getopt glob grp iconv inttypes \
    langinfo limits locale malloc math net/if netdb netinet/in netinet/tcp poll pthread pwd regex sched semaphore \
    setjmp signal stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string strings syslog \
    termios threads time uchar unistd windows";
