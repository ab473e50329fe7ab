//! Logs and traces, set up once. Logs go to stderr, so that stdout stays for answers.

use std::collections::BTreeMap;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Section `telemetry`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which log lines: a level, or `tracing`'s directives such as `info,orchestrator=debug`.
    pub log: String,
    /// `pretty` for people or `json` for machines.
    pub format: Format,
    /// OTLP/HTTP endpoint for traces, for example `http://localhost:4318/v1/traces`; none means no export.
    pub otlp_endpoint: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: Format::Pretty, otlp_endpoint: None }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
    let filter = EnvFilter::try_new(&config.log)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        Format::Pretty => lines.with_target(false).compact().boxed(),
        Format::Json => lines.json().boxed(),
    };
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, service)).transpose()?;
    let traces = provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer("vlinders")));
    // A second call (tests start many services in one process) keeps the first set-up.
    let _ = tracing_subscriber::registry().with(traces).with(lines.with_filter(filter)).try_init();
    Ok(Guard(provider))
}

fn provider(endpoint: &str, service: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name(format!("vlinders-{service}")).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The current span as W3C trace context, to travel with a message. Empty when traces are not exported.
#[must_use]
pub fn trace_context() -> BTreeMap<String, String> {
    struct Map(BTreeMap<String, String>);
    impl Injector for Map {
        fn set(&mut self, key: &str, value: String) {
            self.0.insert(key.to_owned(), value);
        }
    }
    let mut map = Map(BTreeMap::new());
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut map);
    map.0
}

/// The same for something that a client asks for, in the trace that came with it: where traces are exported, a span of
/// ours stands between the client's and those that follow; where they are not, the client's is passed on.
#[must_use]
pub fn trace_within(client: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    if client.is_empty() {
        return trace_context();
    }
    let span = tracing::info_span!("submit");
    continue_trace(&span, client);
    let ours = span.in_scope(trace_context);
    if ours.is_empty() { client.clone() } else { ours }
}

/// Makes `span` a child of the trace that came with a message.
pub fn continue_trace(span: &Span, trace: &BTreeMap<String, String>) {
    struct Map<'a>(&'a BTreeMap<String, String>);
    impl Extractor for Map<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key).map(String::as_str)
        }
        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }
    }
    if !trace.is_empty() {
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Map(trace)));
    }
}
