//! All vector stores keep the same promises; and what each adds: files survive `kill -9`, workers of
//! one machine find a new keeper, and a server may be away for a while.

mod conformance;
mod local;
mod nats;
mod peer;
mod server;
mod workers;

use std::time::Duration;

/// Nothing a test waits for takes longer, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a test of this program run in a process of its own, in `directory`, and be killed. Such a test is ignored, and says
/// what it did in lines that begin with `did `.
fn child(test: &str, directory: &std::path::Path) -> Child {
    let mut process = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", test, "--nocapture", "--test-threads", "1"])
        .current_dir(directory)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let stdout = process.stdout.take().expect("piped");
    Child { process, lines: tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout)) }
}

struct Child {
    process: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Child {
    /// The next thing it did.
    async fn did(&mut self) -> String {
        let next = async {
            loop {
                let line = self.lines.next_line().await.expect("readable").expect("it goes on until it is killed");
                // The name of the test may stand before the first one.
                if let Some((_, did)) = line.split_once("did ") {
                    return did.to_owned();
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("it does something")
    }

    /// `kill -9`, and what it had done that was not read yet.
    async fn killed(mut self) -> Vec<String> {
        self.process.kill().await.expect("killed");
        let mut did = Vec::new();
        while let Ok(Some(line)) = self.lines.next_line().await {
            did.extend(line.strip_prefix("did ").map(str::to_owned));
        }
        did
    }
}
