//! Whom a box may be.

use std::path::Path;

use tool_runner::NOBODY;

use super::made_for::Access;
use crate::failure::Failure;

/// User and group of a box around a workspace: who this worker is, so that a box may no more than the worker, and never
/// root. A worker that is root lends the box the workspace's owner.
pub(super) fn user_for(workspace: &Path) -> Result<(u32, u32), Failure> {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid();
    if !own.is_root() {
        return Ok((own.as_raw(), rustix::process::getegid().as_raw()));
    }
    let metadata = std::fs::metadata(workspace)
        .map_err(|error| Failure::internal(format!("the workspace cannot be opened: {error}")))?;
    if metadata.uid() != 0 {
        return Ok((metadata.uid(), metadata.gid()));
    }
    if metadata.mode() & 0o005 != 0o005 {
        return Err(Failure::refused(format!(
            "the workspace {} can be read by root only, and no box runs as root: allow others to read it (chmod o+rx)",
            workspace.display()
        )));
    }
    Ok((NOBODY, NOBODY))
}

/// The same for a command, which may have leave to write.
pub(super) fn user_for_access(workspace: &Path, access: Access) -> Result<(u32, u32), Failure> {
    let user = user_for(workspace)?;
    match (access, user) {
        (Access::Write, (NOBODY, _)) if rustix::process::geteuid().is_root() => Err(Failure::refused(format!(
            "the workspace {} belongs to root, and no command runs as root: give it to another user (chown), \
             or take it out of tools.writable",
            workspace.display()
        ))),
        _ => Ok(user),
    }
}

/// The first directory on the way to a path that keeps a user out; none when all let him through.
pub(super) fn barred(path: &Path, (user, group): (u32, u32)) -> Option<&Path> {
    use std::os::unix::fs::MetadataExt;
    path.ancestors().skip(1).find(|directory| {
        let passes = std::fs::metadata(directory).is_ok_and(|metadata| {
            let class = match (metadata.uid() == user, metadata.gid() == group) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            metadata.mode() & class != 0
        });
        !passes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_on_the_way_that_keeps_others_out_is_named() {
        let base = tempfile::tempdir().unwrap();
        let inner = base.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mode = |mode| std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let stranger = (NOBODY, NOBODY);
        mode(0o755);
        assert_eq!(barred(&inner, stranger), None);
        mode(0o700);
        assert_eq!(barred(&inner, stranger), Some(base.path()));
        assert_eq!(barred(&inner, (rustix::process::geteuid().as_raw(), NOBODY)), None, "the owner passes");
    }
}
