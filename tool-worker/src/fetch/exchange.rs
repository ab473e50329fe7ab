//! One connection: to an address that was judged, for one question, and gone.
//!
//! Connections are not kept: who asks a thousand servers once has no use for them, and a connection that outlives its
//! question would outlive the judgement of its address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Host;

use super::target::Target;
use super::{Accept, Connect, Fault, Question};

/// How long one address may take to accept a connection; the next is tried then.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Bytes that status and headers may have.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How we introduce ourselves.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("vlinders/", env!("CARGO_PKG_VERSION")));

/// A connection, plain or TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a server sent.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// Connects to one of these addresses and to no other.
pub(super) async fn connect(
    target: &Target,
    addresses: &[SocketAddr],
    connect: &Connect,
    tls: &Arc<ClientConfig>,
) -> Result<Box<dyn Stream>, Fault> {
    let mut why = "it has no address".to_owned();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        match tokio::time::timeout(CONNECT_TIMEOUT, connect(*address)).await {
            Ok(Ok(stream)) => return secured(target, stream, tls).await,
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no connection within {CONNECT_TIMEOUT:?}"),
        }
    }
    Err(Fault::Broken(format!("{} cannot be reached: {why}", target.authority())))
}

async fn secured(target: &Target, stream: TcpStream, tls: &Arc<ClientConfig>) -> Result<Box<dyn Stream>, Fault> {
    // Small requests leave at once; that it cannot be set only costs time.
    let _ = stream.set_nodelay(true);
    if !target.tls {
        return Ok(Box::new(stream));
    }
    let name = match &target.host {
        Host::Domain(name) => ServerName::try_from(name.clone())
            .map_err(|_| Fault::Url(format!("{name} cannot be the name of a server with TLS")))?,
        Host::Ipv4(address) => ServerName::from(std::net::IpAddr::from(*address)),
        Host::Ipv6(address) => ServerName::from(std::net::IpAddr::from(*address)),
    };
    let connected = TlsConnector::from(tls.clone()).connect(name, stream).await;
    let stream = connected.map_err(|error| Fault::Broken(format!("{} is not trusted: {error}", target.authority())))?;
    Ok(Box::new(stream))
}

/// The request as it is sent.
pub(super) fn request(target: &Target, question: &Question) -> Result<Request<Full<Bytes>>, Fault> {
    let accept = match question.accept {
        Accept::Text => "text/html, text/plain;q=0.9, text/*;q=0.8, application/json;q=0.7",
        Accept::Json => "application/json",
    };
    let mut request = Request::builder()
        .method(question.method())
        .uri(target.path())
        .header(header::HOST, target.host_header())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, accept)
        .header(header::ACCEPT_ENCODING, "gzip, deflate")
        .header(header::CONNECTION, "close");
    for (name, value) in &question.headers {
        request = request.header(name, value);
    }
    if question.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::new(question.body.clone().unwrap_or_default());
    request.body(body).map_err(|error| Fault::Url(format!("{} cannot be asked: {error}", target.authority())))
}

/// Asks, and reads the body if `expects_body` says so of the head.
pub(super) async fn exchange(
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
    expects_body: impl Fn(StatusCode, &HeaderMap) -> Result<bool, Fault>,
) -> Result<Answer, Fault> {
    let broken = |error: hyper::Error| Fault::Broken(format!("the connection broke: {error}"));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, mut body) = response.into_parts();
        let mut read = Vec::new();
        if expects_body(head.status, &head.headers)? {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(broken)?;
                let data = frame.data_ref().map_or(&[][..], |data| data.as_ref());
                if read.len() + data.len() > bytes_max {
                    return Err(Fault::TooLarge { bytes_max });
                }
                read.extend_from_slice(data);
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: read })
    };
    // The connection is driven here and not by a task of its own: when the question is dropped, so is the connection.
    let (mut asked, connection) = (std::pin::pin!(asked), std::pin::pin!(connection));
    tokio::select! {
        answer = &mut asked => answer,
        // What went wrong here the question is told, too; and what came before the end is there to be read.
        _ = connection => asked.await,
    }
}
