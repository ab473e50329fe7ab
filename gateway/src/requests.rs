//! The requests that start an execution: chat, agent and tool; and embeddings, which are only asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use runtime::{Runtime, bus, clock, telemetry};
use schemas::api::{AgentRequest, ChatRequest, EmbeddingsAnswer, EmbeddingsRequest, ToolRequest};
use schemas::fact::{CancelMode, CancelRequested, ExecutionSubmitted, Kind};
use schemas::rpc::{EMBED_WITHIN, Embed, Embeddings, Reply};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Fact, FactBody, subject};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::follow::Follow;
use crate::models;
use crate::objects;
use crate::problem::Failure;
use crate::service::Gateway;
use crate::sse::{self, Streamed};
use crate::submission::{self, Surroundings};

/// How long past an execution's deadline its end is waited for: the orchestrator writes it, not the edge.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

pub(crate) type Answered = Result<Response, Failure>;

/// What a client says of its request beside the request itself: in headers over HTTP, in metadata over gRPC.
pub(crate) struct Arrival {
    /// What the client calls it.
    cause: Option<String>,
    cancel_on_disconnect: bool,
    /// The W3C trace that it belongs to.
    trace: BTreeMap<String, String>,
}

impl Arrival {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self { cause: cause(headers), cancel_on_disconnect: wants_cancel(headers), trace: trace(headers) }
    }
}

pub(crate) async fn chat(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (headers, body) = body(request, gateway.config.body_bytes_max).await?;
    let request: ChatRequest = submission::read(&body)?;
    let stream = request.stream;
    let submitted = chat_submission(&gateway, request).await?;
    run(&gateway, &Arrival::of(&headers), submitted, stream, |follow, exec| follow.execution.answer(exec)).await
}

/// Completes a chat.
pub(crate) async fn chat_submission(gateway: &Gateway, request: ChatRequest) -> Result<ExecutionSubmitted, Failure> {
    if let Some(earlier) = request.conversation_id
        && gateway.runtime.bus.read_execution(earlier, 0).await?.is_empty()
    {
        let detail = format!("there is no conversation {earlier}");
        return Err(Failure::new(404, "unknown_conversation", detail, "send the whole conversation in `messages`"));
    }
    let (agent, models) = (gateway.directory.agent("chat").await?, gateway.directory.models().await?);
    let loadable = gateway.directory.loadable(&models).await;
    let (now, seed) = (clock::now(), seed());
    let with = Surroundings { agent: &agent, agents: &[], models: &models, loadable: &loadable, tools: &[], now, seed };
    submission::chat(request, &with)
}

pub(crate) async fn agent(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (headers, body) = body(request, gateway.config.body_bytes_max).await?;
    let request: AgentRequest = submission::read(&body)?;
    let stream = request.stream;
    let submitted = agent_submission(&gateway, request).await?;
    run(&gateway, &Arrival::of(&headers), submitted, stream, |follow, exec| follow.execution.answer(exec)).await
}

/// Completes an agent's request.
pub(crate) async fn agent_submission(gateway: &Gateway, request: AgentRequest) -> Result<ExecutionSubmitted, Failure> {
    let agent = gateway.directory.agent(&request.agent_type).await?;
    let agents = gateway.directory.agents().await?;
    let models = gateway.directory.models().await?;
    let tools = match gateway.directory.tools().await? {
        Some(tools) => tools,
        None if agent.tools.is_empty() && agent.agents.is_empty() => Arc::default(),
        None => return Err(no_tool_worker()),
    };
    let loadable = gateway.directory.loadable(&models).await;
    let (now, seed) = (clock::now(), seed());
    let with =
        Surroundings { agent: &agent, agents: &agents, models: &models, loadable: &loadable, tools: &tools, now, seed };
    submission::agent(request, &with)
}

pub(crate) async fn tool(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (headers, body) = body(request, gateway.config.body_bytes_max).await?;
    call(&gateway, &headers, submission::read(&body)?).await
}

/// One call of a tool, from its request to its end.
pub(crate) async fn call(gateway: &Arc<Gateway>, headers: &HeaderMap, request: ToolRequest) -> Answered {
    let submitted = tool_submission(gateway, request).await?;
    run(gateway, &Arrival::of(headers), submitted, false, |follow, exec| follow.execution.tool_answer(exec)).await
}

/// Completes a call of a tool.
pub(crate) async fn tool_submission(gateway: &Gateway, request: ToolRequest) -> Result<ExecutionSubmitted, Failure> {
    let tools = gateway.directory.tools().await?.ok_or_else(no_tool_worker)?;
    submission::tool(request, &tools, clock::now(), gateway.config.tool_deadline_s)
}

pub(crate) async fn embeddings(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (_, body) = body(request, gateway.config.body_bytes_max).await?;
    let request: EmbeddingsRequest = submission::read(&body)?;
    if request.input.0.is_empty() {
        return Err(Failure::invalid("`input` holds no text", "send one text or several"));
    }
    let models = gateway.directory.models().await?;
    let known: Vec<String> = models.iter().filter(|m| m.kind == "embedding").map(|m| m.name.clone()).collect();
    if known.is_empty() {
        let detail = "no embedding model is loaded";
        return Err(Failure::new(503, "embeddings_absent", detail, "start an inference worker that has one"));
    }
    if let Some(name) = request.model.as_ref().filter(|name| !known.contains(name)) {
        return Err(Failure::unknown("model", name, &known));
    }
    let question = Embed { model: request.model, input: request.input.0 };
    question.check().map_err(|why| Failure::new(413, "overflow", why, "send the texts in several requests"))?;
    match gateway.runtime.bus.ask(subject::RPC_EMBED, &question, EMBED_WITHIN).await {
        Ok(Reply::Ok(Embeddings { model, embeddings, usage, truncated })) => {
            let dimensions = embeddings.first().map_or(0, Vec::len);
            Ok(Json(EmbeddingsAnswer { model, embeddings, dimensions, usage, truncated }).into_response())
        }
        Ok(Reply::Err(refusal)) => {
            let status = match refusal.code.as_str() {
                "unknown_model" => 404,
                "bad_request" => 400,
                "overflow" => 413,
                "overloaded" => 503,
                _ => 502,
            };
            Err(Failure::new(status, &refusal.code, refusal.detail, "correct the request or send it again"))
        }
        Err(bus::Error::Timeout(after)) => {
            let detail = format!("no embeddings within {after:?}");
            Err(Failure::new(504, "deadline", detail, "send fewer texts at once"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Appends the request, then streams what happens or waits for the end.
pub(crate) async fn run<T: Serialize>(
    gateway: &Arc<Gateway>,
    arrival: &Arrival,
    submitted: ExecutionSubmitted,
    stream: bool,
    answer: impl Fn(&Follow, ExecutionId) -> Result<T, Failure>,
) -> Answered {
    let mut begun = begin(gateway, arrival, submitted, stream).await?;
    if stream {
        return Ok(sse::respond(begun.streamed(gateway), Duration::from_secs(gateway.config.keep_alive_s)));
    }
    begun.end().await?;
    let exec = begun.exec;
    match answer(&begun.follow, exec) {
        Ok(answer) => Ok(([("x-execution-id", exec.to_string())], Json(answer)).into_response()),
        Err(failure) => Err(models::explained(gateway, &begun.follow.execution, failure).await),
    }
}

/// An execution that a request began, followed for its client.
pub(crate) struct Begun {
    pub(crate) exec: ExecutionId,
    pub(crate) follow: Follow,
    since: Instant,
    pub(crate) deadline: Nanos,
    cancel: Option<CancelOnDrop>,
    permit: OwnedSemaphorePermit,
}

impl Begun {
    /// Waits for the end.
    pub(crate) async fn end(&mut self) -> Result<(), Failure> {
        wait(&mut self.follow, self.exec, self.deadline).await?;
        self.disarm();
        Ok(())
    }

    /// Whatever becomes of the client: the execution goes on.
    pub(crate) fn disarm(&mut self) {
        if let Some(cancel) = &mut self.cancel {
            cancel.disarm();
        }
    }

    pub(crate) fn streamed(self, gateway: &Arc<Gateway>) -> Streamed {
        let first_token = Some((self.since, gateway.metrics.clone()));
        let Self { exec, follow, cancel, permit, .. } = self;
        Streamed { exec, follow, cancel, first_token, gateway: Arc::clone(gateway), _permit: Some(permit) }
    }
}

/// Appends the request and follows what comes of it; with the token frames when the client wants to see them.
pub(crate) async fn begin(
    gateway: &Arc<Gateway>,
    arrival: &Arrival,
    submitted: ExecutionSubmitted,
    stream: bool,
) -> Result<Begun, Failure> {
    let since = clock::instant();
    check_workspace(gateway, &submitted).await?;
    let permit = admit(gateway)?;
    let mut submitted = submitted;
    objects::move_out(&gateway.runtime.bus, &mut submitted.messages).await?;
    let (exec, deadline) = (clock::execution_id(), submitted.limits.deadline);
    let follow = Follow::start(&gateway.runtime.bus, exec, stream).await?;
    let mut fact = Fact::new(exec, clock::now(), FactBody::ExecutionSubmitted(Box::new(submitted)));
    fact.cause.clone_from(&arrival.cause);
    fact.trace = telemetry::trace_within(&arrival.trace);
    // Armed before the request is in the log: a client that goes at this very moment is heard, too.
    let mut cancel = arrival.cancel_on_disconnect.then(|| CancelOnDrop::new(&gateway.runtime, exec));
    if let Err(error) = gateway.runtime.bus.append_fact(&fact).await {
        if let Some(cancel) = &mut cancel {
            cancel.disarm();
        }
        return Err(Failure::from(error).about(exec));
    }
    Ok(Begun { exec, follow, since, deadline, cancel, permit })
}

/// Whether tools may work in the workspace that the request names.
pub(crate) async fn check_workspace(gateway: &Gateway, submitted: &ExecutionSubmitted) -> Result<(), Failure> {
    let uses_tools = submitted.kind == Kind::Tool || !submitted.tools.is_empty();
    match submitted.workspace.as_deref().filter(|_| uses_tools) {
        Some(name) => gateway.directory.workspace(name).await.map(|_| ()),
        None => Ok(()),
    }
}

fn admit(gateway: &Gateway) -> Result<OwnedSemaphorePermit, Failure> {
    gateway.open.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{} requests are open already", gateway.config.requests_open_max);
        Failure::new(429, "queue_full", detail, "send it again in a second")
    })
}

async fn wait(follow: &mut Follow, exec: ExecutionId, deadline: Nanos) -> Result<(), Failure> {
    match tokio::time::timeout(clock::until(deadline) + GRACE, follow.end()).await {
        Ok(ended) => ended.map_err(|e| Failure::from(e).about(exec)),
        Err(_) => Err(not_ended(exec)),
    }
}

pub(crate) fn not_ended(exec: ExecutionId) -> Failure {
    let detail = "the execution did not end by its deadline; is an orchestrator running?";
    let next = format!("it is kept: look at GET /internal/executions/{exec}");
    Failure::new(504, "deadline", detail, next).about(exec)
}

/// The body, unless it is too large. By now the secret has been checked.
pub(crate) async fn body(request: Request<Body>, bytes_max: usize) -> Result<(HeaderMap, axum::body::Bytes), Failure> {
    let (parts, body) = request.into_parts();
    let too_large = || {
        let detail = format!("the body has more than {bytes_max} bytes");
        Failure::new(413, "body_too_large", detail, "send less, or raise gateway.body_bytes_max")
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let bytes = axum::body::to_bytes(body, bytes_max).await.map_err(|_| too_large())?;
    Ok((parts.headers, bytes))
}

/// What the client calls this request, if it says so.
pub(crate) fn cause(headers: &HeaderMap) -> Option<String> {
    headers.get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// The trace that the client's call belongs to, in the form of W3C; nothing when it says none that can be one.
fn trace(headers: &HeaderMap) -> BTreeMap<String, String> {
    let value = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    let is_parent = |parent: &str| parent.len() >= 55 && parent.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    match value("traceparent") {
        Some((name, parent)) if is_parent(&parent) => {
            [Some((name, parent)), value("tracestate")].into_iter().flatten().collect()
        }
        _ => BTreeMap::new(),
    }
}

fn wants_cancel(headers: &HeaderMap) -> bool {
    headers.get("x-cancel-on-disconnect").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"))
}

fn no_tool_worker() -> Failure {
    let detail = "no tool worker answers";
    Failure::new(503, "workers_absent", detail, "start one (`vlinders tool-worker`) or wait")
}

/// A seed of 52 bits: JSON readers keep it exactly.
fn seed() -> u64 {
    u64::from_str_radix(&clock::random_hex()[..13], 16).unwrap_or(0)
}

/// Asks for the end of an execution: the fact counts, the announcement makes it fast.
async fn cancel(runtime: &Runtime, exec: ExecutionId, reason: Option<String>) -> Result<(), bus::Error> {
    let body = FactBody::CancelRequested(CancelRequested { by: "gateway".to_owned(), reason, mode: CancelMode::Now });
    runtime.bus.append_fact(&Fact::new(exec, clock::now(), body)).await?;
    runtime.bus.announce_cancel(exec).await
}

/// Cancels an execution when its client goes before the end.
pub(crate) struct CancelOnDrop {
    runtime: Runtime,
    exec: ExecutionId,
    armed: bool,
}

impl CancelOnDrop {
    fn new(runtime: &Runtime, exec: ExecutionId) -> Self {
        Self { runtime: runtime.clone(), exec, armed: true }
    }

    pub(crate) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (runtime, exec) = (self.runtime.clone(), self.exec);
        self.runtime.tasks.spawn(async move {
            if let Err(error) = cancel(&runtime, exec, Some("the client disconnected".to_owned())).await {
                tracing::warn!(%exec, %error, "an execution was not cancelled after its client went");
            }
        });
    }
}
