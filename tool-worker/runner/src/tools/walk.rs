//! Which files of a workspace `search_code` looks at. The worker asks the same question, to see whether one of them has
//! changed: what is looked at is decided here and nowhere else.

use std::path::Path;

use ignore::WalkBuilder;

/// Entries at a directory and below it, without hidden ones and those that ignore files name. Links are not followed.
#[must_use]
pub fn walk(below: &Path) -> WalkBuilder {
    let mut walk = WalkBuilder::new(below);
    walk.require_git(false).git_global(false).follow_links(false).add_custom_ignore_filename(".rgignore");
    walk
}
