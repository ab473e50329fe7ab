//! A server that answers as it is told, over real HTTP: every error and every cut of a stream on purpose.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use inference_worker::{
    engine::{Event, Running},
    remote::{Remote, RemoteConfig},
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Nothing a test waits for takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the server does with one chat completion.
#[derive(Clone)]
pub(crate) enum Reply {
    /// Status, headers, whole body.
    Whole(u16, Vec<(&'static str, &'static str)>, String),
    /// A stream of these pieces.
    Stream(Vec<Piece>),
    /// Nothing, ever.
    Silence,
}

/// A piece of a stream.
#[derive(Clone)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    /// The connection breaks, once the test says so: at once, what came before might never leave.
    Cut,
    /// Nothing more comes, and the connection stays.
    Hang,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    /// The port it came from: one for each connection.
    pub(crate) from: u16,
}

/// Path, status and body of what answers a plain question.
type Page = (&'static str, u16, String);

#[derive(Clone)]
struct Script {
    replies: Arc<Mutex<VecDeque<Reply>>>,
    pages: Arc<Mutex<Vec<Page>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Streams and silences that clients still wait for.
    open: watch::Sender<usize>,
    cut: watch::Sender<bool>,
}

/// A server; gone with all its connections when it is dropped.
pub(crate) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) address: SocketAddr,
    script: Script,
}

impl Drop for Server {
    fn drop(&mut self) {
        // On a thread where waiting is allowed: afterwards nobody listens any more.
        let runtime = self.runtime.take();
        let _ = std::thread::spawn(move || drop(runtime)).join();
    }
}

impl Server {
    /// One on a free port, with a model list in vLLM's shape.
    pub(crate) fn start(replies: Vec<Reply>) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), replies)
    }

    pub(crate) fn start_at(address: SocketAddr, replies: Vec<Reply>) -> Self {
        let models = json!({"object": "list", "data": [{"id": "theirs", "max_model_len": 4096}]});
        let script = Script {
            replies: Arc::new(Mutex::new(replies.into())),
            pages: Arc::new(Mutex::new(vec![("/v1/models", 200, models.to_string())])),
            seen: Arc::default(),
            open: watch::Sender::new(0),
            cut: watch::Sender::new(false),
        };
        // A runtime of its own, so that it can go with everything in it.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let router = Router::new().fallback(answer).with_state(script.clone());
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
        });
        Self { runtime: Some(runtime), address, script }
    }

    /// Replaces what it answers to a plain question.
    pub(crate) fn page(&self, path: &'static str, status: u16, body: &Value) {
        let mut pages = self.script.pages.lock().unwrap();
        pages.retain(|(other, _, _)| *other != path);
        pages.push((path, status, body.as_str().map_or_else(|| body.to_string(), str::to_owned)));
    }

    pub(crate) fn then(&self, reply: Reply) {
        self.script.replies.lock().unwrap().push_back(reply);
    }

    /// The chat completions it was asked for.
    pub(crate) fn asked(&self) -> Vec<Seen> {
        let seen = self.script.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path == "/v1/chat/completions").cloned().collect()
    }

    /// Breaks the connections whose streams are to be cut.
    pub(crate) fn cut(&self) {
        self.script.cut.send_replace(true);
    }

    /// Waits until so many clients wait for more.
    pub(crate) async fn until_open(&self, count: usize) {
        let mut open = self.script.open.subscribe();
        let work = open.wait_for(|open| *open == count);
        tokio::time::timeout(PATIENCE, work).await.expect("in time").expect("the server lives");
    }

    pub(crate) fn config(&self) -> RemoteConfig {
        RemoteConfig { url: format!("http://{}/v1", self.address), ..RemoteConfig::default() }
    }

    /// A remote model of this server that has looked at it.
    pub(crate) async fn remote(&self) -> Remote {
        self.remote_with(|_| {}).await
    }

    pub(crate) async fn remote_with(&self, change: impl FnOnce(&mut RemoteConfig)) -> Remote {
        let mut config = self.config();
        change(&mut config);
        let remote = Remote::new("ours", config).unwrap();
        remote.look().await.unwrap();
        remote
    }
}

/// Counts a client that waits, for as long as it does.
struct Waiting(watch::Sender<usize>);

impl Waiting {
    fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

async fn answer(
    State(script): State<Script>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path().to_owned();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let seen = Seen { path: path.clone(), headers: parts.headers, body, from: from.port() };
    script.seen.lock().unwrap().push(seen);
    if path != "/v1/chat/completions" {
        let pages = script.pages.lock().unwrap();
        let page = pages.iter().find(|(known, _, _)| *known == path);
        return page.map_or(StatusCode::NOT_FOUND.into_response(), |(_, status, body)| {
            (StatusCode::from_u16(*status).unwrap(), body.clone()).into_response()
        });
    }
    let reply = script.replies.lock().unwrap().pop_front().expect("a reply is scripted for each request");
    match reply {
        Reply::Whole(status, headers, body) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Reply::Stream(pieces) => {
            let waiting = Waiting::new(&script.open);
            let cut = script.cut.clone();
            let pieces = stream::iter(pieces).then(move |piece| {
                let _ = &waiting;
                let mut cut = cut.subscribe();
                async move {
                    match piece {
                        Piece::Bytes(bytes) => Ok(Bytes::from(bytes)),
                        Piece::Cut => {
                            let _ = cut.wait_for(|cut| *cut).await;
                            Err(std::io::Error::other("cut"))
                        }
                        Piece::Hang => std::future::pending().await,
                    }
                }
            });
            ([("content-type", "text/event-stream; charset=utf-8")], Body::from_stream(pieces)).into_response()
        }
        Reply::Silence => {
            let _waiting = Waiting::new(&script.open);
            std::future::pending().await
        }
    }
}

/// Chunks as lines of a stream, without an end.
pub(crate) fn lines(chunks: &[Value]) -> Vec<u8> {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<String>().into_bytes()
}

pub(crate) fn delta(text: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
}

pub(crate) fn end(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

/// The whole stream of an answer of these texts.
pub(crate) fn said(texts: &[&str]) -> Vec<u8> {
    let mut chunks: Vec<Value> = texts.iter().map(|text| delta(text)).collect();
    chunks.push(end("stop"));
    chunks.push(json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": texts.len()}}));
    [lines(&chunks), b"data: [DONE]\n\n".to_vec()].concat()
}

pub(crate) fn stream(bytes: Vec<u8>) -> Reply {
    Reply::Stream(vec![Piece::Bytes(bytes)])
}

/// The next event of a request.
pub(crate) async fn next(running: &mut Running) -> Event {
    tokio::time::timeout(PATIENCE, running.events.recv()).await.expect("in time").expect("an end comes before the end")
}

/// All texts of a request, and its end.
pub(crate) async fn read(mut running: Running) -> (Vec<String>, Event) {
    let mut texts = Vec::new();
    loop {
        match next(&mut running).await {
            Event::Token { text, .. } => texts.push(text),
            end => return (texts, end),
        }
    }
}
