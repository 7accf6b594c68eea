//! The threads that SQLite works on: one writes, one reads.
//!
//! SQLite has one writer at a time, so the writes of all callers take turns on one thread, and those that wait share a
//! transaction and its sync. Each has a savepoint of its own: one that fails takes no other with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use towpath_core::{Error, Result};

use crate::identity::{Pinned, lost};

/// Most writes of one transaction.
const GROUP: usize = 256;

/// Size that the log keeps when it begins again.
const WAL_BYTES: u32 = 8 << 20;

/// Waiting calls; more wait before they are taken.
const WAITING: usize = 1_024;

/// Tells the caller what became of its job, once it is known whether the transaction is durable.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// Works on the connection, or is told why there is no transaction.
type Job = Box<dyn FnOnce(Result<&Connection>) -> Answer + Send>;

/// A database file and the threads that work on it.
pub(super) struct Threads {
    writes: mpsc::Sender<Job>,
    reads: mpsc::Sender<Job>,
}

impl Threads {
    /// Starts the threads.
    pub(super) fn start(path: &str) -> Result<Self> {
        let writer = open(path)?;
        let files = Arc::new(Files::of(path)?);
        let present = Arc::clone(&files);
        let (writes, jobs) = mpsc::channel(WAITING);
        spawn("sqlite-write", move || write_all(writer, &present, jobs))?;
        let reader = open(path)?;
        let (reads, jobs) = mpsc::channel(WAITING);
        spawn("sqlite-read", move || read_all(&reader, &files, jobs))?;
        Ok(Self { writes, reads })
    }

    /// Does a job in a transaction, and returns when that is durable. A job that fails changes nothing.
    pub(super) async fn write<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.ask(&self.writes, move |connection| {
            connection.execute_batch("SAVEPOINT job").map_err(failed)?;
            let outcome = job(connection);
            let end = match outcome {
                Ok(_) => "RELEASE job",
                Err(_) => "ROLLBACK TO job; RELEASE job",
            };
            connection.execute_batch(end).map_err(failed)?;
            outcome
        })
        .await
    }

    /// Does a job that changes nothing.
    pub(super) async fn read<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.ask(&self.reads, job).await
    }

    async fn ask<T, F>(&self, jobs: &mpsc::Sender<Job>, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let stopped = || Error::unavailable("the database was closed");
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let outcome = connection.and_then(job);
            Box::new(move |committed| {
                // Nobody waits any more: the caller gave up, and what happened stays.
                drop(answer.send(committed.and(outcome)));
            })
        });
        jobs.send(job).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// What SQLite says, for the caller.
pub(super) fn failed(error: rusqlite::Error) -> Error {
    Error::unavailable(sentence(&error)).with_source(error)
}

fn sentence(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk of the database is full",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "the database was too busy: another process is writing"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "the database file cannot be written"
        }
        Some(ErrorCode::SystemIoFailure) => "the disk of the database failed",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            "the database file is damaged"
        }
        Some(_) => "the database refused the statement",
        None => "a row of the database cannot be read",
    }
}

fn open(path: &str) -> Result<Connection> {
    let connect = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        // Acknowledged is durable: the log is synced at each commit.
        // A log that grew in a burst or beside a long read is cut back when it begins again.
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
            PRAGMA journal_size_limit = {WAL_BYTES}"
        ))?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    connect().map_err(|error| {
        Error::unavailable(format!("the database `{path}` cannot be opened")).with_source(error)
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    match builder.spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(
            Error::unavailable("no thread for the database could be started").with_source(error),
        ),
    }
}

/// The files of an open database. SQLite goes on in a file that was removed or replaced, and no later process finds
/// what it wrote there.
struct Files {
    database: Pinned,
    /// Once there is one.
    log: OnceLock<Pinned>,
    log_path: PathBuf,
}

impl Files {
    fn of(path: &str) -> Result<Self> {
        let (database, log_path) = (Path::new(path), PathBuf::from(format!("{path}-wal")));
        let open = std::fs::metadata(database).map_err(|error| lost(DATABASE, database, error))?;
        Ok(Self {
            database: Pinned::file(DATABASE, database, &open),
            log: OnceLock::new(),
            log_path,
        })
    }

    /// Looks whether the paths still lead to the files that are open.
    fn check(&self) -> Result<()> {
        self.database.check()?;
        match (self.log.get(), std::fs::metadata(&self.log_path)) {
            (Some(log), _) => log.check(),
            (None, Ok(found)) => {
                self.log
                    .get_or_init(|| Pinned::file("log of the database", &self.log_path, &found));
                Ok(())
            }
            (None, Err(_)) => Ok(()),
        }
    }
}

const DATABASE: &str = "database";

fn read_all(connection: &Connection, files: &Files, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        job(files.check().map(|()| connection))(Ok(()));
    }
}

fn write_all(mut connection: Connection, files: &Files, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        if let Err(gone) = files.check() {
            first(Err(gone))(Ok(()));
            continue;
        }
        let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = match begun {
            Ok(transaction) => transaction,
            Err(error) => {
                first(Err(failed(error)))(Ok(()));
                continue;
            }
        };
        let mut answers = vec![first(Ok(&*transaction))];
        while answers.len() < GROUP
            && let Ok(job) = jobs.try_recv()
        {
            answers.push(job(Ok(&*transaction)));
        }
        match transaction.commit() {
            Ok(()) => {
                let gone = files.check().err().map(|gone| gone.to_string());
                for answer in answers {
                    answer(match &gone {
                        None => Ok(()),
                        Some(gone) => Err(Error::unavailable(gone.clone())),
                    });
                }
            }
            Err(error) => {
                let (text, cause) = (sentence(&error), Arc::new(error));
                for answer in answers {
                    answer(Err(Error::unavailable(text).with_source(Arc::clone(&cause))));
                }
            }
        }
    }
}
