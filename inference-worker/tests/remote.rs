//! A remote model against a server that answers as it is told: every cut of the stream, every error, every end.

mod scripted;

use std::{net::SocketAddr, time::Duration};

use inference_worker::{
    answer::FinishReason,
    engine::{Event, Outcome, Rejection, Request},
    remote::{Remote, RemoteConfig},
    sample::Sampling,
};
use runtime::{Tasks, clock, config::Secret};
use schemas::chat::FunctionCall;
use serde_json::{Value, json};

use scripted::{PATIENCE, Piece, Reply, Server, delta, end, lines, next, read, said, stream};

fn hello() -> Request {
    Request { messages: vec![json!({"role": "user", "content": "hello"})], ..Request::default() }
}

fn finished(end: Event) -> Outcome {
    match end {
        Event::Finished(outcome) => *outcome,
        other => panic!("{other:?}"),
    }
}

fn failed(end: Event) -> String {
    match end {
        Event::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn refused(status: u16, body: &Value) -> Reply {
    Reply::Whole(status, vec![("content-type", "application/json"), ("retry-after", "0")], body.to_string())
}

#[tokio::test]
async fn an_answer_is_the_same_however_the_network_cuts_it() {
    let fragment = |fragment: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [fragment]}}]});
    let bytes = [
        b": ping\n\n".to_vec(),
        lines(&[
            delta("H\u{e9}l"),
            delta("lo \u{1f980}"),
            fragment(json!({"index": 0, "id": "a", "function": {"name": "find", "arguments": "{\"query\":"}})),
            fragment(json!({"index": 0, "function": {"arguments": "  \"x\"}"}})),
            end("tool_calls"),
            json!({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 9}}),
        ]),
        b"data: [DONE]\r\n\r\n".to_vec(),
    ]
    .concat();
    let single = bytes.iter().map(|byte| Piece::Bytes(vec![*byte])).collect();
    let server = Server::start(vec![stream(bytes), Reply::Stream(single)]);
    let remote = server.remote().await;
    for _ in 0..2 {
        let (texts, end) = read(remote.submit(hello()).await.unwrap()).await;
        assert_eq!(texts, ["H\u{e9}l", "lo \u{1f980}", "", ""]);
        let outcome = finished(end);
        assert_eq!((outcome.text.as_str(), outcome.reason), ("H\u{e9}llo \u{1f980}", FinishReason::ToolCalls));
        let call = FunctionCall { name: "find".to_owned(), arguments: "{\"query\":  \"x\"}".to_owned() };
        assert_eq!(outcome.tool_calls, [call], "as the server wrote it");
        assert_eq!((outcome.prompt_tokens, outcome.completion_tokens), (11, 9));
        assert!(outcome.first_token <= outcome.total);
    }
    let asked = server.asked();
    assert_eq!((&asked[0].body["model"], &asked[0].body["stream"]), (&json!("theirs"), &json!(true)));
    assert_eq!(asked[0].from, asked[1].from, "the connection is kept");
}

#[tokio::test]
async fn an_answer_is_whole_without_usage_and_without_a_last_line() {
    let chunks = [delta("a"), delta("b"), end("length")];
    let bytes = lines(&chunks);
    let server = Server::start(vec![stream(bytes[..bytes.len() - 2].to_vec()), stream(bytes)]);
    let remote = server.remote().await;
    for _ in 0..2 {
        let (_, end) = read(remote.submit(hello()).await.unwrap()).await;
        let outcome = finished(end);
        assert_eq!((outcome.reason, outcome.completion_tokens), (FinishReason::Length, 2));
        assert!(outcome.prompt_tokens > 0, "estimated from what was sent");
    }
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_a_few_times() {
    let busy = || refused(429, &json!({"error": {"message": "too many requests"}}));
    let server = Server::start(vec![busy(), refused(503, &json!({})), stream(said(&["yes"]))]);
    let remote = server.remote().await;
    let (texts, _) = read(remote.submit(hello()).await.unwrap()).await;
    assert_eq!((texts, server.asked().len()), (vec!["yes".to_owned()], 3));

    (0..4).for_each(|_| server.then(busy()));
    let rejected = remote.submit(hello()).await.unwrap_err();
    let why = "the server answered 429 Too Many Requests: too many requests; asked 4 times".to_owned();
    assert_eq!(rejected, Rejection::Overloaded(why));
    assert!(*remote.ready().borrow(), "a server that is busy is there");
}

#[tokio::test]
async fn a_server_that_is_away_is_asked_again_and_then_doubted() {
    let remote = {
        let server = Server::start(vec![]);
        server.remote().await
    };
    assert!(*remote.ready().borrow());
    let rejected = remote.submit(hello()).await.unwrap_err();
    assert!(
        matches!(&rejected, Rejection::Overloaded(why) if why.contains("cannot be reached") && why.contains("asked 4 times")),
        "{rejected:?}"
    );
    assert!(!*remote.ready().borrow());
}

#[tokio::test]
async fn a_key_is_shown_to_the_server_and_to_nobody_else() {
    let key = "sk-very-hidden";
    let echo = refused(401, &json!({"error": {"message": format!("incorrect key: {key}")}}));
    let server = Server::start(vec![echo, stream(said(&["yes"]))]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let remote = server.remote_with(|config| config.api_key_file = Some(file)).await;
    let rejected = remote.submit(hello()).await.unwrap_err();
    let Rejection::Refused(why) = &rejected else { panic!("{rejected:?}") };
    assert!(why.contains("incorrect key: …") && why.contains("inference.remote.ours.api_key"), "{why}");
    assert!(!format!("{remote:?} {why}").contains(key));
    let remote = server.remote_with(|config| config.api_key = Some(Secret::new(key.to_owned()))).await;
    read(remote.submit(hello()).await.unwrap()).await;
    for seen in server.asked() {
        assert_eq!(seen.headers["authorization"], format!("Bearer {key}"));
    }
    server.page("/v1/models", 401, &json!({"error": "who are you?"}));
    let why = remote.look().await.unwrap_err();
    assert!(why.contains("who are you?") && why.contains("inference.remote.ours.api_key"), "{why}");
}

#[tokio::test]
async fn a_limit_beyond_the_room_is_left_to_the_window_and_a_prompt_beyond_it_overflows() {
    let full = || refused(400, &json!({"error": {"message": "This model's maximum context length is 4096 tokens."}}));
    let server = Server::start(vec![full(), stream(said(&["yes"])), full(), full(), full()]);
    let remote = server.remote().await;
    let request = || Request { tokens_max: Some(4_000), ..hello() };
    let (texts, _) = read(remote.submit(request()).await.unwrap()).await;
    assert_eq!(texts, ["yes"]);
    let limits: Vec<Value> = server.asked().iter().map(|seen| seen.body["max_tokens"].clone()).collect();
    assert_eq!(limits, [json!(4_000), Value::Null]);
    let rejected = remote.submit(request()).await.unwrap_err();
    assert!(matches!(&rejected, Rejection::Overflow(why) if why.contains("maximum context length")), "{rejected:?}");
    let rejected = remote.submit(hello()).await.unwrap_err();
    assert!(matches!(rejected, Rejection::Overflow(_)), "{rejected:?}");
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn what_the_server_does_not_want_is_told_in_its_words() {
    let server = Server::start(vec![refused(400, &json!({"error": {"message": "roles must alternate"}}))]);
    let remote = server.remote().await;
    let rejected = remote.submit(hello()).await.unwrap_err();
    let why = "the server answered 400 Bad Request: roles must alternate".to_owned();
    assert_eq!((rejected, server.asked().len()), (Rejection::Unusable(why), 1));
}

#[tokio::test]
async fn what_is_no_stream_of_chunks_fails_and_says_what_it_is() {
    let page = "<html><head><title>Sign in</title></head></html>".to_owned();
    let server = Server::start(vec![
        Reply::Whole(200, vec![("content-type", "text/html")], page.clone()),
        stream(b"data: {\"choices\": [\n\n".to_vec()),
        stream(page.into_bytes()),
        stream(lines(&[delta("so"), json!({"error": {"message": "out of memory", "code": 500}})])),
        stream(lines(&[json!({"error": {"message": "no such template", "code": 400}})])),
        stream(b"error: {\"code\":500,\"message\":\"old words\"}\n\n".to_vec()),
        stream([b"data: ".to_vec(), vec![b'x'; 5 << 20]].concat()),
        stream(said(&["yes"])),
    ]);
    let remote = server.remote().await;
    let rejected = remote.submit(hello()).await.unwrap_err();
    assert!(
        matches!(&rejected, Rejection::Broken(why) if why.contains("text/html") && why.contains("Sign in")),
        "{rejected:?}"
    );
    let end = async || read(remote.submit(hello()).await.unwrap()).await.1;
    let why = failed(end().await);
    assert!(why.contains("no chunk of an answer") && why.contains("{\"choices\": ["), "{why}");
    assert_eq!(
        failed(end().await),
        "the stream ended without an answer; it began: a page for people and no API (Sign in)"
    );
    assert_eq!(failed(end().await), "the server broke off: out of memory");
    assert_eq!(end().await, Event::Refused("the server broke off: no such template".to_owned()));
    assert_eq!(failed(end().await), "the server broke off: old words");
    assert!(failed(end().await).contains("4194304 bytes"));
    assert_eq!(finished(end().await).text, "yes", "and the next request is answered");
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_fails_and_the_server_is_looked_at() {
    let cut = Reply::Stream(vec![Piece::Bytes(lines(&[delta("so")])), Piece::Cut]);
    let server = Server::start(vec![cut, stream(lines(&[delta("so"), delta(" far")]))]);
    let remote = server.remote().await;
    let tasks = Tasks::new();
    remote.watch(&tasks);
    let mut running = remote.submit(hello()).await.unwrap();
    assert!(matches!(next(&mut running).await, Event::Token { text, .. } if text == "so"));
    server.cut();
    let (texts, end) = read(running).await;
    assert_eq!(texts, [""; 0]);
    assert!(failed(end).starts_with("the stream broke off: "));
    let mut ready = remote.ready();
    tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await.expect("in time").unwrap();
    let (_, end) = read(remote.submit(hello()).await.unwrap()).await;
    assert_eq!(failed(end), "the stream ended before the answer did");
    tasks.stop();
    assert!(tasks.drained(PATIENCE).await);
}

#[tokio::test]
async fn silence_ends_a_request_and_an_answer_that_has_ended_does_not_need_its_end() {
    let hang = |chunks: &[Value]| Reply::Stream(vec![Piece::Bytes(lines(chunks)), Piece::Hang]);
    let server = Server::start(vec![hang(&[delta("so")]), Reply::Silence, hang(&[delta("so"), end("stop")])]);
    let remote = server.remote_with(|config| config.silence_timeout_ms = 200).await;
    let (_, end) = read(remote.submit(hello()).await.unwrap()).await;
    assert_eq!(failed(end), "the server said nothing for 200ms in the middle of the answer");
    let rejected = remote.submit(hello()).await.unwrap_err();
    assert_eq!(rejected, Rejection::Broken("no byte came for 200ms".to_owned()));
    let (_, end) = read(remote.submit(hello()).await.unwrap()).await;
    assert_eq!(finished(end).text, "so");
    server.until_open(0).await;
}

#[tokio::test]
async fn a_request_that_nobody_reads_leaves_the_server_at_once() {
    let hang = Reply::Stream(vec![Piece::Bytes(lines(&[delta("so")])), Piece::Hang]);
    let server = Server::start(vec![hang, Reply::Silence, stream(said(&["yes"]))]);
    let remote = server.remote().await;
    let mut running = remote.submit(hello()).await.unwrap();
    assert!(matches!(next(&mut running).await, Event::Token { text, .. } if text == "so"));
    server.until_open(1).await;
    drop(running);
    server.until_open(0).await;

    // And so does one whose answer has not begun.
    let waiting = remote.submit(hello());
    tokio::select! {
        _ = waiting => panic!("nothing comes"),
        () = server.until_open(1) => {}
    }
    server.until_open(0).await;
    let (texts, _) = read(remote.submit(hello()).await.unwrap()).await;
    assert_eq!(texts, ["yes"]);
}

#[tokio::test]
async fn probabilities_come_with_the_tokens_they_belong_to() {
    let top = json!([{"token": "H", "logprob": -0.5}, {"token": "I", "logprob": -1.5}]);
    let likely = json!([{"token": "H", "logprob": -0.5, "top_logprobs": top}, {"token": "i", "logprob": -0.25, "top_logprobs": []}]);
    let chunk = json!({"choices": [{"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": likely}}]});
    let server = Server::start(vec![stream(lines(&[chunk, end("stop")]))]);
    let remote = server.remote().await;
    let sampling = Sampling { logprobs: Some(1), ..Sampling::default() };
    let mut running = remote.submit(Request { sampling, ..hello() }).await.unwrap();
    let Event::Token { id: 0, text, logprob: Some(first) } = next(&mut running).await else { panic!("a token") };
    assert_eq!((text.as_str(), first.token.as_str(), first.top_logprobs.len()), ("", "H", 1));
    let Event::Token { id: 0, text, logprob: Some(_) } = next(&mut running).await else { panic!("a token") };
    assert_eq!(text, "Hi");
    assert_eq!(finished(next(&mut running).await).logprobs[0], first);
}

#[tokio::test]
async fn a_server_is_watched_while_it_comes_and_goes() {
    let server = Server::start(vec![]);
    let address: SocketAddr = server.address;
    let config = server.config();
    drop(server);
    let remote = Remote::new("ours", config).unwrap();
    let tasks = Tasks::new();
    inference_worker::remote::watch(std::slice::from_ref(&remote), &tasks).await;
    assert_eq!((*remote.ready().borrow(), remote.window()), (false, 0));
    let mut ready = remote.ready();
    let mut becomes = async |wanted: bool| {
        tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready == wanted)).await.expect("in time").unwrap();
    };
    let server = Server::start_at(address, vec![]);
    becomes(true).await;
    assert_eq!(remote.window(), 4_096);
    drop(server);
    becomes(false).await;
    let server = Server::start_at(address, vec![]);
    server.page("/v1/models", 503, &json!({"error": {"message": "Loading model"}}));
    assert!(remote.look().await.unwrap_err().contains("Loading model"));
    server.page("/v1/models", 200, &json!({"data": [{"id": "theirs", "max_model_len": 512}]}));
    becomes(true).await;
    assert_eq!(remote.window(), 512, "another server may hold less");
    tasks.stop();
    assert!(tasks.drained(PATIENCE).await);
}

#[tokio::test]
async fn the_server_says_what_it_serves_or_the_configuration_must() {
    let server = Server::start(vec![]);
    let look = async |change: fn(&mut RemoteConfig)| {
        let mut config = server.config();
        change(&mut config);
        let remote = Remote::new("ours", config).unwrap();
        let told = remote.look().await;
        (told, remote.window())
    };
    server.page("/v1/models", 200, &json!({"data": [{"id": "a.gguf", "meta": {"n_ctx_train": 32_768}}]}));
    assert_eq!(look(|_| {}).await.1, 32_768);
    server.page("/props", 200, &json!({"default_generation_settings": {"n_ctx": 2_048}, "total_slots": 4}));
    let (told, window) = look(|_| {}).await;
    assert_eq!((told.unwrap(), window), (format!("a.gguf at http://{}/v1, window 2048", server.address), 2_048));
    assert_eq!(look(|config| config.window = Some(99)).await.1, 99);

    server.page("/props", 404, &json!({}));
    server.page("/v1/models", 200, &json!({"data": [{"id": "a"}, {"id": "b"}]}));
    let (told, _) = look(|_| {}).await;
    let why = told.unwrap_err();
    assert!(why.contains("how many tokens ours holds") && why.contains("set inference.remote.ours.window"), "{why}");
    let (told, _) = look(|config| (config.model, config.window) = (Some("b".to_owned()), Some(7))).await;
    assert!(told.unwrap().starts_with("b at "));
    server.page("/info", 200, &json!({"max_total_tokens": 4_000}));
    assert_eq!(look(|_| {}).await.1, 4_000);
    server.page("/v1/models", 404, &json!({}));
    assert_eq!(look(|config| config.window = Some(7)).await.1, 7, "a server without a list is asked all the same");
    server.page("/v1/models", 200, &json!("<html><title>Sign in</title></html>"));
    assert!(look(|config| config.window = Some(7)).await.0.unwrap_err().contains("Sign in"));
}

#[tokio::test]
async fn a_server_behind_tls_is_asked_where_its_certificate_is_trusted() {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, signed.cert.pem()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(serve_tls(listener, signed));

    let config = RemoteConfig {
        url: format!("https://localhost:{port}/v1"),
        ca_file: Some(ca_file.clone()),
        connect_timeout_ms: 2_000,
        ..RemoteConfig::default()
    };
    let remote = Remote::new("ours", config.clone()).unwrap();
    assert_eq!(remote.look().await.unwrap(), format!("theirs at https://localhost:{port}/v1, window 64"));
    // Without it, whoever the system trusts, this server is nobody.
    let stranger = Remote::new("ours", RemoteConfig { ca_file: None, ..config.clone() });
    let told = match stranger {
        Ok(stranger) => stranger.look().await.unwrap_err(),
        Err(why) => why,
    };
    assert!(told.contains("certificate") || told.contains("trusts nobody"), "{told}");
    std::fs::write(&ca_file, "no certificate").unwrap();
    let why = Remote::new("ours", config).unwrap_err();
    assert!(why.starts_with("inference.remote.ours.ca_file: "), "{why}");
    runtime.shutdown_background();
}

/// Answers every request over TLS with a list of models.
async fn serve_tls(listener: std::net::TcpListener, signed: rcgen::CertifiedKey<rcgen::KeyPair>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, rustls};
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![signed.cert.der().clone()], key.into()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    let body = json!({"data": [{"id": "theirs", "max_model_len": 64}]}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        // A client that does not trust us ends the handshake.
        let Ok(mut socket) = acceptor.accept(socket).await else { continue };
        let mut read = [0; 4_096];
        let _ = socket.read(&mut read).await;
        let _ = socket.write_all(answer.as_bytes()).await;
        let _ = socket.shutdown().await;
    }
}

#[tokio::test]
async fn requests_of_a_crowd_share_few_connections() {
    let count = 24;
    let server = Server::start((0..count).map(|_| stream(said(&["a", "b"]))).collect());
    let remote = server.remote_with(|config| config.slots = 4).await;
    let since = clock::instant();
    for _ in 0..count / 4 {
        let four = (0..4).map(|_| async { finished(read(remote.submit(hello()).await.unwrap()).await.1).text });
        assert_eq!(futures::future::join_all(four).await, ["ab"; 4]);
    }
    let ports: std::collections::BTreeSet<u16> = server.asked().iter().map(|seen| seen.from).collect();
    assert!(ports.len() <= 8, "{} connections for {count} requests", ports.len());
    assert!(since.elapsed() < Duration::from_secs(10));
}
