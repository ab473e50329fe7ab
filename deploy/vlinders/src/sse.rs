//! Reads the server-sent events of a streamed request.

use anyhow::Context;
use serde_json::Value;

use crate::gateway_client::Answer;

/// The events of one response, in order.
pub(crate) struct Events {
    response: Answer,
    buffer: Vec<u8>,
}

impl Events {
    pub(crate) fn new(response: Answer) -> Self {
        Self { response, buffer: Vec::new() }
    }

    /// Name and data of the next event; none when the stream has ended.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(String, Value)>> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8_lossy(&event)) {
                    return Ok(Some(event));
                }
            }
            match self.response.chunk().await.context("the gateway closed the stream")? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// One event: its name and its data. Comments are none.
fn parse(text: &str) -> Option<(String, Value)> {
    let field = |name: &str| {
        let lines: Vec<&str> = text
            .lines()
            .filter_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
            .map(|v| v.strip_prefix(' ').unwrap_or(v))
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    Some((field("event")?, serde_json::from_str(&field("data")?).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_has_a_name_and_data() {
        let event = parse("event: token\nid: 1-infer-0.3\ndata: {\"text\":\"a: b\"}\n\n");
        assert_eq!(event, Some(("token".to_owned(), json!({"text": "a: b"}))));
        assert_eq!(parse(": keep-alive\n\n"), None);
    }
}
