//! A client in a closed loop: so many connections, each with one streamed chat after another, read as they come.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use runtime::clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::MODEL;

/// How long an answer may stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Ticks a second of the processor times in /proc.
const TICKS: f64 = 100.0;

/// What is asked, of whom, and how often.
pub(crate) struct Options {
    address: String,
    concurrent: usize,
    time: Duration,
    key: String,
    model: String,
    /// Requests to end after, instead of a time.
    requests: Option<usize>,
    /// Tokens that each answer must have.
    tokens: Option<u64>,
    pids: BTreeMap<String, u32>,
}

/// What one request came to.
pub(crate) struct Answered {
    first: Duration,
    whole: Duration,
    /// The longest time between two pieces of text.
    pub(crate) gap: Duration,
    pub(crate) tokens: u64,
    /// Pieces of text in which they came: what has piled up may come as one.
    pieces: u64,
}

/// A request was told to come again.
pub(crate) struct Refused {
    pub(crate) told_after: Duration,
    /// None: it was not said when.
    pub(crate) retry_after: Option<Duration>,
}

impl Options {
    pub(crate) fn read(arguments: &[&str]) -> anyhow::Result<Self> {
        let (address, rest) = arguments.split_first().context("where to?")?;
        let mut this = Self {
            address: (*address).to_owned(),
            concurrent: 1,
            time: Duration::from_secs(4),
            key: super::SECRET.to_owned(),
            model: MODEL.to_owned(),
            requests: None,
            tokens: None,
            pids: BTreeMap::new(),
        };
        for pair in rest.chunks(2) {
            let [name, value] = pair else { bail!("{pair:?} has no value") };
            match *name {
                "--concurrent" => this.concurrent = value.parse()?,
                "--seconds" => this.time = Duration::from_secs_f64(value.parse()?),
                "--requests" => this.requests = Some(value.parse()?),
                "--key" => (*value).clone_into(&mut this.key),
                "--model" => (*value).clone_into(&mut this.model),
                "--tokens" => this.tokens = Some(value.parse()?),
                "--pids" => {
                    for pid in value.split(',') {
                        let (name, pid) = pid.split_once('=').context("--pids NAME=PID,…")?;
                        this.pids.insert(name.to_owned(), pid.parse()?);
                    }
                }
                other => bail!("{other} is no option"),
            }
        }
        Ok(this)
    }

    pub(crate) fn request(&self) -> Vec<u8> {
        let words = "Tell me in plain words how a river finds its way to the sea, what it carries along, what it leaves \
            behind, and why no two rivers are ever quite alike, in sixty-four words.";
        let body = json!({
            "model": self.model, "stream": true, "stream_options": {"include_usage": true}, "max_tokens": self.tokens.unwrap_or(64),
            "messages": [{"role": "user", "content": words}],
        });
        let (body, key, address) = (body.to_string(), &self.key, &self.address);
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// Runs the load; a line of figures.
pub(crate) async fn run(options: &Options) -> anyhow::Result<Value> {
    let request = options.request();
    // One by each connection first, that is not counted: connections and caches are made.
    let mut connections = Vec::new();
    for _ in 0..options.concurrent {
        let mut connection = Connection::open(&options.address).await?;
        connection.answer(&request).await?;
        connections.push(connection);
    }
    let before = processors(&options.pids);
    let (since, mut answered) = (clock::instant(), Vec::new());
    let begun = Cell::new(0);
    let more = || match options.requests {
        Some(requests) => begun.replace(begun.get() + 1) < requests,
        None => clock::instant().duration_since(since) < options.time,
    };
    let loops = connections.into_iter().map(|mut connection| {
        let (request, more) = (&request, &more);
        async move {
            let mut answered = Vec::new();
            while more() {
                answered.push(connection.answer(request).await?);
            }
            anyhow::Ok(answered)
        }
    });
    for of_one in futures::future::try_join_all(loops).await? {
        answered.extend(of_one);
    }
    let elapsed = clock::instant().duration_since(since).as_secs_f64();
    let after = processors(&options.pids);
    if let Some(wanted) = options.tokens
        && let Some(wrong) = answered.iter().find(|answer| answer.tokens != wanted)
    {
        bail!("an answer had {} tokens instead of {wanted}", wrong.tokens);
    }
    let tokens: u64 = answered.iter().map(|answer| answer.tokens).sum();
    let spread = |of: fn(&Answered) -> Duration| {
        let mut times: Vec<f64> = answered.iter().map(|answer| of(answer).as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied();
        json!({"p50": at(50), "p99": at(99)})
    };
    let cpu = |name: &String, ticks: f64| {
        let used = after.get(name).copied().unwrap_or(ticks) - ticks;
        (name.clone(), json!(used / TICKS * 1e6 / tokens as f64))
    };
    Ok(json!({
        "requests": answered.len(),
        "requests_per_s": answered.len() as f64 / elapsed,
        "tokens_per_s": tokens as f64 / elapsed,
        "pieces_per_answer": answered.iter().map(|answer| answer.pieces).sum::<u64>() as f64 / answered.len() as f64,
        "ttft_ms": spread(|a| a.first),
        "answer_ms": spread(|a| a.whole),
        "gap_ms": spread(|a| a.gap),
        "cpu_us_per_token": before.iter().map(|(name, ticks)| cpu(name, *ticks)).collect::<serde_json::Map<_, _>>(),
        "rss_mib": options.pids.iter().map(|(name, pid)| (name.clone(), json!(rss_mib(*pid)))).collect::<serde_json::Map<_, _>>(),
    }))
}

/// Processor time used so far, in ticks.
fn processors(pids: &BTreeMap<String, u32>) -> BTreeMap<String, f64> {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(|(name, pid)| Some((name.clone(), of(pid)?))).collect()
}

/// Resident memory of a process.
pub(crate) fn rss_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1_024.0)
}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> anyhow::Result<Self> {
        // An ordinary client: its own delay does not matter, it writes a request at once.
        Ok(Self { stream: TcpStream::connect(address).await?, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Asks, and must not be refused.
    async fn answer(&mut self, request: &[u8]) -> anyhow::Result<Answered> {
        match self.ask(request).await? {
            Ok(answered) => Ok(answered),
            Err(_) => bail!("a request was refused with 429"),
        }
    }

    /// Asks; an answer, or a refusal that says to come again.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Result<Answered, Refused>> {
        let since = clock::instant();
        self.stream.write_all(request).await?;
        let mut reader = Reader::default();
        let mut answered =
            Answered { first: Duration::ZERO, whole: Duration::ZERO, gap: Duration::ZERO, tokens: 0, pieces: 0 };
        let mut newest: Option<Instant> = None;
        loop {
            self.buffer.clear();
            let read = tokio::time::timeout(SILENCE_MAX, self.stream.read_buf(&mut self.buffer)).await;
            ensure!(read.context("the stream is silent")?? > 0, "the connection closed in mid-answer");
            let now = clock::instant();
            let pieces = reader.take(&self.buffer)?;
            if let Some(retry_after) = reader.refused {
                return Ok(Err(Refused { told_after: now.duration_since(since), retry_after }));
            }
            if pieces > 0 {
                match newest.replace(now) {
                    None => answered.first = now.duration_since(since),
                    Some(before) => answered.gap = answered.gap.max(now.duration_since(before)),
                }
                answered.pieces += pieces;
            }
            if reader.ended {
                ensure!(reader.done && answered.pieces > 0, "the stream ended without [DONE]");
                // Who does not say how many there were sends them one by one.
                answered.tokens = reader.usage.unwrap_or(answered.pieces);
                answered.whole = now.duration_since(since);
                return Ok(Ok(answered));
            }
        }
    }
}

/// Reads one chunked answer, piece by piece.
#[derive(Default)]
struct Reader {
    raw: Vec<u8>,
    in_body: bool,
    /// Bytes of the chunk that are still to come, with the line end behind it.
    left: usize,
    text: Vec<u8>,
    done: bool,
    ended: bool,
    /// Tokens of the answer, as its end tells.
    usage: Option<u64>,
    /// Refused with 429, and when to come again.
    refused: Option<Option<Duration>>,
}

impl Reader {
    /// Takes bytes; how many pieces of text became whole with them.
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<u64> {
        self.raw.extend_from_slice(bytes);
        if !self.in_body {
            let Some(end) = find(&self.raw, b"\r\n\r\n") else { return Ok(0) };
            if self.raw.starts_with(b"HTTP/1.1 429") {
                return self.refusal(end + 4);
            }
            ensure!(self.raw.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.raw));
            self.raw.drain(..end + 4);
            self.in_body = true;
        }
        let mut at = 0;
        while at < self.raw.len() {
            if self.left > 0 {
                let taken = self.left.min(self.raw.len() - at);
                self.text.extend_from_slice(&self.raw[at..at + taken]);
                (at, self.left) = (at + taken, self.left - taken);
                continue;
            }
            // A line end, the length of the next chunk, a line end.
            let from = if self.raw[at..].starts_with(b"\r\n") { at + 2 } else { at };
            let Some(end) = find(&self.raw[from..], b"\r\n") else { break };
            let length = std::str::from_utf8(&self.raw[from..from + end])?;
            let length = usize::from_str_radix(length.trim(), 16).context("no chunk")?;
            let behind = from + end + 2;
            if length == 0 {
                // The last chunk is whole with its own line end: the next answer begins behind it.
                self.ended = self.raw.len() >= behind + 2;
                break;
            }
            (self.left, at) = (length, behind);
        }
        self.raw.drain(..at);
        Ok(self.events())
    }

    /// A refusal counts once its body is there, too.
    fn refusal(&mut self, head: usize) -> anyhow::Result<u64> {
        let text = std::str::from_utf8(&self.raw[..head])?.to_lowercase();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let length = field("content-length:").context("a refusal says how long it is")?;
        if self.raw.len() as u64 >= head as u64 + length {
            self.refused = Some(field("retry-after:").map(Duration::from_secs));
        }
        Ok(0)
    }

    fn events(&mut self) -> u64 {
        let (mut pieces, mut at) = (0, 0);
        while let Some(end) = find(&self.text[at..], b"\n\n") {
            let event = &self.text[at..at + end];
            let content = find(event, b"\"content\":\"").map(|from| event[from + 11..].first());
            pieces += u64::from(content.is_some_and(|first| first != Some(&b'"')));
            if let Some(from) = find(event, b"\"completion_tokens\":") {
                let digits = event[from + 20..].iter().take_while(|byte| byte.is_ascii_digit());
                self.usage = Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
            }
            self.done |= find(event, b"data: [DONE]").is_some();
            at += end + 2;
        }
        self.text.drain(..at);
        pieces
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}
