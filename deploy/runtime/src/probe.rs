//! What a process tells machines about itself over HTTP, whatever its role: its figures, and whether it is alive and ready.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | the registry, for Prometheus |
//! | `GET /health` | 200 when it takes work: started, connected to NATS, not on its way out; else 503 |
//! | `GET /health/live` | 200: it answers. Nothing that a restart would not cure makes this fail |
//!
//! It answers until the process ends, so that what a drain does can be seen. It shows nothing that is worth a secret, and
//! still belongs on a network of one's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::Runtime;

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: choose another port for telemetry.metrics, 0 takes a free one")]
pub struct Error {
    address: String,
    source: std::io::Error,
}

/// A listener that answers.
pub struct Probe {
    /// Where it listens.
    pub address: SocketAddr,
    shown: Arc<Shown>,
}

struct Shown {
    role: &'static str,
    is_started: AtomicBool,
    runtime: Runtime,
}

impl Probe {
    /// Listens at `address`; not ready yet.
    ///
    /// # Errors
    /// When the address is taken, or not ours.
    pub async fn start(address: &str, role: &'static str, runtime: &Runtime) -> Result<Self, Error> {
        let failed = |source| Error { address: address.to_owned(), source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let shown = Arc::new(Shown { role, is_started: AtomicBool::new(false), runtime: runtime.clone() });
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/health", get(health))
            .route("/health/live", get(|| async { Json(json!({"live": true})) }))
            .with_state(Arc::clone(&shown));
        runtime.tasks.spawn_background(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::warn!(%error, "metrics and health are no longer served");
            }
        });
        Ok(Self { address: bound, shown })
    }

    /// The role has started and takes work.
    pub fn started(&self) {
        self.shown.is_started.store(true, Ordering::Relaxed);
    }
}

async fn health(State(shown): State<Arc<Shown>>) -> Response {
    let connected = shown.runtime.bus.is_connected();
    let draining = shown.runtime.tasks.soft().is_cancelled();
    let ready = shown.is_started.load(Ordering::Relaxed) && connected && !draining;
    let status = match (ready, draining) {
        (true, _) => "ready",
        (false, true) => "draining",
        (false, false) => "live",
    };
    let body = json!({
        "status": status, "role": shown.role, "live": true, "ready": ready,
        "parts": {"nats": {"connected": connected}},
    });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body)).into_response()
}

async fn metrics(State(shown): State<Arc<Shown>>) -> Response {
    match prometheus::TextEncoder::new().encode_to_string(&shown.runtime.metrics.gather()) {
        Ok(text) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
