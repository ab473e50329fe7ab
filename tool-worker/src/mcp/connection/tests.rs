use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use super::super::settings::Settings;
use super::*;
use crate::scripted::{self, Scripted};

const PATIENCE: Duration = Duration::from_secs(20);

/// An answer after which the connection closes, as a scripted server's does.
fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    scripted::answer(status, &format!("connection: close\r\n{headers}"), body)
}

async fn open(settings: Settings) -> Result<Connection, String> {
    let url = settings.url.clone().unwrap();
    Connection::open(&Reach::Http(Arc::new(Way::new("far", &settings, &url)?)), PATIENCE).await
}

fn at(server: &Scripted) -> Settings {
    Settings { url: Some(server.url("/mcp")), ..Settings::default() }
}

fn say(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// A server that knows the handshake and answers all else with `rest`.
fn served(rest: impl Fn(&Value) -> Vec<u8> + Send + 'static) -> Scripted {
    Scripted::start(move |request, stream| {
        let Some((_, body)) = request.split_once("\r\n\r\n") else { return };
        let Ok(message) = serde_json::from_str::<Value>(body) else {
            return say(stream, &answer("405 Method Not Allowed", "", ""));
        };
        let about = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
            "serverInfo": {"name": "far", "version": "1"}});
        match message["method"].as_str().unwrap_or_default() {
            "initialize" => say(stream, &result(&message, &about)),
            method if method.starts_with("notifications/") => say(stream, &answer("202 Accepted", "", "")),
            _ => say(stream, &rest(&message)),
        }
    })
}

fn result(message: &Value, result: &Value) -> Vec<u8> {
    let body = json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
    answer("200 OK", "content-type: application/json\r\n", body)
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Scripted::saying(answer("200 OK", "", ""));
    let location = format!("location: {}\r\n", elsewhere.url("/"));
    let server = Scripted::saying(answer("307 Temporary Redirect", &location, ""));
    let refused = open(at(&server)).await.err().unwrap();
    assert!(refused.starts_with("answered 307") && refused.contains("redirects are not followed"), "{refused}");
    assert_eq!(elsewhere.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn the_key_is_shown_to_the_server_and_to_nobody_else() {
    let key = || Some(runtime::config::Secret::new("hunter2".to_owned()));
    let server = Scripted::saying(answer("418 I'm a teapot", "content-type: text/plain\r\n", "not for hunter2"));
    let refused = open(Settings { api_key: key(), ..at(&server) }).await.err().unwrap();
    assert!(refused.contains("418") && refused.contains("not for …") && !refused.contains("hunter2"), "{refused}");
    let asked = server.asked()[0].to_ascii_lowercase();
    assert!(asked.contains("authorization: bearer hunter2\r\n"), "{asked}");

    let header = Settings { api_key: key(), api_key_header: Some("X-Key".to_owned()), ..at(&server) };
    let _ = open(header).await;
    let asked = server.asked().last().unwrap().to_ascii_lowercase();
    assert!(asked.contains("x-key: hunter2\r\n") && !asked.contains("authorization"), "{asked}");
    let unauthorised = Scripted::saying(answer("401 Unauthorized", "www-authenticate: Bearer\r\n", ""));
    let refused = open(at(&unauthorised)).await.err().unwrap();
    assert!(refused.contains("it wants another key"), "{refused}");
}

#[tokio::test]
async fn tools_are_listed_page_by_page_and_no_further_than_may_be() {
    let server = served(|message| {
        let page = json!({"tools": [{"name": "a", "inputSchema": {}}], "nextCursor": "2"});
        let last = json!({"tools": [{"name": "b", "inputSchema": {}}]});
        result(message, if message["params"]["cursor"] == "2" { &last } else { &page })
    });
    let mut connection = open(at(&server)).await.unwrap();
    let names: Vec<&str> = connection.tools.iter().map(|tool| tool.name.as_ref()).collect();
    assert_eq!(names, ["a", "b"]);
    let _ = connection.service.close().await;

    let endless = served(|message| {
        let long = "x".repeat(1 << 20);
        result(message, &json!({"tools": [{"name": "a", "description": long, "inputSchema": {}}], "nextCursor": "2"}))
    });
    let cut = open(at(&endless)).await.err().unwrap();
    assert!(cut.starts_with("said more than it may"), "{cut}");
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for_longer_than_may_be() {
    let silent = Scripted::start(|_, stream| {
        // Until the other side gives up.
        let _ = io::Read::read(stream, &mut [0]);
    });
    let settings = at(&silent);
    let url = settings.url.clone().unwrap();
    let reach = Reach::Http(Arc::new(Way::new("far", &settings, &url).unwrap()));
    let late = Connection::open(&reach, Duration::from_millis(200)).await.err().unwrap();
    assert!(late.starts_with("did not say what its tools are within"), "{late}");
}
