//! The tables: opens them, and writes what a run of messages changes, each run in one transaction with the position it
//! leads to. That position is the fence: a run that does not begin right behind it changes nothing.
//!
//! SQLite and PostgreSQL are asked in the same words. A transaction that the machine loses in a power cut is no loss,
//! because its position goes with it: neither database waits for the disk, but for what was not derived from the log.

mod rows;
mod statement;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use runtime::bus::Placed;
use runtime::clock;
use schemas::executions::Rebuilding;
use schemas::summary::Summary;
use schemas::{ExecutionId, Partition};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Row, SqlSafeStr, Transaction};

use super::config::Target;
use super::fold::{Known, fold, mentioned};
pub(super) use rows::name;
pub(super) use statement::{Statement, Value};

/// Connections: one that writes, and some for questions.
const CONNECTIONS_MAX: u32 = 4;
/// How long a connection is waited for.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Executions looked up in one statement.
const LOOKED_UP: usize = 500;
/// Version of what the fold makes of a log. Tables of another one are built anew.
const FOLD: i64 = 1;

const MIGRATIONS: [(i64, &str, &str); 1] = [(1, "tables", include_str!("../../migrations/0001_tables.sql"))];

/// Readers do not wait for the writer, and nobody for the disk.
const SQLITE: &[&str] = &["PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL"];
const POSTGRES: &[&str] =
    &["SET synchronous_commit = off", "SET application_name = 'vlinders'", "SET statement_timeout = '60s'"];

const DURABLE: &str = "SET LOCAL synchronous_commit = on";

/// The tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The database does not do what it is asked.
    #[error("{}", told(.0))]
    Database(#[from] sqlx::Error),
    /// The tables cannot be made.
    #[error("make the tables: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The directory of the file cannot be made.
    #[error("create {path}: {source}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// They belong to another log.
    #[error(
        "the tables were built from another log ({found}, this one is {wanted}): name another database, or build them anew from this log with `vlinders projection rebuild`"
    )]
    AnotherLog {
        /// Theirs.
        found: String,
        /// Ours.
        wanted: String,
    },
}

fn told(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => {
            format!("the database gives no connection within {CONNECT_WITHIN:?}: does it run?")
        }
        other => other.to_string(),
    }
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The newest message in the tables.
    pub(crate) sequence: u64,
    /// While they are being built: where that ends.
    pub(crate) rebuild_to: u64,
}

/// How far the tables have been built, while they are.
pub(crate) fn rebuilding(positions: &BTreeMap<Partition, Position>) -> Option<Rebuilding> {
    let of = positions.values().map(|position| position.rebuild_to).sum();
    let done = positions.values().map(|position| position.sequence.min(position.rebuild_to)).sum();
    (done < of).then_some(Rebuilding { done, of })
}

/// The tables, opened. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    pub(super) pool: AnyPool,
    /// How a transaction that writes begins.
    begin: &'static str,
    /// What makes one wait for the disk, where that is not the case.
    durable: Option<&'static str>,
    /// Tells these tables from all others of the same log.
    pub(crate) id: String,
}

impl Store {
    /// Opens the tables of this log, and makes them where they are not there. Tables that were built from another log are
    /// refused, unless they are to be taken over.
    pub(crate) async fn open(target: &Target, log: &str, take_over: bool) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let (url, begin, settings, durable) = match target {
            // What a power cut takes from a file it takes from its only user, who begins anew.
            Target::Sqlite(file) => (sqlite_url(file)?, "BEGIN IMMEDIATE", SQLITE, None),
            Target::Postgres(url) => (url.expose().to_owned(), "BEGIN", POSTGRES, Some(DURABLE)),
        };
        let options = AnyConnectOptions::from_str(&url)?.disable_statement_logging();
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_WITHIN)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for setting in settings {
                        sqlx::query(*setting).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await?;
        let migrations = MIGRATIONS.map(|(version, name, sql)| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        });
        Migrator::with_migrations(migrations.to_vec()).run(&pool).await?;
        let mut store = Self { pool, begin, durable, id: String::new() };
        store.id = store.claim(log, take_over).await?;
        Ok(store)
    }

    /// Notes which log the tables belong to, and empties them where they are of another version or are taken over.
    async fn claim(&self, log: &str, take_over: bool) -> Result<String, Error> {
        let mut transaction = self.begin_durable().await?;
        let place = "INSERT INTO projection_source (only_row, log, fold, database_id) VALUES (1, $1, $2, $3) \
                     ON CONFLICT (only_row) DO NOTHING";
        let mine = clock::process_token();
        sqlx::query(place).bind(log).bind(FOLD).bind(&mine).execute(&mut *transaction).await?;
        for partition in Partition::all() {
            let begin = "INSERT INTO projection_positions (log_partition, sequence, rebuild_to) VALUES ($1, 0, 0) \
                         ON CONFLICT (log_partition) DO NOTHING";
            sqlx::query(begin).bind(i64::from(partition.number())).execute(&mut *transaction).await?;
        }
        let found = "SELECT log, fold, database_id FROM projection_source";
        let found = sqlx::query(found).fetch_one(&mut *transaction).await?;
        let (of, fold, mut id): (String, i64, String) = (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
        if of != log && !take_over {
            return Err(Error::AnotherLog { found: of, wanted: log.to_owned() });
        }
        if of != log || fold != FOLD {
            empty(&mut transaction).await?;
            // Whoever followed under the old name had another log, or made other tables of it.
            id = mine;
            let taken = "UPDATE projection_source SET log = $1, fold = $2, database_id = $3";
            sqlx::query(taken).bind(log).bind(FOLD).bind(&id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(id)
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        self.pool.begin_with(self.begin).await
    }

    /// For what follows from no log: a server that crashes must not forget it.
    async fn begin_durable(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        let mut transaction = self.begin().await?;
        if let Some(durable) = self.durable {
            sqlx::query(durable).execute(&mut *transaction).await?;
        }
        Ok(transaction)
    }

    /// How far every partition is.
    pub(crate) async fn positions(&self) -> Result<BTreeMap<Partition, Position>, Error> {
        let rows = sqlx::query("SELECT log_partition, sequence, rebuild_to FROM projection_positions");
        let mut positions = BTreeMap::new();
        for row in rows.fetch_all(&self.pool).await? {
            let number: i64 = row.try_get(0)?;
            let (sequence, rebuild_to): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
            let position = Position { sequence: sequence.unsigned_abs(), rebuild_to: rebuild_to.unsigned_abs() };
            if let Some(partition) = Partition::all().find(|partition| i64::from(partition.number()) == number) {
                positions.insert(partition, position);
            }
        }
        Ok(positions)
    }

    /// How far one partition is.
    pub(crate) async fn position(&self, partition: Partition) -> Result<u64, Error> {
        let row = sqlx::query("SELECT sequence FROM projection_positions WHERE log_partition = $1");
        let row = row.bind(i64::from(partition.number())).fetch_one(&self.pool).await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    /// Writes what these messages change, if the tables hold the partition up to `expected` and no further; says whether
    /// they do. Whatever happens, either all of it is written, or nothing.
    pub(crate) async fn apply(&self, partition: Partition, expected: u64, messages: &[Placed]) -> Result<bool, Error> {
        let Some((upto, _)) = messages.last() else { return Ok(true) };
        let mut transaction = self.begin().await?;
        let moved = "UPDATE projection_positions SET sequence = $1 WHERE log_partition = $2 AND sequence = $3";
        let moved = sqlx::query(moved).bind(whole(*upto)).bind(i64::from(partition.number())).bind(whole(expected));
        if moved.execute(&mut *transaction).await?.rows_affected() != 1 {
            transaction.rollback().await?;
            return Ok(false);
        }
        let known = known(&mut transaction, &mentioned(messages)).await?;
        let changes = fold(partition, messages, known);
        rows::write(&mut transaction, &changes).await?;
        transaction.commit().await?;
        if changes.unreadable > 0 {
            tracing::warn!(%partition, messages = changes.unreadable, "messages that cannot be read are in no table");
        }
        Ok(true)
    }

    /// Empties the tables, which are to be built from the log up to these sequences.
    pub(crate) async fn clear(&self, upto: &BTreeMap<Partition, u64>) -> Result<(), Error> {
        let mut transaction = self.begin_durable().await?;
        empty(&mut transaction).await?;
        self.aim(&mut transaction, upto).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Notes that what stands in the log up to these sequences is still to be built, where it is much.
    pub(crate) async fn begin_building(&self, upto: &BTreeMap<Partition, u64>) -> Result<(), Error> {
        let mut transaction = self.begin().await?;
        self.aim(&mut transaction, upto).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn aim(&self, connection: &mut AnyConnection, upto: &BTreeMap<Partition, u64>) -> Result<(), Error> {
        for (partition, upto) in upto {
            let aim = "UPDATE projection_positions SET rebuild_to = $1 WHERE log_partition = $2";
            sqlx::query(aim).bind(whole(*upto)).bind(i64::from(partition.number())).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

async fn empty(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    // The positions first: whoever is writing waits here, and finds that they have changed.
    let emptied = [
        "UPDATE projection_positions SET sequence = 0, rebuild_to = 0",
        "DELETE FROM agent_executions",
        "DELETE FROM tool_calls",
        "DELETE FROM inference_performance",
    ];
    for emptied in emptied {
        sqlx::query(emptied).execute(&mut *connection).await?;
    }
    Ok(())
}

/// What the tables know of these executions.
async fn known(
    connection: &mut AnyConnection,
    executions: &BTreeSet<ExecutionId>,
) -> Result<BTreeMap<ExecutionId, Known>, Error> {
    let executions: Vec<String> = executions.iter().map(ToString::to_string).collect();
    let mut known = BTreeMap::new();
    for some in executions.chunks(LOOKED_UP) {
        let mut look = Statement::new("SELECT execution_id, state FROM agent_executions WHERE execution_id IN ");
        look.row(some.iter().map(Value::from));
        for row in look.query().fetch_all(&mut *connection).await? {
            let (id, state): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let Ok(exec) = id.parse() else { continue };
            let summary = state.map(|state| serde_json::from_str::<Summary>(&state));
            let found = match summary {
                Some(Ok(summary)) => Known::Open(Box::new(summary)),
                None => Known::Ended,
                Some(Err(error)) => {
                    tracing::error!(execution = id, %error, "an execution's state in the tables cannot be read: run `vlinders projection rebuild`");
                    Known::Ended
                }
            };
            known.insert(exec, found);
        }
    }
    Ok(known)
}

/// A count as databases keep it.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn sqlite_url(file: &Path) -> Result<String, Error> {
    let directory = |source| Error::Directory { path: file.display().to_string(), source };
    let file = std::path::absolute(file).map_err(directory)?;
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).map_err(directory)?;
    }
    // As a URL, so that blanks and the like are escaped.
    let url = url::Url::from_file_path(&file)
        .map_err(|()| directory(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no absolute path")))?;
    Ok(format!("sqlite://{}?mode=rwc", url.path()))
}

#[cfg(test)]
mod tests;
