//! The way to a server that is reached over HTTP: to the one address that was configured, and nowhere else.
//!
//! Redirects are not followed, cookies are not kept, and nothing but the configured key is shown. What comes back passes
//! the meter first. The transport above it decides what is sent; this only carries.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyDataStream, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::service::{ClientInitializeError, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::common::http_header::{HEADER_LAST_EVENT_ID, HEADER_SESSION_ID};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use runtime::config::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use sse_stream::{Sse, SseStream};

use super::meter::{Kind, Meter};
use super::settings::{Key, Settings};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may rest: usual servers close theirs after five seconds.
const REST: Duration = Duration::from_secs(4);
/// Of what a server says of a refusal, so much is shown.
const SAID_CHARS_MAX: usize = 300;
const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";

/// Headers that the transport wants sent, in the type in which it gives them.
#[expect(clippy::disallowed_types, reason = "the type is the transport's, and the order of headers means nothing")]
type Headers = std::collections::HashMap<HeaderName, HeaderValue>;

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// There was no connection, so nothing was asked.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It refused before it did anything.
    #[error("{0}")]
    Refused(String),
    /// It broke off, or what came is no answer; what it did nobody knows.
    #[error("{0}")]
    Broken(String),
}

/// What is the same for all connections to a server.
pub(super) struct Way {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    key: Option<Key>,
}

/// The way for one connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Metered {
    way: Arc<Way>,
    meter: Arc<Meter>,
}

impl Way {
    /// # Errors
    /// A setting is wrong; the text names it.
    pub(super) fn new(name: &str, settings: &Settings, url: &str) -> Result<Self, String> {
        let uri = url.parse().map_err(|error| format!("tools.mcp.{name}.url: {error}"))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(name, url, settings.ca_file.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(REST)
            .build(connector);
        Ok(Self { client, uri, key: settings.key(name)? })
    }

    pub(super) fn metered(self: &Arc<Self>, meter: Arc<Meter>) -> Metered {
        Metered { way: self.clone(), meter }
    }

    /// A text of the server without our key, should it repeat it.
    fn redacted(&self, text: &str) -> String {
        let Some(key) = &self.key else { return text.to_owned() };
        let word = key.value.expose().trim_start_matches("Bearer ");
        text.replace(word, "…")
    }
}

impl Metered {
    async fn send(
        &self,
        method: Method,
        headers: Headers,
        more: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, StreamableHttpError<Fault>> {
        let agent = concat!("vlinders/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder().method(method).uri(self.way.uri.clone()).header(USER_AGENT, agent);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        if let Some(Key { header, value }) = &self.way.key {
            request = request.header(header.clone(), sensitive(value));
        }
        let broken = |error: String| StreamableHttpError::Client(Fault::Broken(error));
        let request = request.body(Full::new(body)).map_err(|error| broken(error.to_string()))?;
        let response = self.way.client.request(request).await.map_err(|error| {
            StreamableHttpError::Client(match error.is_connect() {
                true => Fault::Unreachable(innermost(&error)),
                false => Fault::Broken(format!("broke off: {}", innermost(&error))),
            })
        })?;
        let status = response.status();
        if status.is_redirection() {
            let refused = format!("answered {status}, and redirects are not followed: name the right address in `url`");
            return Err(StreamableHttpError::Client(Fault::Refused(refused)));
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let refused = format!("answered {status}: it wants another key than it is shown");
            return Err(StreamableHttpError::Client(Fault::Refused(refused)));
        }
        Ok(response)
    }

    /// What comes, counted.
    fn counted(&self, body: Incoming) -> impl futures::Stream<Item = Result<Bytes, Fault>> + Send + 'static {
        let meter = self.meter.clone();
        BodyDataStream::new(body).map(move |piece| {
            let piece = piece.map_err(|error| Fault::Broken(format!("broke off: {}", innermost(&error))))?;
            meter.take(&piece, Kind::Events).map_err(Fault::Broken)?;
            Ok(piece)
        })
    }

    async fn whole(&self, body: Incoming) -> Result<Vec<u8>, StreamableHttpError<Fault>> {
        let mut pieces = Box::pin(self.counted(body));
        let mut whole = Vec::new();
        while let Some(piece) = pieces.try_next().await.map_err(StreamableHttpError::Client)? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    fn events(&self, body: Incoming) -> BoxStream<'static, Result<Sse, SseError>> {
        SseStream::from_bytes_stream(self.counted(body)).boxed()
    }
}

impl StreamableHttpClient for Metered {
    type Error = Fault;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, StreamableHttpError<Fault>> {
        let accepted = format!("{JSON}, {EVENTS}");
        let mut more = vec![(ACCEPT.as_str(), accepted.as_str()), (CONTENT_TYPE.as_str(), JSON)];
        more.extend(session_id.as_deref().map(|session| (HEADER_SESSION_ID, session)));
        let body = serde_json::to_vec(&message)?;
        let response = self.send(Method::POST, headers, &more, body.into()).await?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND && session_id.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let session = header(&response, HEADER_SESSION_ID);
        let kind = media(&response);
        if status.is_success() && kind == EVENTS {
            return Ok(StreamableHttpPostResponse::Sse(self.events(response.into_body()), session));
        }
        let asks = matches!(message, JsonRpcMessage::Request(_));
        let whole = self.whole(response.into_body()).await?;
        if status.is_success() && !asks {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let read: Result<ServerJsonRpcMessage, _> = serde_json::from_slice(&whole);
        match read {
            Ok(message) if status.is_success() || matches!(message, JsonRpcMessage::Error(_)) => {
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            _ => {
                let said: String = String::from_utf8_lossy(&whole).trim().chars().take(SAID_CHARS_MAX).collect();
                let text = format!("answered {status} and no message: {}", self.way.redacted(&said));
                let refused = status.is_client_error();
                Err(StreamableHttpError::Client(if refused { Fault::Refused(text) } else { Fault::Broken(text) }))
            }
        }
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        headers: Headers,
    ) -> Result<(), StreamableHttpError<Fault>> {
        // A server need not know how.
        self.send(Method::DELETE, headers, &[(HEADER_SESSION_ID, &session_id)], Bytes::new()).await.map(drop)
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        headers: Headers,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<Fault>> {
        let mut more = vec![(ACCEPT.as_str(), EVENTS)];
        more.extend(session_id.as_deref().map(|session| (HEADER_SESSION_ID, session)));
        more.extend(last_event_id.as_deref().map(|id| (HEADER_LAST_EVENT_ID, id)));
        let response = self.send(Method::GET, headers, &more, Bytes::new()).await?;
        match (response.status(), media(&response).as_str()) {
            (StatusCode::OK, EVENTS) => Ok(self.events(response.into_body())),
            (StatusCode::METHOD_NOT_ALLOWED, _) => Err(StreamableHttpError::ServerDoesNotSupportSse),
            (StatusCode::OK, kind) => Err(StreamableHttpError::UnexpectedContentType(Some(kind.to_owned()))),
            (status, _) => {
                Err(StreamableHttpError::Client(Fault::Broken(format!("answered {status} instead of a stream"))))
            }
        }
    }
}

fn sensitive(value: &Secret) -> HeaderValue {
    let mut value = HeaderValue::from_str(value.expose()).expect("the key was checked to be plain characters");
    value.set_sensitive(true);
    value
}

fn header(response: &Response<Incoming>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The media type without parameters, lower case.
fn media(response: &Response<Incoming>) -> String {
    let kind = header(response, CONTENT_TYPE.as_str()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The innermost reason, which is the one that says something.
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What happened on the way to a server, among the causes of an error.
pub(super) fn fault<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Fault> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(StreamableHttpError::Client(fault)) = error.downcast_ref() {
            return Some(fault);
        }
        if let Some(fault) = error.downcast_ref() {
            return Some(fault);
        }
        next = error.source();
    }
    None
}

/// Why a server was not asked, or did not answer; fits behind its name.
pub(super) fn why(error: &ServiceError) -> String {
    match error {
        ServiceError::TransportSend(sent) => of_transport(sent),
        ServiceError::TransportClosed => "closed the connection".to_owned(),
        error => innermost(error),
    }
}

/// The same of one that did not even begin.
pub(super) fn why_not_begun(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::TransportError { error, .. } => of_transport(error),
        ClientInitializeError::ConnectionClosed(_) => "closed the connection".to_owned(),
        error => innermost(error),
    }
}

fn of_transport(error: &DynamicTransportError) -> String {
    match fault(error.error.as_ref()) {
        Some(Fault::Unreachable(reason)) => format!("cannot be reached: {reason}"),
        Some(Fault::Refused(reason) | Fault::Broken(reason)) => reason.clone(),
        None => innermost(error.error.as_ref()),
    }
}

/// Whom we trust. A server without TLS needs nobody.
fn tls(name: &str, url: &str, ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if url.starts_with("https:") {
        let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(file) = ca_file {
        let wrong = |why: String| format!("tools.mcp.{name}.ca_file: read {}: {why}", file.display());
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(wrong("it holds no certificate".to_owned()));
        }
    }
    if url.starts_with("https:") && roots.is_empty() {
        return Err(format!(
            "tools.mcp.{name}.url: this system trusts nobody, so https cannot be used: install its certificates \
             (ca-certificates), or name some with ca_file"
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions it is made for");
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
