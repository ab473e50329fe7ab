//! The NATS configuration that is deployed (`deploy/nats`), with a test's ports and paths in it, and keys of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::repository;

/// A directory with the server's configuration and the seeds of its users.
pub struct Deployed {
    /// Where the configuration lies.
    pub directory: PathBuf,
    keys: PathBuf,
}

/// What stands in the files for a place of the machine that runs them.
pub const PLACES: [&str; 4] = ["0.0.0.0:4222", "0.0.0.0:8222", "/data/jetstream", "/etc/nats/tls"];

impl Deployed {
    /// Copies the configuration to `directory`, with these instead of [`PLACES`], and makes keys. The roles' account gets
    /// one more user, the test itself, who may do anything there.
    ///
    /// # Errors
    /// When openssl is missing, or the files do not say what is replaced.
    pub fn lay_out(directory: &Path, places: [&str; 4]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let keys = directory.join("keys");
        let made = Command::new("python3").arg(repository().join("deploy/nats/make-keys")).arg(&keys).output()?;
        ensure!(made.status.success(), "make-keys: {}", String::from_utf8_lossy(&made.stderr));
        for entry in std::fs::read_dir(repository().join("deploy/nats"))? {
            let file = entry?.path();
            if file.extension().is_some_and(|e| e == "conf") {
                let mut text = std::fs::read_to_string(&file)?;
                for (there, here) in PLACES.iter().zip(places) {
                    text = text.replace(there, here);
                }
                std::fs::write(directory.join(file.file_name().context("a file has a name")?), text)?;
            }
        }
        std::fs::copy(keys.join("keys.conf"), directory.join("keys.conf"))?;
        let accounts = directory.join("accounts.conf");
        let text = std::fs::read_to_string(&accounts)?;
        ensure!(text.contains("    users: [\n"), "accounts.conf has users");
        std::fs::write(
            accounts,
            text.replacen("    users: [\n", "    users: [\n      {user: test, password: test}\n", 1),
        )?;
        Ok(Self { directory: directory.to_owned(), keys })
    }

    /// From its next start on the server keeps its files there, so many bytes of them; none for its own default.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn keep_files(&self, store: &Path, bytes_max: Option<u64>) -> anyhow::Result<()> {
        let file = self.directory.join("server.conf");
        let text = std::fs::read_to_string(&file)?;
        let set = |line: &&str| ["store_dir:", "max_file_store:"].iter().any(|key| line.trim_start().starts_with(key));
        let rest: Vec<&str> = text.lines().filter(|line| !set(line)).collect();
        let limit = bytes_max.map(|bytes| format!("\n  max_file_store: {bytes}")).unwrap_or_default();
        let with = format!("jetstream {{\n  store_dir: {store:?}{limit}");
        ensure!(text.contains("jetstream {"), "server.conf configures JetStream");
        Ok(std::fs::write(file, rest.join("\n").replacen("jetstream {", &with, 1))?)
    }

    /// The file with the seed of a user.
    #[must_use]
    pub fn seed(&self, user: &str) -> PathBuf {
        self.keys.join(format!("{user}.nk"))
    }

    /// What a role's process is told about NATS, as variables.
    #[must_use]
    pub fn environment(&self, role: &str) -> Vec<(&'static str, String)> {
        vec![
            ("VLINDERS_NATS__NKEY_FILE", self.seed(role).display().to_string()),
            ("VLINDERS_NATS__INBOX_PREFIX", format!("_INBOX_{role}")),
            ("VLINDERS_NATS__PROVISION", (role == "orchestrator").to_string()),
        ]
    }
}
