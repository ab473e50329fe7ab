//! Ruby, Lua and shell scripts: paths, looked for where each language's programs usually look.

use super::files::Files;
use super::{Found, ImportKind, ImportRef, path};

/// `require_relative` names a file beside; `require` one below a directory for libraries.
pub(super) fn ruby(files: &Files<'_>, file: usize, import: &ImportRef<'_>) -> Found {
    let candidates = [format!("{}.rb", import.path), import.path.to_owned()];
    let directory = files.directory(file);
    if import.kind == ImportKind::Relative || import.path.starts_with('.') {
        return Found::file(candidates.iter().find_map(|candidate| files.at(directory, candidate)));
    }
    let exists = candidates.iter().any(|candidate| !files.named(path::name(candidate)).is_empty());
    let above = path::upwards(directory).filter(|_| exists);
    let mut places =
        above.flat_map(|above| ["lib", "spec", "test", "app", ""].map(|custom| path::below(above, custom)));
    let found = places.find_map(|place| candidates.iter().find_map(|candidate| files.at(&place, candidate)));
    // Gems of the workspace have their own `lib`.
    let found = found.or_else(|| files.nearest(file, files.ending(&format!("lib/{}", candidates[0]))));
    found.map_or_else(|| Found::external(import.path.split('/').next().unwrap_or(import.path)), Found::File)
}

/// `require "a.b"` is `a/b.lua` or `a/b/init.lua`; `dofile` names a file.
pub(super) fn lua(files: &Files<'_>, file: usize, import: &ImportRef<'_>) -> Found {
    let (kind, import) = (import.kind, import.path);
    if kind == ImportKind::File {
        return Found::file(path::upwards(files.directory(file)).find_map(|above| files.at(above, import)));
    }
    let at = import.replace('.', "/");
    let candidates = [format!("{at}.lua"), format!("{at}/init.lua")];
    let above = path::upwards(files.directory(file));
    let mut places = above.flat_map(|above| ["", "lua", "src", "lib"].map(|custom| path::below(above, custom)));
    let found = places.find_map(|place| candidates.iter().find_map(|candidate| files.at(&place, candidate)));
    let found = found.or_else(|| candidates.iter().find_map(|end| files.nearest(file, files.ending(end))));
    found.map_or_else(|| Found::external(import.split(['.', '/']).next().unwrap_or(import)), Found::File)
}

/// `source` with a path. What a script puts in front of it when it runs (`"$(dirname "$0")/x.sh"`) is not known; the
/// rest is looked for beside the script, and in the directories above it.
pub(super) fn bash(files: &Files<'_>, file: usize, import: &str) -> Found {
    let import = import.trim_matches(['"', '\'']);
    let expands = import.rfind(['$', '`', ')', '}']);
    let literal = match expands {
        Some(at) => import[at..].split_once('/').map(|(_, literal)| literal),
        None if import.starts_with('/') => return Found::external(import),
        None => Some(import),
    };
    let Some(literal) = literal.map(|literal| literal.trim_matches(['"', '\''])) else { return Found::Unresolved };
    let found = path::upwards(files.directory(file)).find_map(|above| files.at(above, literal));
    let by_end =
        || expands.filter(|_| path::is_plain(literal)).and_then(|_| files.nearest(file, files.ending(literal)));
    Found::file(found.or_else(by_end))
}
