//! Who may write where.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;
use crate::sandbox::Access;

/// What a tool's program does with the workspace of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Uses {
    /// It has none.
    #[default]
    None,
    /// It reads it.
    Read,
    /// It changes files in it.
    Write,
}

impl Uses {
    /// What it asks for; none where it has no workspace.
    pub(super) fn access(self) -> Option<Access> {
        match self {
            Self::None => None,
            Self::Read => Some(Access::Read),
            Self::Write => Some(Access::Write),
        }
    }
}

/// Directories as they are compared with workspaces. One that does not exist holds none.
pub(crate) fn resolved(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter_map(|path| path.canonicalize().ok()).collect()
}

/// What a tool gets of a workspace (resolved) that asks for this much.
///
/// # Errors
/// It asks to write, and that is allowed elsewhere only; in words for the model.
pub(crate) fn granted(wanted: Access, workspace: &Path, writable: &[PathBuf]) -> Result<Access, Failure> {
    if wanted == Access::Read || writable.iter().any(|root| workspace.starts_with(root)) {
        return Ok(wanted);
    }
    let roots: Vec<String> = writable.iter().map(|root| root.display().to_string()).collect();
    let roots = if roots.is_empty() { "none".to_owned() } else { roots.join(", ") };
    Err(Failure::refused(format!(
        "the workspace {} may not be written to (writable on this server: {roots})",
        workspace.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_is_for_workspaces_below_a_writable_root_and_reading_for_all() {
        let roots = [PathBuf::from("/srv/scratch")];
        let granted = |wanted, path: &str| granted(wanted, Path::new(path), &roots);
        assert_eq!(granted(Access::Write, "/srv/scratch/a").unwrap(), Access::Write);
        assert_eq!(granted(Access::Read, "/srv/code").unwrap(), Access::Read);
        for elsewhere in ["/srv/scratch2", "/srv", "/srv/code"] {
            let refused = granted(Access::Write, elsewhere).unwrap_err().detail;
            assert!(refused.ends_with("(writable on this server: /srv/scratch)"), "{refused}");
        }
    }
}
