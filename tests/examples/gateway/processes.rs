//! The processes of a measurement that kills some of them: this program again, in its other parts.

use std::process::Stdio;

use anyhow::Context;
use pipeline_tests::{PATIENCE, System};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A part that runs; gone when it is dropped.
pub(crate) struct Part {
    child: Child,
    /// What it said when it was ready.
    pub(crate) said: String,
}

impl Part {
    pub(crate) async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("it does not get ready")??;
        Ok(Self { child, said: said.with_context(|| format!("{arguments:?} ended at once"))? })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// A nats-server, an orchestrator, and an engine; gateways come as they are wanted.
pub(crate) struct House {
    pub(crate) system: System,
    _parts: [Part; 2],
}

impl House {
    pub(crate) async fn start(tokens: u64, every_us: u64) -> anyhow::Result<Self> {
        let mut system = System::new()?;
        system.start_nats().await?;
        let nats = system.nats_url();
        let orchestrator = Part::start(&["decide", &nats]).await?;
        let engine = Part::start(&["engine", &nats, &tokens.to_string(), &every_us.to_string()]).await?;
        Ok(Self { system, _parts: [orchestrator, engine] })
    }

    pub(crate) async fn gateway(&self, open_max: usize) -> anyhow::Result<Part> {
        Part::start(&["serve", &self.system.nats_url(), &open_max.to_string()]).await
    }
}
