//! `vlinders projection`: how the tables of executions are, and the order to build them anew.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use runtime::bus;
use schemas::executions::{AskProjection as Question, Projection as Told, ProjectionState};
use schemas::rpc::Reply;
use schemas::subject;

use crate::cli::{Projection, ProjectionWhat};
use crate::replay;

/// How long an answer may take; emptying large tables takes a while.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Asks an orchestrator; exit code 1 when the tables cannot be used.
pub(crate) async fn run(options: Projection) -> anyhow::Result<ExitCode> {
    let (question, options) = match options.what {
        ProjectionWhat::Status(options) => (Question::Status, options),
        ProjectionWhat::Rebuild(options) => (Question::Rebuild, options),
    };
    let bus = replay::connect(&options.target).await?;
    let told = match bus.ask::<_, Reply<Told>>(subject::RPC_PROJECTION, &question, TIMEOUT).await {
        Ok(Reply::Ok(told)) => told,
        Ok(Reply::Err(refusal)) => bail!("{}", refusal.detail),
        Err(bus::Error::NoResponders(_)) => {
            bail!("no orchestrator keeps tables: start one, with `enabled` in its section [projection]")
        }
        Err(error) => return Err(error.into()),
    };
    if options.json {
        println!("{}", serde_json::to_string(&told)?);
    } else {
        tell(&told);
    }
    Ok(ExitCode::from(u8::from(told.state == ProjectionState::Away)))
}

fn tell(told: &Told) {
    println!("  database  {}", told.database);
    match (told.state, told.rebuilding) {
        (ProjectionState::Away, _) => println!("  state     away"),
        (_, Some(rebuilding)) => println!("  state     being built: {} of {} messages", rebuilding.done, rebuilding.of),
        _ => println!("  state     following the log"),
    }
    if let Some(trouble) = &told.trouble {
        println!("  trouble   {trouble}");
    }
    if let Some(lag) = told.lag_messages {
        println!("  behind    {lag} messages");
    }
}
