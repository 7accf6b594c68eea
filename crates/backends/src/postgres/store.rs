//! The opened backend: its connections, its tables in the schema `towpath`, and its housekeeping.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::AbortHandle;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use towpath_core::database::Migration;
use towpath_core::{Error, ErrorKind, Result, ResultExt};
use tracing::{debug, info};

use super::config::Config;
use super::error::cause;
use super::pool::{Pool, Session, Transaction};
use crate::sql::{compare, missing, sum};

/// Applied when the backend is first used. They never change after their release; dropping the schema reverts all.
const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "keys and limits",
    up: include_str!("store_migrations/1_keys_and_limits.sql"),
    down: "",
}];

const EXISTS: &str = "SELECT to_regclass('towpath.migrations') IS NOT NULL,
    to_regnamespace('towpath') IS NOT NULL, current_setting('server_version_num')::bigint";
const APPLIED: &str = "SELECT version, sum, applied_at FROM towpath.migrations ORDER BY version";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS towpath.migrations (
    version integer PRIMARY KEY, sum text NOT NULL, applied_at timestamptz NOT NULL)";

/// One process migrates at a time; the others wait.
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
    SELECT pg_advisory_xact_lock(1953462019, 0)";

/// The oldest server with all that the statements use.
const OLDEST: i64 = 130_000;

/// Attempts of a statement that lost a deadlock or a serialization conflict.
const ATTEMPTS: u32 = 3;

/// Pause between two rounds of housekeeping, and the keys of one step: each step locks its keys.
const HOUSEKEEPING: Duration = Duration::from_secs(10);
const STEP: i32 = 500;

/// A value of a statement, with its type.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// An opened backend.
pub(super) struct Store {
    pool: Pool,
    places: String,
    /// The tables exist, as far as this process knows.
    migrated: AtomicBool,
    migrating: tokio::sync::Mutex<()>,
    closed: AtomicBool,
    housekeeping: Mutex<Option<AbortHandle>>,
}

impl Store {
    /// Callers wait for a server that is not up yet; a bad URL and an unsuitable database are errors now.
    pub(super) async fn open(config: &Config) -> Result<Arc<Self>> {
        let store = Arc::new(Self {
            pool: Pool::new(config)?,
            places: config.places(),
            migrated: AtomicBool::new(false),
            migrating: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            housekeeping: Mutex::default(),
        });
        match store.pool.first_session().await {
            Ok(session) => {
                drop(session);
                match store.migrate().await {
                    // The next call tries again; a missing right needs the operator.
                    Err(error)
                        if error.kind() == ErrorKind::Unavailable
                            && code(&error) != Some("42501") =>
                    {
                        debug!(error = error.chain(), "migration failed; retrying");
                    }
                    other => other?,
                }
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(error) => return Err(error),
        }
        // Ends with the store: it holds a weak reference, and `close` aborts its handle.
        let task = crate::task::spawn(keep_house(Arc::downgrade(&store)));
        *store.task() = Some(task.abort_handle());
        Ok(store)
    }

    /// Hosts and ports, for people.
    pub(super) fn places(&self) -> &str {
        &self.places
    }

    /// Whether the server accepts changes and has the tables.
    pub(super) async fn check(&self) -> Result<()> {
        self.check_open()?;
        self.pool.check().await?;
        self.session().await.map(drop)
    }

    /// The rows of a statement that is one transaction.
    pub(super) async fn ask(&self, sql: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>> {
        let mut attempt = 1;
        loop {
            let session = self.session().await?;
            let error = match session.typed(sql, values).await {
                Ok(rows) => return Ok(rows),
                Err(error) => error,
            };
            match code(&error) {
                Some("40001" | "40P01") if attempt < ATTEMPTS => attempt += 1,
                // A table, the schema or a function was dropped: the next call creates them again.
                Some("42P01" | "3F000" | "42883") => {
                    self.migrated.store(false, Ordering::Release);
                    return Err(error);
                }
                _ => return Err(error),
            }
        }
    }

    /// Ends its tasks and connections; calls from now on are refused.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(task) = self.task().take() {
            task.abort();
        }
        self.pool.close();
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::unavailable("the backend is closed")),
            false => Ok(()),
        }
    }

    /// A connection to a server that has the tables.
    async fn session(&self) -> Result<Session> {
        self.check_open()?;
        if !self.migrated.load(Ordering::Acquire) {
            self.migrate().await?;
        }
        self.pool.session().await
    }

    fn task(&self) -> std::sync::MutexGuard<'_, Option<AbortHandle>> {
        self.housekeeping
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn migrate(&self) -> Result<()> {
        let _turn = self.migrating.lock().await;
        if self.migrated.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut session = self.pool.session().await?;
        let exists = session.one(EXISTS, &[]).await?;
        let version: i64 = exists.get(2);
        if version < OLDEST {
            let major = version / 10_000;
            return Err(Error::unsupported(format!(
                "PostgreSQL {major} at {}; the backend needs version {} or newer",
                self.places,
                OLDEST / 10_000
            )));
        }
        // A user without the right to create tables may use existing ones.
        let applied = match exists.get(0) {
            true => session.query(APPLIED, &[]).await?,
            false => Vec::new(),
        };
        if !open_migrations(&applied)?.is_empty() {
            let transaction = session.transaction().await?;
            let applied = apply(&transaction, exists.get(1)).await;
            let applied = applied.context(|| "create the tables of the schema `towpath`")?;
            transaction.commit().await?;
            if applied > 0 {
                info!(
                    server = self.places,
                    migrations = applied,
                    "schema `towpath` migrated"
                );
            }
        }
        self.migrated.store(true, Ordering::Release);
        Ok(())
    }

    /// Deletes expired keys, and truncates the oldest part of the limits.
    async fn tidy(&self) -> Result<()> {
        let expire = "SELECT towpath.kv_expire($1)";
        while number(&self.ask(expire, &[(&STEP, Type::INT4)]).await?) == Some(STEP) {}
        let carry = "SELECT carried, last_key, last_n, oldest FROM towpath.limit_carry($1, $2)";
        let (mut after, mut examined) = (String::new(), None::<i64>);
        loop {
            let values: [Parameter<'_>; 2] = [(&after, Type::TEXT), (&STEP, Type::INT4)];
            let rows = self.ask(carry, &values).await?;
            let Some((row, carried)) = rows.first().zip(number(&rows)) else {
                return Ok(());
            };
            let last: i64 = row.get(2);
            let last = *examined.get_or_insert(last);
            if carried == STEP {
                after = row.get(1);
                continue;
            }
            let oldest: i16 = row.get(3);
            let clear = "SELECT towpath.limit_clear($1, $2)";
            let values: [Parameter<'_>; 2] = [(&oldest, Type::INT2), (&last, Type::INT8)];
            return match self.ask(clear, &values).await {
                // A statement that reads it, or a dump, holds its lock: the next round tries again.
                Err(error) if code(&error) == Some("55P03") => {
                    debug!(part = oldest, "part of the limits is locked; not truncated");
                    Ok(())
                }
                other => other.map(drop),
            };
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

async fn keep_house(store: Weak<Store>) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let Some(store) = store.upgrade() else { return };
        // Calls report a server that does not answer.
        if let Err(error) = store.tidy().await {
            debug!(error = error.chain(), "housekeeping failed; retrying");
        }
    }
}

/// Applies the missing migrations. Returns their number.
async fn apply(transaction: &Transaction<'_>, has_schema: bool) -> Result<usize> {
    transaction.batch(LOCK).await?;
    if !has_schema {
        let create = "CREATE SCHEMA IF NOT EXISTS towpath";
        transaction.batch(create).await?;
    }
    transaction.batch(TABLE).await?;
    let missing = open_migrations(&transaction.query(APPLIED, &[]).await?)?;
    for migration in &missing {
        transaction.batch(migration.up).await?;
        let insert = "INSERT INTO towpath.migrations VALUES ($1, $2, $3)";
        let row = [
            migration.version.into(),
            sum(migration).into(),
            Timestamp::now().into(),
        ];
        transaction.query(insert, &row).await?;
    }
    Ok(missing.len())
}

fn open_migrations(applied: &[Row]) -> Result<Vec<Migration>> {
    let applied = applied.iter().map(|row| {
        let version: i32 = row.get(0);
        (version.unsigned_abs(), row.get(1), row.get(2))
    });
    Ok(missing(&compare(MIGRATIONS, &applied.collect::<Vec<_>>())?))
}

fn number(rows: &[Row]) -> Option<i32> {
    rows.first().and_then(|row| row.get(0))
}

fn code(error: &Error) -> Option<&str> {
    cause(error)?.code().map(SqlState::code)
}
