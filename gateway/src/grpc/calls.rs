//! The calls of `InferenceService`: each becomes an execution, of which the client is told what happens.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use runtime::clock;
use schemas::ExecutionId;
use schemas::fact::ExecutionSubmitted;
use schemas::wire::Nanos;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use super::answers::{self, Told};
use super::deadline::Deadline;
use super::proto::inference_service_server::{InferenceService, SERVICE_NAME};
use super::{proto, requests as read};
use crate::follow::Follow;
use crate::idempotency;
use crate::models;
use crate::problem::Failure;
use crate::requests::{self, Arrival, Begun};
use crate::service::{self, Gateway};
use crate::sse::Streamed;
use crate::traced::Traced;
use crate::transcript::Update;

pub(super) struct Calls {
    pub(super) gateway: Arc<Gateway>,
}

type Events<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl InferenceService for Calls {
    type ChatStream = Events<proto::ChatEvent>;

    async fn chat(&self, request: Request<proto::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        self.counted("Chat", async {
            let (arrival, deadline, request) = taken("Chat", request)?;
            let request = read::chat(request)?;
            let stream = request.stream;
            let submitted = requests::chat_submission(&self.gateway, request, None).await?;
            let begun = self.begin(&arrival, deadline, submitted, stream).await?;
            Ok(self.events(begun, deadline, stream, answers::chat))
        })
        .await
    }

    type RunAgentStream = Events<proto::AgentEvent>;

    async fn run_agent(&self, request: Request<proto::AgentRequest>) -> Result<Response<Self::RunAgentStream>, Status> {
        self.counted("RunAgent", async {
            let (arrival, deadline, request) = taken("RunAgent", request)?;
            let request = read::agent(request)?;
            let stream = request.stream;
            let submitted = requests::agent_submission(&self.gateway, request).await?;
            let begun = self.begin(&arrival, deadline, submitted, stream).await?;
            Ok(self.events(begun, deadline, stream, answers::agent))
        })
        .await
    }

    async fn execute_tool(&self, request: Request<proto::ToolRequest>) -> Result<Response<proto::ToolAnswer>, Status> {
        self.counted("ExecuteTool", async {
            let (arrival, deadline, request) = taken("ExecuteTool", request)?;
            let submitted = requests::tool_submission(&self.gateway, read::tool(request)?).await?;
            let mut begun = self.begin(&arrival, deadline, submitted, false).await?;
            let (within, client) = deadline.wait(Some(begun.deadline));
            if let Ok(ended) = tokio::time::timeout(within, begun.follow.end()).await {
                ended.map_err(|error| Failure::from(error).about(begun.exec))?;
            } else {
                begun.disarm();
                return Err(late(begun.exec, client));
            }
            begun.disarm();
            let answer = begun.follow.execution.tool_answer(begun.exec)?;
            Ok(named(begun.exec, begun.again, answers::tool_answer(answer)))
        })
        .await
    }

    type FollowStream = Events<proto::AgentEvent>;

    async fn follow(&self, request: Request<proto::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        self.counted("Follow", async {
            let (_, deadline, request) = taken("Follow", request)?;
            let exec = service::parse(&request.execution_id)?;
            service::read(&self.gateway, exec).await?;
            let seen = request.last_event_id.as_deref().map(service::position).transpose()?;
            let mut follow = Follow::start(&self.gateway.runtime.bus, exec, true).await?;
            follow.catch_up_from(seen).await?;
            let gateway = Arc::clone(&self.gateway);
            let end = follow.execution.deadline();
            let streamed =
                Streamed { exec, follow, cancel: None, first_token: None, gateway, _permit: None, traced: None };
            Ok(named(exec, false, told(Watched { streamed, deadline, end }, answers::agent)))
        })
        .await
    }
}

impl Calls {
    /// Counts a call as HTTP counts requests: by the status it would have there, at the head of the answer.
    async fn counted<T>(
        &self,
        method: &str,
        answer: impl Future<Output = Result<Response<T>, Failure>> + Send,
    ) -> Result<Response<T>, Status> {
        let since = clock::instant();
        let answer = Box::pin(answer).await;
        let status = answer.as_ref().map_or_else(|Failure(problem)| problem.status, |_| 200);
        let took = clock::instant().duration_since(since);
        self.gateway.metrics.answered(&format!("{SERVICE_NAME}/{method}"), status, took);
        answer.map_err(Status::from)
    }

    async fn begin(
        &self,
        arrival: &Arrival,
        deadline: Deadline,
        mut submitted: ExecutionSubmitted,
        stream: bool,
    ) -> Result<Begun, Failure> {
        deadline.bound(&mut submitted.limits);
        arrival.within(requests::begin(&self.gateway, arrival, submitted, stream)).await
    }

    /// All that happens, or only the answer.
    fn events<E: Send + 'static>(
        &self,
        begun: Begun,
        deadline: Deadline,
        stream: bool,
        shown: fn(Told) -> Option<E>,
    ) -> Response<Events<E>> {
        let (exec, again, end) = (begun.exec, begun.again, Some(begun.deadline));
        let watched = Watched { streamed: begun.streamed(&self.gateway), deadline, end };
        named(exec, again, told(watched, move |told| if stream || told.is_last() { shown(told) } else { None }))
    }
}

/// What the client says beside its request, how long it waits, and the request.
fn taken<T: prost::Message>(method: &str, request: Request<T>) -> Result<(Arrival, Deadline, T), Failure> {
    let (metadata, _, message) = request.into_parts();
    let (headers, path) = (metadata.into_headers(), format!("{SERVICE_NAME}/{method}"));
    let traced = Traced::begin(&headers, "POST", &path);
    // The same message has the same bytes: there are no maps in the proto, whose order could differ.
    let body = if headers.contains_key(idempotency::KEY) { message.encode_to_vec() } else { Vec::new() };
    Ok((Arrival::of(&headers, &path, &body, traced)?, Deadline::of(&headers, clock::now()), message))
}

/// An answer that names its execution at the beginning, and says whether an earlier call of its key began it.
fn named<T>(exec: ExecutionId, again: bool, message: T) -> Response<T> {
    let mut metadata = MetadataMap::new();
    if let Ok(id) = exec.to_string().parse() {
        metadata.insert("x-execution-id", id);
    }
    if again {
        metadata.insert(requests::REPLAYED, MetadataValue::from_static("true"));
    }
    Response::from_parts(metadata, message, Default::default())
}

/// An execution that a client watches, for as long as it waits.
struct Watched {
    streamed: Streamed,
    deadline: Deadline,
    /// When the execution ends whatever happens.
    end: Option<Nanos>,
}

fn told<E: Send + 'static>(watched: Watched, shown: impl Fn(Told) -> Option<E> + Send + 'static) -> Events<E> {
    enum At {
        Start(Box<Watched>),
        Middle(Box<Watched>),
        End,
    }
    let all = futures::stream::unfold(At::Start(Box::new(watched)), |at| async move {
        match at {
            At::Start(watched) => Some((Ok(Told::Started(watched.streamed.exec)), At::Middle(watched))),
            At::Middle(mut watched) => match watched.next().await {
                Ok(told) if told.is_last() => Some((Ok(told), At::End)),
                Ok(told) => Some((Ok(told), At::Middle(watched))),
                Err(failure) => Some((Err(failure.about(watched.streamed.exec)), At::End)),
            },
            At::End => None,
        }
    });
    let shown = move |told: Result<Told, Failure>| match told {
        Ok(told) => shown(told).map(Ok),
        Err(failure) => Some(Err(Status::from(failure))),
    };
    all.filter_map(move |told| std::future::ready(shown(told))).boxed()
}

impl Watched {
    /// What happens next.
    async fn next(&mut self) -> Result<Told, Failure> {
        let (within, client) = self.deadline.wait(self.end);
        match tokio::time::timeout(within, self.streamed.update()).await {
            Ok(update) => match update? {
                Some(Update::Ended) | None => {
                    self.streamed.disarm();
                    self.answer().await
                }
                Some(update) => {
                    if matches!(update, Update::Token { .. }) {
                        self.streamed.sent_token();
                    }
                    Ok(Told::Update(update))
                }
            },
            Err(_) => {
                // Its own deadline ends it.
                self.streamed.disarm();
                Err(late(self.streamed.exec, client))
            }
        }
    }

    async fn answer(&self) -> Result<Told, Failure> {
        let (exec, execution) = (self.streamed.exec, &self.streamed.follow.execution);
        let answer = if execution.is_tool() {
            execution.tool_answer(exec).map(|answer| Told::ToolDone(Box::new(answer)))
        } else {
            execution.answer(exec).map(|answer| Told::Done(Box::new(answer)))
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(models::explained(&self.streamed.gateway, execution, failure).await),
        }
    }
}

/// The time is over: the client's, or that of the execution.
fn late(exec: ExecutionId, client: bool) -> Failure {
    if !client {
        return requests::not_ended(exec);
    }
    let detail = "the deadline of the call has passed";
    Failure::new(504, "deadline", detail, "allow more time, or ask for less").about(exec)
}
