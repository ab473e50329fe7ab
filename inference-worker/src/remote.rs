//! A model of another server: any that speaks OpenAI's chat API (vLLM, llama.cpp, text-generation-inference, …) becomes
//! one of ours.
//!
//! `question` writes what is asked, `connection` sends it, `stream` follows what comes back, through `events` (bytes to events)
//! and `answer` (chunks to tokens and the whole); `refusal` reads what is no answer, `health` whether there is a server
//! at all. Templates, tokens and grammars are the server's: we pass on what was asked, and what was said.
//!
//! * A server that is busy, or away before its first byte, is asked again a few times, then the request fails as
//!   overloaded. One that breaks off in the middle fails as an accident, so that another attempt follows; it starts over,
//!   for nobody else can go on behind tokens without ids.
//! * While a server does not answer, its model is not ready: it is not offered, and its jobs wait in their queue.
//! * Dropping a request closes its connection, by which the server notices and frees its slot.

mod answer;
mod chunk;
mod connection;
mod events;
mod health;
mod question;
mod refusal;
mod settings;
mod stream;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use runtime::{Tasks, clock};
use tokio::sync::{Notify, mpsc, watch};

pub(crate) use answer::UNKNOWN_ID;
pub use settings::RemoteConfig;
pub(crate) use settings::table;

use crate::engine::{Event, Rejection, Request, Running};
use answer::Broken;
use connection::{Body, Fault, Http};
use health::{LOOK_AGAIN, LOOK_EVERY, Served, Trouble};
use refusal::Refusal;
use stream::{Asked, End};

/// How often one request is sent to a server that is busy or away.
const TRIES_MAX: u32 = 4;
/// The first wait between two tries where the server names none; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Bytes of a refusal that are read, and how long that may take.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on a remote model. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    config: RemoteConfig,
    http: Http,
    ready: watch::Sender<bool>,
    state: Mutex<State>,
    doubt: Notify,
}

/// What was last seen and said of a server.
#[derive(Debug, Default)]
struct State {
    served: Option<Served>,
    /// What was last said: people read of a change, not of each look.
    told: Option<Result<(), std::mem::Discriminant<Trouble>>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Remote").field("name", &self.inner.name).field("url", &self.inner.config.url).finish()
    }
}

impl Remote {
    /// A model served under `name`. Nothing is sent yet.
    ///
    /// # Errors
    /// The configuration is wrong; the text names the key.
    pub fn new(name: &str, config: RemoteConfig) -> Result<Self, String> {
        config.check(name)?;
        let http = Http::new(name, &config)?;
        let inner = Inner {
            name: name.to_owned(),
            config,
            http,
            ready: watch::Sender::new(false),
            state: Mutex::default(),
            doubt: Notify::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The model's name here.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Requests that run at the same time.
    pub fn slots(&self) -> usize {
        self.inner.config.slots
    }

    /// Tokens of prompt and answer together that it holds; 0 as long as neither server nor configuration said so.
    pub fn window(&self) -> usize {
        self.served().map_or(0, |served| served.window)
    }

    /// Whether the server can be asked now, and when that changes.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.inner.ready.subscribe()
    }

    /// Looks at the server once; returns what it serves, for people.
    ///
    /// # Errors
    /// Why it cannot be used now, and what to do.
    pub async fn look(&self) -> Result<String, String> {
        let seen = health::look(&self.inner.name, &self.inner.config, &self.inner.http).await;
        let told = match &seen {
            Ok(served) => Ok(format!("{} at {}, window {}", served.model, self.inner.config.url, served.window)),
            Err(trouble) => Err(format!("{} ({})", trouble, self.inner.config.url)),
        };
        self.note(seen);
        told
    }

    /// Looks again and again, in a task of `tasks`, until their soft token falls.
    pub fn watch(&self, tasks: &Tasks) {
        let (this, soft) = (self.clone(), tasks.soft());
        tasks.spawn(async move {
            let looking = async {
                loop {
                    let pause = if *this.inner.ready.borrow() { LOOK_EVERY } else { LOOK_AGAIN };
                    // Doubt that came while we looked makes us look again at once.
                    let _ = tokio::time::timeout(pause, this.inner.doubt.notified()).await;
                    // What was seen is said in `note`.
                    let _ = this.look().await;
                }
            };
            soft.run_until_cancelled(looking).await;
        });
    }

    /// Sends a request; its events begin when the server does. Tokens of earlier attempts are not continued.
    ///
    /// # Errors
    /// The server refuses it, or cannot be reached or has no room after a few tries.
    pub async fn submit(&self, request: Request) -> Result<Running, Rejection> {
        if request.alternatives > 0 {
            let why =
                format!("the model {} answers on another server, one answer to a request: ask with `n` 1", self.name());
            return Err(Rejection::Unusable(why));
        }
        let at = clock::instant();
        let (body, prompt_bytes) = self.ask(&request).await?;
        let (tell, events) = mpsc::unbounded_channel();
        let silence = self.inner.config.silence_timeout();
        let asked = Asked { others: request.sampling.logprobs, prompt_bytes, at, silence };
        let (this, one_call) = (self.clone(), request.one_call);
        let follow = async move {
            let end = match stream::follow(body, &asked, &tell).await {
                End::Whole(mut outcome) => {
                    // Not every server heeds what it was asked.
                    if one_call {
                        outcome.keep_one_call();
                    }
                    Event::Finished(outcome)
                }
                End::Broken(Broken::Failed(why)) => Event::Failed(this.inner.http.redacted(&why)),
                End::Broken(Broken::Refused(why)) => Event::Refused(this.inner.http.redacted(&why)),
                End::Cut(why) => {
                    this.doubt();
                    Event::Failed(why)
                }
                End::Unread => return,
            };
            // A reader that has gone does not miss it.
            let _ = tell.send(end);
        };
        #[expect(clippy::disallowed_methods, reason = "lives exactly as long as the request, which aborts it")]
        let task = tokio::spawn(follow);
        Ok(Running::of_task(events, task))
    }

    /// Asks until the answer begins; returns its stream and the bytes of the prompt.
    async fn ask(&self, request: &Request) -> Result<(Body, usize), Rejection> {
        let (model, window) = self.asked_for();
        let mut body = question::body(request, &model, window, true);
        let prompt_bytes = size(&body["messages"]) + size(&body["tools"]);
        let mut bytes = Bytes::from(body.to_string());
        let mut tries = 1;
        loop {
            match self.once(bytes.clone()).await {
                Ok(body) => return Ok((body, prompt_bytes)),
                Err(Refusal::Final(rejection)) => return Err(rejection),
                // The limit reaches beyond what prompt and window leave: without it the window is the limit.
                Err(Refusal::TooLong(_)) if body.get("max_tokens").is_some() => {
                    body = question::body(request, &model, window, false);
                    bytes = Bytes::from(body.to_string());
                }
                Err(Refusal::TooLong(why)) => return Err(Rejection::Overflow(why)),
                Err(Refusal::Busy { why, .. }) if tries == TRIES_MAX => {
                    return Err(Rejection::Overloaded(format!("{why}; asked {tries} times")));
                }
                Err(Refusal::Busy { why, after }) => {
                    tracing::debug!(model = self.inner.name, why, "a server is asked again");
                    tokio::time::sleep(after.unwrap_or(FIRST_WAIT * (1 << (tries - 1)))).await;
                    tries += 1;
                }
            }
        }
    }

    /// Asks once.
    async fn once(&self, body: Bytes) -> Result<Body, Refusal> {
        let response = match self.inner.http.post("/chat/completions", body).await {
            Ok(response) => response,
            Err(Fault::Unreachable(why)) => {
                self.doubt();
                return Err(Refusal::Busy { why: format!("the server cannot be reached: {why}"), after: None });
            }
            Err(fault @ Fault::Silent(_)) => return Err(Refusal::Final(Rejection::Broken(fault.to_string()))),
        };
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no type");
        if response.status().is_success() && kind.starts_with("text/event-stream") {
            return Ok(response.into_body());
        }
        let (status, kind) = (response.status(), kind.to_owned());
        let (headers, text) = self.refusal(response).await;
        if status.is_success() {
            let said = refusal::said(&text);
            let why = format!("the server answered with {kind} instead of a stream of events: {said}");
            return Err(Refusal::Final(Rejection::Broken(why)));
        }
        Err(refusal::read(&self.inner.name, status, &headers, &text))
    }

    /// The headers and the beginning of what is no answer.
    async fn refusal(&self, response: Response<Body>) -> (HeaderMap, String) {
        let (parts, body) = response.into_parts();
        let text = tokio::time::timeout(REFUSAL_TIMEOUT, connection::beginning(body, REFUSAL_BYTES_MAX)).await;
        let text = text.unwrap_or_default();
        (parts.headers, self.inner.http.redacted(&String::from_utf8_lossy(&text)))
    }

    /// The server's name for the model, and its window if that is known.
    fn asked_for(&self) -> (String, usize) {
        let config = &self.inner.config;
        match self.served() {
            Some(served) => (served.model, served.window),
            None => (config.model.clone().unwrap_or_else(|| self.inner.name.clone()), 0),
        }
    }

    fn served(&self) -> Option<Served> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).served.clone()
    }

    /// The server may be gone: no job is taken until somebody has looked, which happens at once.
    fn doubt(&self) {
        self.inner.ready.send_if_modified(|ready| std::mem::replace(ready, false));
        self.inner.doubt.notify_one();
    }

    /// Keeps what was seen, and says it where it changes.
    fn note(&self, seen: Result<Served, Trouble>) {
        let Inner { name, config, ready, state, .. } = &*self.inner;
        let now = seen.is_ok();
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let kind = seen.as_ref().map(|_| ()).map_err(std::mem::discriminant);
            let changed = state.told != Some(kind);
            let before = state.told.replace(kind);
            let url = &config.url;
            match seen {
                Ok(served) => {
                    if changed && !served.instead.is_empty() {
                        let listed = served.instead.join(", ");
                        tracing::warn!(model = name, asked = served.model, listed, %url, "the server does not list the model it is asked for");
                    }
                    match before {
                        None => {
                            tracing::info!(model = name, asked = served.model, window = served.window, %url, "a remote model is ready")
                        }
                        Some(Err(_)) => tracing::info!(model = name, %url, "the server of a remote model is back"),
                        Some(Ok(())) => {}
                    }
                    state.served = Some(served);
                }
                Err(trouble @ Trouble::Away(_)) if changed => {
                    tracing::warn!(model = name, %trouble, %url, "a remote model is away; its jobs wait");
                }
                Err(trouble) if changed => {
                    tracing::error!(model = name, %trouble, %url, "a remote model cannot be used; its jobs wait");
                }
                Err(_) => {}
            }
        }
        ready.send_if_modified(|ready| std::mem::replace(ready, now) != now);
    }
}

/// Looks at all servers at once and keeps looking, in tasks of `tasks`. Returns when each has answered or not: a server
/// that is away keeps nobody from starting.
pub async fn watch(remotes: &[Remote], tasks: &Tasks) {
    futures::future::join_all(remotes.iter().map(Remote::look)).await;
    remotes.iter().for_each(|remote| remote.watch(tasks));
}

/// Bytes of a value as JSON; of one that is missing none.
fn size(value: &serde_json::Value) -> usize {
    if value.is_null() { 0 } else { value.to_string().len() }
}
