//! Logs and traces, set up once. Logs go to stderr, so that stdout stays for answers.

use std::io::IsTerminal as _;

use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::{lines, spans};

/// Section `telemetry`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which log lines: a level, or `tracing`'s directives such as `info,orchestrator=debug`.
    pub log: String,
    /// `pretty` for people or `json` for machines.
    pub format: Format,
    /// OTLP/HTTP endpoint for traces, for example `http://localhost:4318/v1/traces`; none means no export.
    pub otlp_endpoint: Option<String>,
    /// Where `/metrics` and `/health` of this process are served, `ADDRESS:PORT`; port 0 takes a free one. None means
    /// nowhere: a gateway shows its own beside its other endpoints.
    pub metrics: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: Format::Pretty, otlp_endpoint: None, metrics: None }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One coloured line each, for people.
    Pretty,
    /// One JSON object each.
    Json,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `log` setting is no filter.
    #[error("telemetry.log is not a log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter refused its endpoint.
    #[error("telemetry.otlp_endpoint: {0}")]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Flushes traces when it goes.
#[must_use = "telemetry ends when this is dropped"]
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

/// Sets up logs and, when configured, traces. Call once, inside a tokio runtime.
///
/// # Errors
/// When a setting is wrong.
pub fn start(config: &Config, service: &str) -> Result<Guard, Error> {
    let lines = lines(config, std::io::stderr, std::io::stderr().is_terminal())?;
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, service)).transpose()?;
    if let Some(provider) = &provider {
        spans::export_to(provider);
    }
    // A second call (tests start many services in one process) keeps the first set-up.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(Guard(provider))
}

/// What writes log lines, to a terminal in colour.
pub(crate) fn lines<S, W>(config: &Config, writer: W, colour: bool) -> Result<impl Layer<S> + use<S, W>, Error>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let within = format!("{}=error", lines::TARGET).parse()?;
    let filter = EnvFilter::try_new(&config.log)?.add_directive(within);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let layer = match config.format {
        Format::Pretty => layer.with_target(false).compact().boxed(),
        Format::Json => layer.fmt_fields(JsonFields::new()).event_format(lines::Json).boxed(),
    };
    Ok(layer.with_filter(filter))
}

fn provider(endpoint: &str, service: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name(format!("vlinders-{service}")).build();
    let builder = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
    Ok(builder.with_id_generator(spans::Chosen::default()).build())
}
