//! `tsconfig.json` and `jsconfig.json`: the names under which files are known, `baseUrl` and `paths`, with what a
//! configuration takes over from those it extends.

use std::collections::BTreeMap;

use serde_json::Value;

use super::manifests::Manifests;
use super::{packages, path};

/// Configurations that extend each other further than this are abuse, or a circle.
const EXTENDS_MAX: usize = 16;

/// What one configuration says of names.
#[derive(Default)]
pub(super) struct Config {
    /// The directory from which names are looked for.
    base: Option<String>,
    /// Patterns with at most one `*`, and what they stand for: paths with the same `*`, seen from the base if there is
    /// one and else from the directory of the configuration that has the patterns.
    paths: Vec<(String, Vec<String>)>,
    directory: String,
}

/// Configurations by the directory they hold for. A directory's `tsconfig.json` comes before its `jsconfig.json`.
pub(super) fn configs(manifests: &Manifests) -> BTreeMap<&str, Config> {
    let mut configs = BTreeMap::new();
    for name in ["jsconfig.json", "tsconfig.json"] {
        for at in manifests.json.keys().filter(|at| path::name(at) == name) {
            let mut config = read(manifests, at, EXTENDS_MAX);
            if config.is_silent() {
                config = referenced(manifests, at).unwrap_or(config);
            }
            if !config.is_silent() || !configs.contains_key(path::directory(at)) {
                configs.insert(path::directory(at), config);
            }
        }
    }
    configs
}

impl Config {
    fn is_silent(&self) -> bool {
        self.base.is_none() && self.paths.is_empty()
    }

    /// Paths in the workspace that `name` may stand for, the likeliest first.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        let matching = self.paths.iter().filter_map(|(pattern, targets)| {
            let star = packages::matched(pattern, name)?;
            // A name without `*` comes first, then the one with most before it.
            let exact = !pattern.contains('*');
            Some((exact, pattern.find('*').unwrap_or(pattern.len()), star, targets))
        });
        let best = matching.max_by_key(|&(exact, before, ..)| (exact, before));
        let from = self.base.as_ref().unwrap_or(&self.directory);
        let targets = best.into_iter().flat_map(|(_, _, star, targets)| {
            targets.iter().filter_map(move |target| path::join(from, &target.replacen('*', star, 1)))
        });
        let base = self.base.iter().filter_map(|base| path::join(base, name));
        targets.chain(base).collect()
    }
}

/// A configuration with what it takes over: each of the two settings is the nearest one.
fn read(manifests: &Manifests, at: &str, extends_max: usize) -> Config {
    let Some(value) = manifests.json.get(at) else { return Config::default() };
    let directory = path::directory(at);
    let options = value.get("compilerOptions");
    let option = |name: &str| options.and_then(|options| options.get(name));
    let base = option("baseUrl").and_then(Value::as_str).and_then(|base| path::join(directory, base));
    let paths = option("paths").and_then(Value::as_object).into_iter().flatten();
    let paths = paths.map(|(pattern, targets)| (pattern.clone(), texts(targets))).collect();
    let mut config = Config { base, paths, directory: directory.to_owned() };
    let extended = match value.get("extends") {
        Some(Value::Array(several)) => several.iter().rev().filter_map(Value::as_str).collect(),
        Some(one) => one.as_str().into_iter().collect(),
        None => Vec::new(),
    };
    for name in extended.into_iter().take(extends_max) {
        if let Some(at) = extended_file(manifests, directory, name) {
            let inherited = read(manifests, &at, extends_max / 2);
            config.base = config.base.or(inherited.base);
            if config.paths.is_empty() {
                (config.paths, config.directory) = (inherited.paths, inherited.directory);
            }
        }
    }
    config
}

fn texts(values: &Value) -> Vec<String> {
    values.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The file that `extends` names; none for one from a package.
fn extended_file(manifests: &Manifests, directory: &str, name: &str) -> Option<String> {
    let at = path::join(directory, name).filter(|_| name.starts_with('.'))?;
    let candidates = [at.clone(), format!("{at}.json"), path::below(&at, "tsconfig.json")];
    candidates.into_iter().find(|at| manifests.json.contains_key(at))
}

/// A configuration that only lists others, as templates make them, speaks through the first that says something.
fn referenced(manifests: &Manifests, at: &str) -> Option<Config> {
    let references = manifests.json.get(at)?.get("references")?.as_array()?;
    let beside = references.iter().filter_map(|reference| reference.get("path")?.as_str());
    let configs = beside.filter(|reference| reference.ends_with(".json")).filter_map(|reference| {
        let reference = path::join(path::directory(at), reference)?;
        Some(read(manifests, &reference, EXTENDS_MAX))
    });
    configs.take(EXTENDS_MAX).find(|config| !config.is_silent())
}
