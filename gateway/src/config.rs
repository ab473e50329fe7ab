//! Every knob of the gateway.

use serde::Deserialize;

/// Section `gateway`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen, `ADDRESS:PORT`; port 0 takes a free one.
    pub http: String,
    /// Where to listen for gRPC, `ADDRESS:PORT`; port 0 takes a free one, and `off` none. The port behind HTTP's when
    /// missing, or a free one where HTTP takes a free one.
    pub grpc: Option<String>,
    /// Bytes of a request's body at most: a prompt of 16 MiB, written as JSON. What is too large for a message of the log
    /// is kept as objects, of 32 MiB at most.
    pub body_bytes_max: usize,
    /// Seconds of silence after which a stream sends a comment, so that proxies keep it open.
    pub keep_alive_s: u64,
    /// Requests that wait for an answer at once; more are told to come again.
    pub requests_open_max: usize,
    /// Seconds a single tool call may take.
    pub tool_deadline_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: "127.0.0.1:8080".to_owned(),
            grpc: None,
            body_bytes_max: 24 << 20,
            keep_alive_s: 15,
            requests_open_max: 4_096,
            tool_deadline_s: 120,
        }
    }
}
