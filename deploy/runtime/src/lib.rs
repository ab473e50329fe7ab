//! The part every process shares: configuration, telemetry, the typed bus, and shutdown.
//!
//! `runtime` knows how messages are carried (subjects, envelopes, appends, pulls) and no rule of what they lead to.
//!
//! | module | job |
//! |---|---|
//! | [`config`] | layers of configuration, with the origin of each value |
//! | [`telemetry`] | logs, and where traces go |
//! | [`lines`] | to which trace and execution a log line belongs |
//! | [`spans`] | spans of traces, recorded when their work is done |
//! | [`bus`] | the log, job queues, tokens, buckets and questions over NATS |
//! | [`cache`] | results that processes share, in Redis or in buckets, and who works on which |
//! | [`manifests`] | directories of TOML files that are followed |
//! | [`tasks`] | tracked tasks and shutdown in two phases |
//! | [`probe`] | `/metrics` and `/health` of every role, for machines |
//! | [`clock`] | the one place that reads time and makes ids |

pub mod bus;
pub mod cache;
pub mod clock;
pub mod config;
pub mod lines;
pub mod manifests;
pub mod probe;
pub mod spans;
pub mod tasks;
pub mod telemetry;

pub use bus::Bus;
pub use cache::Cache;
pub use tasks::Tasks;

/// What a service is given: cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    /// The bus.
    pub bus: Bus,
    /// Where it spawns its tasks, and how it learns of the end.
    pub tasks: Tasks,
    /// Where it registers its metrics.
    pub metrics: prometheus::Registry,
    /// Results that other processes have, too.
    pub cache: Cache,
}

impl Runtime {
    /// With tasks and metrics of its own. What is shared lies on the bus.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        let cache = Cache::on_bus(bus.clone());
        Self { bus, tasks: Tasks::new(), metrics: prometheus::Registry::new(), cache }
    }
}
