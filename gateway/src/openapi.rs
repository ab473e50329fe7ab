//! `/openapi.json`: the HTTP API as an OpenAPI document, from the very types that read requests, and `/docs`, which shows it.
//!
//! The table below names every route of the router but the console's; a test holds the two against each other.

use std::sync::OnceLock;

use axum::response::{IntoResponse, Response};
use schemas::api::{
    AgentRequest, Answer, ApproveRequest, CancelRequest, ChatRequest, EmbeddingsAnswer, EmbeddingsRequest,
    ExecutionView, ForkRequest, GrantRequest, IndexAnswer, IndexCodeRequest, MessageRequest, ModelRequest,
    PauseRequest, Problem, RedriveRequest, ResumeRequest, SwitchRequest, ToolAnswer, ToolBatch, ToolRequest,
};
use schemas::rpc::AgentType;
use utoipa::ToSchema;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathItemBuilder, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    Response as Described, ResponseBuilder, ResponsesBuilder,
};

use HttpMethod::{Delete, Get, Post, Put};

use crate::openai::{ChatCompletion, Embeddings};

/// A page that shows the document, and asks nobody else for anything.
const PAGE: &str = include_str!("openapi/page.html");

/// One endpoint.
struct Endpoint {
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    query: &'static [Query],
    body: Option<Shape>,
    /// The answer's status, and others that come with the same.
    statuses: &'static [u16],
    answer: Answers,
}

/// A parameter of the query: its name, its type, what it does.
type Query = (&'static str, Type, &'static str);

/// What comes back.
enum Answers {
    Json(Shape),
    /// JSON, or server-sent events with `"stream": true`.
    Streamable(Shape),
    /// JSON that the README describes, or server-sent events with `follow=true`.
    Followable,
    /// OpenAI's JSON, or its chunks with `"stream": true`.
    Completion,
    Events,
    Bytes,
    Text,
    /// JSON that the README describes.
    Free,
}

/// A type by its name, and what it is made of.
#[derive(Clone, Copy)]
struct Shape {
    name: fn() -> std::borrow::Cow<'static, str>,
    schema: fn() -> RefOr<Schema>,
    parts: fn(&mut Vec<(String, RefOr<Schema>)>),
}

const fn of<T: ToSchema>() -> Shape {
    Shape { name: T::name, schema: T::schema, parts: T::schemas }
}

const fn asked(method: HttpMethod, path: &'static str, summary: &'static str, answer: Answers) -> Endpoint {
    Endpoint { method, path, summary, query: &[], body: None, statuses: &[200], answer }
}

const fn sent(path: &'static str, summary: &'static str, body: Shape, answer: Answers) -> Endpoint {
    Endpoint { method: Post, path, summary, query: &[], body: Some(body), statuses: &[200], answer }
}

impl Endpoint {
    const fn query(self, query: &'static [Query]) -> Self {
        Self { query, ..self }
    }

    /// It is accepted and goes on, or has ended.
    const fn accepted(self) -> Self {
        Self { statuses: &[202, 200], ..self }
    }

    const fn statuses(self, statuses: &'static [u16]) -> Self {
        Self { statuses, ..self }
    }

    /// With this body.
    const fn body(self, body: Shape) -> Self {
        Self { body: Some(body), ..self }
    }
}

const WAIT: Query = ("wait", Type::Boolean, "answer with the end of the operation");

fn endpoints() -> Vec<Endpoint> {
    use Answers::{Bytes, Completion, Events, Followable, Free, Json, Streamable, Text};
    let view = Json(of::<ExecutionView>());
    let told = |path, summary, body| sent(path, summary, body, Json(of::<ExecutionView>())).accepted();
    vec![
        sent("/internal/chat", "One answer of a model", of::<ChatRequest>(), Streamable(of::<Answer>())),
        sent("/internal/agent", "An agent at work, with its tools", of::<AgentRequest>(), Streamable(of::<Answer>())),
        sent("/internal/tools/execute", "One call of a tool", of::<ToolRequest>(), Json(of::<ToolAnswer>())),
        sent("/internal/tools/execute_batch", "Up to 64 calls, eight under way at a time", of::<ToolBatch>(), Free),
        sent("/internal/embeddings", "Vectors of texts", of::<EmbeddingsRequest>(), Json(of::<EmbeddingsAnswer>())),
        sent(
            "/internal/index",
            "Indexes the code of a workspace",
            of::<IndexCodeRequest>(),
            Streamable(of::<IndexAnswer>()),
        ),
        asked(Get, "/internal/index", "What is indexed", Free),
        asked(Get, "/internal/memory", "What is remembered across executions", Free)
            .query(&[("user_id", Type::String, "whose"), ("workspace", Type::String, "of which workspace")]),
        asked(Delete, "/internal/memory/{id}", "Forgets something", Free),
        asked(Get, "/internal/executions", "Executions, newest first", Free).query(&[
            ("status", Type::String, "only these, separated by commas"),
            ("kind", Type::String, "chat, agent, tool or index"),
            ("agent_type", Type::String, "only of this agent type"),
            ("user_id", Type::String, "only of this user"),
            ("workspace", Type::String, "only in this workspace"),
            ("q", Type::String, "only those whose request holds this text"),
            ("limit", Type::Integer, "so many at most"),
            ("before", Type::String, "those after this place: `next` of an earlier answer"),
        ]),
        asked(Get, "/internal/executions/live", "Executions as they begin, change and end", Events),
        asked(Get, "/internal/executions/{id}", "Where an execution stands", view),
        asked(Get, "/internal/executions/{id}/state", "Its state after one of its messages", Free).query(&[(
            "at",
            Type::Integer,
            "after this message, from 0; after the last when missing",
        )]),
        asked(Get, "/internal/executions/{id}/verify", "Decides all of it again and compares, byte for byte", Free),
        asked(Get, "/internal/executions/{id}/tool_calls", "Its tool calls", Free),
        asked(Get, "/internal/performance", "Counts, times and tokens of models and tools", Free).query(&[(
            "since",
            Type::String,
            "over so long: 1h, 30m, 2d",
        )]),
        asked(
            Get,
            "/internal/executions/{id}/events",
            "The log of an execution, or its events as they come",
            Followable,
        )
        .query(&[
            ("from", Type::Integer, "begin with this message, from 0"),
            ("follow", Type::Boolean, "go on as server-sent events until the end"),
        ]),
        asked(
            Get,
            "/internal/executions/{id}/stream",
            "The stream of an execution; resumes by `Last-Event-ID`",
            Events,
        ),
        told(
            "/internal/executions/{id}/pause",
            "What is open finishes, nothing more is asked for",
            of::<PauseRequest>(),
        ),
        told("/internal/executions/{id}/resume", "Lets it go on", of::<ResumeRequest>()),
        told("/internal/executions/{id}/cancel", "Ends it", of::<CancelRequest>()),
        told("/internal/executions/{id}/approve", "A person's word about a call that waits", of::<ApproveRequest>()),
        told("/internal/executions/{id}/messages", "Says more while it runs", of::<MessageRequest>()),
        told("/internal/executions/{id}/grant", "Allows it more of something limited", of::<GrantRequest>()),
        told("/internal/executions/{id}/fork", "A new execution from where this one stood", of::<ForkRequest>()),
        asked(Get, "/internal/dead-letters", "Messages that were given up", Free).query(&[
            ("after", Type::Integer, "those after this one"),
            ("limit", Type::Integer, "so many at most"),
            ("settled", Type::Boolean, "those that are settled, too"),
        ]),
        asked(Get, "/internal/dead-letters/{id}", "One, with its message", Free),
        asked(Delete, "/internal/dead-letters/{id}", "Removes the copy of the message", Free).query(&[(
            "by",
            Type::String,
            "who",
        )]),
        sent("/internal/dead-letters/{id}/redrive", "Publishes the message again, once", of::<RedriveRequest>(), Free),
        asked(Get, "/internal/objects/{sha256}", "The bytes of an object, or a `Range` of them", Bytes)
            .statuses(&[200, 206]),
        asked(Get, "/internal/workers", "Who works, and what each holds", Free),
        asked(Get, "/internal/queues", "What each stream holds, and how far its consumers are", Free),
        asked(Get, "/internal/models", "What is loaded, and what each worker knows, holds and does", Free),
        sent("/internal/models/{name}/load", "Loads a model", of::<ModelRequest>(), Free).query(&[WAIT]).accepted(),
        sent("/internal/models/{name}/unload", "Unloads a model", of::<ModelRequest>(), Free).query(&[WAIT]).accepted(),
        sent("/internal/models/switch", "Loads one, lets the other finish", of::<SwitchRequest>(), Free)
            .query(&[WAIT])
            .accepted(),
        asked(Get, "/internal/model-operations/{id}", "How far a change is", Free),
        asked(Get, "/internal/agents", "The agent types", Free),
        asked(Get, "/internal/agents/{name}", "One agent type", Free),
        asked(Put, "/internal/agents/{name}", "Registers an agent type", Free)
            .body(of::<AgentType>())
            .statuses(&[200, 201]),
        asked(Delete, "/internal/agents/{name}", "Removes a registered agent type", Free),
        asked(Get, "/internal/tools", "The tools, and what each may do", Free),
        asked(Post, "/v1/chat/completions", "OpenAI's chat completions", Completion).body(of::<ChatCompletion>()),
        asked(Post, "/v1/embeddings", "OpenAI's embeddings", Free).body(of::<Embeddings>()),
        asked(Get, "/v1/models", "OpenAI's list of models", Free),
        asked(Get, "/v1/models/{id}", "One model of it", Free),
        asked(Get, "/health", "Whether this gateway serves, and each part", Free).statuses(&[200, 503]),
        asked(Get, "/metrics", "Prometheus' text format", Text),
        asked(Get, "/openapi.json", "This document", Free),
        asked(Get, "/docs", "A page that shows it", Text),
    ]
}

/// `GET /openapi.json`
pub(crate) async fn document() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| described().to_json().unwrap_or_default());
    ([("content-type", "application/json")], text.as_str()).into_response()
}

/// `GET /docs`
pub(crate) async fn page() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    ([("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy)], PAGE).into_response()
}

fn described() -> OpenApi {
    let mut parts = Vec::new();
    let mut components = ComponentsBuilder::new();
    let mut paths = PathsBuilder::new();
    let endpoints = endpoints();
    for shape in endpoints.iter().flat_map(Endpoint::shapes).chain([of::<Problem>()]) {
        parts.push(((shape.name)().into_owned(), (shape.schema)()));
        (shape.parts)(&mut parts);
    }
    for (name, schema) in parts {
        components = components.schema(name, schema);
    }
    let mut items: Vec<(&str, PathItem)> = Vec::new();
    for endpoint in endpoints {
        let (path, item) = (endpoint.path, PathItemBuilder::new());
        let item = item.operation(endpoint.method.clone(), endpoint.operation()).build();
        match items.iter_mut().find(|(known, _)| *known == path) {
            Some((_, known)) => known.merge_operations(item),
            None => items.push((path, item)),
        }
    }
    for (path, item) in items {
        paths = paths.path(path, item);
    }
    let secret = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Internal-Auth")));
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let components = components.security_scheme("secret", secret).security_scheme("bearer", bearer).build();
    let about = "LLM inference and agents over NATS JetStream. Requests carry the secret in `X-Internal-Auth`; those under \
        `/v1`, which are OpenAI's API, as a bearer key. Errors are problem documents (RFC 9457).";
    let info = InfoBuilder::new().title("Vlinders-Server").version(env!("CARGO_PKG_VERSION")).description(Some(about));
    OpenApiBuilder::new().info(info.build()).paths(paths.build()).components(Some(components)).build()
}

impl Endpoint {
    fn shapes(&self) -> Vec<Shape> {
        let answer = match &self.answer {
            Answers::Json(shape) | Answers::Streamable(shape) => Some(*shape),
            _ => None,
        };
        self.body.into_iter().chain(answer).collect()
    }

    fn operation(self) -> utoipa::openapi::path::Operation {
        let verb = match self.method {
            Get => "get",
            Put => "put",
            Delete => "delete",
            _ => "post",
        };
        let words = self.path.split(['/', '-', '_', '.', '{', '}']).filter(|word| !word.is_empty());
        let id = std::iter::once(verb).chain(words).collect::<Vec<_>>().join("_");
        let mut operation = OperationBuilder::new().summary(Some(self.summary)).operation_id(Some(id)).tag(self.tag());
        for name in self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            operation = operation.parameter(parameter(name, ParameterIn::Path, Required::True, Type::String, ""));
        }
        for (name, kind, about) in self.query {
            let kind = kind.clone();
            operation = operation.parameter(parameter(name, ParameterIn::Query, Required::False, kind, about));
        }
        if self.method == Post || self.method == Put {
            let content = ContentBuilder::new().schema(Some(self.body.map_or_else(free, reference))).build();
            let optional = self.body.is_some_and(|body| (body.schema)().is_all_optional());
            let required = if optional { Required::False } else { Required::True };
            let body = RequestBodyBuilder::new().content("application/json", content).required(Some(required));
            operation = operation.request_body(Some(body.build()));
        }
        let problem = ContentBuilder::new().schema(Some(reference(of::<Problem>()))).build();
        let kind =
            if self.path.starts_with(crate::openai::PREFIX) { "application/json" } else { "application/problem+json" };
        let schema = if self.path.starts_with(crate::openai::PREFIX) {
            ContentBuilder::new().schema(Some(free())).build()
        } else {
            problem
        };
        let wrong = ResponseBuilder::new().description("why not, and what to do next").content(kind, schema).build();
        let responses = self
            .statuses
            .iter()
            .fold(ResponsesBuilder::new(), |responses, status| responses.response(status.to_string(), self.answered()));
        operation = operation.responses(responses.response("default", wrong).build());
        let open = ["/health", "/metrics", "/openapi.json", "/docs"].contains(&self.path);
        // OpenAI's clients know the one, all others the other; where the first will do, so does the second.
        let schemes: &[&str] = match self.path.starts_with(crate::openai::PREFIX) {
            _ if open => &[],
            true => &["bearer", "secret"],
            false => &["secret"],
        };
        for scheme in schemes {
            operation = operation.security(SecurityRequirement::new(*scheme, Vec::<String>::new()));
        }
        operation.build()
    }

    fn answered(&self) -> Described {
        let response = ResponseBuilder::new().description(self.summary);
        let content = |schema| ContentBuilder::new().schema(Some(schema)).build();
        let text = || ObjectBuilder::new().schema_type(Type::String).build();
        match &self.answer {
            Answers::Json(shape) => response.content("application/json", content(reference(*shape))),
            Answers::Streamable(shape) => response
                .content("application/json", content(reference(*shape)))
                .content("text/event-stream", content(event())),
            Answers::Followable => {
                response.content("application/json", content(free())).content("text/event-stream", content(event()))
            }
            Answers::Completion => {
                response.content("application/json", content(free())).content("text/event-stream", content(chunk()))
            }
            Answers::Events => response.content("text/event-stream", content(event())),
            Answers::Bytes => response.content("application/octet-stream", content(text().into())),
            Answers::Text if self.path == "/docs" => response.content("text/html", content(text().into())),
            Answers::Text => response.content("text/plain", content(text().into())),
            Answers::Free => response.content("application/json", content(free())),
        }
        .build()
    }

    fn tag(&self) -> &'static str {
        match self.path.split('/').nth(2) {
            _ if self.path.starts_with(crate::openai::PREFIX) => "OpenAI's API",
            Some("chat" | "agent" | "tools" | "embeddings") if self.method == Post => "requests",
            Some("executions") => "executions",
            Some("models" | "model-operations") => "models",
            Some("dead-letters" | "objects") => "log",
            Some("index" | "memory") => "code and memory",
            Some(_) => "what there is",
            None => "for machines",
        }
    }
}

/// Whether a body of this schema may be left out.
trait AllOptional {
    fn is_all_optional(&self) -> bool;
}

impl AllOptional for RefOr<Schema> {
    fn is_all_optional(&self) -> bool {
        matches!(self, RefOr::T(Schema::Object(object)) if object.required.is_empty())
    }
}

fn reference(shape: Shape) -> RefOr<Schema> {
    Ref::from_schema_name((shape.name)()).into()
}

/// One event of a stream: its name, and its data as JSON.
fn event() -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let event = ObjectBuilder::new().schema_type(Type::Object).property("event", text()).property("data", text());
    event.property("id", text()).required("event").required("data").build().into()
}

/// One event of OpenAI's streams, which have no names: a chunk as JSON, or `[DONE]`.
fn chunk() -> RefOr<Schema> {
    let data = ObjectBuilder::new().schema_type(Type::String);
    ObjectBuilder::new().schema_type(Type::Object).property("data", data).required("data").build().into()
}

/// Any JSON.
fn free() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(utoipa::openapi::schema::SchemaType::AnyValue).build().into()
}

fn parameter(
    name: &str,
    place: ParameterIn,
    required: Required,
    kind: Type,
    about: &str,
) -> utoipa::openapi::path::Parameter {
    let schema = ObjectBuilder::new().schema_type(kind).build();
    let about = Some(about).filter(|about| !about.is_empty());
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(about)
        .schema(Some(schema))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Method and path of each route of the router, as its source has them.
    fn routes() -> BTreeSet<(String, String)> {
        let source = include_str!("service.rs");
        let mut found = BTreeSet::new();
        for route in source.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').expect("a path");
            if path.starts_with("/console") {
                continue;
            }
            let handlers = rest.split(".route(").next().unwrap_or_default().split(".layer(").next().unwrap_or_default();
            for method in ["get", "post", "put", "delete"] {
                if [", ", "."].iter().any(|before| handlers.contains(&format!("{before}{method}("))) {
                    found.insert((method.to_owned(), path.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = serde_json::to_value(described()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| item.as_object().expect("methods").keys().map(|m| (m.clone(), path.clone())))
            .collect();
        let routes = routes();
        assert!(routes.len() > 30, "{routes:?}");
        assert_eq!(described, routes);
    }

    #[test]
    fn types_that_are_named_are_there() {
        let text = described().to_json().expect("JSON");
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let known = document["components"]["schemas"].as_object().expect("schemas");
        for named in text.split("#/components/schemas/").skip(1) {
            let name = named.split('"').next().expect("a name");
            assert!(known.contains_key(name), "{name} is named and missing");
        }
        let chat = &known["ChatRequest"];
        assert_eq!(chat["additionalProperties"], false);
        assert_eq!(chat["required"], serde_json::json!(["messages"]));
        assert!(chat["properties"]["temperature"]["description"].as_str().is_some_and(|text| text.contains("greedy")));
    }
}
