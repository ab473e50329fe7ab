//! The floor: a server of the same library that streams the events of one answer and does nothing else.

use std::convert::Infallible;

use axum::Router;
use axum::response::sse::{Event, Sse};
use axum::routing::post;
use axum::serve::ListenerExt as _;
use serde_json::json;

/// Tokens of an answer.
const TOKENS: u32 = 64;

pub(crate) async fn serve() -> anyhow::Result<()> {
    let answer = || async {
        let chunk = |i: u32| {
            let choice = json!({"index": 0, "delta": {"content": format!("t{i} ")}, "finish_reason": null});
            let chunk = json!({"id": "stub", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": [choice]});
            Event::default().data(chunk.to_string())
        };
        // One event at a time, as an engine gives them.
        let events = futures::stream::unfold(0, move |i| async move {
            tokio::task::yield_now().await;
            match i {
                TOKENS => Some((Event::default().data("[DONE]"), i + 1)),
                i if i < TOKENS => Some((chunk(i), i + 1)),
                _ => None,
            }
        });
        Sse::new(futures::StreamExt::map(events, Ok::<_, Infallible>))
    };
    let app = Router::new().route("/v1/chat/completions", post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    tokio::select! {
        served = axum::serve(listener, app) => Ok(served?),
        ended = super::until_closed() => ended,
    }
}
