//! Listens: plain or TLS, bounded in connections, and in the time a client takes to say what it wants.
//!
//! When the soft token falls nothing new is accepted, idle connections close, and requests in hand are finished.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use runtime::{Tasks, clock};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Time of a TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// After an error of the system (no file descriptor is left) accepting waits this long.
const PAUSE: Duration = Duration::from_millis(100);
/// How often certificates are looked at: they are replaced long before they expire.
const RENEWED_EVERY: Duration = Duration::from_secs(60);
/// What every client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the headers of a request, or of a call's metadata, over HTTP/2.
const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// Requests of one HTTP/2 connection at the same time.
const STREAMS_MAX: u32 = 1_024;

/// Section `gateway.tls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and those it rests on, PEM. Read again when it changes.
    pub certificate_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// Certificates of those who sign clients' certificates, PEM. A client that shows one needs no secret.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients without a certificate are turned away.
    #[serde(default)]
    pub client_required: bool,
}

/// Stands with a request whose client has shown a certificate that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certified;

/// Certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file holds nothing of the kind.
    #[error("read {what} from {file}: {reason}")]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The files do not fit together.
    #[error("gateway.tls: {0}")]
    Unfit(String),
}

/// Certificates as they are in their files.
#[derive(Clone)]
pub(crate) struct Identity {
    settings: Arc<Tls>,
    current: Arc<Mutex<Current>>,
}

struct Current {
    acceptor: TlsAcceptor,
    looked: Instant,
    changed: [Option<SystemTime>; 3],
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// One is missing or wrong.
    pub(crate) fn read(settings: &Tls) -> Result<Self, TlsError> {
        let current = Current { acceptor: acceptor(settings)?, looked: clock::instant(), changed: changed(settings) };
        Ok(Self { settings: Arc::new(settings.clone()), current: Arc::new(Mutex::new(current)) })
    }

    /// What the next connection is greeted with: the newest that can be used.
    fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::instant();
        if now.duration_since(current.looked) > RENEWED_EVERY {
            current.looked = now;
            let changed = changed(&self.settings);
            if changed != current.changed {
                match acceptor(&self.settings) {
                    Ok(acceptor) => {
                        (current.acceptor, current.changed) = (acceptor, changed);
                        tracing::info!("the certificate was read again");
                    }
                    Err(error) => tracing::warn!(%error, "the new certificate cannot be used; the old one serves on"),
                }
            }
        }
        current.acceptor.clone()
    }
}

fn changed(settings: &Tls) -> [Option<SystemTime>; 3] {
    let of = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
    let client_ca = settings.client_ca_file.as_deref().and_then(of);
    [of(&settings.certificate_file), of(&settings.key_file), client_ca]
}

fn acceptor(settings: &Tls) -> Result<TlsAcceptor, TlsError> {
    let unfit = |error: &dyn std::fmt::Display| TlsError::Unfit(error.to_string());
    let wrong = |what, file: &Path| {
        let file = file.to_owned();
        move |error: rustls::pki_types::pem::Error| TlsError::File { what, file, reason: error.to_string() }
    };
    let certificates = |what, file: &Path| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found = CertificateDer::pem_file_iter(file).map_err(wrong(what, file))?;
        let found = found.collect::<Result<Vec<_>, _>>().map_err(wrong(what, file))?;
        let none = || TlsError::File { what, file: file.to_owned(), reason: "there is none in it".to_owned() };
        if found.is_empty() { Err(none()) } else { Ok(found) }
    };
    let chain = certificates("a certificate", &settings.certificate_file)?;
    let key = PrivateKeyDer::from_pem_file(&settings.key_file).map_err(wrong("a private key", &settings.key_file))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| unfit(&error))?;
    let builder = match &settings.client_ca_file {
        None if settings.client_required => {
            return Err(TlsError::Unfit("client_required needs client_ca_file".to_owned()));
        }
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in certificates("a certificate of clients' signers", file)? {
                roots.add(root).map_err(|error| unfit(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if settings.client_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unfit(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Bounds of what clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at the same time; more wait until one closes.
    pub(crate) connections: usize,
    /// The head of a request must be there within this time.
    pub(crate) head: Duration,
}

/// Serves until the soft token falls, then finishes what is in hand.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    identity: Option<Identity>,
    bounds: Bounds,
    tasks: Tasks,
) -> Result<(), Infallible> {
    let soft = tasks.soft();
    let room = Arc::new(Semaphore::new(bounds.connections));
    let finishing = GracefulShutdown::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = soft.cancelled() => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Tokens are small and must leave at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        let (app, identity, watcher) = (app.clone(), identity.clone(), finishing.watcher());
        tasks.spawn(async move {
            match greet(stream, identity, bounds.head).await {
                Some((Greeted::Plain(stream), client)) => talk(stream, app, client, bounds, watcher).await,
                Some((Greeted::Tls(stream), client)) => talk(stream, app, client, bounds, watcher).await,
                None => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    finishing.shutdown().await;
    Ok(())
}

enum Greeted {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// What is known of a client before its first request.
#[derive(Clone, Copy)]
struct Client {
    /// It has shown a certificate that counts.
    certified: bool,
    http2: bool,
}

/// The connection as it is spoken over. None when nothing usable was said in time.
async fn greet(stream: TcpStream, identity: Option<Identity>, head: Duration) -> Option<(Greeted, Client)> {
    let Some(identity) = identity else {
        let http2 = tokio::time::timeout(head, speaks_http2(&stream)).await.ok()?.ok()?;
        return Some((Greeted::Plain(stream), Client { certified: false, http2 }));
    };
    match tokio::time::timeout(HANDSHAKE_MAX, identity.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let certified = session.peer_certificates().is_some_and(|shown| !shown.is_empty());
            let http2 = session.alpn_protocol() == Some(b"h2");
            Some((Greeted::Tls(Box::new(stream)), Client { certified, http2 }))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Whether a client begins as HTTP/2 begins. Nothing is taken from the connection.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut begun = [0; PREFACE.len()];
    loop {
        let said = stream.peek(&mut begun).await?;
        if said == 0 || !PREFACE.starts_with(&begun[..said]) {
            return Ok(false);
        }
        if said == PREFACE.len() {
            return Ok(true);
        }
        // It could still be either: a part of the first packet is there.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    app: Router,
    client: Client,
    bounds: Bounds,
    watcher: Watcher,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if client.certified {
            request.extensions_mut().insert(Certified);
        }
        app.clone().oneshot(request)
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if client.http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    builder.http2().keep_alive_interval(Some(bounds.head)).keep_alive_timeout(bounds.head);
    builder.http2().max_header_list_size(HEADERS_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection ended early");
    }
}
