//! How long `search_code` takes through a box of one tier, with a box that waits and without, beside `rg` in the same
//! directory, in turn; and whether both find the same lines and columns. Prints one line of JSON, in milliseconds.
//!
//!     cargo run -p tool-worker --example search -- bubblewrap RUNNER WORKSPACE ROUNDS QUERY [regex]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use runtime::clock;
use serde_json::{Value, json};
use tool_worker::sandbox::Choice;
use tool_worker::{Analyst, Call, Config, Executor, Failure, Library};

/// Matches of one page when all are compared.
const PAGE: u64 = 1_000;
/// How long a box may take to be prepared on a busy machine.
const PREPARED_WITHIN: Duration = Duration::from_secs(60);
/// A box counts as waiting from its start on. This long it has to get up, while the one before it is being removed.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

/// Columns by file and line.
type Matches = BTreeMap<(String, u64), BTreeSet<u64>>;

#[tokio::main]
async fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tier, runner, workspace, rounds, query, rest @ ..] = arguments.as_slice() else {
        return Err("usage: search docker|bubblewrap RUNNER WORKSPACE ROUNDS QUERY [regex]".to_owned());
    };
    let tier = if tier == "docker" { Choice::Docker } else { Choice::Bubblewrap };
    let rounds: usize = rounds.parse().map_err(|_| "ROUNDS is a number".to_owned())?;
    let search = Search { workspace: workspace.into(), query: query.clone(), regex: rest.iter().any(|a| a == "regex") };
    let config = Config {
        workspaces: vec![search.workspace.clone()],
        sandbox: tier,
        warm_boxes: 1,
        runner: Some(runner.into()),
        runner_arguments: vec![],
        ..Config::default()
    };
    let warm = start(&config).await?;
    let cold = start(&Config { warm_boxes: 0, ..config }).await?;
    let (mut from_warm, mut from_cold, mut of_rg) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        of_rg.push(search.rg(&[])?.0);
        from_cold.push(search.ours(&cold, json!({})).await?.0);
        // One call makes the pool prepare a box; the next one, when that waits, is measured.
        prepared(&warm, &search).await?;
        from_warm.push(search.ours(&warm, json!({})).await?.0);
    }
    let (ours, theirs) = (search.all_of_ours(&cold).await?, search.all_of_rg()?);
    for executor in [warm, cold] {
        executor.sandbox()?.close().await;
    }
    let result = json!({
        "matches": ours.len(), "rg_matches": theirs.len(), "equal": ours == theirs,
        "rg_ms": median(of_rg), "warm_ms": median(from_warm), "cold_ms": median(from_cold),
    });
    println!("{result}");
    Ok(())
}

/// What is searched for, and where.
struct Search {
    workspace: PathBuf,
    query: String,
    regex: bool,
}

impl Search {
    async fn ours(&self, executor: &Executor, more: Value) -> Result<(Duration, String), String> {
        let mut arguments = json!({"query": self.query, "regex": self.regex});
        arguments.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let call = Call { tool: "search_code".to_owned(), arguments: arguments.to_string(), ..Call::default() };
        let outcome = executor.execute(&call).await;
        let text = outcome.result.map_err(|failure| failure.detail)?;
        Ok((outcome.duration, outcome.full.unwrap_or(text)))
    }

    /// `rg` with what our tool does by itself, and more.
    fn rg(&self, more: &[&str]) -> Result<(Duration, Vec<u8>), String> {
        let mut command = Command::new("rg");
        command.args(["--no-config", "--no-require-git", "--no-ignore-global", "--no-mmap", "--smart-case"]);
        command.args(["--line-number", "--no-heading", "--color=never"]).args(more);
        if !self.regex {
            command.arg("--fixed-strings");
        }
        command.arg("--").arg(&self.query).arg("./").current_dir(&self.workspace).stdin(Stdio::null());
        let since = clock::instant();
        let output = command.output().map_err(|error| format!("rg: {error}"))?;
        Ok((since.elapsed(), output.stdout))
    }

    /// All pages, one after the other.
    async fn all_of_ours(&self, executor: &Executor) -> Result<Matches, String> {
        let mut matches = Matches::new();
        let mut offset = 0;
        loop {
            let (_, text) = self.ours(executor, json!({"columns": true, "max": PAGE, "offset": offset})).await?;
            let mut next = None;
            for line in text.lines().skip(1) {
                if let Some(more) = line.strip_prefix("... (") {
                    next = more.trim_end_matches(')').rsplit(' ').next().and_then(|offset| offset.parse().ok());
                } else if let Some((place, _)) = line.split_once(": ") {
                    let mut parts = place.rsplitn(3, ':');
                    let (columns, number, path) = (parts.next(), parts.next(), parts.next());
                    let wrong = || format!("no match: {line}");
                    let number = number.and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
                    let columns = columns.unwrap_or_default().split(',').filter_map(|column| column.parse().ok());
                    matches.insert((path.ok_or_else(wrong)?.to_owned(), number), columns.collect());
                }
            }
            match next {
                Some(next) if next > offset => offset = next,
                _ => return Ok(matches),
            }
        }
    }

    fn all_of_rg(&self) -> Result<Matches, String> {
        let (_, output) = self.rg(&["--vimgrep", "--null"])?;
        let mut matches = Matches::new();
        for line in String::from_utf8_lossy(&output).lines() {
            // What is said of data has no place.
            let Some((path, rest)) = line.split_once('\0') else { continue };
            let mut numbers = rest.splitn(3, ':').map(str::parse::<u64>);
            if let (Some(Ok(number)), Some(Ok(column))) = (numbers.next(), numbers.next()) {
                let path = path.strip_prefix("./").unwrap_or(path).to_owned();
                matches.entry((path, number)).or_default().insert(column);
            }
        }
        Ok(matches)
    }
}

async fn start(config: &Config) -> Result<Executor, String> {
    let analyst: Analyst = Arc::new(|_, _| Box::pin(async { Err(Failure::internal("not asked")) }));
    let library: Library = Arc::new(|_| Box::pin(async { Err(Failure::internal("not asked")) }));
    let executor = Executor::start(config, analyst, library).await.map_err(|error| error.to_string())?;
    executor.sandbox()?;
    Ok(executor)
}

/// Waits until a box waits, which the first call causes.
async fn prepared(executor: &Executor, search: &Search) -> Result<(), String> {
    let sandbox = executor.sandbox()?;
    if sandbox.waiting() == 0 {
        search.ours(executor, json!({"path": first_file(&search.workspace)?})).await?;
    }
    let waiting = async {
        while sandbox.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PREPARED_WITHIN, waiting).await.map_err(|_| "no box was prepared".to_owned())?;
    tokio::time::sleep(SETTLED_AFTER).await;
    Ok(())
}

/// Something small to search.
fn first_file(directory: &Path) -> Result<String, String> {
    let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.min().ok_or_else(|| "the workspace is empty".to_owned())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
}
