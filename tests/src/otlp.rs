//! A receiver of OTLP over HTTP, as a collector is one: takes the spans that processes export, and keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use tokio::sync::watch;

use crate::PATIENCE;

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    /// The process that recorded it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// The span that it is a part of; empty when there is none.
    pub parent: String,
    /// Nanoseconds since the epoch.
    pub from: u64,
    /// Nanoseconds since the epoch.
    pub to: u64,
    /// What is known of it.
    pub attributes: BTreeMap<String, String>,
    /// Whether something went wrong.
    pub failed: bool,
}

/// Gone when it is dropped.
pub struct Receiver {
    spans: watch::Receiver<Vec<Span>>,
    /// Where it takes traces.
    pub endpoint: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When there is none.
    #[expect(clippy::disallowed_methods, reason = "it ends with the test, which has no tasks of a process")]
    pub async fn start() -> anyhow::Result<Self> {
        let (keep, spans) = watch::channel(Vec::new());
        let app = Router::new().route("/v1/traces", post(take)).with_state(Arc::new(keep));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}/v1/traces", listener.local_addr()?);
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { spans, endpoint, serving })
    }

    /// Waits until these spans are there; all that have come by then.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn until(&mut self, enough: impl Fn(&[Span]) -> bool) -> anyhow::Result<Vec<Span>> {
        let found = tokio::time::timeout(PATIENCE, self.spans.wait_for(|spans| enough(spans))).await;
        let found = found.map(|found| found.map(|spans| spans.clone()));
        found
            .with_context(|| format!("of what is expected only this came: {:#?}", *self.spans.borrow()))?
            .context("gone")
    }
}

async fn take(State(keep): State<Arc<watch::Sender<Vec<Span>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut came = Vec::new();
    for of_process in request.resource_spans {
        let resource = of_process.resource.map(|resource| attributes(resource.attributes)).unwrap_or_default();
        for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            came.push(Span {
                service: resource.get("service.name").cloned().unwrap_or_default(),
                name: span.name,
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                from: span.start_time_unix_nano,
                to: span.end_time_unix_nano,
                attributes: attributes(span.attributes),
                failed: span.status.is_some_and(|status| status.code == 2),
            });
        }
    }
    keep.send_modify(|spans| spans.extend(came));
    StatusCode::OK
}

fn attributes(found: Vec<opentelemetry_proto::tonic::common::v1::KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        _ => String::new(),
    };
    found.into_iter().map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}
