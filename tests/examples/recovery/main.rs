//! Measures what happens when something dies or is called off, with real processes and a real nats-server: an
//! orchestrator killed with many executions open, a worker killed in the middle of an answer, a tree of agents
//! cancelled, a long log proven and then found to be damaged. Each prints one line of JSON. `deploy/bench/run recovery`
//! runs them all and compares with the goals.
//!
//!     recovery restart OPEN      kill -9 of the only orchestrator; from the start of the next one
//!     recovery standby OPEN      kill -9 of the owner while another stands by; from the kill
//!     recovery worker ROUNDS     kill -9 of an inference worker in mid-answer; until its loss is in the log
//!     recovery cancel TREES      a planner with three agents at work; until each of the three is told
//!     recovery audit EVENTS      a log of so many messages proven, then with one byte changed on disk

mod audit;
mod cancel;
mod orchestrator;
mod played;
mod worker;

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, count] = &arguments[..] else { bail!("usage: recovery restart|standby|worker|cancel|audit N") };
    let count: usize = count.parse().with_context(|| format!("{count} is no number"))?;
    let report = match what.as_str() {
        "restart" => orchestrator::killed(count, false).await?,
        "standby" => orchestrator::killed(count, true).await?,
        "worker" => worker::killed(count).await?,
        "cancel" => cancel::told(count).await?,
        "audit" => audit::proven(count).await?,
        other => bail!("{other} is not measured here: restart, standby, worker, cancel or audit"),
    };
    println!("{report}");
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Percentiles by nearest rank, milliseconds.
fn spread(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).map(|time| ms(*time));
    json!({"p50": at(50), "p99": at(99), "max": at(100)})
}
