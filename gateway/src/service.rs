//! Listens: the router, the secret, and everything that only reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use percent_encoding::percent_decode_str;
use runtime::bus::{Kind, Stored};
use runtime::{Runtime, clock};
use schemas::presence::Worker;
use schemas::{EffectId, ExecutionId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::config::Config;
use crate::directory::Directory;
use crate::follow::Follow;
use crate::listen::{self, Bounds, Certified, Identity, TlsError};
use crate::live::{self, Live};
use crate::metrics::Metrics;
use crate::problem::Failure;
use crate::secrets::Secrets;
use crate::sse::{self, Streamed};
use crate::traced::Traced;
use crate::view::{Entry, Execution};
use crate::{
    agents, batch, code, completion, console, control, dead_letters, executions, forks, grpc, memory, models, objects,
    openai, openapi, operations, queues, requests,
};

/// Asked every few seconds, by machines.
const LOOKED_AT: [&str; 2] = ["/health", "/metrics"];
/// What `/health` says to do about dead letters.
const LETTERS_NEXT: &str = "look at them: `vlinders dead-letters ls`, or GET /internal/dead-letters";

/// The gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not ours.
    #[error("listen on {http}: stop what listens there, or choose another port with --http (0 takes a free one)")]
    Listen {
        /// Where.
        http: String,
        /// Why.
        source: std::io::Error,
    },
    /// The address for gRPC is taken or not ours.
    #[error(
        "listen for gRPC on {grpc}: stop what listens there, or choose another port with --grpc (0 takes a free one, `off` none)"
    )]
    ListenGrpc {
        /// Where.
        grpc: String,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The bus is away.
    #[error("answer questions about requests of NATS clients: {0}")]
    Bus(#[from] runtime::bus::Error),
    /// Two gateways share one registry.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What every request is given.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) secrets: Secrets,
    pub(crate) runtime: Runtime,
    pub(crate) directory: Directory,
    pub(crate) metrics: Metrics,
    pub(crate) admission: Admission,
    pub(crate) live: Live,
}

/// Where a gateway listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// gRPC; none when it is not served.
    pub grpc: Option<SocketAddr>,
}

/// Serves HTTP and gRPC until the soft token falls, then lets open requests finish. Returns where it listens.
///
/// # Errors
/// When an address cannot be bound, or certificates cannot be used.
pub async fn serve(config: Config, secrets: Secrets, runtime: Runtime) -> Result<Addresses, Error> {
    let listen = |source| Error::Listen { http: config.http.clone(), source };
    let identity = config.tls.as_ref().map(Identity::read).transpose()?;
    let listener = tokio::net::TcpListener::bind(&config.http).await.map_err(listen)?;
    // Clients that come all at once wait here until they are taken: as many as may be open, bounded by the system.
    let waiting = i32::try_from(config.requests_open_max).unwrap_or(i32::MAX);
    rustix::net::listen(&listener, waiting).map_err(|error| listen(error.into()))?;
    let http = listener.local_addr().map_err(listen)?;
    let grpc_listener = grpc::listen(&config, http).await?;
    let grpc = grpc_listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let bounds = Bounds { connections: config.connections_max, head: Duration::from_secs(config.head_timeout_s) };
    let admission = Admission::new(&config);
    admission.watch(&runtime.bus, &runtime.tasks);
    let metrics = Metrics::new(&runtime.metrics)?;
    queues::watch(&runtime.bus, &metrics, &runtime.tasks);
    secrets.follow(&runtime.tasks);
    let gateway = Arc::new(Gateway {
        directory: Directory::new(runtime.bus.clone()),
        metrics,
        admission,
        secrets,
        live: Live::default(),
        config,
        runtime: runtime.clone(),
    });
    completion::serve(&gateway).await?;
    if let Some(listener) = grpc_listener {
        grpc::serve(&gateway, listener, identity.clone(), bounds);
    }
    let app = router(gateway);
    runtime.tasks.spawn_essential("gateway", listen::serve(listener, app, identity, bounds, runtime.tasks.clone()));
    Ok(Addresses { http, grpc })
}

fn router(gateway: Arc<Gateway>) -> Router {
    let internal = Router::new()
        .route("/internal/chat", post(requests::chat))
        .route("/internal/agent", post(requests::agent))
        .route("/internal/tools/execute", post(requests::tool))
        .route("/internal/tools/execute_batch", post(batch::tools))
        .route("/internal/embeddings", post(requests::embeddings))
        .route("/internal/index", get(code::indexes).post(code::index))
        .route("/internal/memory", get(memory::list))
        .route("/internal/memory/{id}", delete(memory::forget))
        .route("/internal/executions", get(executions::list))
        .route("/internal/executions/live", get(live::live))
        .route("/internal/executions/{id}", get(execution))
        .route("/internal/executions/{id}/state", get(executions::state))
        .route("/internal/executions/{id}/verify", get(executions::verify))
        .route("/internal/executions/{id}/tool_calls", get(executions::tool_calls))
        .route("/internal/performance", get(executions::performance))
        .route("/internal/executions/{id}/events", get(events))
        .route("/internal/executions/{id}/stream", get(stream))
        .route("/internal/executions/{id}/cancel", post(control::cancel))
        .route("/internal/executions/{id}/pause", post(control::pause))
        .route("/internal/executions/{id}/resume", post(control::resume))
        .route("/internal/executions/{id}/approve", post(control::approve))
        .route("/internal/executions/{id}/messages", post(control::messages))
        .route("/internal/executions/{id}/grant", post(control::grant))
        .route("/internal/executions/{id}/fork", post(forks::fork))
        .route("/internal/dead-letters", get(dead_letters::list))
        .route("/internal/dead-letters/{id}", get(dead_letters::show).delete(dead_letters::remove))
        .route("/internal/dead-letters/{id}/redrive", post(dead_letters::redrive))
        .route("/internal/objects/{sha256}", get(objects::get))
        .route("/internal/workers", get(operations::workers))
        .route("/internal/queues", get(operations::queues))
        .route("/internal/models", get(models::list))
        .route("/internal/models/switch", post(models::switch))
        .route("/internal/models/{name}/load", post(models::load))
        .route("/internal/models/{name}/unload", post(models::unload))
        .route("/internal/model-operations/{id}", get(models::operation))
        .route("/internal/agents", get(agents::list))
        .route("/internal/agents/{name}", get(agents::show).put(agents::put).delete(agents::delete))
        .route("/internal/tools", get(tools))
        .layer(middleware::from_fn_with_state(gateway.clone(), authorise));
    let openai = Router::new()
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{id}", get(openai::model))
        .layer(middleware::from_fn_with_state(gateway.clone(), openai::authorise));
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
        .route("/console", get(console::moved))
        .route("/console/", get(console::index))
        .route("/console/{*path}", get(console::file))
        .merge(internal)
        .merge(openai)
        .fallback(|request: Request<Body>| async move {
            let detail = format!("there is no {} {}", request.method(), request.uri().path());
            shaped(&request, Failure::new(404, "unknown_endpoint", detail, "the README lists the endpoints"))
        })
        .method_not_allowed_fallback(|request: Request<Body>| async move {
            let detail = format!("{} does not take {}", request.uri().path(), request.method());
            shaped(&request, Failure::new(405, "method_not_allowed", detail, "the README lists the endpoints"))
        })
        .layer(middleware::from_fn_with_state(gateway.clone(), count))
        .with_state(gateway)
}

impl Gateway {
    /// Whether a request carries a secret in the header of this server's own endpoints, or its client has shown a
    /// certificate that counts.
    pub(crate) fn knows(&self, request: &Request<Body>) -> bool {
        let given = request.headers().get("x-internal-auth").map_or(&b""[..], |v| v.as_bytes());
        self.secrets.hold(given) || request.extensions().get::<Certified>().is_some()
    }
}

/// A refusal in the shape of the API that was asked.
fn shaped(request: &Request<Body>, failure: Failure) -> Response {
    if request.uri().path().starts_with(openai::PREFIX) {
        return openai::Refused(failure).into_response();
    }
    failure.into_response()
}

/// Nothing of a request is looked at before its secret.
async fn authorise(State(gateway): State<Arc<Gateway>>, request: Request<Body>, next: Next) -> Response {
    if gateway.knows(&request) {
        return next.run(request).await;
    }
    let detail = "the header X-Internal-Auth is missing or wrong";
    Failure::new(403, "forbidden", detail, "send the secret of this server in X-Internal-Auth").into_response()
}

async fn count(State(gateway): State<Arc<Gateway>>, request: Request<Body>, next: Next) -> Response {
    let since = clock::instant();
    let matched = request.extensions().get::<axum::extract::MatchedPath>().map(|p| p.as_str().to_owned());
    let endpoint = matched.unwrap_or_else(|| "unknown".to_owned());
    let mut request = request;
    // Whoever looks in now and then is no part of any trace.
    let traced = (!LOOKED_AT.contains(&endpoint.as_str()))
        .then(|| Traced::begin(request.headers(), request.method().as_str(), &endpoint));
    if let Some(traced) = &traced {
        request.extensions_mut().insert(Arc::clone(traced));
    }
    let answer = answered(request, next);
    let response = match traced {
        Some(traced) => {
            let response = traced.within(answer).await;
            traced.answered(response.status().as_u16());
            response
        }
        None => answer.await,
    };
    gateway.metrics.answered(&endpoint, response.status().as_u16(), clock::instant().duration_since(since));
    response
}

/// Names in a path are texts; what decodes to none is refused here, in the shape of the API that was asked.
async fn answered(request: Request<Body>, next: Next) -> Response {
    if is_text(request.uri().path()) {
        return next.run(request).await;
    }
    let detail = format!("the path {} holds bytes that are no UTF-8", request.uri().path());
    shaped(&request, Failure::invalid(detail, "encode names as UTF-8 before they are percent-encoded"))
}

/// Whether what a path percent-encodes is UTF-8.
fn is_text(path: &str) -> bool {
    percent_decode_str(path).decode_utf8().is_ok()
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let bus = &gateway.runtime.bus;
    let connected = bus.is_connected();
    let (workers, models, dead_letters, projection) = if connected {
        let (workers, models) = (gateway.directory.workers(), gateway.directory.models());
        let (letters, projection) = (bus.dead_letters_waiting(), executions::projection(bus));
        let (workers, models, letters, projection) = tokio::join!(workers, models, letters, projection);
        (workers.unwrap_or_default(), models.unwrap_or_default(), letters.ok(), projection)
    } else {
        Default::default()
    };
    let mut roles = BTreeMap::new();
    for worker in workers.iter() {
        *roles.entry(worker.role.as_str()).or_insert(0_u32) += 1;
    }
    let ready = connected && models.iter().any(|m| m.kind != "embedding");
    let body = json!({
        "status": if ready { "ready" } else { "live" },
        "live": true,
        "ready": ready,
        "parts": {
            "nats": {"connected": connected, "version": bus.server_version()},
            "workers": roles,
            "models": models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
            // Where each inference worker has which model: the CPUs, or GPUs.
            "devices": workers.iter().filter_map(devices).collect::<BTreeMap<_, _>>(),
            // How each tool worker confines calls, or why it refuses them.
            "sandbox": workers.iter().filter_map(|w| Some((&w.id, w.sandbox.as_ref()?))).collect::<BTreeMap<_, _>>(),
            // Where each analysis worker keeps vectors, and why they cannot be had, if so: words find code all the same.
            "vectors": workers.iter().filter_map(|w| Some((&w.id, w.vectors.as_ref()?))).collect::<BTreeMap<_, _>>(),
            // Where workers share results, and why not, if so: each knows its own all the same.
            "cache": workers.iter().filter_map(|w| Some((&w.id, w.cache.as_ref()?))).collect::<BTreeMap<_, _>>(),
            // How the tables of executions are, which hold up nothing but questions. None when nobody keeps any.
            "projection": projection,
            // A note for people: letters hold up nothing but themselves. None when nobody could be asked.
            "dead_letters": {"waiting": dead_letters, "next_step": dead_letters.filter(|n| *n > 0).map(|_| LETTERS_NEXT)},
        },
    });
    let status = if connected { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

/// What an inference worker says of where its models lie.
fn devices(worker: &Worker) -> Option<(&str, BTreeMap<&str, &str>)> {
    let known = worker.inference.as_ref()?.models.iter();
    let placed = known.filter_map(|model| Some((model.name.as_str(), model.device.as_deref()?))).collect();
    Some((&worker.id, placed))
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Result<Response, Failure> {
    if let Ok(waiting) = gateway.runtime.bus.dead_letters_waiting().await {
        gateway.metrics.dead_letters(waiting);
    }
    let text = prometheus::TextEncoder::new().encode_to_string(&gateway.runtime.metrics.gather());
    let text = text.map_err(|e| Failure::new(500, "metrics", e.to_string(), "report it"))?;
    Ok(([("content-type", "text/plain; version=0.0.4")], text).into_response())
}

async fn tools(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, Failure> {
    // Workers with the same files say the same of them.
    let mut refused: Vec<_> =
        gateway.directory.workers().await?.iter().flat_map(|worker| worker.refused.clone()).collect();
    refused.sort_by(|a, b| (&a.file, a.line, &a.reason).cmp(&(&b.file, b.line, &b.reason)));
    refused.dedup();
    Ok(Json(json!({"tools": *gateway.directory.tools().await?.unwrap_or_default(), "refused": refused})))
}

pub(crate) fn parse(id: &str) -> Result<ExecutionId, Failure> {
    id.parse()
        .map_err(|e: schemas::ids::InvalidId| Failure::new(404, "unknown_execution", e.to_string(), "check the id"))
}

/// The execution's messages; none is an error.
pub(crate) async fn read(gateway: &Gateway, exec: ExecutionId) -> Result<Vec<Stored>, Failure> {
    let messages = gateway.runtime.bus.read_execution(exec, 0).await?;
    if messages.is_empty() { Err(Failure::no_execution(exec)) } else { Ok(messages) }
}

fn entry(stored: &Stored) -> Entry {
    Entry::read(stored.kind == Kind::Decision, &stored.payload)
}

pub(crate) fn fold(messages: &[Stored]) -> Execution {
    let mut execution = Execution::default();
    for stored in messages {
        execution.apply(&entry(stored));
    }
    execution
}

async fn execution(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let exec = parse(&id)?;
    let view = fold(&read(&gateway, exec).await?).view(exec).ok_or_else(|| Failure::no_execution(exec))?;
    Ok(Json(view).into_response())
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    from: usize,
    #[serde(default)]
    follow: bool,
}

async fn events(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let exec = parse(&id)?;
    let Query(query) = query.map_err(|e| Failure::invalid(e.body_text(), "send ?from=N and follow=true or false"))?;
    if query.follow {
        return follow_events(&gateway, exec, query.from).await;
    }
    let messages = read(&gateway, exec).await?;
    let shown = messages.iter().enumerate().skip(query.from);
    let shown = shown.map(|(n, stored)| entry(stored).json(n, stored.sequence, stored.stored_at));
    Ok(Json(shown.collect::<Vec<_>>()).into_response())
}

/// The log as events, until the execution ends. A live message only says that there is more to read.
async fn follow_events(gateway: &Arc<Gateway>, exec: ExecutionId, from: usize) -> Result<Response, Failure> {
    let live = gateway.runtime.bus.live(exec).await?;
    let messages: Vec<Stored> = read(gateway, exec).await?;
    let bus = gateway.runtime.bus.clone();
    let ready: std::collections::VecDeque<Stored> = messages.into();
    let stream = futures::stream::unfold((live, ready, 0_usize, 0_u64, false), move |state| {
        let bus = bus.clone();
        async move {
            let (mut live, mut ready, mut n, mut sequence, ended) = state;
            if ended {
                return None;
            }
            loop {
                while let Some(stored) = ready.pop_front() {
                    let entry = entry(&stored);
                    sequence = stored.sequence;
                    n += 1;
                    if n > from || entry.is_end() {
                        let id = (n - 1).to_string();
                        let event = sse::event("event", Some(&id), &entry.json(n - 1, sequence, stored.stored_at));
                        let end = entry.is_end();
                        return Some((Ok::<_, std::convert::Infallible>(event), (live, ready, n, sequence, end)));
                    }
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), live.next()).await;
                match bus.read_execution(exec, sequence).await {
                    Ok(more) => ready.extend(more),
                    Err(error) => {
                        let problem = Failure::from(error).about(exec).0;
                        let event = sse::event("error", None, &json!(problem));
                        return Some((Ok(event), (live, ready, n, sequence, true)));
                    }
                }
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(gateway.config.keep_alive_s));
    Ok(Sse::new(stream).keep_alive(keep_alive).into_response())
}

async fn stream(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let exec = parse(&id)?;
    read(&gateway, exec).await?;
    let seen = headers.get("last-event-id").and_then(|v| v.to_str().ok()).map(position).transpose()?;
    let mut follow = Follow::start(&gateway.runtime.bus, exec, true).await?;
    follow.catch_up_from(seen).await?;
    let keep_alive = Duration::from_secs(gateway.config.keep_alive_s);
    let streamed = Streamed { exec, follow, cancel: None, first_token: None, gateway, _permit: None, traced: None };
    Ok(sse::respond(streamed, keep_alive))
}

/// `<effect>.<n>`.
pub(crate) fn position(id: &str) -> Result<(EffectId, u64), Failure> {
    let parsed = id.rsplit_once('.').and_then(|(effect, n)| Some((effect.parse().ok()?, n.parse().ok()?)));
    parsed.ok_or_else(|| {
        let detail = format!("Last-Event-ID {id:?} is no id of this stream");
        Failure::invalid(detail, "send the id of a token event, for example 1-infer-0.12")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_text_or_it_is_refused() {
        for path in ["/a/b", "/%C3%A9", "/%", "/%zz", "/%2", "/%25FF", "/%00"] {
            assert!(is_text(path), "{path}");
        }
        for path in ["/%FF", "/a/%C3", "/%c3%28", "/%ED%A0%80"] {
            assert!(!is_text(path), "{path}");
        }
    }
}
