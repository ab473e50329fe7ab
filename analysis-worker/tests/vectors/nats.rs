//! A nats-server of our own.

use std::path::PathBuf;
use std::process::Stdio;

use runtime::bus::{self, Bus};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::PATIENCE;

/// A server that ends with the test.
pub(crate) struct Nats {
    pub(crate) url: String,
    _process: Child,
    _data: TempDir,
}

impl Nats {
    /// None, which is said, where there is no `nats-server`.
    pub(crate) async fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!("SKIPPED: there is no nats-server on the path or in ~/.cache/vlinders/bin");
            return None;
        };
        let data = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let config = data.path().join("nats.conf");
        let text =
            format!("listen: \"127.0.0.1:{port}\"\nmax_payload: 9MB\njetstream {{ store_dir: {:?} }}\n", data.path());
        std::fs::write(&config, text).expect("written");
        let process = Command::new(program).arg("-c").arg(config).stderr(Stdio::null()).kill_on_drop(true).spawn();
        let process = process.expect("it starts");
        let open = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, open).await.expect("it opens its port");
        Some(Self { url: format!("nats://127.0.0.1:{port}"), _process: process, _data: data })
    }

    pub(crate) async fn bus(&self) -> Bus {
        bus(&self.url).await
    }
}

/// A worker's connection.
pub(crate) async fn bus(url: &str) -> Bus {
    let config = bus::Config { url: url.to_owned(), ..bus::Config::default() };
    Bus::connect(&config, "analysis").await.expect("connected")
}

#[expect(clippy::disallowed_methods, reason = "the program's place stands in the environment")]
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let cache = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/vlinders/bin"));
    std::env::split_paths(&path).chain(cache).map(|directory| directory.join("nats-server")).find(|file| file.is_file())
}
