//! Programs in Python that tests speak to, or that speak to what is tested: each in an environment of its own, which
//! `deploy/test` installs.

use std::path::PathBuf;

use anyhow::ensure;

/// The Python of the environment that `deploy/test` installs under this name. None where it is missing, which is said; in
/// CI that is an error.
///
/// # Errors
/// When it is not installed and CI=true.
#[expect(clippy::disallowed_methods, reason = "where deploy/test puts it stands in the environment")]
pub fn python(environment: &str) -> anyhow::Result<Option<PathBuf>> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    let python = cache.join("vlinders").join(environment).join("bin/python");
    if python.is_file() {
        return Ok(Some(python));
    }
    let why = format!("{} is missing: deploy/test installs it", python.display());
    ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    eprintln!("SKIPPED: {why}");
    Ok(None)
}
