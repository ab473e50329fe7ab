//! llama.cpp's own HTTP server with the shipped model, as another server whose models become ours.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{PATIENCE, free_port, python, repository};

/// Tokens that its model is said to hold: more than it was trained for, so that an answer can take a while.
const WINDOW: u32 = 8_192;

/// A server of one slot; gone when it is dropped.
pub struct LlamaServer {
    python: PathBuf,
    model: PathBuf,
    port: u16,
    child: Option<Child>,
    client: reqwest::Client,
}

impl LlamaServer {
    /// Starts one, with its model in `directory`. None where it is not installed, which is said; in CI that is an error.
    ///
    /// # Errors
    /// When it does not start, or is not installed and CI=true.
    pub async fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        let Some(python) = python("llama-server")? else { return Ok(None) };
        let model = directory.join("distant.gguf");
        let mut convert = Command::new(&python);
        convert.arg(script("make_gguf.py")).arg(repository().join("inference-worker/models/tiny")).arg(&model);
        let converted = convert.arg(WINDOW.to_string()).kill_on_drop(true).status().await?;
        ensure!(converted.success(), "make_gguf.py ended with {converted}");
        let mut server = Self { python, model, port: free_port()?, child: None, client: reqwest::Client::new() };
        server.start_again().await?;
        Ok(Some(server))
    }

    /// Starts it where it was.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let mut child = Command::new(&self.python)
            .arg(script("serve.py"))
            .arg(&self.model)
            .args([self.port.to_string(), "1".to_owned(), WINDOW.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let address =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.context("llama.cpp's server is silent")??;
        ensure!(address.is_some_and(|a| a.ends_with(&self.port.to_string())), "it listens elsewhere");
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("llama.cpp's server runs")?;
        Ok(child.kill().await?)
    }

    /// The base of its API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// What it answers itself, when nobody stands between.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(&self, body: &Value) -> anyhow::Result<Value> {
        let response = self.client.post(format!("{}/chat/completions", self.url())).json(body).send().await?;
        Ok(response.json().await?)
    }

    /// Whether its slot computes an answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn computes(&self) -> anyhow::Result<bool> {
        let url = format!("http://127.0.0.1:{}/slots", self.port);
        let slots: Value = self.client.get(url).send().await?.json().await?;
        slots[0]["is_processing"].as_bool().with_context(|| format!("no slot: {slots}"))
    }
}

fn script(name: &str) -> PathBuf {
    repository().join("tests/llama-server").join(name)
}
