//! The gateway over gRPC, with the same orchestrator and workers scripted behind it.

use std::time::Duration;

use futures::StreamExt;
use runtime::bus::Kind;
use schemas::{ExecutionId, Fact, FactBody};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use super::House;
use proto::chat_event::Event;
use proto::inference_service_client::InferenceServiceClient;

#[allow(missing_docs, unreachable_pub, unused_qualifications, dead_code, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated")]
mod proto {
    tonic::include_proto!("vlinders.v1");
}

async fn channel(house: &House) -> Channel {
    Channel::from_shared(house.grpc.clone()).unwrap().connect().await.unwrap()
}

async fn client(house: &House) -> InferenceServiceClient<Channel> {
    InferenceServiceClient::new(channel(house).await)
}

fn with_secret<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::from_static("Bearer hush"));
    request
}

fn chat(content: &str) -> proto::ChatRequest {
    let said = proto::Message { role: proto::Role::User.into(), content: content.to_owned(), ..Default::default() };
    proto::ChatRequest { messages: vec![said], ..Default::default() }
}

fn execution(metadata: &MetadataMap) -> ExecutionId {
    metadata.get("x-execution-id").expect("it is named").to_str().unwrap().parse().unwrap()
}

/// The code of the problem, which HTTP would answer, too.
fn code(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.metadata["code"].clone()).unwrap_or_default()
}

async fn events(mut stream: tonic::Streaming<proto::ChatEvent>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("it ends") {
        events.push(event.unwrap().event.unwrap());
    }
    events
}

/// Waits until the log of an execution holds such a fact.
async fn fact(house: &House, exec: ExecutionId, is_it: impl Fn(&Fact) -> bool) -> Fact {
    let found = async {
        loop {
            let log = house.runtime.bus.read_execution(exec, 0).await.unwrap();
            let mut facts = log.iter().filter(|s| s.kind == Kind::Fact).map(|s| Fact::read(&s.payload).unwrap());
            if let Some(fact) = facts.find(&is_it) {
                return fact;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("it is in the log")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_streams_and_is_read_again_from_where_it_stood() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;
    let mut client = client(&house).await;

    let mut request = with_secret(chat("hi"));
    request.metadata_mut().insert("x-request-id", MetadataValue::from_static("mine"));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", MetadataValue::from_static(parent));
    let response = client.chat(request).await.unwrap();
    let id = execution(response.metadata()).to_string();
    let events_ = events(response.into_inner()).await;
    let [Event::Started(started), Event::Token(first), Event::Token(second), Event::Done(done)] = &events_[..] else {
        panic!("{events_:?}");
    };
    assert_eq!((&started.execution_id, &done.execution_id), (&id, &id));
    assert_eq!((first.text.as_str(), second.text.as_str(), done.response.as_str()), ("Hel", "lo", "Hello"));
    assert_eq!((done.finish_reason(), done.usage.unwrap().tokens), (proto::FinishReason::Stop, 7));

    let exec: ExecutionId = id.parse().unwrap();
    let submitted = fact(&house, exec, |f| matches!(f.body, FactBody::ExecutionSubmitted(_))).await;
    assert_eq!((submitted.cause.as_deref(), submitted.trace["traceparent"].as_str()), (Some("mine"), parent));

    let rest = proto::FollowRequest { execution_id: id.clone(), last_event_id: Some(first.id.clone()) };
    let mut rest = client.follow(with_secret(rest)).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(event) = rest.next().await {
        told.push(event.unwrap().event.unwrap());
    }
    use proto::agent_event::Event as Agents;
    assert!(
        matches!(&told[..], [Agents::Started(_), Agents::Token(text), Agents::Done(_)] if text.text == "lo"),
        "{told:?}"
    );

    let only = proto::ChatRequest { answer_only: true, ..chat("hi") };
    let only = events(client.chat(with_secret(only)).await.unwrap().into_inner()).await;
    assert!(matches!(&only[..], [Event::Done(done)] if done.response == "Hello"), "{only:?}");
    let metrics = house.http.get(format!("{}/metrics", house.url)).send().await.unwrap().text().await.unwrap();
    let counted = "vlinders_requests_total{endpoint=\"vlinders.v1.InferenceService/Chat\",status=\"200\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_has_a_canonical_code_and_a_next_step() {
    let Some(house) = House::start().await else { return };
    let mut client = client(&house).await;
    let status = client.chat(with_secret(chat("hi"))).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::Unavailable, "orchestrator_absent"));
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
    house.furnish().await;

    let status = client.chat(Request::new(chat("hi"))).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::Unauthenticated, "forbidden"));
    let mut wrong = Request::new(chat("hi"));
    wrong.metadata_mut().insert("x-internal-auth", MetadataValue::from_static("hush!"));
    assert_eq!(client.chat(wrong).await.unwrap_err().code(), Code::Unauthenticated);

    let status = client.chat(with_secret(proto::ChatRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::InvalidArgument, "invalid_request"));
    assert!(!status.get_error_details().error_info().unwrap().metadata["next_step"].is_empty());
    let agent = proto::AgentRequest { agent_type: "chta".into(), instruction: "go".into(), ..Default::default() };
    let status = client.run_agent(with_secret(agent)).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::NotFound, "unknown_agent"));
    let tool = proto::ToolRequest { tool_name: "nothing".into(), ..Default::default() };
    let status = client.execute_tool(with_secret(tool)).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::NotFound, "unknown_tool"));
    let nowhere = proto::FollowRequest { execution_id: "nowhere".into(), last_event_id: None };
    assert_eq!(client.follow(with_secret(nowhere)).await.unwrap_err().code(), Code::NotFound);
    // Bounded as bodies over HTTP are: 4,096 bytes here.
    let large = client.chat(with_secret(chat(&"x".repeat(5_000)))).await.unwrap_err();
    assert_eq!(large.code(), Code::OutOfRange, "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_bounds_the_execution_and_the_call() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;
    let mut client = client(&house).await;
    let mut request = with_secret(chat("wait"));
    // Not `set_timeout`, which lets the client's own timer run, too.
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("400m"));
    let before = runtime::clock::now();
    let response = client.chat(request).await.unwrap();
    let exec: ExecutionId = execution(response.metadata());
    let mut stream = response.into_inner();
    assert!(matches!(stream.next().await, Some(Ok(_))), "started");
    let status = stream.next().await.unwrap().unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::DeadlineExceeded, "deadline"));
    assert_eq!(execution(status.metadata()), exec);
    let submitted = fact(&house, exec, |f| matches!(f.body, FactBody::ExecutionSubmitted(_))).await;
    let FactBody::ExecutionSubmitted(submitted) = submitted.body else { unreachable!() };
    let bound = submitted.limits.deadline - before;
    assert!((0..=500_000_000).contains(&bound), "{bound}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_sent_again_under_its_key_is_the_same_execution() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;
    let channel = channel(&house).await;
    let ask = async |key: &'static str, content: &str| {
        let mut request = with_secret(chat(content));
        request.metadata_mut().insert("idempotency-key", MetadataValue::from_static(key));
        InferenceServiceClient::new(channel.clone()).chat(request).await
    };
    let (first, second) = tokio::join!(ask("one", "hi"), ask("one", "hi"));
    let (first, second) = (first.unwrap(), second.unwrap());
    let again = |response: &tonic::Response<_>| response.metadata().get("idempotent-replayed").is_some();
    assert!(!again(&first) || !again(&second), "one of them began it");
    let exec = execution(first.metadata());
    assert_eq!(execution(second.metadata()), exec);
    let (first, second) = (events(first.into_inner()).await, events(second.into_inner()).await);
    assert_eq!(first.last(), second.last());
    let third = ask("one", "hi").await.unwrap();
    assert!(again(&third));
    assert_eq!(events(third.into_inner()).await.last(), first.last(), "also when it has ended");
    let log = house.runtime.bus.read_execution(exec, 0).await.unwrap();
    let facts = log.iter().filter(|s| s.kind == Kind::Fact).map(|s| Fact::read(&s.payload).unwrap());
    assert_eq!(facts.filter(|f| matches!(f.body, FactBody::ExecutionSubmitted(_))).count(), 1);

    let other = ask("one", "wait").await.expect_err("another request");
    assert_eq!((other.code(), code(&other).as_str()), (Code::AlreadyExists, "idempotency_key_reused"));
    assert_eq!(execution(other.metadata()), exec, "it is told whose key it is");
    let wrong = ask("", "hi").await.expect_err("no key");
    assert_eq!((wrong.code(), code(&wrong).as_str()), (Code::InvalidArgument, "invalid_request"));
    // The same words over HTTP are another request.
    let body = serde_json::json!({"messages": [{"role": "user", "content": "hi"}]});
    let over_http = house.post("/internal/chat", &body).header("idempotency-key", "one").send().await.unwrap();
    assert_eq!(over_http.status(), 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_cancels_the_execution_that_asked_for_it_and_no_other() {
    let Some(house) = House::start().await else { return };
    house.furnish().await;
    let mut client = client(&house).await;
    let mut begin = async |cancels: bool| {
        let mut request = with_secret(chat("wait"));
        if cancels {
            request.metadata_mut().insert("x-cancel-on-disconnect", MetadataValue::from_static("true"));
        }
        let response = client.chat(request).await.unwrap();
        let exec: ExecutionId = execution(response.metadata());
        let mut stream = response.into_inner();
        stream.next().await.unwrap().unwrap();
        exec
    };
    // Both streams are dropped, which resets them; the second is heard of after the first.
    let stays = begin(false).await;
    let goes = begin(true).await;
    fact(&house, goes, |f| matches!(f.body, FactBody::CancelRequested(_))).await;
    let log = house.runtime.bus.read_execution(stays, 0).await.unwrap();
    let facts = log.iter().filter(|s| s.kind == Kind::Fact);
    assert!(facts.map(|s| Fact::read(&s.payload).unwrap()).all(|f| !matches!(f.body, FactBody::CancelRequested(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_secret_and_reflection_does() {
    let Some(house) = House::start().await else { return };
    let channel = channel(&house).await;
    let mut health = HealthClient::new(channel.clone());
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let service = "vlinders.v1.InferenceService";
    let mut watched = health.watch(of("")).await.unwrap().into_inner();
    let status = async |watched: &mut tonic::Streaming<HealthCheckResponse>| {
        watched.next().await.unwrap().unwrap().status().as_str_name().to_owned()
    };
    assert_eq!(status(&mut watched).await, "NOT_SERVING");
    house.furnish().await;
    assert_eq!(status(&mut watched).await, "SERVING");
    assert_eq!(health.check(of(service)).await.unwrap().into_inner().status().as_str_name(), "SERVING");
    assert_eq!(health.check(of("nothing")).await.unwrap_err().code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(channel);
    let asked = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        futures::stream::iter([ServerReflectionRequest { host: String::new(), message_request }])
    };
    assert_eq!(reflection.server_reflection_info(asked()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut told = reflection.server_reflection_info(with_secret(asked())).await.unwrap().into_inner();
    let told = told.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = told else { panic!("{told:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&service) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_was_asked_for_must_be_had_and_one_beside_http_need_not() {
    let Some(house) = House::start().await else { return };
    let taken = house.grpc.trim_start_matches("http://").to_owned();
    let serve = async |config: gateway::Config| {
        let runtime = runtime::Runtime { metrics: Default::default(), ..house.runtime.clone() };
        gateway::serve(config, gateway::Secrets::new("hush"), runtime).await
    };
    let http = || "127.0.0.1:0".to_owned();
    let named = gateway::Config { http: http(), grpc: Some(taken.clone()), ..Default::default() };
    let error = serve(named).await.expect_err("taken").to_string();
    assert!(error.contains(&taken) && error.contains("--grpc"), "{error}");
    let off = gateway::Config { http: http(), grpc: Some("off".into()), ..Default::default() };
    assert_eq!(serve(off).await.unwrap().grpc, None);
    let beside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let before = beside.local_addr().unwrap().port() - 1;
    // Nobody may have the port before it, or nothing is to be seen here.
    if std::net::TcpListener::bind(("127.0.0.1", before)).is_ok() {
        let config = gateway::Config { http: format!("127.0.0.1:{before}"), ..Default::default() };
        assert_eq!(serve(config).await.unwrap().grpc, None, "{beside:?} is taken");
    }
}
