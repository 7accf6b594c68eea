//! Connections: to a server that accepts changes, itself or through a pooler.
//!
//! A pooler in transaction mode gives each transaction another session, so nothing may be kept in one: statements have
//! no names, `SET` is local, and no connection listens. Whether there is one is found out before the first statement.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, PoolError, RecyclingMethod,
    Runtime,
};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use towpath_core::breaker::{Breaker, Call};
use towpath_core::{Error, Result};
use tracing::{info, warn};

use super::config::Config;
use super::error::{cause, failed, is_misconfigured, is_of_another_session, leads_elsewhere};
use crate::sql::Value;

/// Most connections of one process.
const CONNECTIONS: usize = 16;

/// Longest wait for a connection, the connecting within it.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait for an answer; the server cuts statements off before.
const ANSWER: Duration = Duration::from_secs(12);

/// Idle time, or number of uses, after which a connection is asked whether its server accepts changes.
const IDLE: Duration = Duration::from_secs(1);
const USES: usize = 64;

/// No statement of ours takes long; one that waits for a lock ends before that.
const LIMITS: &str = "SET statement_timeout = '10s'; SET lock_timeout = '5s'";
const LOCAL_LIMITS: &str = "SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'";

/// Whether the server accepts no changes.
const IS_READ_ONLY: &str =
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";

/// Time within which a pooler with a single session shows itself.
const PROBE: Duration = Duration::from_secs(1);

/// The kind of server behind a connection.
const UNKNOWN: u8 = 0;
const SERVER: u8 = 1;
const POOLER: u8 = 2;

/// The connections to one database.
#[derive(Clone)]
pub(super) struct Pool {
    connections: deadpool_postgres::Pool,
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    /// Hosts and ports, for people.
    places: String,
    /// One of the three above.
    end: AtomicU8,
    /// One at a time finds out.
    probing: tokio::sync::Mutex<()>,
    /// Connections that were made before this are not used again.
    evicted_at: Mutex<Instant>,
    /// Opens while no connection can be made.
    breaker: Arc<Breaker>,
}

impl Shared {
    fn is_pooled(&self) -> bool {
        self.end.load(Ordering::Relaxed) == POOLER
    }

    /// When connections were evicted last.
    fn evicted_at(&self) -> Instant {
        *self
            .evicted_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses no connection again that was made before now.
    fn evict(&self, reason: &str) {
        let mut evicted_at = self
            .evicted_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if evicted_at.elapsed() > IDLE {
            warn!(
                server = self.places,
                reason, "closing connections to PostgreSQL"
            );
        }
        *evicted_at = Instant::now();
    }

    /// The meaning of an error for the caller, and for the connections.
    fn failed(&self, error: tokio_postgres::Error) -> Error {
        if is_of_another_session(&error) && self.end.swap(POOLER, Ordering::Relaxed) != POOLER {
            info!(
                server = self.places,
                "connection pooler detected; prepared statements are off"
            );
        }
        if leads_elsewhere(&error) {
            self.evict(&super::error::sentence(&error));
        }
        failed(error)
    }

    fn read_only(&self) -> Error {
        let reason = "the server is a standby or read-only";
        self.evict(reason);
        let place = format!("PostgreSQL at {}: {reason}", self.places);
        Error::unavailable("the database accepts no changes").with_source(Error::unavailable(place))
    }

    /// An error of the whole server. Clients read the first sentence, operators the one with host and port too.
    fn unreachable(&self, what: &'static str) -> (Error, Error) {
        let place = format!("PostgreSQL at {}", self.places);
        (Error::unavailable(what), Error::unavailable(place))
    }
}

impl Pool {
    /// Makes none yet.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let shared = Arc::new(Shared {
            places: config.places(),
            end: AtomicU8::new(UNKNOWN),
            probing: tokio::sync::Mutex::default(),
            evicted_at: Mutex::new(Instant::now()),
            breaker: Arc::new(Breaker::new("the database")),
        });
        let setup = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config.postgres.clone(), config.tls()?, setup);
        let (made, used) = (Arc::clone(&shared), Arc::clone(&shared));
        let connections = deadpool_postgres::Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT))
            .create_timeout(Some(CONNECT + IDLE))
            .recycle_timeout(Some(CONNECT))
            .post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
                let is_server = made.end.load(Ordering::Relaxed) == SERVER;
                Box::pin(async move {
                    if is_server {
                        let set = client.batch_execute(LIMITS).await;
                        set.map_err(HookError::Backend)?;
                    }
                    Ok(())
                })
            }))
            .pre_recycle(Hook::async_fn(
                move |client: &mut ClientWrapper, metrics| {
                    let shared = Arc::clone(&used);
                    let is_evicted = metrics.created <= shared.evicted_at();
                    let is_due =
                        metrics.last_used() > IDLE || (metrics.recycle_count + 1) % USES == 0;
                    Box::pin(async move {
                        if is_evicted {
                            return Err(HookError::message("evicted"));
                        }
                        if is_due && is_read_only(client).await.map_err(HookError::Backend)? {
                            drop(shared.read_only());
                            return Err(HookError::message("read-only"));
                        }
                        Ok(())
                    })
                },
            ))
            .build()
            .map_err(|error| Error::invalid("the pool of connections").with_source(error))?;
        Ok(Self {
            connections,
            shared,
        })
    }

    /// A connection whose server was checked.
    ///
    /// # Errors
    /// At once while the server does not answer, but for one trial at a time.
    pub(super) async fn session(&self) -> Result<Session> {
        let call = self.shared.breaker.begin()?;
        self.session_by(call).await
    }

    /// The first connection. One refused because of the URL is `Invalid`.
    pub(super) async fn first_session(&self) -> Result<Session> {
        self.session()
            .await
            .map_err(|error| match cause(&error).is_some_and(is_misconfigured) {
                true => Error::invalid("the database refuses the connection").with_source(error),
                false => error,
            })
    }

    /// Closes the connections that are not in use, and makes no others.
    pub(super) fn close(&self) {
        self.connections.close();
    }

    /// Keeps calls from a server that does not answer.
    pub(super) fn breaker(&self) -> Arc<Breaker> {
        Arc::clone(&self.shared.breaker)
    }

    async fn session_by(&self, call: Call<'_>) -> Result<Session> {
        let session = self.connected().await;
        call.end(&session);
        session
    }

    async fn connected(&self) -> Result<Session> {
        if self.shared.end.load(Ordering::Relaxed) == UNKNOWN {
            self.probe().await?;
        }
        Ok(Session {
            client: self.get().await?,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Whether the server accepts changes.
    pub(super) async fn check(&self) -> Result<()> {
        // A check is a trial, so that a server that returns is noticed by the next one at the latest.
        let session = self.session_by(self.shared.breaker.probe()).await?;
        let asked = tokio::time::timeout(ANSWER, is_read_only(&session.client));
        match asked.await.map_err(|_| session.silent())? {
            Ok(false) => Ok(()),
            Ok(true) => Err(self.shared.read_only()),
            Err(error) => Err(self.shared.failed(error)),
        }
    }

    /// Whether sessions are a pooler's, as far as that is known.
    pub(super) fn is_pooled(&self) -> bool {
        self.shared.is_pooled()
    }

    /// Whether a connection that was made at this time may lead to another server by now.
    pub(super) fn has_evicted(&self, made: Instant) -> bool {
        made <= self.shared.evicted_at()
    }

    async fn get(&self) -> Result<Object> {
        self.connections.get().await.map_err(|error| {
            let (what, place) = self.shared.unreachable("no connection to the database");
            what.with_source(match error {
                PoolError::Backend(error) => place.with_source(error),
                PoolError::Timeout(_) => {
                    let late = format!("no answer within {CONNECT:?}");
                    place.with_source(Error::unavailable(late))
                }
                other => place.with_source(other),
            })
        })
    }

    /// Finds out whether one connection stays with one session. While another one is in a transaction, a pooler gives
    /// the first another session, or none; without that transaction, one that goes round shows itself.
    async fn probe(&self) -> Result<()> {
        let _turn = self.shared.probing.lock().await;
        if self.shared.end.load(Ordering::Relaxed) != UNKNOWN {
            return Ok(());
        }
        let one = self.get().await?;
        let ask = || session_of(&one);
        let failed = |error| self.shared.failed(error);
        let first = ask().await.map_err(failed)?;
        let mut end = match first == ask().await.map_err(failed)? {
            true => SERVER,
            false => POOLER,
        };
        if end == SERVER {
            // Where no second connection may be made it stays open, and nothing is kept in sessions.
            end = POOLER;
            if let Ok(two) = self.get().await
                && two.batch_execute("BEGIN").await.is_ok()
            {
                let meanwhile = tokio::time::timeout(PROBE, session_of(&one)).await;
                drop(two.batch_execute("ROLLBACK").await);
                if matches!(&meanwhile, Ok(Ok(session)) if *session == first) {
                    end = SERVER;
                }
            }
        }
        if end == POOLER {
            info!(
                server = self.shared.places,
                "connection pooler detected; prepared statements and LISTEN are off"
            );
        }
        self.shared.end.store(end, Ordering::Relaxed);
        // Those two were made without the limits of a session.
        *self
            .shared
            .evicted_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }
}

/// The server's process behind a connection.
async fn session_of(client: &ClientWrapper) -> std::result::Result<i32, tokio_postgres::Error> {
    let row = client.query_typed_one("SELECT pg_backend_pid()", &[]).await;
    Ok(row?.get(0))
}

async fn is_read_only(client: &ClientWrapper) -> std::result::Result<bool, tokio_postgres::Error> {
    Ok(client.query_typed_one(IS_READ_ONLY, &[]).await?.get(0))
}

/// A connection.
pub(super) struct Session {
    client: Object,
    shared: Arc<Shared>,
}

impl Session {
    /// The rows of a statement, which is one transaction.
    pub(super) async fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        self.answer(query(&self.client, self.shared.is_pooled(), sql, values))
            .await
    }

    /// The row of a statement that has one.
    pub(super) async fn one(&self, sql: &str, values: &[Value]) -> Result<Row> {
        let mut rows = self.query(sql, values).await?;
        rows.pop()
            .ok_or_else(|| Error::corrupt("the database has no row where one always is"))
    }

    /// The rows of a statement, its values of the given types.
    pub(super) async fn typed(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>> {
        let client = &self.client;
        self.answer(async {
            match self.shared.is_pooled() {
                true => client.query_typed(sql, values).await,
                false => {
                    let types: Vec<Type> = values.iter().map(|(_, kind)| kind.clone()).collect();
                    let statement = client.prepare_typed_cached(sql, &types).await?;
                    let values: Vec<_> = values.iter().map(|(value, _)| *value).collect();
                    client.query(&statement, &values).await
                }
            }
        })
        .await
    }

    /// Number of rows that a statement changes.
    pub(super) async fn execute(&self, sql: &str, values: &[Value]) -> Result<u64> {
        let (client, parameters) = (&self.client, parameters(values));
        self.answer(async {
            match self.shared.is_pooled() {
                true => client.execute_typed(sql, &untyped(values)).await,
                false => {
                    let statement = client.prepare_cached(sql).await?;
                    client.execute(&statement, &parameters).await
                }
            }
        })
        .await
    }

    /// Statements without values.
    pub(super) async fn batch(&self, sql: &str) -> Result<()> {
        self.answer(self.client.batch_execute(sql)).await
    }

    /// Begins a transaction; one that is dropped is rolled back.
    pub(super) async fn transaction(&mut self) -> Result<Transaction<'_>> {
        let shared = &self.shared;
        let begun = self.client.transaction().await;
        let inner = begun.map_err(|error| shared.failed(error))?;
        if shared.is_pooled() {
            let set = inner.batch_execute(LOCAL_LIMITS).await;
            set.map_err(|error| shared.failed(error))?;
        }
        Ok(Transaction { inner, shared })
    }

    async fn answer<T>(
        &self,
        asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        let answer = tokio::time::timeout(ANSWER, asked).await;
        let answer = answer.map_err(|_| self.silent())?;
        answer.map_err(|error| self.shared.failed(error))
    }

    /// The server did not answer in time.
    fn silent(&self) -> Error {
        self.shared.evict("no answer");
        let (what, place) = self
            .shared
            .unreachable("the database did not answer in time");
        what.with_source(place)
    }
}

/// A transaction that is open.
pub(super) struct Transaction<'a> {
    inner: deadpool_postgres::Transaction<'a>,
    shared: &'a Shared,
}

impl Transaction<'_> {
    /// The rows of a statement.
    pub(super) async fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        let rows = match self.shared.is_pooled() {
            true => self.inner.query_typed(sql, &untyped(values)).await,
            false => match self.inner.prepare_cached(sql).await {
                Ok(statement) => self.inner.query(&statement, &parameters(values)).await,
                Err(error) => Err(error),
            },
        };
        rows.map_err(|error| self.shared.failed(error))
    }

    /// Statements without values.
    pub(super) async fn batch(&self, sql: &str) -> Result<()> {
        let done = self.inner.batch_execute(sql).await;
        done.map_err(|error| self.shared.failed(error))
    }

    /// Makes it durable.
    pub(super) async fn commit(self) -> Result<()> {
        let done = self.inner.commit().await;
        done.map_err(|error| self.shared.failed(error))
    }
}

async fn query(
    client: &ClientWrapper,
    is_pooled: bool,
    sql: &str,
    values: &[Value],
) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
    match is_pooled {
        true => client.query_typed(sql, &untyped(values)).await,
        false => {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, &parameters(values)).await
        }
    }
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as _).collect()
}

/// Values whose types the server infers.
fn untyped(values: &[Value]) -> Vec<(&(dyn ToSql + Sync), Type)> {
    let all = values.iter().map(|value| value as _);
    all.map(|value| (value, Type::UNKNOWN)).collect()
}
