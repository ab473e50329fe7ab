//! `vlinders health`: asks one process whether it is ready. An image without a shell has nothing else to ask with.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::cli::Health;
use crate::gateway_client::GatewayClient;
use crate::settings::{Settings, Usage};

/// Shorter than the patience of whoever runs the probe.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks and reports; exit code 1 when it is not ready, or does not answer.
pub(crate) async fn run(options: Health) -> anyhow::Result<ExitCode> {
    let base = match &options.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => this_machine(&Settings::load(options.config.as_deref(), Vec::new())?)?,
    };
    // A URL with a path is asked as it is: NATS calls it /healthz.
    let has_path = base.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let path = if options.live { "/health/live" } else { "/health" };
    let path = if has_path { "" } else { path };
    // Health is told without a secret.
    let process = GatewayClient::new(&base, String::new(), options.ca_file.as_deref())?;
    let asked = async {
        let answer = process.get(path).await?;
        Ok::<_, anyhow::Error>((answer.status().is_success(), answer.bytes().await?))
    };
    let (is_well, said) = tokio::time::timeout(TIMEOUT, asked)
        .await
        .with_context(|| format!("{base} did not answer within {} s", TIMEOUT.as_secs()))??;
    println!("{}", String::from_utf8_lossy(&said));
    Ok(ExitCode::from(u8::from(!is_well)))
}

/// The process that runs with the same configuration beside us.
fn this_machine(settings: &Settings) -> Result<String, Usage> {
    let address = settings.telemetry.metrics.as_deref();
    let address =
        address.ok_or_else(|| Usage("say --url, or set telemetry.metrics as the process has it".to_owned()))?;
    // What listens everywhere listens here.
    let address = address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
    Ok(format!("http://{address}"))
}
