//! `vlinders executions`: lists them from the tables, or from the log where there are none, and shows one as it stands.

use std::process::ExitCode;
use std::time::Duration;

use runtime::bus::{self, Bus, Kind, Stored};
use schemas::executions::{ExecutionRow, Executions as Listed, ListExecutions};
use schemas::rpc::Reply;
use schemas::summary::Summary;
use schemas::{ExecutionId, Fact, Record, subject};
use serde_json::json;

use crate::cli::{Executions, ExecutionsWhat, List};
use crate::replay;

/// How long the tables may take. Who may not ask for them, as an auditor on a server that keeps roles apart, is not told so.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(options: Executions) -> anyhow::Result<ExitCode> {
    match options.what {
        Some(ExecutionsWhat::Ls(list)) => lines(None, &list).await,
        Some(ExecutionsWhat::Show(one)) => {
            let messages = replay::read(&replay::connect(&one.target).await?, one.execution).await?;
            replay::show(one.execution, &messages, messages.len() - 1, one.json);
            Ok(ExitCode::SUCCESS)
        }
        None => lines(options.execution, &options.list).await,
    }
}

/// A line for each: the newest, or the one that was named.
async fn lines(execution: Option<ExecutionId>, options: &List) -> anyhow::Result<ExitCode> {
    let bus = replay::connect(&options.target).await?;
    let rows = match execution {
        Some(exec) => Vec::from_iter(fold(&replay::read(&bus, exec).await?)),
        None => match from_tables(&bus, options).await? {
            Some(rows) => rows,
            None => from_log(&bus, options).await?,
        },
    };
    for row in rows {
        let status = serde_json::to_value(row.status)?;
        let status = status.as_str().unwrap_or_default();
        if options.json {
            let line = json!({
                "execution_id": row.execution_id, "kind": row.kind, "agent_type": row.agent_type, "status": status,
                "user_id": row.user_id, "model": row.model, "title": row.title, "events": row.messages,
            });
            println!("{line}");
        } else {
            let (exec, agent, messages) = (row.execution_id, row.agent_type, row.messages);
            println!("{exec}  {status:<16}  {agent:<10}  {messages:>4} messages  {}", row.title);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tables' answer, all its pages; none where there are no tables, or they cannot be asked.
async fn from_tables(bus: &Bus, options: &List) -> anyhow::Result<Option<Vec<ExecutionRow>>> {
    let mut question = ListExecutions {
        statuses: options.status.clone(),
        agent_type: options.agent_type.clone(),
        user_id: options.user.clone(),
        limit: options.limit,
        ..ListExecutions::default()
    };
    let mut rows: Vec<ExecutionRow> = Vec::new();
    loop {
        match bus.ask::<_, Reply<Listed>>(subject::RPC_EXECUTIONS, &question, TIMEOUT).await {
            Ok(Reply::Ok(listed)) => {
                if let Some(rebuilding) = listed.rebuilding.filter(|_| question.before.is_none()) {
                    let (done, of) = (rebuilding.done, rebuilding.of);
                    eprintln!("the tables are being built, {done} of {of} messages so far: executions are missing");
                }
                rows.extend(listed.executions);
                let missing = (options.limit as usize).saturating_sub(rows.len());
                match listed.next.filter(|_| missing > 0) {
                    Some(next) => (question.before, question.limit) = (Some(next), u32::try_from(missing)?),
                    None => return Ok(Some(rows)),
                }
            }
            Ok(Reply::Err(refusal)) => {
                eprintln!("the tables cannot be asked ({}): reading the log", refusal.detail);
                return Ok(None);
            }
            // Nobody keeps tables.
            Err(bus::Error::NoResponders(_)) => return Ok(None),
            Err(bus::Error::Timeout(_)) if question.before.is_none() => {
                eprintln!("the tables do not answer within {TIMEOUT:?}: reading the log");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn from_log(bus: &Bus, options: &List) -> anyhow::Result<Vec<ExecutionRow>> {
    let wanted = |row: &ExecutionRow| {
        (options.status.is_empty() || options.status.contains(&row.status))
            && options.agent_type.as_ref().is_none_or(|name| *name == row.agent_type)
            && options.user.as_ref().is_none_or(|name| Some(name) == row.user_id.as_ref())
    };
    let filtered = !options.status.is_empty() || options.agent_type.is_some() || options.user.is_some();
    let limit = options.limit as usize;
    let mut rows = Vec::new();
    for exec in bus.newest_executions(if filtered { usize::MAX } else { limit }).await? {
        rows.extend(fold(&replay::read(bus, exec).await?).filter(wanted));
        if rows.len() == limit {
            break;
        }
    }
    Ok(rows)
}

/// An execution's row; none when its log holds no request.
fn fold(messages: &[Stored]) -> Option<ExecutionRow> {
    let mut summary: Option<Summary> = None;
    for message in messages {
        let (fact, made) = match message.kind {
            Kind::Fact => (Fact::read(&message.payload).ok(), None),
            Kind::Decision => (None, Record::read(&message.payload).ok()),
        };
        match (&mut summary, fact, made) {
            (Some(summary), Some(fact), _) => drop(summary.fact(&fact)),
            (Some(summary), _, Some(made)) => drop(summary.decision(&made)),
            (None, Some(fact), _) => summary = Summary::begin(&fact),
            // What cannot be read led to nothing.
            _ => {}
        }
    }
    summary.map(|summary| summary.row)
}
