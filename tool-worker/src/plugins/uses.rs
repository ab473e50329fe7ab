//! What a tool's program does with the workspace of a call.

use serde::Deserialize;

use crate::sandbox::Access;

/// As its file says.
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
