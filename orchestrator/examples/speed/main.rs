//! Measures the orchestrator beside what it stands on: agents from submission to end with stub workers, the bus alone,
//! the bytes an execution leaves on disk, and the pure fold. Each prints one line of JSON. `deploy/bench/run
//! orchestrator` starts the servers, runs these and the peers in turn, and compares.
//!
//!     speed serve URL                               the orchestrator role alone, until it is killed
//!     speed agents URL CONCURRENT SECONDS           agents of five steps through it
//!     speed publish URL IN_FLIGHT PARTITIONS SECONDS    facts alone, without an orchestrator: the ceiling
//!     speed growth URL EXECUTIONS STORE             executions of 100 model calls; STORE is the server's directory
//!     speed fold                                    events folded in a second, on one core

mod agents;
mod fold;
mod growth;
mod publish;
mod stub;

use std::time::Duration;

use anyhow::{Context, bail};
use runtime::bus::{self, Bus};
use runtime::{Runtime, clock};
use schemas::ExecutionId;
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = match arguments[..] {
        ["serve", url] => return serve(url).await,
        ["agents", url, concurrent, seconds] => {
            agents::run(connect(url, "bench").await?, number(concurrent)?, seconds_of(seconds)?).await?
        }
        ["publish", url, in_flight, partitions, seconds] => {
            let runtime = connect(url, "bench").await?;
            publish::run(&runtime, number(in_flight)?, number(partitions)? as u8, seconds_of(seconds)?).await?
        }
        ["growth", url, executions, store] => {
            growth::run(connect(url, "bench").await?, store.as_ref(), number(executions)?).await?
        }
        ["fold"] => fold::run(),
        _ => {
            bail!(
                "usage: serve URL | agents URL N SECONDS | publish URL N PARTITIONS SECONDS | growth URL N DIR | fold"
            )
        }
    };
    println!("{report}");
    Ok(())
}

async fn serve(url: &str) -> anyhow::Result<()> {
    orchestrator::serve(orchestrator::Config::default(), connect(url, "orchestrator").await?).await?;
    println!("ready");
    std::future::pending().await
}

async fn connect(url: &str, role: &str) -> anyhow::Result<Runtime> {
    let bus = Bus::connect(&bus::Config { url: url.to_owned(), ..bus::Config::default() }, role).await?;
    bus::provision(&bus).await?;
    Ok(Runtime::new(bus))
}

fn number(text: &str) -> anyhow::Result<usize> {
    text.parse().with_context(|| format!("{text} is no number"))
}

fn seconds_of(text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::from_secs_f64(text.parse().with_context(|| format!("{text} is no number of seconds"))?))
}

/// A new execution of one of the first `partition + 1` partitions.
fn execution_of(partition: u8) -> ExecutionId {
    loop {
        let exec = clock::execution_id();
        if exec.partition().number() <= partition {
            return exec;
        }
    }
}

/// Percentiles by nearest rank, milliseconds.
fn spread(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let at = |percent: usize| match times.len() {
        0 => Value::Null,
        n => json!(times[(n * percent).div_ceil(100).max(1) - 1].as_secs_f64() * 1e3),
    };
    json!({"p50": at(50), "p99": at(99)})
}
