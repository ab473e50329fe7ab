//! Where a running `vlinders up` is found: a small file in its data directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cli::Target;
use crate::gateway_client::GatewayClient;
use crate::settings::{self, Usage};

/// Written when ready, removed at the end. Also the ready line of `--json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpc: Option<String>,
    pub(crate) nats: String,
    /// Where `telemetry.metrics` is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) models: Vec<String>,
}

impl Ready {
    /// With the edge there, if this process has it.
    pub(crate) fn at(edge: Option<gateway::Addresses>, tls: bool, nats: String, secret_file: Option<PathBuf>) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let url = |address: std::net::SocketAddr| format!("{scheme}://{address}");
        Self {
            ready: true,
            http: edge.map(|edge| url(edge.http)),
            grpc: edge.and_then(|edge| edge.grpc).map(url),
            nats,
            metrics: None,
            secret_file,
            models: Vec::new(),
        }
    }

    fn file(data: &Path) -> PathBuf {
        data.join("endpoint.json")
    }

    /// Lets clients on this machine find us.
    pub(crate) fn publish(&self, data: &Path) -> anyhow::Result<()> {
        let file = Self::file(data);
        std::fs::write(&file, serde_json::to_vec_pretty(self)?).with_context(|| format!("write {}", file.display()))
    }

    /// We are gone.
    pub(crate) fn withdraw(data: &Path) {
        let _ = std::fs::remove_file(Self::file(data));
    }

    fn read(data: &Path) -> anyhow::Result<Self> {
        let file = Self::file(data);
        let text = std::fs::read(&file).map_err(|_| {
            Usage(format!(
                "nothing runs with data in {}: start it with `vlinders up`, or say --url and --nats",
                data.display()
            ))
        })?;
        Ok(serde_json::from_slice(&text)?)
    }
}

impl Target {
    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(settings::default_data)
    }

    /// The gateway, with its secret.
    pub(crate) fn gateway(&self) -> anyhow::Result<GatewayClient> {
        let (url, secret_file) = match &self.url {
            Some(url) => (url.clone(), None),
            None => {
                let ready = Ready::read(&self.data())?;
                (ready.http.context("this process serves no HTTP")?, ready.secret_file)
            }
        };
        let (secret, _) = settings::secret(secret_file.as_deref())?;
        GatewayClient::new(&url, settings::first_of(&secret), self.ca_file.as_deref())
    }

    /// The NATS servers.
    pub(crate) fn nats(&self) -> anyhow::Result<String> {
        match &self.nats {
            Some(url) => Ok(url.clone()),
            None => Ok(Ready::read(&self.data())?.nats),
        }
    }
}
