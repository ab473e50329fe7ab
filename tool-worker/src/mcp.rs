//! Tools of servers that speak the Model Context Protocol: programs in boxes of their own, or servers reached over HTTP.
//!
//! Each configured server is kept running by a task of its own ([`server`]): it is started, asked for its tools, started
//! anew when it ends, and its tools come and go with what it says. What it says is held against bounds ([`meter`]) before
//! anything reads it. A server that cannot be had is named with the reason where everybody can see it; the worker and the
//! other servers go on.
//!
//! A server lives across calls, so what one caller makes it remember another may ask it for: who should not share a
//! server with others must not share a worker with them.

mod answer;
mod connection;
mod http;
mod meter;
mod offer;
mod server;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use runtime::Tasks;

use crate::config::Config;
use crate::executor::Executor;
use crate::plugins::Shelf;
use server::Server;
pub use settings::Settings;

/// How long the start of the worker waits for the first tools of its servers: who asks at once finds those that start
/// as fast as programs do, and none is waited for that does not.
const FIRST_TOOLS_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of all servers may take; their boxes are ended after it in any case.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The servers of a worker. They end with it.
pub struct Servers {
    tasks: Tasks,
}

/// Starts all configured servers, and waits a while for their tools.
///
/// # Errors
/// A setting is wrong; the text names it.
pub async fn start(config: &Config, executor: &Executor) -> Result<Servers, String> {
    let servers = Servers { tasks: Tasks::new() };
    let shelf = Arc::new(Shelf::new(config, executor));
    let mut first = Vec::new();
    for (name, settings) in &config.mcp {
        let (server, started) = Server::new(name, settings, shelf.clone())?;
        servers.tasks.spawn(server.keep(servers.tasks.soft()));
        first.push(started);
    }
    // Whoever drops its end without a word has ended.
    let all = futures::future::join_all(first);
    if tokio::time::timeout(FIRST_TOOLS_WITHIN, all).await.is_err() {
        tracing::info!("some servers of tools are still starting; their tools come when they have");
    }
    Ok(servers)
}

impl Servers {
    /// Ends all of them, and waits until they have.
    pub async fn close(&self) {
        self.tasks.stop();
        self.tasks.drained(CLOSE_WITHIN).await;
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}
