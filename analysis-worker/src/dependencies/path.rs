//! Paths of a workspace as text: relative, with `/`. The workspace itself is the empty path.

/// Longest path that is put together; no file system has longer ones.
const PATH_BYTES_MAX: usize = 4_096;

/// Most components of a path: work that is done for each directory above a file stays small.
const COMPONENTS_MAX: usize = 32;

/// Whether it is written the way paths of a workspace are.
pub(super) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= PATH_BYTES_MAX
        && path.matches('/').count() < COMPONENTS_MAX
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains(['\\', '\0'])
}

/// The directory of a file, or the one above a directory.
pub(super) fn directory(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..slash])
}

/// The last component.
pub(super) fn name(path: &str) -> &str {
    path.rfind('/').map_or(path, |slash| &path[slash + 1..])
}

/// The last component without its extension.
pub(super) fn stem(path: &str) -> &str {
    let name = name(path);
    name.rfind('.').filter(|&dot| dot > 0).map_or(name, |dot| &name[..dot])
}

/// What stands behind the last dot of the name; empty when there is none.
pub(super) fn extension(path: &str) -> &str {
    let name = name(path);
    name.rfind('.').filter(|&dot| dot > 0).map_or("", |dot| &name[dot + 1..])
}

/// The path without its extension.
pub(super) fn without_extension(path: &str) -> &str {
    let extension = extension(path);
    if extension.is_empty() { path } else { &path[..path.len() - extension.len() - 1] }
}

/// `relative` as seen from `directory`, with `.` and `..` taken out. None when it leaves the workspace, is absolute or
/// is longer than a path can be.
pub(super) fn join(directory: &str, relative: &str) -> Option<String> {
    if relative.starts_with('/') || directory.len() + relative.len() > PATH_BYTES_MAX || relative.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// `directory/name`, where both are plain or empty.
pub(super) fn below(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", path) | (path, "") => path.to_owned(),
        _ => format!("{directory}/{name}"),
    }
}

/// A directory and those above it, up to the workspace itself.
pub(super) fn upwards(from: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(from), |path| (!path.is_empty()).then(|| directory(path)))
}

/// What is left of `path` below `directory`; none when it is not below.
pub(super) fn strip<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    if directory.is_empty() { Some(path) } else { path.strip_prefix(directory)?.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_never_leaves_the_workspace() {
        assert_eq!(join("src/a", "../b.ts").as_deref(), Some("src/b.ts"));
        assert_eq!(join("src", "./a/./b//c").as_deref(), Some("src/a/b/c"));
        assert_eq!(join("src", "..").as_deref(), Some(""));
        assert_eq!(join("src", "../../etc/passwd"), None);
        assert_eq!(join("src", "../x/../../src/a"), None, "not even on the way");
        assert_eq!(join("", "/etc/passwd"), None);
    }

    #[test]
    fn parts_of_a_path() {
        assert_eq!((directory("a/b.c"), name("a/b.c"), stem("a/b.c"), extension("a/b.c")), ("a", "b.c", "b", "c"));
        assert_eq!((directory("b"), stem(".env"), extension(".env"), stem("x.d.ts")), ("", ".env", "", "x.d"));
        assert_eq!(upwards("a/b").collect::<Vec<_>>(), ["a/b", "a", ""]);
        assert_eq!((strip("a/b", "a"), strip("ab", "a"), strip("a", "")), (Some("b"), None, Some("a")));
        assert!(is_plain("a/b") && !is_plain("a/../b") && !is_plain("/a") && !is_plain(""));
    }
}
