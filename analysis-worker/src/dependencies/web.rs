//! Style sheets and pages: addresses, relative to the file that holds them. Languages without rules of their own are
//! read as pages are.

use super::files::Files;
use super::{Found, path};

/// `@import` and `url(…)`. Preprocessors leave out extensions, and write parts with `_` in front.
pub(super) fn css(files: &Files<'_>, file: usize, import: &str) -> Found {
    let inner = import.trim().strip_prefix("url(").and_then(|inner| inner.strip_suffix(')')).unwrap_or(import);
    let address = inner.trim_matches(['"', '\'', ' ']);
    if let Some(package) = address.strip_prefix('~') {
        return Found::external(package.split('/').next().unwrap_or(package));
    }
    let found = html(files, file, address);
    if found != Found::Unresolved {
        return found;
    }
    let directory = files.directory(file);
    let (above, name) = (path::directory(address), path::name(address));
    let names =
        ["css", "scss", "less"].map(|extension| [format!("{name}.{extension}"), format!("_{name}.{extension}")]);
    Found::file(names.iter().flatten().find_map(|name| files.at(directory, &path::below(above, name))))
}

/// `src` and `href`. An address that begins with `/` is meant from a directory that a server serves: the workspace, a
/// directory above the page, or one that is called so.
pub(super) fn html(files: &Files<'_>, file: usize, address: &str) -> Found {
    if let Some((scheme, rest)) = address.split_once(':') {
        let host = rest.trim_start_matches('/').split('/').next().unwrap_or(rest);
        return Found::external(if matches!(scheme, "http" | "https") { host } else { scheme });
    }
    if let Some(elsewhere) = address.strip_prefix("//") {
        return Found::external(elsewhere.split('/').next().unwrap_or(elsewhere));
    }
    let plain = address.split(['?', '#']).next().unwrap_or(address);
    if plain.is_empty() {
        return Found::Unresolved;
    }
    let directory = files.directory(file);
    match plain.strip_prefix('/') {
        None => Found::file(files.at(directory, plain)),
        Some(served) => {
            let above = path::upwards(directory);
            let mut places = above.flat_map(|above| ["", "public", "static"].map(|custom| path::below(above, custom)));
            Found::file(places.find_map(|place| files.at(&place, served)))
        }
    }
}
