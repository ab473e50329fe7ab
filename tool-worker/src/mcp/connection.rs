//! One connection with a server, from its start to its end.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientRequest, Implementation, ProtocolVersion, SubscriptionFilter,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, NotificationContext, Peer, RoleClient, RunningService, ServiceError,
    Subscription, serve_client_with_lifecycle,
};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransport, StreamableHttpClientTransportConfig};
use rmcp::{ClientHandler, model};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;

use super::http::{Metered, Way, why, why_not_begun};
use super::meter::{Kind, MESSAGE_BYTES_MAX, Meter};
use crate::plugins::{Pinned, said};
use crate::sandbox::{Access, Connected, End, Place, Rest, Sandbox};
use crate::visible::visible_owned;

/// What a program says in trouble is kept this far back.
const COMPLAINTS_KEPT: usize = 4 * 1024;
/// How long a program that has closed its output may take to end.
const END_WITHIN: Duration = Duration::from_secs(1);
/// How long a server may take for a sign of life, or to say what its tools are when it has said so before.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a server is reached.
pub(super) enum Reach {
    /// As a program in a box.
    Program { boxes: Arc<Sandbox>, program: Box<Pinned>, workspace: Option<(PathBuf, Access)> },
    /// Over HTTP.
    Http(Arc<Way>),
}

/// A server that has said what its tools are.
pub(super) struct Connection {
    pub(super) service: RunningService<RoleClient, Listener>,
    pub(super) tools: Vec<model::Tool>,
    pub(super) meter: Arc<Meter>,
    /// Told when it has other tools.
    pub(super) changed: Arc<Notify>,
    /// Where it tells so to those alone who ask for it.
    pub(super) subscription: Option<Subscription>,
    pub(super) program: Option<Running>,
}

/// A program that serves.
pub(super) struct Running {
    rest: Rest,
    complaints: Arc<Mutex<VecDeque<u8>>>,
}

/// The version of the protocol that its servers speak who know no other beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    Handshake,
    Discovery,
}

impl Connection {
    /// Connects and asks for the tools.
    ///
    /// # Errors
    /// Why there is no connection; it fits behind the server's name.
    pub(super) async fn open(reach: &Reach, within: Duration) -> Result<Self, String> {
        match Self::open_as(reach, Era::Handshake, within).await {
            // A server of the newest kind knows no handshake any more. One that knows neither is told by the first.
            Err(Refusal::Handshake(said)) => match Self::open_as(reach, Era::Discovery, within).await {
                Err(Refusal::Handshake(_)) => Err(said),
                opened => opened.map_err(Refusal::into_text),
            },
            opened => opened.map_err(Refusal::into_text),
        }
    }

    async fn open_as(reach: &Reach, era: Era, within: Duration) -> Result<Self, Refusal> {
        let meter = Arc::new(Meter::new());
        let (line, program) = Line::to(reach, &meter).await.map_err(Refusal::Other)?;
        let begun = tokio::time::timeout(within, begin(line, era, meter.clone())).await;
        let begun = match begun {
            Ok(Ok(begun)) => return Ok(Self { program, ..begun }),
            Ok(Err(Refusal::Handshake(said))) => return Err(Refusal::Handshake(said)),
            Ok(Err(Refusal::Other(reason))) => Some(reason),
            Err(_) => None,
        };
        let odd = meter.odd().map(|odd| format!("; it wrote what is no message: {odd:?}")).unwrap_or_default();
        Err(Refusal::Other(match (meter.cut_for(), begun, program) {
            (Some(cut), ..) => cut,
            (None, Some(reason), Some(running)) => format!("{}{odd}", running.ended(Some(reason)).await),
            (None, Some(reason), None) => reason,
            (None, None, running) => {
                let said = running.map(|running| running.said()).unwrap_or_default();
                format!("did not say what its tools are within {} s{odd}{said}", within.as_secs())
            }
        }))
    }
}

/// A way to talk that is open.
enum Line {
    Program(Transport),
    Http(StreamableHttpClientTransport<Metered>),
}

impl Line {
    async fn to(reach: &Reach, meter: &Arc<Meter>) -> Result<(Self, Option<Running>), String> {
        match reach {
            Reach::Program { boxes, program, workspace } => {
                // As it is now: whoever runs this server chose the path, and may have another directory there.
                let workspace = match workspace {
                    None => None,
                    Some((path, access)) => {
                        let place = Place::at(path).map_err(|error| format!("open {}: {error}", path.display()))?;
                        Some((place, *access))
                    }
                };
                let connected = boxes.connect(&program.surroundings(workspace), program.command()).await;
                let (transport, running) = spoken_to(connected.map_err(|failure| failure.detail)?, meter);
                Ok((Self::Program(transport), Some(running)))
            }
            Reach::Http(way) => {
                // The address is the way's own; this one is only shown.
                let config = StreamableHttpClientTransportConfig::with_uri("the configured address");
                let transport = StreamableHttpClientTransport::with_client(way.metered(meter.clone()), config);
                Ok((Self::Http(transport), None))
            }
        }
    }
}

async fn begin(line: Line, era: Era, meter: Arc<Meter>) -> Result<Connection, Refusal> {
    let changed = Arc::new(Notify::new());
    let listener = Listener { changed: changed.clone() };
    let lifecycle = match era {
        Era::Handshake => ClientLifecycleMode::Initialize,
        Era::Discovery => ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::LATEST] },
    };
    // Boxed, here and below: of what these wait for, the compiler cannot see by itself that threads may share it.
    let service: BoxFuture<'static, _> = match line {
        Line::Program(transport) => Box::pin(serve_client_with_lifecycle(listener, transport, lifecycle)),
        Line::Http(transport) => Box::pin(serve_client_with_lifecycle(listener, transport, lifecycle)),
    };
    let service = service.await.map_err(|error| match &error {
        ClientInitializeError::JsonRpcError(said) => {
            Refusal::Handshake(format!("refused to begin: {}", visible_owned(said.message.to_string())))
        }
        error => Refusal::Other(why_not_begun(error)),
    })?;
    let tools = listed(service.peer().clone()).await.map_err(|error| Refusal::Other(why(&error)))?;
    let subscription = match era {
        Era::Handshake => None,
        // One that cannot tell is asked again now and then.
        Era::Discovery => subscribed(service.peer().clone()).await,
    };
    Ok(Connection { service, tools, meter, changed, subscription, program: None })
}

/// Asks to be told when the tools are others.
fn subscribed(peer: Peer<RoleClient>) -> BoxFuture<'static, Option<Subscription>> {
    Box::pin(async move { peer.listen(SubscriptionFilter::builder().tools_list_changed().build()).await.ok() })
}

/// Why a server did not begin.
enum Refusal {
    /// It answered the handshake with an error.
    Handshake(String),
    Other(String),
}

impl Refusal {
    fn into_text(self) -> String {
        match self {
            Self::Handshake(text) | Self::Other(text) => text,
        }
    }
}

impl Running {
    /// How it ended, which must be near, with what it said; `told` is what is known of the reason already.
    pub(super) async fn ended(mut self, told: Option<String>) -> String {
        let end = tokio::time::timeout(END_WITHIN, self.rest.ended()).await;
        let ended = match end {
            Ok(Ok(End::Exited(126 | 127))) => "cannot be run here".to_owned(),
            Ok(Ok(End::Exited(code))) if code > 128 => format!("was ended by the signal {}", code - 128),
            Ok(Ok(End::Exited(code))) => format!("ended with exit code {code}"),
            Ok(Ok(End::OutOfMemory)) => "used more memory than it may and was stopped".to_owned(),
            Ok(Err(failure)) => failure.detail,
            _ => told.unwrap_or_else(|| "closed its output".to_owned()),
        };
        format!("{ended}{}", self.said())
    }

    /// What it said in trouble.
    fn said(&self) -> String {
        let kept: Vec<u8> = self.complaints.lock().expect("no panic while the lock is held").iter().copied().collect();
        match said(&kept) {
            said if said.is_empty() => said,
            said => format!("; it says: {said}"),
        }
    }
}

/// Asks for all tools, page by page.
pub(super) fn listed(peer: Peer<RoleClient>) -> BoxFuture<'static, Result<Vec<model::Tool>, ServiceError>> {
    Box::pin(async move {
        let (mut tools, mut cursor) = (Vec::new(), None);
        loop {
            let mut asked = model::PaginatedRequestParams::default();
            asked.cursor = cursor;
            let page = peer.list_tools(Some(asked)).await?;
            tools.extend(page.tools);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(tools);
            }
        }
    })
}

/// Asks whether the server is there. Any answer will do.
pub(super) async fn answers(peer: &Peer<RoleClient>) -> bool {
    let ping = peer.send_request(ClientRequest::PingRequest(model::PingRequest::default()));
    match tokio::time::timeout(ANSWER_WITHIN, ping).await {
        Ok(Ok(_) | Err(ServiceError::McpError(_) | ServiceError::UnexpectedResponse)) => true,
        Ok(Err(_)) | Err(_) => false,
    }
}

type Transport =
    AsyncRwTransport<RoleClient, Pin<Box<dyn AsyncRead + Send>>, Pin<Box<dyn tokio::io::AsyncWrite + Send>>>;

/// Messages over the input and output of a program.
fn spoken_to(connected: Connected, meter: &Arc<Meter>) -> (Transport, Running) {
    let complaints: Arc<Mutex<VecDeque<u8>>> = Arc::default();
    let (kept, complained) = (complaints.clone(), meter.clone());
    let (input, output, rest) = connected.split(move |bytes| {
        // Whoever complains without end is cut off as well.
        let _ = complained.take(bytes, Kind::Complaints);
        let mut kept = kept.lock().expect("no panic while the lock is held");
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(COMPLAINTS_KEPT);
        kept.drain(..surplus);
    });
    let output: Pin<Box<dyn AsyncRead + Send>> = Box::pin(Counted { output, meter: meter.clone() });
    let transport = AsyncRwTransport::new(output, Box::pin(input) as Pin<Box<dyn tokio::io::AsyncWrite + Send>>);
    // The meter cuts off whoever sends a longer one.
    (transport.with_max_line_length(MESSAGE_BYTES_MAX + 1), Running { rest, complaints })
}

/// What a program writes, counted.
struct Counted<R> {
    output: R,
    meter: Arc<Meter>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.output).poll_read(context, into);
        if let Poll::Ready(Ok(())) = &read
            && let Err(reason) = self.meter.take(&into.filled()[before..], Kind::Lines)
        {
            return Poll::Ready(Err(io::Error::other(reason)));
        }
        read
    }
}

/// What a server may say to us: that its tools are others. It gets no model, no person and no directories.
pub(super) struct Listener {
    changed: Arc<Notify>,
}

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("vlinders", env!("CARGO_PKG_VERSION")))
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
