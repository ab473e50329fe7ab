//! Keeps one server running, its tools in the registry, and calls on their way to it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rmcp::model::{self, CallToolRequestParams};
use rmcp::service::{Peer, RoleClient, ServiceError, Subscription};
use runtime::clock;
use schemas::agent::Refused;
use schemas::fact::Sandbox as Report;
use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::answer;
use super::connection::{ANSWER_WITHIN, Connection, Reach, answers, listed};
use super::http::{Fault, Way, fault, why};
use super::meter::Meter;
use super::offer::{self, Offered, Terms};
use super::settings::Settings;
use crate::failure::Failure;
use crate::plugins::{MARGIN, Shelf, Uses, confined, unknown};
use crate::registry::{Handler, Means, Order, Registry, Tool};
use crate::sandbox::{Access, Sandbox};

/// How often a server is asked for its tools that need not say when they change.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// The pause before the second start in a row, doubled with each one after it, and the longest.
const PAUSE_LEAST: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// A server that ran so long starts from no pause again.
const STEADY_AFTER: Duration = Duration::from_secs(60);
/// How long a call whose connection broke waits for the reason.
const REASON_WITHIN: Duration = Duration::from_secs(2);
/// How long a connection may take to be closed in order.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Tier of calls that go to a server elsewhere, and what holds for them.
const TIER: &str = "remote";
const ENFORCED: [&str; 4] = ["one-server", "no-redirects", "size-limit", "time-limit"];

/// One configured server.
pub(super) struct Server {
    terms: Terms,
    shelf: Arc<Shelf>,
    reach: Plan,
    start_within: Duration,
    link: Arc<Link>,
    /// Its tools in the registry.
    named: BTreeSet<String>,
    /// What it listed last, and what was refused of it.
    listed: Option<Vec<model::Tool>>,
    refused: Option<String>,
    /// Told when the first start came to its end.
    first: Option<oneshot::Sender<()>>,
}

/// How it will be reached.
enum Plan {
    Program { settings: Box<Settings> },
    Http(Arc<Way>),
}

/// What calls need of it.
struct Link {
    server: String,
    state: watch::Sender<State>,
    timeout: Duration,
    start_within: Duration,
    bytes_max: usize,
    /// Where it runs, if in a box.
    boxes: Option<Arc<Sandbox>>,
}

#[derive(Clone)]
enum State {
    /// It is being started; why again, if it is not the first time.
    Starting(Option<Arc<str>>),
    Up(Session),
    /// It waits for its next start.
    Down(Arc<str>),
}

/// The present connection.
#[derive(Clone)]
struct Session {
    number: u64,
    peer: Peer<RoleClient>,
    meter: Arc<Meter>,
    /// Told when a call was not answered.
    doubted: Arc<Notify>,
}

/// Why a connection is watched no more.
enum Over {
    Stopped,
    Ended(String),
}

/// What happens to a connection.
enum Event {
    Stop,
    Cut,
    Closed,
    Changed,
    Doubted,
}

impl Server {
    /// # Errors
    /// A setting is wrong; the text names it.
    pub(super) fn new(
        name: &str,
        settings: &Settings,
        shelf: Arc<Shelf>,
    ) -> Result<(Self, oneshot::Receiver<()>), String> {
        settings.check(name)?;
        let quota = settings.limits.over(&shelf.defaults);
        let (reach, boxes) = match &settings.url {
            Some(url) => (Plan::Http(Arc::new(Way::new(name, settings, url)?)), None),
            None => (Plan::Program { settings: Box::new(settings.clone()) }, shelf.boxes.clone().ok()),
        };
        let start_within = settings.start_timeout();
        let link = Arc::new(Link {
            server: name.to_owned(),
            state: watch::Sender::new(State::Starting(None)),
            timeout: quota.timeout(),
            start_within,
            bytes_max: quota.output_bytes(),
            boxes,
        });
        let terms = Terms {
            server: name.to_owned(),
            only: settings.tools.clone(),
            approve: settings.approve,
            // A call may have to wait for a start.
            timeout: quota.timeout() + start_within + MARGIN,
        };
        let (first, started) = oneshot::channel();
        let server = Self {
            terms,
            shelf,
            reach,
            start_within,
            link,
            named: BTreeSet::new(),
            listed: None,
            refused: None,
            first: Some(first),
        };
        Ok((server, started))
    }

    /// Keeps it running until `soft` falls.
    pub(super) async fn keep(mut self, soft: CancellationToken) {
        let (mut number, mut in_a_row) = (0_u64, 0_u32);
        loop {
            let began = clock::instant();
            let opened = tokio::select! {
                () = soft.cancelled() => return,
                opened = self.open() => opened,
            };
            let (reason, ran) = match opened {
                Err(reason) => (reason, false),
                Ok(connection) => {
                    number += 1;
                    tracing::info!(
                        server = self.terms.server,
                        tools = connection.tools.len(),
                        "a server of tools is there"
                    );
                    match self.watch(connection, number, soft.clone()).await {
                        Over::Stopped => return,
                        Over::Ended(reason) => (reason, true),
                    }
                }
            };
            if clock::instant().duration_since(began) >= STEADY_AFTER {
                in_a_row = 0;
            }
            in_a_row += 1;
            tracing::warn!(
                server = self.terms.server,
                reason,
                in_a_row,
                "a server of tools is gone; starting it again"
            );
            let reason: Arc<str> = reason.into();
            if ran && in_a_row == 1 {
                // The next is there in a moment, for which calls wait.
                self.link.state.send_replace(State::Starting(Some(reason)));
                continue;
            }
            let pause = PAUSE_LEAST.saturating_mul(1 << in_a_row.saturating_sub(2).min(16)).min(PAUSE_MOST);
            self.withdraw(&reason);
            self.link.state.send_replace(State::Down(reason.clone()));
            self.first.take();
            tokio::select! {
                () = soft.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.link.state.send_replace(State::Starting(Some(reason)));
        }
    }

    async fn open(&self) -> Result<Connection, String> {
        let reach = match &self.reach {
            Plan::Http(way) => Reach::Http(way.clone()),
            Plan::Program { settings } => self.program(settings).await?,
        };
        Connection::open(&reach, self.start_within).await
    }

    /// What its box is told. Found anew for each start: an image or a directory may have come since.
    async fn program(&self, settings: &Settings) -> Result<Reach, String> {
        let uses = if settings.writes { Uses::Write } else { Uses::Read };
        if let Some(reason) = self.shelf.unavailable(uses) {
            return Err(reason);
        }
        let boxes = self.shelf.boxes.clone()?;
        let program = settings.program();
        let quota = program.quota.over(&self.shelf.defaults);
        let pinned =
            program.pinned(&boxes, quota).await.map_err(|wrong| format!("`{}` {}", wrong.field, wrong.reason))?;
        let workspace = settings.workspace.as_ref().map(|path| self.workspace(path, settings.writes)).transpose()?;
        Ok(Reach::Program { boxes, program: Box::new(pinned), workspace })
    }

    fn workspace(&self, path: &Path, writes: bool) -> Result<(PathBuf, Access), String> {
        let found = path.canonicalize().map_err(|error| format!("`workspace` is {}: {error}", path.display()))?;
        let wanted = if writes { Access::Write } else { Access::Read };
        let access = self.shelf.roots.grant(wanted, &found).map_err(|error| error.to_string())?;
        Ok((found, access))
    }

    /// Offers its tools and watches over the connection until it ends.
    async fn watch(&mut self, connection: Connection, number: u64, soft: CancellationToken) -> Over {
        let Connection { service, tools, meter, changed, mut subscription, program } = connection;
        let peer = service.peer().clone();
        self.offer(tools);
        let doubted = Arc::new(Notify::new());
        let session = Session { number, peer: peer.clone(), meter: meter.clone(), doubted: doubted.clone() };
        self.link.state.send_replace(State::Up(session));
        self.first.take();
        let closing = service.cancellation_token();
        let (mut closed, cut) = (std::pin::pin!(service.waiting()), meter.cut());
        let why = loop {
            let event = tokio::select! {
                () = soft.cancelled() => Event::Stop,
                () = cut.cancelled() => Event::Cut,
                _ = &mut closed => Event::Closed,
                () = changed.notified() => Event::Changed,
                () = told(&mut subscription) => Event::Changed,
                () = doubted.notified() => Event::Doubted,
                () = tokio::time::sleep(ASK_EVERY) => Event::Changed,
            };
            match event {
                Event::Stop => break None,
                Event::Cut => break meter.cut_for(),
                // It has ended, and says itself how.
                Event::Closed => {
                    let ended = match (meter.cut_for(), program) {
                        (Some(reason), _) => reason,
                        (None, Some(running)) => running.ended(None).await,
                        (None, None) => "closed the connection".to_owned(),
                    };
                    return Over::Ended(ended);
                }
                Event::Changed => match tokio::time::timeout(ANSWER_WITHIN, listed(peer.clone())).await {
                    Ok(Ok(tools)) => self.offer(tools),
                    // Told as what it is in the next round.
                    Ok(Err(ServiceError::TransportClosed)) => {}
                    Ok(Err(ServiceError::McpError(said))) => {
                        tracing::warn!(server = self.terms.server, said = %said.message, "a server does not list its tools");
                    }
                    Ok(Err(error)) => break Some(why(&error)),
                    Err(_) => break Some(format!("did not answer within {} s", ANSWER_WITHIN.as_secs())),
                },
                Event::Doubted if answers(&peer).await => {}
                // Told as what it is in the next round.
                Event::Doubted if peer.is_transport_closed() => {}
                Event::Doubted => break Some(format!("did not answer within {} s", ANSWER_WITHIN.as_secs())),
            }
        };
        closing.cancel();
        if tokio::time::timeout(CLOSE_WITHIN, closed).await.is_err() {
            tracing::debug!(server = self.terms.server, "a connection was not closed in order");
        }
        // Its box ends here.
        drop(program);
        why.map_or(Over::Stopped, Over::Ended)
    }

    /// Brings the registry in step with what it lists.
    fn offer(&mut self, listed: Vec<model::Tool>) {
        let down = !matches!(&*self.link.state.borrow(), State::Up(_));
        if self.listed.as_ref() == Some(&listed) && !down {
            return;
        }
        let (offered, mut refused) = offer::tools(&listed, &self.terms);
        let (named, link) = (std::mem::take(&mut self.named), self.link.clone());
        self.changed(|registry, now| {
            let mut registry = named.iter().fold(registry.clone(), |registry, name| registry.without(name));
            for offered in &offered {
                match registry.with(carried(offered, &link)) {
                    Ok(with) => {
                        registry = with;
                        now.insert(offered.tool.name.clone());
                    }
                    Err(error) => refused.push(error.to_string()),
                }
            }
            (registry, (!refused.is_empty()).then(|| refused.join("; ")))
        });
        self.listed = Some(listed);
    }

    /// Says of its tools that they cannot be used now.
    fn withdraw(&mut self, reason: &str) {
        let why = format!("the server {} {reason}", self.terms.server);
        let named = std::mem::take(&mut self.named);
        self.changed(|registry, now| {
            let mut registry = registry.clone();
            for name in named {
                let Some(tool) = registry.tool(&name).cloned() else { continue };
                let without = registry.without(&name);
                if let Ok(with) = without.with(Tool { unavailable: Some(why.clone()), ..tool }) {
                    registry = with;
                    now.insert(name);
                }
            }
            (registry, Some(reason.to_owned()))
        });
    }

    /// Changes the registry, with what is refused, and remembers which tools are this server's.
    fn changed(&mut self, change: impl FnOnce(&Registry, &mut BTreeSet<String>) -> (Registry, Option<String>)) {
        let file = format!("tools.mcp.{}", self.terms.server);
        let changed = self.shelf.toolbox.change(|registry| {
            let (registry, reason) = change(registry, &mut self.named);
            if reason != self.refused
                && let Some(reason) = &reason
            {
                tracing::warn!(server = self.terms.server, reason, "not all tools of a server are offered");
            }
            self.refused.clone_from(&reason);
            let refused = reason.map(|reason| Refused { file: file.clone(), line: None, reason });
            Ok::<Registry, Infallible>(registry.refusing(&file, refused))
        });
        match changed {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }
}

/// Waits until a subscription says something. One that ended says nothing more.
async fn told(subscription: &mut Option<Subscription>) {
    loop {
        match subscription {
            None => std::future::pending().await,
            Some(open) => match open.next().await {
                Ok(Some(_)) => return,
                Ok(None) | Err(_) => *subscription = None,
            },
        }
    }
}

/// A tool with what carries it out.
fn carried(offered: &Offered, link: &Arc<Link>) -> Tool {
    let remote = Remote {
        name: offered.tool.name.clone(),
        theirs: offered.theirs.clone(),
        reads_only: offered.reads_only(),
        is_json: offered.tool.result.is_some(),
        link: link.clone(),
    };
    Tool { means: Means::Handler(Arc::new(remote)), ..offered.tool.clone() }
}

/// One tool of a server.
struct Remote {
    name: String,
    /// As the server calls it.
    theirs: String,
    reads_only: bool,
    is_json: bool,
    link: Arc<Link>,
}

impl Handler for Remote {
    fn version(&self) -> Option<String> {
        None
    }

    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Report) -> BoxFuture<'a, Result<String, Failure>> {
        match &self.link.boxes {
            Some(boxes) => confined(boxes, report),
            None => *report = Report { tier: TIER.to_owned(), enforced: ENFORCED.map(str::to_owned).to_vec() },
        }
        Box::pin(self.call(order.arguments))
    }
}

impl Remote {
    async fn call(&self, arguments: Map<String, Value>) -> Result<String, Failure> {
        let Self { name, link, .. } = self;
        let session = link.session().await?;
        // Twice: text and the same as structured content; and what wraps them.
        session.meter.allow(2 * link.bytes_max + (64 << 10));
        let asked = CallToolRequestParams::new(self.theirs.clone()).with_arguments(arguments);
        match tokio::time::timeout(link.timeout, session.peer.call_tool_once(asked)).await {
            Ok(Ok(response)) => answer::read(name, response, self.is_json, link.bytes_max),
            Ok(Err(error)) => Err(self.failed(error, &session).await),
            Err(_) => {
                session.doubted.notify_one();
                Err(Failure::timeout(format!("{name} took longer than {} s and was given up", link.timeout.as_secs())))
            }
        }
    }

    /// A call that was not answered.
    async fn failed(&self, error: ServiceError, session: &Session) -> Failure {
        let Self { name, link, .. } = self;
        let reason = match &error {
            ServiceError::McpError(said) => {
                let code = said.code.0;
                return Failure::bad_request(format!("{name} was refused by its server: {} ({code})", said.message));
            }
            ServiceError::UnexpectedResponse => {
                return Failure::bad_request(format!("{name} answered with something that is no result"));
            }
            ServiceError::TransportSend(sent) => match fault(sent.error.as_ref()) {
                // Nothing was asked of it.
                Some(Fault::Unreachable(why)) => {
                    session.doubted.notify_one();
                    let detail = format!("the server {} cannot be reached ({why}); nothing was done", link.server);
                    return Failure::overloaded(detail);
                }
                Some(Fault::Refused(why)) => return Failure::refused(format!("the server {}: {why}", link.server)),
                Some(Fault::Broken(reason)) => reason.clone(),
                None => why(&error),
            },
            _ => link.reason(session).await.unwrap_or_else(|| why(&error)),
        };
        session.doubted.notify_one();
        let reason = format!("the server {} {reason}", link.server);
        match self.reads_only {
            // Nothing was done that another attempt would do twice.
            true => Failure::overloaded(format!("{name} broke off: {reason}")),
            false => unknown(name, &reason),
        }
    }
}

impl Link {
    /// The present connection. One that is being started is waited for.
    async fn session(&self) -> Result<Session, Failure> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Starting(_)));
        let settled = tokio::time::timeout(self.start_within + MARGIN / 2, settled).await;
        let nobody = |why: &str| Failure::overloaded(format!("the server {} {why}; nothing was done", self.server));
        match settled {
            Ok(Ok(state)) => match &*state {
                State::Up(session) => Ok(session.clone()),
                State::Down(reason) => Err(nobody(reason)),
                State::Starting(_) => Err(nobody("is being started")),
            },
            Ok(Err(_)) => Err(nobody("is not kept any more")),
            Err(_) => Err(nobody("is still being started")),
        }
    }

    /// Why a connection ended; none when nobody says it in time.
    async fn reason(&self, session: &Session) -> Option<String> {
        let mut state = self.state.subscribe();
        let other = |state: &State| !matches!(state, State::Up(now) if now.number == session.number);
        let over = tokio::time::timeout(REASON_WITHIN, state.wait_for(other)).await.ok()?.ok()?;
        match &*over {
            State::Starting(reason) => reason.as_deref().map(str::to_owned),
            State::Down(reason) => Some(reason.to_string()),
            State::Up(_) => None,
        }
    }
}
