//! A gateway dies with streams open; their clients go on at another one, with the id of the last event they have.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use pipeline_tests::PATIENCE;
use runtime::clock;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::engine::token;
use super::processes::House;
use super::{MODEL, SECRET};

const STREAMS: usize = 32;
const TOKENS: u64 = 600;
/// Microseconds between two tokens of a stream.
const EVERY_US: u64 = 5_000;
/// Tokens that each client has when the gateway dies, at least.
const BEFORE: usize = 50;

/// A client of one stream.
#[derive(Default)]
struct Client {
    exec: String,
    last: String,
    text: String,
    pieces: usize,
    done: bool,
    buffer: String,
}

impl Client {
    /// Reads until the end, or until the connection breaks.
    async fn read(&mut self, mut response: reqwest::Response, has: &watch::Sender<usize>) -> Option<Instant> {
        let mut first = None;
        while let Ok(Ok(Some(bytes))) = tokio::time::timeout(PATIENCE, response.chunk()).await {
            first.get_or_insert_with(clock::instant);
            self.buffer.push_str(&String::from_utf8_lossy(&bytes));
            while let Some(end) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..end + 2).collect();
                self.event(&event);
                if self.pieces == BEFORE {
                    has.send_modify(|ready| *ready += 1);
                }
            }
        }
        // What was cut off in the middle is read again from its beginning.
        self.buffer.clear();
        first
    }

    fn event(&mut self, event: &str) {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let data: Value = field("data:").and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
        let text = data["text"].as_str().unwrap_or_default();
        match field("event:") {
            Some("token") => {
                self.text.push_str(text);
                self.pieces += 1;
            }
            Some("restart") => text.clone_into(&mut self.text),
            Some("done") => self.done = true,
            _ => {}
        }
        if let Some(id) = field("id:") {
            id.clone_into(&mut self.last);
        }
    }
}

pub(crate) async fn run() -> anyhow::Result<Value> {
    let house = House::start(TOKENS, EVERY_US).await?;
    let (mut first, second) = (house.gateway(4_096).await?, house.gateway(4_096).await?);
    let http = reqwest::Client::new();
    let (has, mut ready) = watch::channel(0);
    let body =
        json!({"messages": [{"role": "user", "content": "go"}], "model": MODEL, "stream": true, "max_tokens": TOKENS});
    let clients = (0..STREAMS).map(|_| async {
        let url = format!("http://{}/internal/chat", first.said);
        let response = http.post(url).header("x-internal-auth", SECRET).json(&body).send().await?;
        let exec = response.headers().get("x-execution-id").context("no id")?.to_str()?.to_owned();
        let mut client = Client { exec, ..Client::default() };
        client.read(response, &has).await;
        anyhow::Ok(client)
    });
    let clients = try_join_all(clients);
    let killed = async {
        tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready == STREAMS)).await??;
        anyhow::Ok(clock::instant())
    };
    // The first future reads while the second waits for enough to be read, and then kills what is read from.
    let pid = first.pid().context("the gateway runs")?;
    let kill = async {
        let at = killed.await?;
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).context("a pid")?,
            rustix::process::Signal::KILL,
        )?;
        anyhow::Ok(at)
    };
    let (clients, at) = tokio::try_join!(clients, kill)?;
    first.kill().await?;
    ensure!(clients.iter().all(|client| !client.done), "no stream had ended");
    let resumed = clients.into_iter().map(|mut client| async {
        let url = format!("http://{}/internal/executions/{}/stream", second.said, client.exec);
        let request = http.get(url).header("x-internal-auth", SECRET).header("last-event-id", &client.last);
        let response = request.send().await?;
        let (has, _ready) = watch::channel(0);
        let first = client.read(response, &has).await.context("nothing came")?;
        anyhow::Ok((client, first.duration_since(at)))
    });
    let resumed = try_join_all(resumed).await?;
    let whole: String = (0..TOKENS).map(token).collect();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (mut missing, mut repeated) = (0, 0);
    for (client, _) in &resumed {
        let mut had = words(&client.text);
        let count = had.len();
        had.sort();
        had.dedup();
        (missing, repeated) = (missing + TOKENS as usize - had.len(), repeated + count - had.len());
    }
    let slowest = resumed.iter().map(|(_, after)| *after).max().unwrap_or(Duration::ZERO);
    Ok(json!({
        "streams": STREAMS,
        "complete": resumed.iter().filter(|(client, _)| client.done && client.text == whole).count(),
        "missing_tokens": missing,
        "repeated_tokens": repeated,
        "slowest_resumed_ms": slowest.as_secs_f64() * 1e3,
    }))
}
