//! A real Prometheus, with our own configuration, scraping the processes of a test.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::{PATIENCE, free_port, repository};

/// Whom the deployed configuration asks the name server for; here they are named instead.
const DISCOVERED: (&str, &str) = ("    dns_sd_configs:\n", "    relabel_configs:\n");
/// How often Prometheus is asked while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A server that runs; gone when it is dropped.
pub struct PrometheusServer {
    _directory: tempfile::TempDir,
    _child: Child,
    url: String,
    client: reqwest::Client,
}

impl PrometheusServer {
    /// Starts one that scrapes these roles at these URLs. None where it is not installed, which is said; in CI that is an
    /// error.
    ///
    /// # Errors
    /// When it does not start, or is not installed and CI=true.
    pub async fn start(targets: &[(String, String)]) -> anyhow::Result<Option<Self>> {
        let Some(program) = program()? else { return Ok(None) };
        let (directory, port) = (tempfile::tempdir()?, free_port()?);
        let deployed = repository().join("deploy/observability");
        std::fs::write(directory.path().join("prometheus.yml"), configuration(targets, port)?)?;
        std::fs::copy(deployed.join("alerts.yml"), directory.path().join("alerts.yml"))?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut child = Command::new(program)
            .arg(format!("--config.file={}", directory.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let (url, client) = (format!("http://127.0.0.1:{port}"), reqwest::Client::new());
        let said = || std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        let ready = async {
            loop {
                let answer = client.get(format!("{url}/-/ready")).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return anyhow::Ok(());
                }
                ensure!(child.try_wait()?.is_none(), "Prometheus ended:\n{}", said());
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .with_context(|| format!("Prometheus is not ready:\n{}", said()))??;
        Ok(Some(Self { _directory: directory, _child: child, url, client }))
    }

    /// What its API says.
    ///
    /// # Errors
    /// When it refuses, or does not answer.
    pub async fn ask(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), query)?;
        let mut told: Value = self.client.get(url).send().await?.json().await?;
        ensure!(told["status"] == "success", "{path} {query:?}: {told}");
        Ok(told["data"].take())
    }

    /// The series of an expression: labels and value of each.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<(Value, f64)>> {
        let data = self.ask("query", &[("query", expression)]).await?;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        let value = |one: &Value| one["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        Ok(series.iter().map(|one| (one["metric"].clone(), value(one))).collect())
    }

    /// Waits until an answer of its API is as expected; returns it.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn until(&self, path: &str, enough: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.ask(path, &[]).await?;
                if enough(&last) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let ended = tokio::time::timeout(PATIENCE, wait).await;
        ended.with_context(|| format!("{path} stays {last:#}"))??;
        Ok(last)
    }

    /// Waits until an expression has a series with at least this value.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn until_at_least(&self, expression: &str, value: f64) -> anyhow::Result<f64> {
        let mut last = Vec::new();
        let wait = async {
            loop {
                last = self.query(expression).await?;
                if let Some((_, found)) = last.iter().find(|(_, found)| *found >= value) {
                    return anyhow::Ok(*found);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let ended = tokio::time::timeout(PATIENCE, wait).await;
        ended.with_context(|| format!("{expression} is not {value} and stays {last:?}"))?
    }
}

/// The deployed configuration with these targets, more often. Each target comes with the name that would have been asked
/// for, so that what is made of it is as deployed.
fn configuration(targets: &[(String, String)], port: u16) -> anyhow::Result<String> {
    let deployed = std::fs::read_to_string(repository().join("deploy/observability/prometheus.yml"))?;
    let (before, rest) = deployed.split_once(DISCOVERED.0).context("the configuration asks the name server")?;
    let (_, after) = rest.split_once(DISCOVERED.1).context("and makes something of the name")?;
    let target = |(role, url): &(String, String)| {
        let address = url.trim_start_matches("http://");
        format!("      - targets: [\"{address}\"]\n        labels: {{__meta_dns_name: {role}}}\n")
    };
    let targets: String = targets.iter().map(target).collect();
    let text = format!("{before}    static_configs:\n{targets}{}{after}", DISCOVERED.1);
    Ok(text.replace(": 10s", ": 1s").replace("localhost:9090", &format!("127.0.0.1:{port}")))
}

#[expect(clippy::disallowed_methods, reason = "where deploy/test puts programs stands in the environment")]
fn program() -> anyhow::Result<Option<PathBuf>> {
    let mut path: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    path.extend(cache.map(|cache| cache.join("vlinders/bin")));
    let found = path.into_iter().map(|directory| directory.join("prometheus")).find(|file| file.is_file());
    if found.is_none() {
        let why = "prometheus is missing: deploy/test installs it";
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("SKIPPED: {why}");
    }
    Ok(found)
}
