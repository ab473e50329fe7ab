//! One suite for both databases: the same promises, kept in SQLite and in PostgreSQL.

#[path = "../../../../tests/src/postgres.rs"]
#[expect(unreachable_pub, reason = "it is public where it belongs")]
mod postgres;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use runtime::bus::{Kind, Stored};
use runtime::config::Secret;
use schemas::api::Status;
use schemas::decision::{Draft, ExecutionStarted, FactsDigest};
use schemas::executions::{ListExecutions, ListToolCalls};
use schemas::fact::{ExecutionSubmitted, Kind as RequestKind, Limits};
use schemas::wire::encode;
use schemas::{Event, Fact, FactBody, Message, Record, Role};
use sqlx::Column;

use super::*;
use crate::history::History;
use crate::simulate;

/// Hands out empty databases.
struct Databases {
    directory: tempfile::TempDir,
    postgres: Option<postgres::Postgres>,
    made: u32,
}

impl Databases {
    fn empty(&mut self) -> anyhow::Result<Target> {
        self.made += 1;
        let name = format!("projection_{}", self.made);
        match &self.postgres {
            None => Ok(Target::Sqlite(self.directory.path().join(format!("{name} ä.db")))),
            Some(server) => {
                server.create(&name)?;
                Ok(Target::Postgres(Secret::new(server.url(&name))))
            }
        }
    }

    async fn store(&mut self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.empty()?, "log-1", false).await?)
    }
}

#[tokio::test]
async fn sqlite_keeps_the_promises() -> anyhow::Result<()> {
    suite(Databases { directory: tempfile::tempdir()?, postgres: None, made: 0 }).await
}

#[tokio::test]
async fn postgres_keeps_the_promises() -> anyhow::Result<()> {
    let Some(server) = postgres::Postgres::start()? else { return Ok(()) };
    suite(Databases { directory: tempfile::tempdir()?, postgres: Some(server), made: 0 }).await
}

async fn suite(mut databases: Databases) -> anyhow::Result<()> {
    the_tables_say_what_the_rules_say(&mut databases).await?;
    however_the_log_is_cut_the_rows_are_the_same(&mut databases).await?;
    whatever_is_dropped_in_the_middle_counts_once_or_not_at_all(&mut databases).await?;
    of_two_who_write_the_same_one_does(&mut databases).await?;
    any_text_can_be_written(&mut databases).await?;
    lists_are_filtered_and_paged(&mut databases).await?;
    tables_of_another_log_are_refused_until_somebody_says_so(&mut databases).await
}

/// A log as a system under faults would have written it.
fn log(seed: u64) -> BTreeMap<Partition, Vec<Placed>> {
    let placed = |messages: Vec<Stored>| messages.into_iter().map(|stored| (stored.sequence, Some(stored))).collect();
    simulate::log(seed).into_iter().map(|(partition, messages)| (partition, placed(messages))).collect()
}

/// Writes a whole log in runs of so many messages.
async fn write(store: &Store, log: &BTreeMap<Partition, Vec<Placed>>, run: usize) -> anyhow::Result<()> {
    for (partition, messages) in log {
        let mut position = 0;
        for run in messages.chunks(run) {
            assert!(store.apply(*partition, position, run).await?, "nobody else writes");
            position = run.last().expect("a run has messages").0;
        }
    }
    Ok(())
}

/// Every row of every table, as text.
async fn rows(store: &Store) -> anyhow::Result<Vec<String>> {
    let tables = [
        "SELECT * FROM agent_executions ORDER BY id",
        "SELECT * FROM tool_calls ORDER BY id",
        "SELECT * FROM inference_performance ORDER BY id",
        "SELECT log_partition, sequence FROM projection_positions ORDER BY log_partition",
    ];
    let mut rows = Vec::new();
    for table in tables {
        for row in sqlx::query(table).fetch_all(&store.pool).await? {
            let value = |n: usize| {
                let text = row.try_get::<Option<String>, _>(n).map(|text| format!("{text:?}"));
                let whole = || row.try_get::<Option<i64>, _>(n).map(|number| format!("{number:?}"));
                let real = || row.try_get::<Option<f64>, _>(n).map(|number| format!("{number:?}"));
                text.or_else(|_| whole()).or_else(|_| real()).expect("a text or a number")
            };
            let columns = row.columns().iter().map(|column| format!("{}={}", column.name(), value(column.ordinal())));
            rows.push(columns.collect::<Vec<_>>().join(" "));
        }
    }
    Ok(rows)
}

async fn the_tables_say_what_the_rules_say(databases: &mut Databases) -> anyhow::Result<()> {
    let store = databases.store().await?;
    let log = log(3);
    write(&store, &log, 50).await?;
    let mut histories: BTreeMap<ExecutionId, History> = BTreeMap::new();
    for stored in log.values().flatten().filter_map(|(_, stored)| stored.as_ref()) {
        let history = histories.entry(stored.exec).or_insert_with(|| History::new(stored.exec));
        history.fold(stored).expect("every message of the simulation reads");
    }
    histories.retain(|_, history| history.execution.request.is_some());
    let listed = store.executions(&ListExecutions { limit: 500, ..Default::default() }).await?;
    assert_eq!(listed.executions.len(), histories.len());
    assert!(listed.executions.len() > 5 && listed.next.is_none(), "{listed:?}");
    for row in &listed.executions {
        let execution = &histories[&row.execution_id].execution;
        let outcome = execution.end.as_ref().map(|end| name(&end.outcome));
        assert_eq!(outcome.as_deref(), Some(name(&row.status).as_str()), "{row:?}");
        assert_eq!(row.error.is_none(), row.status == Status::Completed, "{row:?}");
    }
    let calls: u32 = listed.executions.iter().map(|row| row.tool_calls).sum();
    let mut told = 0;
    for row in &listed.executions {
        let of = store.tool_calls(ListToolCalls { execution_id: row.execution_id, from: 0 }).await?;
        assert!(of.is_known);
        assert!(of.tool_calls.iter().map(|call| call.position).eq(0..row.tool_calls), "{of:?}");
        told += of.tool_calls.len();
    }
    assert_eq!(told, calls as usize);
    let performance = store.performance(0).await?;
    let (models, tools) = (&performance.models, &performance.tools);
    assert!(!models.is_empty() && models.iter().all(|of| of.inferences > of.errors), "{models:?}");
    assert!(models.iter().all(|of| of.ttft_ms.is_some_and(|times| times.p50 <= times.p95)), "{models:?}");
    assert!(!tools.is_empty() && tools.iter().all(|of| of.calls >= of.errors), "{tools:?}");
    let counted: u64 = performance.executions.iter().map(|of| of.count).sum();
    assert_eq!(counted as usize, listed.executions.len());
    assert_eq!(store.performance(i64::MAX).await?, Default::default(), "nothing has happened since");
    Ok(())
}

async fn however_the_log_is_cut_the_rows_are_the_same(databases: &mut Databases) -> anyhow::Result<()> {
    let log = log(4);
    let (single, whole) = (databases.store().await?, databases.store().await?);
    write(&single, &log, 1).await?;
    write(&whole, &log, usize::MAX).await?;
    let wanted = rows(&whole).await?;
    assert!(wanted.len() > 30);
    assert_eq!(rows(&single).await?, wanted);
    // Built anew, which says how far it is.
    let last: BTreeMap<Partition, u64> = log.iter().map(|(p, messages)| (*p, messages.len() as u64)).collect();
    whole.clear(&last).await?;
    let listed = whole.executions(&ListExecutions { limit: 10, ..Default::default() }).await?;
    let of = last.values().sum();
    assert_eq!((listed.executions.len(), listed.rebuilding), (0, Some(Rebuilding { done: 0, of })));
    write(&whole, &log, 7).await?;
    assert_eq!(rows(&whole).await?, wanted);
    assert_eq!(rebuilding(&whole.positions().await?), None);
    Ok(())
}

/// Drops a future at its `n`th pause, as the death of a process would; returns whether it had ended before.
async fn dropped_at<F: Future>(future: F, n: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut pauses = 0;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if pauses == n => Poll::Ready(None),
        Poll::Pending => {
            pauses += 1;
            Poll::Pending
        }
    })
    .await
}

async fn whatever_is_dropped_in_the_middle_counts_once_or_not_at_all(databases: &mut Databases) -> anyhow::Result<()> {
    let log = log(5);
    let (disturbed, quiet) = (databases.store().await?, databases.store().await?);
    write(&quiet, &log, 40).await?;
    let (mut dropped, mut kept) = (0, 0);
    for (partition, messages) in &log {
        for (moment, run) in messages.chunks(4).enumerate() {
            let expected = run[0].0 - 1;
            // Each run dies at every moment it has, until it comes through.
            for n in 0.. {
                match dropped_at(disturbed.apply(*partition, expected, run), n + moment % 2).await {
                    Some(done) => {
                        kept += u32::from(done?);
                        break;
                    }
                    None => dropped += 1,
                }
                let position = disturbed.position(*partition).await?;
                assert!(position == expected || position == run[run.len() - 1].0, "half a run: {position}");
            }
        }
    }
    assert!(dropped > 50, "it was dropped {dropped} times");
    println!("{dropped} dropped, {kept} came through at the end");
    assert_eq!(rows(&disturbed).await?, rows(&quiet).await?);
    Ok(())
}

async fn of_two_who_write_the_same_one_does(databases: &mut Databases) -> anyhow::Result<()> {
    let target = databases.empty()?;
    let (one, other) = (Store::open(&target, "log-1", false).await?, Store::open(&target, "log-1", false).await?);
    assert_eq!(one.id, other.id, "they are the same tables");
    let quiet = databases.store().await?;
    let log = log(6);
    write(&quiet, &log, 10).await?;
    for (partition, messages) in &log {
        let mut position = 0;
        for run in messages.chunks(10) {
            let (first, second) =
                tokio::join!(one.apply(*partition, position, run), other.apply(*partition, position, run));
            assert_ne!(first?, second?, "exactly one");
            position = run[run.len() - 1].0;
            assert!(!one.apply(*partition, position - 1, run).await?, "nor does it count again");
        }
    }
    assert_eq!(rows(&one).await?, rows(&quiet).await?);
    Ok(())
}

/// The fact of a request.
fn submitted(n: u64, kind: RequestKind, change: impl FnOnce(&mut ExecutionSubmitted)) -> Fact {
    let exec = format!("0192f0c1-7a3b-7c4d-8e5f-{n:012}").parse().expect("canonical id");
    let mut request = ExecutionSubmitted::new(kind, "chat", Limits { deadline: i64::MAX, ..Limits::default() });
    change(&mut request);
    Fact::new(exec, i64::try_from(n).expect("small") / 2, FactBody::ExecutionSubmitted(Box::new(request)))
}

async fn append(store: &Store, messages: Vec<(ExecutionId, Kind, Vec<u8>)>) -> anyhow::Result<()> {
    for (exec, kind, payload) in messages {
        let partition = exec.partition();
        let position = store.position(partition).await?;
        let sequence = position + 1;
        let stored = Stored { exec, sequence, stored_at: 0, kind, payload: payload.into() };
        assert!(store.apply(partition, position, &[(sequence, Some(stored))]).await?);
    }
    Ok(())
}

async fn any_text_can_be_written(databases: &mut Databases) -> anyhow::Result<()> {
    let store = databases.store().await?;
    let odd = "'; DROP TABLE tool_calls; -- \0 \u{1f98b} $1 %";
    let fact = submitted(2, RequestKind::Chat, |request| {
        request.user_id = Some(odd.to_owned());
        request.messages = vec![Message::text(Role::User, odd.repeat(10_000))];
    });
    append(&store, vec![(fact.exec, Kind::Fact, b"neither".to_vec()), (fact.exec, Kind::Fact, encode(&fact))]).await?;
    let listed = store.executions(&ListExecutions { limit: 9, ..Default::default() }).await?;
    assert_eq!(listed.executions.len(), 1, "and what cannot be read is passed over");
    assert_eq!(listed.executions[0].user_id.as_deref(), Some(odd.replace('\0', "\u{fffd}").as_str()));
    Ok(())
}

async fn lists_are_filtered_and_paged(databases: &mut Databases) -> anyhow::Result<()> {
    let store = databases.store().await?;
    let mut messages = Vec::new();
    for n in 0..20 {
        let fact = submitted(n, if n % 2 == 0 { RequestKind::Chat } else { RequestKind::Agent }, |request| {
            request.user_id = Some(format!("u{}", n % 3));
            request.workspace = (n % 5 == 0).then(|| "/w".to_owned());
            request.messages = vec![Message::text(Role::User, format!("Tell me of 100% {n}_x"))];
        });
        messages.push((fact.exec, Kind::Fact, encode(&fact)));
        if n < 4 {
            let facts = FactsDigest::default();
            let draft = Draft { exec: fact.exec, n: 0, at: 2, machine: 3, facts_upto: 1, facts: &facts, prev_hash: "" };
            let started = vec![Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() })];
            messages.push((fact.exec, Kind::Decision, encode(&Record::seal(&draft, started))));
        }
    }
    append(&store, messages).await?;
    let found = async |asked: ListExecutions| -> anyhow::Result<Vec<u64>> {
        let listed = store.executions(&ListExecutions { limit: 500, ..asked }).await?;
        let number = |id: ExecutionId| id.to_string()[24..].parse::<u64>();
        Ok(listed.executions.iter().map(|row| number(row.execution_id)).collect::<Result<_, _>>()?)
    };
    let all = || ListExecutions::default();
    let newest: Vec<u64> = (0..20).rev().collect();
    assert_eq!(found(all()).await?, newest);
    assert_eq!(found(ListExecutions { statuses: vec![Status::Running], ..all() }).await?, [3, 2, 1, 0]);
    let two = vec![Status::Running, Status::Paused];
    assert_eq!(found(ListExecutions { statuses: two, kind: Some(RequestKind::Chat), ..all() }).await?, [2, 0]);
    assert_eq!(
        found(ListExecutions { user_id: Some("u1".into()), workspace: Some("/w".into()), ..all() }).await?,
        [10]
    );
    assert_eq!(found(ListExecutions { agent_type: Some("coder".into()), ..all() }).await?, [0_u64; 0]);
    let text = |text: &str| ListExecutions { text: Some(text.to_owned()), ..all() };
    assert_eq!(found(text("TELL ME OF 100% 7_X")).await?, [7], "whatever the case");
    assert_eq!(found(text("7%x")).await?, [0_u64; 0], "no pattern");
    assert_eq!(found(text("0192f0c1-7a3b-7c4d-8e5f-00000000001")).await?.len(), 10, "the beginning of an id");
    // Two have the same time: pages neither repeat nor leave out one.
    let (mut pages, mut before) = (Vec::new(), None);
    loop {
        let page = store.executions(&ListExecutions { limit: 3, before, ..all() }).await?;
        pages
            .extend(page.executions.iter().map(|row| row.execution_id.to_string()[24..].parse::<u64>().expect("ours")));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(pages, newest);
    Ok(())
}

async fn tables_of_another_log_are_refused_until_somebody_says_so(databases: &mut Databases) -> anyhow::Result<()> {
    let target = databases.empty()?;
    let store = Store::open(&target, "log-1", false).await?;
    let fact = submitted(1, RequestKind::Chat, |_| {});
    append(&store, vec![(fact.exec, Kind::Fact, encode(&fact))]).await?;
    let again = Store::open(&target, "log-1", false).await?;
    assert_eq!(again.executions(&ListExecutions::default()).await?.executions.len(), 1, "they are kept");
    let refused = Store::open(&target, "log-2", false).await.err().expect("another log").to_string();
    assert!(refused.contains("another log (log-1") && refused.contains("projection rebuild"), "{refused}");
    let taken = Store::open(&target, "log-2", true).await?;
    assert_eq!(taken.executions(&ListExecutions::default()).await?.executions, [], "and built anew");
    assert_ne!(taken.id, store.id);
    Ok(())
}
