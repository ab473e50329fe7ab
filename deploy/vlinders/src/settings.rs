//! Brings file, environment and flags together and hands each service its section.

use std::path::{Path, PathBuf};

use anyhow::Context;
use gateway::Secrets;
use runtime::config::{Layers, Origin, Secret};
use runtime::{bus, cache, telemetry};

/// Sections a configuration may have, one for each service and what they share.
const SECTIONS: [&str; 9] =
    ["nats", "cache", "telemetry", "gateway", "orchestrator", "projection", "inference", "tools", "analysis"];

/// The configuration or the command line is wrong: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The configuration of every service.
pub(crate) struct Settings {
    pub(crate) nats: bus::Config,
    pub(crate) cache: cache::Config,
    pub(crate) telemetry: telemetry::Config,
    pub(crate) gateway: gateway::Config,
    pub(crate) orchestrator: orchestrator::Config,
    pub(crate) projection: orchestrator::projection::Config,
    pub(crate) inference: inference_worker::Config,
    pub(crate) tools: tool_worker::Config,
    pub(crate) analysis: analysis_worker::Config,
    layers: Layers,
}

impl Settings {
    /// Reads all layers; the environment is read here and nowhere else.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub(crate) fn load(file: Option<&Path>, flags: Vec<(&str, &str, toml::Value)>) -> anyhow::Result<Self> {
        let usage = |e: runtime::config::Error| Usage(e.to_string());
        let layers = Layers::load(file, std::env::vars(), flags, &SECTIONS).map_err(usage)?;
        Ok(Self {
            nats: layers.section("nats").map_err(usage)?,
            cache: layers.section("cache").map_err(usage)?,
            telemetry: layers.section("telemetry").map_err(usage)?,
            gateway: layers.section("gateway").map_err(usage)?,
            orchestrator: layers.section("orchestrator").map_err(usage)?,
            projection: layers.section("projection").map_err(usage)?,
            inference: layers.section("inference").map_err(usage)?,
            tools: layers.section("tools").map_err(usage)?,
            analysis: layers.section("analysis").map_err(usage)?,
            layers,
        })
    }

    /// Every section with all its values, as they count.
    pub(crate) fn all(&self) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
        let sections = [
            ("nats", serde_json::to_value(&self.nats)?),
            ("cache", serde_json::to_value(&self.cache)?),
            ("telemetry", serde_json::to_value(&self.telemetry)?),
            ("gateway", serde_json::to_value(&self.gateway)?),
            ("orchestrator", serde_json::to_value(&self.orchestrator)?),
            ("projection", serde_json::to_value(&self.projection)?),
            ("inference", serde_json::to_value(&self.inference)?),
            ("tools", serde_json::to_value(&self.tools)?),
            ("analysis", serde_json::to_value(&self.analysis)?),
        ];
        Ok(sections.into_iter().map(|(name, values)| (name.to_owned(), values)).collect())
    }

    /// Where a value comes from; none for a default.
    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        self.layers.settings().find_map(|(given, _, origin)| (given == key).then_some(origin))
    }

    /// How many values were given.
    pub(crate) fn given(&self) -> usize {
        self.layers.settings().count()
    }

    /// What each service checks when it starts.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.cache.check().map_err(Usage)?;
        self.gateway.check().map_err(Usage)?;
        self.orchestrator.check().map_err(Usage)?;
        self.projection.check().map_err(Usage)?;
        self.inference.check().map_err(Usage)?;
        self.tools.check().map_err(Usage)?;
        self.analysis.check().map_err(Usage)?;
        Ok(())
    }

    /// Whether a value was given, and not left to its default.
    pub(crate) fn says(&self, key: &str) -> bool {
        self.layers.settings().any(|(given, _, _)| given == key)
    }

    /// Says which values are not defaults, and where each came from. Secrets are hidden, also within tables.
    pub(crate) fn log(&self) {
        for (key, value, origin) in self.layers.settings() {
            tracing::info!(key, value = shown(&key, value).to_string(), %origin, "configured");
        }
    }
}

/// A value as it may be logged.
pub(crate) fn shown(key: &str, value: &toml::Value) -> toml::Value {
    match value {
        // The URL of a database has its password in it.
        _ if key.ends_with("password")
            || key.ends_with("api_key")
            || ["projection.url", "cache.redis"].contains(&key) =>
        {
            toml::Value::String("…".to_owned())
        }
        // Variables of programs hold keys under any name.
        toml::Value::Table(table) if key == "environment" => {
            let hidden = |key: &String| (key.clone(), toml::Value::String("…".to_owned()));
            toml::Value::Table(table.keys().map(hidden).collect())
        }
        toml::Value::Table(table) => {
            toml::Value::Table(table.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect())
        }
        toml::Value::Array(values) => toml::Value::Array(values.iter().map(|value| shown(key, value)).collect()),
        other => other.clone(),
    }
}

/// The directory of a `vlinders up` when none is named.
#[expect(clippy::disallowed_methods, reason = "the user's directories stand in the environment")]
pub(crate) fn default_data() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share"));
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(|| PathBuf::from(".")).join("vlinders")
}

/// Directories in which programs are searched.
#[expect(clippy::disallowed_methods, reason = "PATH stands in the environment")]
pub(crate) fn program_path() -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    if let Some(home) = std::env::var_os("HOME") {
        path.push(PathBuf::from(home).join(".cache/vlinders/bin"));
    }
    path
}

/// Secrets and where they stand: in the environment, in a file it names, or in the file `made`, which is created when it
/// is not there. One a line; the first is the one that clients show.
#[expect(clippy::disallowed_methods, reason = "secrets come from the environment or a file it names")]
pub(crate) fn secret(made: Option<&Path>) -> anyhow::Result<(Secret, Option<PathBuf>)> {
    if let Ok(secret) = std::env::var("VLINDERS_SECRET") {
        return checked(&secret, "VLINDERS_SECRET").map(|s| (s, None));
    }
    if let Some(file) = std::env::var_os("VLINDERS_SECRET_FILE").map(PathBuf::from) {
        let text = std::fs::read_to_string(&file)
            .map_err(|e| Usage(format!("read VLINDERS_SECRET_FILE {}: {e}", file.display())))?;
        return checked(&text, &file.display().to_string()).map(|s| (s, Some(file)));
    }
    let Some(file) = made else {
        return Err(Usage("no secret: set VLINDERS_SECRET or VLINDERS_SECRET_FILE".to_owned()).into());
    };
    if !file.exists() {
        make_secret(file).with_context(|| format!("make the secret {}", file.display()))?;
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("read the secret {}", file.display()))?;
    checked(&text, &file.display().to_string()).map(|s| (s, Some(file.to_owned())))
}

/// The secrets that a gateway takes; those of a file are followed.
pub(crate) fn secrets(text: &Secret, file: Option<&Path>) -> Secrets {
    match file {
        Some(file) => Secrets::of_file(text.expose(), file.to_owned()),
        None => Secrets::new(text.expose()),
    }
}

/// The secret that clients show.
pub(crate) fn first_of(secret: &Secret) -> String {
    secret.expose().lines().next().unwrap_or_default().trim().to_owned()
}

fn checked(text: &str, from: &str) -> anyhow::Result<Secret> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Usage(format!("the secret from {from} is empty")).into());
    }
    Ok(Secret::new(text.to_owned()))
}

fn make_secret(file: &Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut secret = options.write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(secret, "{}{}", runtime::clock::random_hex(), runtime::clock::random_hex())
}

/// The models at `path`: itself, or each of its children that is a model. A model is a GGUF file, or a directory that
/// holds a `config.json`, or a `modules.json` that says where it is.
pub(crate) fn model_directories(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    use inference_worker::model_directory::is_gguf;
    let described = |path: &Path| ["config.json", "modules.json"].iter().any(|file| path.join(file).is_file());
    let is_model = |path: &Path| described(path) || is_gguf(path) && path.is_file();
    if is_model(path) {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        std::fs::read_dir(path).map_err(|e| Usage(format!("read the model directory {}: {e}", path.display())))?;
    let mut found: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| is_model(p)).collect();
    found.sort();
    if found.is_empty() {
        let path = path.display();
        return Err(Usage(format!(
            "no model in {path}: expected {path}/config.json, {path}/*/config.json or {path}/*.gguf"
        ))
        .into());
    }
    Ok(found)
}

/// The flags that name models as settings: those to load, and the directories in which more lie. The directory of
/// `--models` is one of them, unless it is a model itself.
pub(crate) fn model_flags(
    models: Option<&Path>,
    directories: &[PathBuf],
) -> anyhow::Result<Vec<(&'static str, &'static str, toml::Value)>> {
    let mut flags = Vec::new();
    let mut directories = directories.to_vec();
    if let Some(path) = models {
        let found = model_directories(path)?;
        if found != [path] {
            directories.insert(0, path.to_owned());
        }
        flags.push(("inference", "models", path_list(&found)));
    }
    if let Some(missing) = directories.iter().find(|directory| !directory.is_dir()) {
        return Err(Usage(format!("--models-dir {}: there is no such directory", missing.display())).into());
    }
    if !directories.is_empty() {
        flags.push(("inference", "models_dirs", path_list(&directories)));
    }
    Ok(flags)
}

/// The models that come with the program, where nothing else is configured.
pub(crate) fn add_shipped_models(inference: &mut inference_worker::Config, data: &Path) -> anyhow::Result<()> {
    if inference.is_empty()
        && inference.models_dirs.is_empty()
        && let Some(shipped) = shipped_models(data)
    {
        inference.models = model_directories(&shipped)?;
        inference.models_dirs = vec![shipped];
    }
    Ok(())
}

/// Where the vectors are kept, where nothing else is configured.
pub(crate) fn place_vectors(analysis: &mut analysis_worker::Config, data: &Path) {
    analysis.vectors.dir.get_or_insert_with(|| data.join("vectors"));
}

/// Where the models that come with the program lie: beside the data, where an image or a package has them
/// (`…/bin/vlinders` beside `…/share/vlinders/models`), or in the source tree it was built from.
pub(crate) fn shipped_models(data: &Path) -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let installed = program.and_then(|p| Some(p.parent()?.parent()?.join("share/vlinders/models")));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../inference-worker/models");
    let places = [Some(data.join("models")), installed, Some(source)];
    places.into_iter().flatten().find(|d| model_directories(d).is_ok_and(|m| !m.is_empty()))
}

/// A list of paths as a configuration value.
pub(crate) fn path_list(paths: &[PathBuf]) -> toml::Value {
    toml::Value::Array(paths.iter().map(|p| toml::Value::String(p.display().to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let text = r#"
            [inference.remote.large]
            url = "http://gpu/v1"
            api_key = "sk-1"
            api_key_file = "/run/key"
            [[inference.many]]
            password = "sk-2"
            [tools.mcp.far.environment]
            GITHUB_TOKEN = "sk-3"
        "#;
        let value = toml::Value::Table(text.parse().expect("valid"));
        let shown = shown("all", &value).to_string();
        assert!(!shown.contains("sk-"), "{shown}");
        assert!(shown.contains("http://gpu/v1") && shown.contains("/run/key"), "{shown}");
        assert_eq!(super::shown("nats.password", &value).to_string(), "\"…\"");
        for key in ["projection.url", "cache.redis"] {
            assert_eq!(super::shown(key, &value).to_string(), "\"…\"");
        }
    }
}
