//! Which directories tools may look at.
//!
//! A workspace is named by a path under one of the allowed roots. It is resolved once, with all symbolic links
//! followed, and compared as a path of directories, not of characters: `/srv/code2` is not under `/srv/code`.

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::sandbox::{Access, Place};

/// The directories under which workspaces may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    allowed: Vec<PathBuf>,
    /// Where files may be changed, too.
    writable: Vec<PathBuf>,
}

/// A directory that tools may read, resolved and allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    place: Place,
    access: Access,
}

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
    /// Nothing may be written there.
    #[error("the workspace {} may not be written to (writable on this server: {})", path.display(), listed(writable))]
    ReadOnly {
        /// The workspace.
        path: PathBuf,
        /// Where it is allowed.
        writable: Vec<PathBuf>,
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
}

/// The kernel's limit of a path.
const PATH_BYTES_MAX: usize = 4096;

impl Roots {
    /// Resolves the configured roots. All of them must exist, so that a mistyped one is found at start.
    ///
    /// # Errors
    /// One cannot be used, or what should be writable is not below an allowed one.
    pub fn open(allowed: &[PathBuf], writable: &[PathBuf]) -> Result<Self, Error> {
        let resolve = |path: &PathBuf| {
            let bad = |reason: String| Error::BadRoot { path: path.clone(), reason };
            let root = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            if root.is_dir() { Ok(root) } else { Err(bad("it is not a directory".to_owned())) }
        };
        let allowed: Vec<PathBuf> = allowed.iter().map(resolve).collect::<Result<_, _>>()?;
        let writable = writable.iter().map(|path| {
            let root = resolve(path)?;
            match allowed.iter().any(|allowed| root.starts_with(allowed)) {
                true => Ok(root),
                false => Err(Error::BadRoot {
                    path: path.clone(),
                    reason: format!("it is writable, but not under an allowed root ({})", listed(&allowed)),
                }),
            }
        });
        let writable = writable.collect::<Result<_, _>>()?;
        Ok(Self { allowed, writable })
    }

    /// The roots, resolved.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.allowed
    }

    /// Whether files may be changed anywhere.
    #[must_use]
    pub fn any_writable(&self) -> bool {
        !self.writable.is_empty()
    }

    /// Finds a workspace. Without a name it is the first root; a relative name is looked up under the first root.
    pub fn find(&self, name: Option<&str>) -> Result<Workspace, Error> {
        let first = self.allowed.first().ok_or(Error::NoRoots)?;
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Place::at(first)
                .map(|place| self.workspace(place))
                .map_err(|_| Error::Missing { name: first.display().to_string(), roots: self.allowed.clone() });
        };
        let shown: String = name.chars().take(200).collect();
        let missing = || Error::Missing { name: shown.clone(), roots: self.allowed.clone() };
        if name.len() >= PATH_BYTES_MAX || name.contains('\0') {
            return Err(missing());
        }
        let outside = || Error::Outside { name: shown.clone(), roots: self.allowed.clone() };
        // A path outside is refused in the same words whether it exists or not; existence elsewhere is nobody's affair.
        let lexically_inside = |path: &Path| self.allowed.iter().any(|root| path.starts_with(root));
        let path = match first.join(name).canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound && lexically_inside(&first.join(name)) => {
                return Err(missing());
            }
            Err(_) => return Err(outside()),
        };
        if !lexically_inside(&path) {
            return Err(outside());
        }
        match Place::at(&path) {
            // What lies there may have changed since it was looked at; what was opened is what counts.
            Ok(place) if lexically_inside(place.path()) => Ok(self.workspace(place)),
            Ok(_) => Err(outside()),
            Err(_) => Err(missing()),
        }
    }

    /// What a tool gets of a directory (without links in its path) that asks for this much.
    ///
    /// # Errors
    /// It asks to write, and that is allowed elsewhere only.
    pub fn grant(&self, wanted: Access, path: &Path) -> Result<Access, Error> {
        match wanted == Access::Read || self.most(path) == Access::Write {
            true => Ok(wanted),
            false => Err(Error::ReadOnly { path: path.to_owned(), writable: self.writable.clone() }),
        }
    }

    /// What may be done in a directory at most.
    fn most(&self, path: &Path) -> Access {
        let writable = self.writable.iter().any(|root| path.starts_with(root));
        if writable { Access::Write } else { Access::Read }
    }

    fn workspace(&self, place: Place) -> Workspace {
        Workspace { access: self.most(place.path()), place }
    }
}

impl Workspace {
    /// The directory, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// The directory itself, whatever its path leads to later.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What a tool may do there that asks for as much as there is.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NoRoots | Error::BadRoot { .. } | Error::Outside { .. } | Error::ReadOnly { .. } => {
                Self::refused(error.to_string())
            }
            Error::Missing { .. } => Self::bad_request(error.to_string()),
        }
    }
}

fn listed(roots: &[PathBuf]) -> String {
    if roots.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn workspaces_lie_under_roots_and_nowhere_else() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        for dir in ["code/app", "code2", "secret"] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
        }
        std::fs::write(base.join("code/file"), "").unwrap();
        symlink(base.join("secret"), base.join("code/link")).unwrap();
        let root = base.join("code");
        let roots = Roots::open(std::slice::from_ref(&root), &[root.join("app")]).unwrap();
        let named = |path: PathBuf| path.to_str().unwrap().to_owned();

        assert_eq!(roots.find(None).unwrap().path(), root);
        assert_eq!(roots.find(Some("app")).unwrap().path(), root.join("app"));
        assert_eq!(roots.find(Some(&named(root.join("app/../app")))).unwrap().path(), root.join("app"));
        for outside in
            [named(base.join("code2")), "../code2".into(), "link".into(), "/".into(), named(base.join("nowhere"))]
        {
            assert!(matches!(roots.find(Some(&outside)), Err(Error::Outside { .. })), "{outside}");
        }
        for missing in ["nothing", "file", "a\0b"] {
            assert!(matches!(roots.find(Some(missing)), Err(Error::Missing { .. })), "{missing}");
        }
        assert_eq!(roots.find(None).unwrap().access(), Access::Read);
        assert_eq!(roots.find(Some("app")).unwrap().access(), Access::Write);
        assert_eq!(roots.grant(Access::Read, &root), Ok(Access::Read));
        assert_eq!(roots.grant(Access::Write, &root.join("app/sub")), Ok(Access::Write));
        for elsewhere in ["code/app2", "code", "secret"] {
            let refused = roots.grant(Access::Write, &base.join(elsewhere)).unwrap_err().to_string();
            let only = format!("(writable on this server: {})", root.join("app").display());
            assert!(refused.ends_with(&only), "{refused}");
        }
        let outside = Roots::open(std::slice::from_ref(&root), &[base.join("code2")]).unwrap_err().to_string();
        assert!(outside.contains("it is writable, but not under an allowed root"), "{outside}");
        let message = roots.find(Some("/")).unwrap_err().to_string();
        assert_eq!(message, format!("workspace / is not under an allowed root (allowed roots: {})", root.display()));
    }

    #[test]
    fn a_root_that_does_not_exist_is_found_at_start() {
        let error = Roots::open(&["/nonexistent/root".into()], &[]).unwrap_err();
        assert!(error.to_string().starts_with("workspace root /nonexistent/root cannot be used: "), "{error}");
        assert_eq!(Roots::open(&[], &[]).unwrap().find(None), Err(Error::NoRoots));
    }
}
