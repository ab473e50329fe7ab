//! The edge: checks a request, publishes it, streams the answer back.

use std::net::SocketAddr;

use serde::Deserialize;

/// Section `gateway`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub http: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { http: SocketAddr::from(([127, 0, 0, 1], 8080)) }
    }
}

/// Listens and answers that it lives.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    config: Config,
    _secret: runtime::config::Secret,
    runtime: runtime::Runtime,
) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(config.http).await?;
    let address = listener.local_addr()?;
    let app = axum::Router::new().route("/health", axum::routing::get(|| async { "live" }));
    let soft = runtime.tasks.soft();
    runtime.tasks.spawn_essential("gateway", async move {
        axum::serve(listener, app).with_graceful_shutdown(soft.cancelled_owned()).await
    });
    Ok(address)
}
