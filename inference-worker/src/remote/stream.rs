//! Follows the stream of one answer from its first byte to its last.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use runtime::clock;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    answer::{Answer, Broken, reported},
    connection::{Body, chain},
    events::{Events, ServerEvent},
    refusal::said,
};
use crate::engine::{Event, Outcome};

/// How long to wait for the counts and the end of a stream whose answer has ended: without them it is whole, too.
const COUNTS_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of one stream, probabilities and all. A server that never ends is ended here, if no deadline does it before.
const STREAM_BYTES_MAX: usize = 256 << 20;

/// What is known about a request whose answer begins.
pub(super) struct Asked {
    /// How many others each probability comes with, if they are asked for.
    pub(super) others: Option<usize>,
    /// Bytes of the prompt that was sent.
    pub(super) prompt_bytes: usize,
    /// When it was asked.
    pub(super) at: Instant,
    /// How long the server may say nothing.
    pub(super) silence: Duration,
}

/// How a stream ended.
pub(super) enum End {
    /// With an answer.
    Whole(Box<Outcome>),
    /// Without one.
    Broken(Broken),
    /// In the middle: the server may be gone.
    Cut(String),
    /// Nobody reads it any more.
    Unread,
}

/// Reads the stream to its end and tells the tokens as they come.
pub(super) async fn follow(mut body: Body, asked: &Asked, tell: &UnboundedSender<Event>) -> End {
    let mut stream = Stream { events: Events::default(), answer: Answer::new(asked.others), first: None, asked, tell };
    let mut bytes = 0_usize;
    loop {
        let patience = if stream.answer.ended() { COUNTS_PATIENCE.min(asked.silence) } else { asked.silence };
        let data = match tokio::time::timeout(patience, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(None) => return stream.close(),
            _ if stream.answer.ended() => return stream.whole(),
            Ok(Some(Err(error))) => return End::Cut(format!("the stream broke off: {}", chain(&error))),
            Err(_) => return End::Cut(format!("the server said nothing for {patience:?} in the middle of the answer")),
        };
        bytes += data.len();
        if bytes > STREAM_BYTES_MAX {
            return failed(format!("the stream has more than {STREAM_BYTES_MAX} bytes"));
        }
        match stream.push(&data) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(End::Whole(outcome)) => {
                // Read to its end, the connection can serve the next request.
                let _ = tokio::time::timeout(COUNTS_PATIENCE.min(asked.silence), body.frame()).await;
                return End::Whole(outcome);
            }
            ControlFlow::Break(end) => return end,
        }
    }
}

struct Stream<'a> {
    events: Events,
    answer: Answer,
    first: Option<Duration>,
    asked: &'a Asked,
    tell: &'a UnboundedSender<Event>,
}

impl Stream<'_> {
    fn push(&mut self, data: &[u8]) -> ControlFlow<End> {
        match self.events.push(data) {
            Ok(events) => events.into_iter().try_for_each(|event| self.event(&event)),
            Err(why) => ControlFlow::Break(failed(why)),
        }
    }

    fn event(&mut self, event: &ServerEvent) -> ControlFlow<End> {
        if event.data.trim() == "[DONE]" {
            let answer = std::mem::take(&mut self.answer);
            return ControlFlow::Break(self.end(answer));
        }
        if event.name == "error" {
            let error = serde_json::from_str(&event.data).unwrap_or_else(|_| event.data.as_str().into());
            return ControlFlow::Break(End::Broken(reported(&error)));
        }
        let chunk = match serde_json::from_str(&event.data) {
            Ok(chunk) => chunk,
            Err(error) => {
                let why = format!("the server sent what is no chunk of an answer ({error}): {}", said(&event.data));
                return ControlFlow::Break(failed(why));
            }
        };
        let tokens = match self.answer.take(chunk) {
            Ok(tokens) => tokens,
            Err(broken) => return ControlFlow::Break(End::Broken(broken)),
        };
        for token in tokens {
            self.first.get_or_insert_with(|| clock::instant() - self.asked.at);
            if self.tell.send(token).is_err() {
                return ControlFlow::Break(End::Unread);
            }
        }
        ControlFlow::Continue(())
    }

    /// The server has closed the stream.
    fn close(mut self) -> End {
        match self.events.end() {
            Ok(None) => {}
            Ok(Some(event)) => {
                if let ControlFlow::Break(end) = self.event(&event) {
                    return end;
                }
            }
            Err(why) => return failed(why),
        }
        self.whole()
    }

    fn whole(mut self) -> End {
        let answer = std::mem::take(&mut self.answer);
        self.end(answer)
    }

    fn end(&self, answer: Answer) -> End {
        if answer.ended() {
            let total = clock::instant() - self.asked.at;
            return End::Whole(Box::new(answer.finish(self.asked.prompt_bytes, self.first, total)));
        }
        if answer.begun() {
            return End::Cut("the stream ended before the answer did".to_owned());
        }
        failed(format!("the stream ended without an answer; it began: {}", said(&self.events.beginning())))
    }
}

fn failed(why: String) -> End {
    End::Broken(Broken::Failed(why))
}
