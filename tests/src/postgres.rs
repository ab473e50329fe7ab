//! A PostgreSQL server of our own: a cluster in a temporary directory, on a free port, gone with the test. It never runs
//! as root, which PostgreSQL refuses. Also used by the orchestrator's own tests, so it needs little.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Where Debian and its kin put the server's programs: not on PATH.
const PROGRAMS: &str = "/usr/lib/postgresql";
/// How long it may take to start.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A server that runs.
pub struct Postgres {
    programs: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    /// The user it runs as, where the test is root.
    user: Option<&'static str>,
    process: Option<Child>,
}

impl Postgres {
    /// Starts one; none where it is not installed, which is said loudly.
    ///
    /// # Errors
    /// When it does not start, and where `CI` is `true` and it is not installed.
    #[expect(clippy::disallowed_methods, reason = "whether everything must be there stands in the environment")]
    pub fn start() -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs() else {
            let missing = format!("PostgreSQL is missing (no {PROGRAMS}/*/bin/postgres): deploy/install installs it");
            ensure!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
            println!("SKIPPED: {missing}");
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let root = String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?.trim() == "0";
        let user = root.then(|| ["postgres", "nobody"].into_iter().find(|user| exists(user))).flatten();
        ensure!(!root || user.is_some(), "PostgreSQL does not run as root, and there is no other user");
        if let Some(user) = user {
            let status = Command::new("chown").arg(user).arg(directory.path()).status()?;
            ensure!(status.success(), "give {} to {user}", directory.path().display());
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self { programs, directory, port, user, process: None };
        let made = server
            .command("initdb")
            .arg("-D")
            .arg(server.data())
            .args(["-U", "vlinders", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .stdout(Stdio::null())
            .status()?;
        ensure!(made.success(), "initdb failed");
        server.resume()?;
        Ok(Some(server))
    }

    /// Where a database of it is found.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://vlinders@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn create(&self, database: &str) -> anyhow::Result<()> {
        self.tell(&format!("CREATE DATABASE {database}"))
    }

    /// Has the server do something.
    ///
    /// # Errors
    /// When it refuses.
    pub fn tell(&self, sql: &str) -> anyhow::Result<()> {
        let status = self.command("psql").args(["-q", "-d", &self.url("postgres"), "-c", sql]).status()?;
        ensure!(status.success(), "{sql}");
        Ok(())
    }

    /// Ends the server in the middle of what it does, as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("it runs")?;
        let told = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status()?;
        ensure!(told.success(), "kill -QUIT {}", process.id());
        process.wait()?;
        Ok(())
    }

    /// Starts it again with what is on disk.
    ///
    /// # Errors
    /// When it does not start.
    #[expect(clippy::disallowed_methods, reason = "a test waits with a deadline")]
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().append(true).create(true).open(self.log())?;
        let process = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .args(["-c", "max_connections=50", "-k"])
            .arg(self.directory.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.process = Some(process);
        let until = Instant::now() + START_WITHIN;
        while !self.is_ready()? {
            let ended = self.process.as_mut().context("it was started")?.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                bail!("PostgreSQL did not start:\n{}", std::fs::read_to_string(self.log()).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn is_ready(&self) -> anyhow::Result<bool> {
        let port = self.port.to_string();
        Ok(self.command("pg_isready").args(["-q", "-h", "127.0.0.1", "-t", "1", "-p", &port]).status()?.success())
    }

    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--clear-groups", "--regid"]).arg(group(user)).arg(program);
                command
            }
        };
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.crash();
    }
}

/// The newest version's programs.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(PROGRAMS).ok()?;
    let programs = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    programs.filter(|programs| programs.join("postgres").exists() && programs.join("psql").exists()).max()
}

fn exists(user: &str) -> bool {
    Command::new("id").arg(user).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|done| done.success())
}

/// The user's own group.
fn group(user: &str) -> String {
    let output = Command::new("id").args(["-gn", user]).output();
    output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(String::new, |g| g.trim().to_owned())
}
