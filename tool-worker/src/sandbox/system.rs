//! What a box for commands shows of this system: its programs and what they need to run, read-only, and nothing of people.

use std::path::{Path, PathBuf};

use tool_runner::WORKSPACE;

/// Directories with programs and libraries. Where one is a link into another, the box has the link.
const PROGRAMS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"];
/// Settings that programs cannot do without. Nothing here names a user or holds a secret.
const SETTINGS: [&str; 5] =
    ["/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/ssl/certs"];

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    /// At the same path as here.
    pub(super) shown: Vec<PathBuf>,
    /// Links at the root: name and target.
    pub(super) links: Vec<(String, PathBuf)>,
}

impl System {
    /// Looks what is here.
    pub(super) fn find() -> Self {
        let mut system = Self { shown: Vec::new(), links: Vec::new() };
        for path in PROGRAMS {
            match std::fs::read_link(path) {
                Ok(target) => system.links.push((path.trim_start_matches('/').to_owned(), target)),
                Err(_) if Path::new(path).is_dir() => system.shown.push(path.into()),
                Err(_) => {}
            }
        }
        system.shown.extend(SETTINGS.iter().map(PathBuf::from).filter(|path| path.exists()));
        system
    }
}

/// Why a directory that a command should read cannot be shown at its path; none when it can.
pub(crate) fn unfit(path: &Path) -> Option<String> {
    let shown = path.display();
    let taken = ["/proc", "/dev", "/sys", "/tmp", "/box", WORKSPACE];
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Some(format!("{shown} is no absolute path"));
    }
    if path == Path::new("/") || taken.iter().any(|taken| path.starts_with(taken)) {
        return Some(format!("{shown} cannot be shown in a box, which has its own"));
    }
    if path.to_str().is_none() {
        return Some(format!("{shown} is not UTF-8"));
    }
    (!path.exists()).then(|| format!("{shown} does not exist"))
}
