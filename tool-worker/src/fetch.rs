//! The one way in which tools reach the web.
//!
//! A model chooses what is fetched, and pages choose where they redirect to, so neither is trusted: only http and https,
//! only public addresses, only usual ports. A name is resolved once, every address it stands for is judged, and the
//! connection goes to an address that was judged, so that a name cannot change its mind in between. The same holds for
//! each redirect. What comes back is bounded in time, in size (as sent and again as unpacked) and in kind. There are no
//! cookies, no caches, no proxies of the environment, and what identifies us to one server is not shown to another.

mod address;
mod content;
mod exchange;
mod settings;
mod target;

pub use settings::Settings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode, header};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use crate::failure::Failure;
use content::Kind;
use target::Target;

/// Finds the addresses of a name and port. A test has its own.
pub(crate) type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;
/// Connects to an address that was judged. A test has its own, so that it can play the whole internet.
pub(crate) type Connect = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Question {
    pub(crate) url: String,
    /// A body makes it a POST, of JSON.
    pub(crate) body: Option<Bytes>,
    /// What only this server may see. With them no redirect is followed.
    pub(crate) headers: HeaderMap,
    /// Kinds of content that are of use.
    pub(crate) accept: Accept,
    /// Whoever runs this server named this very URL's server, so it may be anywhere.
    pub(crate) named_by_owner: bool,
}

/// Kinds of content that are of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Accept {
    /// What people read.
    #[default]
    Text,
    /// What programs read. Whatever comes is handed on, so that the caller can say what it was instead.
    Json,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// Where it was found, behind all redirects.
    pub(crate) url: String,
    pub(crate) status: StatusCode,
    /// Its media type without parameters, lower case.
    pub(crate) media: String,
    /// Whether it is HTML, or text as it is.
    pub(crate) html: bool,
    /// The text, as UTF-8.
    pub(crate) text: String,
    /// For how long the server does not want to be asked again.
    pub(crate) retry_after: Option<Duration>,
}

/// Why nothing came back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The URL is none.
    #[error("{0}")]
    Url(String),
    /// A rule forbids it.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("{url} did not answer in full within {after:?}")]
    Timeout { url: String, after: Duration },
    /// More came than may.
    #[error("the body has more than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    /// Something else than text came.
    #[error("{0}")]
    Kind(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::Url(_) | Fault::Kind(_) => Self::bad_request(text),
            Fault::Refused(_) | Fault::TooLarge { .. } => Self::refused(text),
            Fault::Timeout { .. } => Self::timeout(text),
            // A server that is away is no accident of ours: the model decides whether it asks again.
            Fault::Broken(_) => Self::bad_request(text),
        }
    }
}

/// Fetches. One for each process.
#[derive(Clone)]
pub(crate) struct Fetcher {
    settings: Settings,
    allowed: Arc<[String]>,
    resolve: Resolve,
    connect: Connect,
    tls: Arc<ClientConfig>,
}

impl Fetcher {
    /// Trusts whom the system trusts, and asks its resolver.
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut roots = RootCertStore::empty();
        let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let resolve: Resolve =
            Arc::new(|name, port| Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) }));
        let connect: Connect = Arc::new(|address| Box::pin(TcpStream::connect(address)));
        Self::with(settings, roots, resolve, connect)
    }

    fn with(settings: &Settings, roots: RootCertStore, resolve: Resolve, connect: Connect) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports the versions it is made for");
        let tls = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
        Self { settings: settings.clone(), allowed: settings.allowed().into(), resolve, connect, tls }
    }

    /// Fetches, within the time that all of it may take.
    pub(crate) async fn fetch(&self, question: &Question) -> Result<Page, Fault> {
        let after = self.settings.timeout();
        let url = question.url.chars().take(200).collect();
        tokio::time::timeout(after, self.follow(question)).await.unwrap_or(Err(Fault::Timeout { url, after }))
    }

    async fn follow(&self, question: &Question) -> Result<Page, Fault> {
        let first = Target::read(&question.url, None)?;
        let mut target = first.clone();
        let redirects_max =
            if question.headers.is_empty() && question.body.is_none() { self.settings.redirects_max } else { 0 };
        for _ in 0..=redirects_max {
            // Whoever allowed a server of his own did not allow the web to send us there.
            let may_be_anywhere =
                target.same_origin(&first) && (question.named_by_owner || self.allowed.contains(&target.authority()));
            let addresses = self.judged(&target, may_be_anywhere).await?;
            let response = self.ask(&target, &addresses, question).await?;
            match response {
                Response::Page(page) => return Ok(page),
                Response::Moved(location) if redirects_max > 0 => target = Target::read(&location, Some(&target))?,
                Response::Moved(_) => {
                    return Err(Fault::Broken(format!(
                        "{} redirects elsewhere, which is not followed",
                        first.authority()
                    )));
                }
            }
        }
        Err(Fault::Refused(format!("{} redirects more than {redirects_max} times", first.authority())))
    }

    /// The addresses of a target that may be connected to: all that it has, or none.
    async fn judged(&self, target: &Target, allowed: bool) -> Result<Vec<SocketAddr>, Fault> {
        let authority = target.authority();
        if !allowed && !self.settings.ports.contains(&target.port) {
            let ports: Vec<String> = self.settings.ports.iter().map(ToString::to_string).collect();
            return Err(Fault::Refused(format!("port {} is not asked (allowed: {})", target.port, ports.join(", "))));
        }
        let addresses = match target.literal() {
            Some(address) => vec![SocketAddr::new(address, target.port)],
            None => {
                let found = (self.resolve)(target.host.to_string(), target.port).await;
                found.map_err(|error| Fault::Broken(format!("{} was not found: {error}", target.host)))?
            }
        };
        if addresses.is_empty() {
            return Err(Fault::Broken(format!("{} has no address", target.host)));
        }
        // One private address among public ones is a trap or a mistake; either way nothing is to be had there.
        if !allowed && let Some(what) = addresses.iter().find_map(|found| address::refusal(found.ip())) {
            let next =
                "only public addresses are fetched; whoever runs this server can allow others (tools.fetch.allow)";
            return Err(Fault::Refused(format!("{authority} is {what}: {next}")));
        }
        Ok(addresses)
    }

    async fn ask(&self, target: &Target, addresses: &[SocketAddr], question: &Question) -> Result<Response, Fault> {
        let stream = exchange::connect(target, addresses, &self.connect, &self.tls).await?;
        let request = exchange::request(target, question)?;
        let expects_body = |status: StatusCode, headers: &HeaderMap| {
            if redirects(status) && headers.contains_key(header::LOCATION) {
                return Ok(false);
            }
            Kind::of(headers, wanted(status, question.accept)).map(|_| true)
        };
        let answer = exchange::exchange(stream, request, self.settings.bytes_max, expects_body).await?;
        if let (true, Some(location)) = (redirects(answer.status), answer.headers.get(header::LOCATION)) {
            let location = std::str::from_utf8(location.as_bytes())
                .map_err(|_| Fault::Url(format!("{} redirects to what is no URL", target.authority())))?;
            return Ok(Response::Moved(location.to_owned()));
        }
        let kind = Kind::of(&answer.headers, wanted(answer.status, question.accept))?;
        let body = content::unpacked(&answer.headers, answer.body, self.settings.bytes_max)?;
        let retry_after = answer.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        Ok(Response::Page(Page {
            url: target.url.to_string(),
            status: answer.status,
            html: kind.html,
            text: kind.text(&body),
            media: kind.media,
            retry_after: retry_after.map(Duration::from_secs),
        }))
    }
}

enum Response {
    Page(Page),
    Moved(String),
}

/// What a refusal looks like matters less than that it is one.
fn wanted(status: StatusCode, accept: Accept) -> Accept {
    if status.is_success() { accept } else { Accept::Json }
}

fn redirects(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

impl Question {
    /// A page for people.
    pub(crate) fn page(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }

    fn method(&self) -> Method {
        if self.body.is_some() { Method::POST } else { Method::GET }
    }
}

#[cfg(test)]
mod tests;
