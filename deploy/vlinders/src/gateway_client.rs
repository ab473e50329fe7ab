//! Asks a gateway as a command does: its secret in the header, and over TLS where its URL says so.
//!
//! This is hyper's own client and not reqwest: a TLS feature of reqwest would count for every client of the process.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::report;
use crate::settings::Usage;

/// A gateway, and what it wants to be shown.
pub(crate) struct GatewayClient {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    pub(crate) url: String,
    secret: String,
}

/// An answer: its head, and what comes of its body.
pub(crate) struct Answer {
    status: StatusCode,
    body: Incoming,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The next bytes; none at the end.
    pub(crate) async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            // Trailers say nothing here.
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    pub(crate) async fn bytes(self) -> anyhow::Result<Bytes> {
        Ok(self.body.collect().await?.to_bytes())
    }

    pub(crate) async fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.bytes().await?)?)
    }
}

impl GatewayClient {
    /// The gateway at a URL. `ca_file` (PEM) holds certificates that count beside those of this system.
    ///
    /// # Errors
    /// The URL is none, or the file cannot be read or holds no certificate.
    pub(crate) fn new(url: &str, secret: String, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let parsed = url.parse::<http::Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        let parsed =
            parsed.ok_or_else(|| Usage(format!("--url {url}: expected http://HOST:PORT, or https:// with TLS")))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(parsed.scheme_str() == Some("https"), ca_file)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Self { http: Client::builder(TokioExecutor::new()).build(connector), url, secret })
    }

    /// Asks about a path.
    ///
    /// # Errors
    /// Nobody answers; the text names the gateway.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("X-Internal-Auth", &self.secret)
            .header(header::USER_AGENT, concat!("vlinders/", env!("CARGO_PKG_VERSION")));
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            bytes = body.to_string().into();
        }
        let request = request.body(Full::new(bytes)).context("the secret or the path cannot be sent")?;
        let answer = self.http.request(request).await.with_context(|| format!("reach the gateway at {}", self.url))?;
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, body })
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// The answer as JSON; none when it is a problem, which is reported.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn answered(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Option<Value>> {
        let answer = self.ask(method, path, body).await?;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        if status.is_success() {
            return Ok(Some(body));
        }
        report(&body, &status.to_string());
        Ok(None)
    }
}

/// Whom we trust. A gateway without TLS needs nobody.
fn tls(is_needed: bool, ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if is_needed {
        // What of the system's cannot be read is as good as not there.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(file) = ca_file {
        let wrong = |why: String| Usage(format!("read certificates from {}: {why}", file.display()));
        let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
        let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
        if found.is_empty() {
            return Err(wrong("it holds none in PEM".to_owned()).into());
        }
        for certificate in found {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
