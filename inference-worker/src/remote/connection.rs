//! The connections to one server: HTTP/1.1, kept alive, plain or TLS, a bounded number at rest.
//!
//! This is hyper's own client and not reqwest: a TLS feature of reqwest would count for every client of the process,
//! and each of them would need a crypto provider and the system's certificates, also to speak plain HTTP to a gateway.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use runtime::config::Secret;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::settings::RemoteConfig;

/// The body of an answer as it arrives.
pub(super) type Body = hyper::body::Incoming;

/// How long a connection may rest: usual servers close theirs after five seconds, and a request on one that is being
/// closed has to be sent twice.
const REST: Duration = Duration::from_secs(4);

/// One server. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
    key: Option<Secret>,
    silence: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// No connection, or it ended before the first byte of an answer.
    #[error("{0}")]
    Unreachable(String),
    /// The server has the request, and says nothing.
    #[error("no byte came for {0:?}")]
    Silent(Duration),
}

impl Http {
    /// # Errors
    /// The key or the certificates cannot be read; the text names the setting.
    pub(super) fn new(name: &str, config: &RemoteConfig) -> Result<Self, String> {
        let key = config.key(name)?;
        let authorization = key.as_ref().map(|key| {
            let text = format!("Bearer {}", key.expose());
            let mut value = HeaderValue::from_str(&text).expect("the key was checked to be plain characters");
            value.set_sensitive(true);
            value
        });
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_timeout()));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(name, config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(REST)
            .pool_max_idle_per_host(config.slots)
            .build(connector);
        Ok(Self { client, base: config.base().to_owned(), authorization, key, silence: config.silence_timeout() })
    }

    /// Asks for `path` below the base, and waits until the answer begins.
    pub(super) async fn post(&self, path: &str, body: Bytes) -> Result<Response<Body>, Fault> {
        let request = self.request(Method::POST, &self.below(path)).header(CONTENT_TYPE, "application/json");
        self.send(request.body(Full::new(body)), self.silence).await
    }

    /// An address below the base of the API.
    pub(super) fn below(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// An address beside it, where servers keep what OpenAI's API lacks.
    pub(super) fn beside(&self, path: &str) -> String {
        format!("{}{path}", self.base.strip_suffix("/v1").unwrap_or(&self.base))
    }

    /// Asks a short question: status and body, of which `bytes_max` bytes are read at most.
    pub(super) async fn get(
        &self,
        url: &str,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let request = self.request(Method::GET, url).body(Full::default());
        let answer = async {
            let response = self.send(request, timeout).await?;
            let status = response.status();
            Ok((status, beginning(response.into_body(), bytes_max).await))
        };
        tokio::time::timeout(timeout, answer).await.unwrap_or(Err(Fault::Silent(timeout)))
    }

    /// A text of the server without our key, should it repeat it.
    pub(super) fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.expose(), "…"),
            None => text.to_owned(),
        }
    }

    fn request(&self, method: Method, url: &str) -> http::request::Builder {
        let builder = Request::builder()
            .method(method)
            .uri(url)
            .header(USER_AGENT, concat!("vlinders/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "text/event-stream, application/json");
        match &self.authorization {
            Some(value) => builder.header(AUTHORIZATION, value.clone()),
            None => builder,
        }
    }

    async fn send(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
        timeout: Duration,
    ) -> Result<Response<Body>, Fault> {
        let request = request.map_err(|error| Fault::Unreachable(error.to_string()))?;
        match tokio::time::timeout(timeout, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Fault::Unreachable(chain(&error))),
            Err(_) => Err(Fault::Silent(timeout)),
        }
    }
}

/// The beginning of a body, `bytes_max` bytes of it at most; a body that breaks ends there.
pub(super) async fn beginning(mut body: Body, bytes_max: usize) -> Bytes {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        read.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        if read.len() >= bytes_max {
            read.truncate(bytes_max);
            break;
        }
    }
    read.into()
}

/// An error with what caused it: the outermost alone says nothing useful.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Whom we trust. A server without TLS needs nobody.
fn tls(name: &str, config: &RemoteConfig) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if config.url.starts_with("https:") {
        let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &config.ca_file {
            let wrong = |why: String| format!("inference.remote.{name}.ca_file: read {}: {why}", file.display());
            let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
            let before = roots.len();
            for certificate in found {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(wrong("it holds no certificate".to_owned()));
            }
        }
        if roots.is_empty() {
            return Err(format!(
                "inference.remote.{name}.url: this system trusts nobody, so https cannot be used: install its certificates (ca-certificates), or name some with ca_file"
            ));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions it is made for");
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
