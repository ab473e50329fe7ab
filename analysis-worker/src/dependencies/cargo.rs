//! What Cargo knows of a workspace: packages, the files in which their crates begin, and the names of crates.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::files::Files;
use super::manifests::{self, Manifests};
use super::path;

/// A package, as its `Cargo.toml` describes it.
pub(super) struct Package {
    /// Its name, as it stands in paths.
    pub(super) name: String,
    /// The name of its library in paths, and the library's first file.
    pub(super) library: Option<(String, usize)>,
    /// What it depends on: the name in paths, and the name of the package's library.
    pub(super) dependencies: BTreeMap<String, String>,
    /// Files that targets name, relative to the package.
    targets: BTreeSet<String>,
}

/// Packages by directory.
pub(super) fn packages<'m>(files: &Files<'_>, manifests: &'m Manifests) -> BTreeMap<&'m str, Package> {
    let tables = || manifests::named(&manifests.toml, "Cargo.toml");
    let shared: BTreeMap<&str, BTreeMap<String, String>> = tables()
        .filter_map(|(directory, table)| {
            let dependencies = table.get("workspace")?.get("dependencies")?.as_table()?;
            Some((directory, dependencies.iter().map(|(key, value)| renamed(key, value)).collect()))
        })
        .collect();
    let packages = tables().filter_map(|(directory, table)| {
        let workspace = path::upwards(directory).find_map(|above| shared.get(above));
        Some((directory, package(files, directory, table, workspace)?))
    });
    packages.collect()
}

fn package(
    files: &Files<'_>,
    directory: &str,
    table: &Table,
    workspace: Option<&BTreeMap<String, String>>,
) -> Option<Package> {
    let name = table.get("package")?.get("name")?.as_str()?;
    let mut targets = BTreeSet::new();
    let mut named = |target: &Value| {
        if let Some(at) = target.get("path").and_then(Value::as_str) {
            targets.extend(path::join("", at));
        }
    };
    let library = table.get("lib");
    library.into_iter().for_each(&mut named);
    for kind in ["bin", "test", "example", "bench"] {
        table.get(kind).and_then(Value::as_array).into_iter().flatten().for_each(&mut named);
    }
    if let Some(script) = table.get("package")?.get("build").and_then(Value::as_str) {
        targets.extend(path::join("", script));
    }
    let told = |key| library.and_then(|library| library.get(key)).and_then(Value::as_str);
    let library = files.at(directory, told("path").unwrap_or("src/lib.rs"));
    let library = library.map(|file| (told("name").map_or_else(|| identifier(name), identifier), file));
    Some(Package { name: identifier(name), library, dependencies: dependencies(table, workspace), targets })
}

impl Package {
    /// Whether a crate begins in the file at this path, relative to the package: by the manifest, or by where it lies.
    pub(super) fn begins_in(&self, at: &str) -> bool {
        if matches!(at, "src/lib.rs" | "src/main.rs" | "build.rs") || self.targets.contains(at) {
            return true;
        }
        let directory = path::directory(at);
        let holds_targets = |directory| matches!(directory, "src/bin" | "tests" | "examples" | "benches");
        holds_targets(directory) || (path::name(at) == "main.rs" && holds_targets(path::directory(directory)))
    }
}

/// Every table of dependencies, those of single platforms included.
fn dependencies(table: &Table, workspace: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let platforms = table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = std::iter::once(table).chain(platforms.filter_map(Value::as_table));
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let entries = tables.flat_map(|table| kinds.into_iter().filter_map(|kind| table.get(kind)?.as_table())).flatten();
    let of = |(key, value): (&String, &Value)| {
        let inherits = value.get("workspace").and_then(Value::as_bool) == Some(true);
        let (name, package) = renamed(key, value);
        let inherited = workspace.filter(|_| inherits).and_then(|workspace| workspace.get(&name).cloned());
        (name, inherited.unwrap_or(package))
    };
    entries.map(of).collect()
}

/// The name a dependency has in paths, and that of its package.
fn renamed(key: &str, value: &Value) -> (String, String) {
    let package = value.get("package").and_then(Value::as_str).unwrap_or(key);
    (identifier(key), identifier(package))
}

/// A package's name as it stands in paths.
fn identifier(name: &str) -> String {
    name.replace('-', "_")
}
