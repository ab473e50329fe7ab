//! Every knob of the gateway.

use serde::{Deserialize, Serialize};

use crate::listen::Tls;

/// Section `gateway`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Those of one user (`user_id`); three quarters of all when missing. While several users have requests open, each
    /// has an equal share at most.
    pub requests_open_per_user_max: Option<usize>,
    /// Inferences that wait for a worker, of all gateways, beyond which requests are told to come again.
    pub jobs_queued_max: u64,
    /// Connections at the same time; more wait until one closes.
    pub connections_max: usize,
    /// Seconds within which the head of a request must be there; an idle connection is closed after as long.
    pub head_timeout_s: u64,
    /// Seconds within which the body of a request must be there.
    pub body_timeout_s: u64,
    /// TLS; plain HTTP when missing.
    pub tls: Option<Tls>,
    /// Seconds a single tool call may take.
    pub tool_deadline_s: u64,
}

impl Config {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The text names the key and what belongs there.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("body_bytes_max", self.body_bytes_max as u64),
            ("keep_alive_s", self.keep_alive_s),
            ("requests_open_max", self.requests_open_max as u64),
            ("requests_open_per_user_max", self.requests_open_per_user_max.map_or(1, |max| max as u64)),
            ("jobs_queued_max", self.jobs_queued_max),
            ("connections_max", self.connections_max as u64),
            ("head_timeout_s", self.head_timeout_s),
            ("body_timeout_s", self.body_timeout_s),
            ("tool_deadline_s", self.tool_deadline_s),
        ];
        match bounds.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(format!("gateway.{key} is 0; it must be at least 1")),
            None => Ok(()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: "127.0.0.1:8080".to_owned(),
            grpc: None,
            body_bytes_max: 24 << 20,
            keep_alive_s: 15,
            requests_open_max: 4_096,
            requests_open_per_user_max: None,
            jobs_queued_max: 4_096,
            connections_max: 10_000,
            head_timeout_s: 60,
            body_timeout_s: 60,
            tls: None,
            tool_deadline_s: 120,
        }
    }
}
