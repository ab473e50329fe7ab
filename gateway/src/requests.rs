//! The requests that start an execution: chat, agent and tool; and embeddings, which are only asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use runtime::{Runtime, bus, clock};
use schemas::api::{AgentRequest, ChatRequest, EmbeddingsAnswer, EmbeddingsRequest, ToolRequest};
use schemas::fact::{CancelMode, CancelRequested, ExecutionSubmitted, Kind};
use schemas::rpc::{EMBED_WITHIN, Embed, Embeddings, Reply};
use schemas::wire::Nanos;
use schemas::{ExecutionId, Fact, FactBody, subject};
use serde::Serialize;

use crate::admission::Admitted;
use crate::config::Config;
use crate::follow::Follow;
use crate::idempotency::Key;
use crate::models;
use crate::objects;
use crate::problem::Failure;
use crate::service::Gateway;
use crate::sse::{self, Streamed};
use crate::submission::{self, Surroundings};
use crate::traced::Traced;

/// How long past an execution's deadline its end is waited for: the orchestrator writes it, not the edge.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Says that a request was answered with what an earlier one of its `Idempotency-Key` began.
pub(crate) const REPLAYED: &str = "idempotent-replayed";

pub(crate) type Answered = Result<Response, Failure>;

/// A request that begins an execution, as it came.
pub(crate) struct Arrival {
    pub(crate) body: Bytes,
    /// What the client calls it.
    cause: Option<String>,
    cancel_on_disconnect: bool,
    key: Option<Key>,
    traced: Arc<Traced>,
}

impl Arrival {
    /// Reads a request, unless its body is too large. By now the secret has been checked.
    pub(crate) async fn read(gateway: &Gateway, request: Request<Body>) -> Result<Self, Failure> {
        let (path, traced) = (request.uri().path().to_owned(), Traced::of(&request));
        let (headers, body) = body(gateway, request).await?;
        let key = Key::of(&headers, &path, &body)?;
        Ok(Self { cause: cause(&headers), cancel_on_disconnect: wants_cancel(&headers), key, traced, body })
    }

    /// A call of another protocol, which carries in its metadata what HTTP carries in headers, under the same names.
    pub(crate) fn of(headers: &HeaderMap, path: &str, body: &[u8], traced: Arc<Traced>) -> Result<Self, Failure> {
        let (cancel_on_disconnect, key) = (wants_cancel(headers), Key::of(headers, path, body)?);
        Ok(Self { cause: cause(headers), cancel_on_disconnect, key, traced, body: Bytes::new() })
    }

    /// Does this as a part of the request.
    pub(crate) fn within<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        self.traced.within(work)
    }

    /// The `n`th of several executions that one request begins.
    pub(crate) fn part(&self, n: usize) -> Self {
        let key = self.key.as_ref().map(|key| key.part(n));
        let (cause, traced) = (self.cause.clone(), Arc::clone(&self.traced));
        Self { cause, body: Bytes::new(), key, traced, ..*self }
    }
}

pub(crate) async fn chat(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let arrival = Arrival::read(&gateway, request).await?;
    let request: ChatRequest = submission::read(&arrival.body)?;
    let stream = request.stream;
    let submitted = chat_submission(&gateway, request, None).await?;
    run(&gateway, &arrival, submitted, stream, |follow, exec| follow.execution.answer(exec)).await
}

/// Completes a chat. `system` is said first where the conversation has no instructions; the agent type's when missing.
pub(crate) async fn chat_submission(
    gateway: &Gateway,
    request: ChatRequest,
    system: Option<&str>,
) -> Result<ExecutionSubmitted, Failure> {
    if let Some(earlier) = request.conversation_id
        && gateway.runtime.bus.read_execution(earlier, 0).await?.is_empty()
    {
        let detail = format!("there is no conversation {earlier}");
        return Err(Failure::new(404, "unknown_conversation", detail, "send the whole conversation in `messages`"));
    }
    let (mut agent, models) = (gateway.directory.agent("chat").await?, gateway.directory.models().await?);
    if let Some(system) = system {
        system.clone_into(&mut agent.system);
    }
    let loadable = gateway.directory.loadable(&models).await;
    let (now, seed) = (clock::now(), seed());
    let with = Surroundings { agent: &agent, agents: &[], models: &models, loadable: &loadable, tools: &[], now, seed };
    submission::chat(request, &with)
}

pub(crate) async fn agent(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let arrival = Arrival::read(&gateway, request).await?;
    let request: AgentRequest = submission::read(&arrival.body)?;
    let stream = request.stream;
    let submitted = agent_submission(&gateway, request).await?;
    run(&gateway, &arrival, submitted, stream, |follow, exec| follow.execution.answer(exec)).await
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
    let arrival = Arrival::read(&gateway, request).await?;
    call(&gateway, &arrival, submission::read(&arrival.body)?).await
}

/// One call of a tool, from its request to its end.
pub(crate) async fn call(gateway: &Arc<Gateway>, arrival: &Arrival, request: ToolRequest) -> Answered {
    let submitted = tool_submission(gateway, request).await?;
    run(gateway, arrival, submitted, false, |follow, exec| follow.execution.tool_answer(exec)).await
}

/// Completes a call of a tool.
pub(crate) async fn tool_submission(gateway: &Gateway, request: ToolRequest) -> Result<ExecutionSubmitted, Failure> {
    let tools = gateway.directory.tools().await?.ok_or_else(no_tool_worker)?;
    submission::tool(request, &tools, clock::now(), gateway.config.tool_deadline_s)
}

pub(crate) async fn embeddings(State(gateway): State<Arc<Gateway>>, request: Request<Body>) -> Answered {
    let (_, body) = body(&gateway, request).await?;
    Ok(Json(embed(&gateway, submission::read(&body)?).await?).into_response())
}

/// Vectors of texts, asked of an inference worker.
pub(crate) async fn embed(gateway: &Gateway, request: EmbeddingsRequest) -> Result<EmbeddingsAnswer, Failure> {
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
            Ok(EmbeddingsAnswer { model, embeddings, dimensions, usage, truncated })
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
    let (exec, again) = (begun.exec, begun.again);
    let response = if stream {
        sse::respond(begun.streamed(gateway), Duration::from_secs(gateway.config.keep_alive_s))
    } else {
        begun.end().await?;
        match answer(&begun.follow, exec) {
            Ok(answer) => ([("x-execution-id", exec.to_string())], Json(answer)).into_response(),
            Err(failure) => return Err(models::explained(gateway, &begun.follow.execution, failure).await),
        }
    };
    Ok(if again { ([(REPLAYED, "true")], response).into_response() } else { response })
}

/// An execution that a request began, or that an earlier one of its key did, followed for the client.
pub(crate) struct Begun {
    pub(crate) exec: ExecutionId,
    pub(crate) follow: Follow,
    /// An earlier request began it.
    pub(crate) again: bool,
    since: Instant,
    /// When the execution ends whatever happens.
    pub(crate) deadline: Nanos,
    cancel: Option<CancelOnDrop>,
    permit: Admitted,
    traced: Arc<Traced>,
}

impl Begun {
    /// Waits for the end.
    pub(crate) async fn end(&mut self) -> Result<(), Failure> {
        wait(&mut self.follow, self.exec, self.deadline).await?;
        self.disarm();
        Ok(())
    }

    /// The client has all of it, or has said by itself how long it waits: nothing is left to cancel.
    pub(crate) fn disarm(&mut self) {
        if let Some(cancel) = &mut self.cancel {
            cancel.disarm();
        }
    }

    pub(crate) fn streamed(self, gateway: &Arc<Gateway>) -> Streamed {
        let first_token = (!self.again).then(|| (self.since, gateway.metrics.clone()));
        let Self { exec, follow, cancel, permit, traced, .. } = self;
        Streamed {
            exec,
            follow,
            cancel,
            first_token,
            gateway: Arc::clone(gateway),
            _permit: Some(permit),
            traced: Some(traced),
        }
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
    let permit = gateway.admission.enter(submitted.user_id.as_deref())?;
    let bus = &gateway.runtime.bus;
    let (fresh, deadline) = (clock::execution_id(), submitted.limits.deadline);
    let exec = match &arrival.key {
        Some(key) => key.claim(bus, fresh).await?,
        None => fresh,
    };
    arrival.traced.began(exec);
    let traced = Arc::clone(&arrival.traced);
    let mut follow = Follow::start(bus, exec, stream).await?;
    if exec != fresh {
        follow.catch_up_from(None).await?;
        // Empty when the first request's gateway died before the request was in the log.
        if let Some(deadline) = follow.execution.deadline() {
            let cancel = arrival.cancel_on_disconnect.then(|| CancelOnDrop::new(&gateway.runtime, exec));
            return Ok(Begun { exec, follow, again: true, since, deadline, cancel, permit, traced });
        }
    }
    let mut submitted = submitted;
    objects::move_out(bus, &mut submitted.messages).await?;
    let mut fact = Fact::new(exec, clock::now(), FactBody::ExecutionSubmitted(Box::new(submitted)));
    fact.cause.clone_from(&arrival.cause);
    fact.trace = arrival.traced.carrier();
    // Armed before the request is in the log: a client that goes at this very moment is heard, too.
    let mut cancel = arrival.cancel_on_disconnect.then(|| CancelOnDrop::new(&gateway.runtime, exec));
    if let Err(error) = bus.append_fact(&fact).await {
        if let Some(cancel) = &mut cancel {
            cancel.disarm();
        }
        return Err(Failure::from(error).about(exec));
    }
    Ok(Begun { exec, follow, again: false, since, deadline, cancel, permit, traced })
}

/// Whether tools may work in the workspace that the request names.
pub(crate) async fn check_workspace(gateway: &Gateway, submitted: &ExecutionSubmitted) -> Result<(), Failure> {
    let uses_tools = submitted.kind == Kind::Tool || !submitted.tools.is_empty();
    match submitted.workspace.as_deref().filter(|_| uses_tools) {
        Some(name) => gateway.directory.workspace(name).await.map(|_| ()),
        None => Ok(()),
    }
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
pub(crate) async fn body(gateway: &Gateway, request: Request<Body>) -> Result<(HeaderMap, Bytes), Failure> {
    let Config { body_bytes_max: bytes_max, body_timeout_s, .. } = gateway.config;
    let (parts, body) = request.into_parts();
    let too_large = || {
        let detail = format!("the body has more than {bytes_max} bytes");
        Failure::new(413, "body_too_large", detail, "send less, or raise gateway.body_bytes_max")
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(body, bytes_max);
    let Ok(read) = tokio::time::timeout(Duration::from_secs(body_timeout_s), read).await else {
        let detail = format!("the body was not there within {body_timeout_s} s");
        return Err(Failure::new(408, "body_too_slow", detail, "send it faster, or raise gateway.body_timeout_s"));
    };
    let bytes = read.map_err(|error| match error.into_inner().downcast::<http_body_util::LengthLimitError>() {
        Ok(_) => too_large(),
        Err(error) => Failure::invalid(format!("the body ended early: {error}"), "send it again"),
    })?;
    Ok((parts.headers, bytes))
}

/// What the client calls this request, if it says so.
pub(crate) fn cause(headers: &HeaderMap) -> Option<String> {
    headers.get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned)
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
