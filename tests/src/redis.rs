//! A Redis server of our own, on a free port and in memory only, gone with the test.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::{PATIENCE, free_port};

/// Where Debian and its kin put the server.
const PROGRAM: &str = "/usr/bin/redis-server";

/// A server that runs.
pub struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Redis {
    /// Starts one; none where it is not installed, which is said loudly.
    ///
    /// # Errors
    /// When it does not start, and where `CI` is `true` and it is not installed.
    #[expect(clippy::disallowed_methods, reason = "whether everything must be there stands in the environment")]
    pub async fn start() -> anyhow::Result<Option<Self>> {
        if !std::path::Path::new(PROGRAM).is_file() {
            let missing = format!("Redis is missing (no {PROGRAM}): deploy/test installs it");
            ensure!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
            println!("SKIPPED: {missing}");
            return Ok(None);
        }
        let mut server = Self { directory: tempfile::tempdir()?, port: free_port()?, process: None };
        server.resume().await?;
        Ok(Some(server))
    }

    /// Where it is found.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Says a command without spaces in its words, and gives the first line of the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn say(&self, command: &str) -> anyhow::Result<String> {
        let mut lines = self.ask(command).await?;
        let mut line = String::new();
        lines.read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    }

    /// All keys, in order.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = self.ask("KEYS *").await?.lines();
        let count = lines.next_line().await?.context("an answer")?;
        let count: usize = count.strip_prefix('*').context("a list")?.parse()?;
        let mut keys = Vec::new();
        for _ in 0..count {
            // Each is its length and itself.
            lines.next_line().await?;
            keys.push(lines.next_line().await?.context("a key")?);
        }
        keys.sort();
        Ok(keys)
    }

    async fn ask(&self, command: &str) -> anyhow::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        Ok(BufReader::new(stream))
    }

    /// Ends the server as a crash would; all that it held is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("it runs")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Starts it again, empty.
    ///
    /// # Errors
    /// When it does not start.
    #[expect(clippy::disallowed_methods, reason = "a test waits with a deadline")]
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let process = Command::new(PROGRAM)
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        self.process = Some(process);
        let until = Instant::now() + PATIENCE;
        while self.say("PING").await.ok().as_deref() != Some("+PONG") {
            if self.process.as_mut().context("it was started")?.try_wait()?.is_some() || Instant::now() > until {
                bail!("Redis did not start on port {}", self.port);
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.crash();
    }
}
