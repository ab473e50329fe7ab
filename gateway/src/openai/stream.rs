//! A chat completion as a stream of chunks: text as soon as it exists, then calls, ends and counts, then `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use schemas::chat::TokenLogprob;
use serde_json::{Value, json};

use super::answer::Head;
use super::error;
use crate::models;
use crate::problem::Failure;
use crate::sse::{self, Streamed};
use crate::transcript::Update;

/// What ends a stream that went well.
const DONE: &str = "[DONE]";

/// A stream under way: chunks that are ready, and whether anything follows them.
struct Chunks {
    head: Head,
    streamed: Box<Streamed>,
    usage: bool,
    ready: VecDeque<Event>,
    ended: bool,
}

pub(super) fn respond(head: Head, streamed: Streamed, usage: bool) -> Response {
    let keep_alive = Duration::from_secs(streamed.gateway.config.keep_alive_s);
    let headers = [("x-execution-id", head.exec.to_string()), ("x-accel-buffering", "no".to_owned())];
    let first = head.chunk(0, &json!({"role": "assistant", "content": ""}), &[], None);
    let ready = VecDeque::from([event(&first)]);
    let chunks = Chunks { head, streamed: Box::new(streamed), usage, ready, ended: false };
    (headers, Sse::new(events(chunks)).keep_alive(KeepAlive::new().interval(keep_alive))).into_response()
}

fn events(chunks: Chunks) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(chunks, |mut chunks| async move {
        loop {
            if let Some(event) = chunks.ready.pop_front() {
                return Some((Ok(event), chunks));
            }
            if chunks.ended {
                return None;
            }
            chunks.hear().await;
        }
    })
}

impl Chunks {
    async fn hear(&mut self) {
        match sse::next(&mut self.streamed).await {
            Ok(Some(Update::Token { id, text, logprobs })) => self.text(&id, &text, &logprobs),
            // What was sent cannot be taken back: this API has no word for it.
            Ok(Some(Update::Restart { .. })) => {
                let detail = "the text that was streamed is not the answer that counts: a worker was lost";
                let next =
                    format!("read the answer at /internal/executions/{}, or send the request again", self.head.exec);
                self.fail(&Failure::new(502, "restarted", detail, next));
            }
            Ok(Some(Update::Ended)) => self.end().await,
            // A chat has no calls that are carried out here.
            Ok(Some(Update::ToolCall(_) | Update::ToolResult(_) | Update::Approval(_))) => {}
            Ok(None) => self.ended = true,
            Err(failure) => self.fail(&failure),
        }
    }

    fn text(&mut self, id: &str, text: &str, logprobs: &[TokenLogprob]) {
        self.streamed.sent_token();
        let chunk = self.head.chunk(0, &json!({"content": text}), logprobs, None);
        self.ready.push_back(event(&chunk).id(id));
    }

    async fn end(&mut self) {
        self.ended = true;
        self.streamed.disarm();
        let execution = &self.streamed.follow.execution;
        match execution.answer(self.head.exec) {
            Ok(answer) => {
                let rest = self.head.rest(&answer, self.usage);
                self.ready.extend(rest.iter().map(event));
                self.ready.push_back(Event::default().data(DONE));
            }
            Err(failure) => {
                let failure = models::explained(&self.streamed.gateway, execution, failure).await;
                self.fail(&failure);
            }
        }
    }

    /// Clients raise what comes under `error`.
    fn fail(&mut self, failure: &Failure) {
        self.ended = true;
        self.ready.push_back(event(&error(failure)));
    }
}

fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}
