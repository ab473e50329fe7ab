//! A nats-server of the test's own, on a free port, with everything on disk in a temporary directory.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use runtime::{Bus, bus};

/// Ends with the value.
pub(crate) struct Server {
    process: Child,
    _data: tempfile::TempDir,
}

impl Server {
    /// Sends it a signal by name.
    #[allow(dead_code, reason = "only some tests want it")]
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.process.id())]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server and a bus on it; none where the program is not installed.
pub(crate) async fn start() -> Option<(Server, Bus)> {
    let data = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new("nats-server")
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(data.path())
        .stderr(Stdio::null())
        .spawn();
    let Ok(process) = process else {
        println!("nats-server is not in the path; skipped");
        return None;
    };
    let server = Server { process, _data: data };
    let config = bus::Config { url: format!("nats://127.0.0.1:{port}"), ..bus::Config::default() };
    let bus = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Ok(bus) = Bus::connect(&config, "test").await {
                return bus;
            }
        }
    })
    .await
    .expect("the server comes up");
    bus::provision(&bus).await.unwrap();
    Some((server, bus))
}
