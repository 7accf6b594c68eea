//! The threads that SQLite works on: one writes, one reads.
//!
//! SQLite has one writer at a time, so the writes of all callers take turns on one thread, and those that wait share a
//! transaction and its sync. Each has a savepoint of its own: one that fails takes no other with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use towpath_core::database::Waits;
use towpath_core::stall::{Watch, unknown};
use towpath_core::{Breaker, Error, Result, wait_limit};

use crate::identity::{Pinned, lost};

/// Most writes of one transaction.
const GROUP: usize = 256;

/// Size that the log keeps when it begins again.
const WAL_BYTES: u32 = 8 << 20;

/// Longest wait of a transaction for that of another process; shorter than a request's, whose answer has the reason.
const BUSY: Duration = Duration::from_secs(4);

/// Waiting calls; more wait before they are taken.
const WAITING: usize = 1_024;

/// Sends the outcome of a job to its caller, once the transaction is durable or failed.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// Works on the connection, or gets the error of the transaction.
type Job = Box<dyn FnOnce(Result<&Connection>) -> Answer + Send>;

/// A database file and the threads that work on it.
pub(super) struct Threads {
    writes: Thread,
    reads: Thread,
    pub(super) breaker: Arc<Breaker>,
}

/// Where the jobs of a thread wait, and since when it waits for the disk.
struct Thread {
    jobs: mpsc::Sender<Job>,
    watch: Arc<Watch>,
    /// Whether its jobs change something.
    writes: bool,
}

impl Thread {
    fn new(writes: bool) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let watch = Arc::new(Watch::new());
        (
            Self {
                jobs,
                watch,
                writes,
            },
            waiting,
        )
    }

    /// The refusal of a request while the disk has not answered for as long as a request waits.
    fn check_answers(&self, limit: Duration) -> Result<()> {
        match self.watch.lasts() {
            Some(lasts) if lasts >= limit => Err(Error::unavailable(format!(
                "the disk of the database has not answered for {} s; calls are rejected until it does",
                lasts.as_secs()
            ))),
            _ => Ok(()),
        }
    }

    /// The answer of a request that waited this long.
    fn late(&self, limit: Duration) -> Error {
        match self.writes {
            true => unknown(limit),
            false => Error::unavailable(format!(
                "the disk of the database did not answer within {limit:?}"
            )),
        }
    }
}

impl Threads {
    /// Starts the threads.
    pub(super) fn start(path: &str) -> Result<Self> {
        let writer = open(path)?;
        let files = Arc::new(Files::of(path)?);
        let present = Arc::clone(&files);
        let (writes, jobs) = Thread::new(true);
        let watch = Arc::clone(&writes.watch);
        spawn("sqlite-write", move || {
            write_all(writer, &present, jobs, &watch);
        })?;
        let reader = open(path)?;
        let (reads, jobs) = Thread::new(false);
        let watch = Arc::clone(&reads.watch);
        spawn("sqlite-read", move || {
            read_all(&reader, &files, jobs, &watch);
        })?;
        Ok(Self {
            writes,
            reads,
            breaker: Arc::new(Breaker::new("the database")),
        })
    }

    /// Since when one of the threads waits for the disk.
    pub(super) fn waits(&self) -> Waits {
        let (writes, reads) = (
            Arc::clone(&self.writes.watch),
            Arc::clone(&self.reads.watch),
        );
        Arc::new(move || writes.lasts().max(reads.lasts()))
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

    /// Does a job that changes nothing and may take long, whatever the request that asks for it waits for.
    pub(super) async fn read_at_length<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let watch = Arc::clone(&self.reads.watch);
        let job = move |connection: &Connection| {
            watch.pause();
            job(connection)
        };
        self.ask_within(&self.reads, None, job).await
    }

    async fn ask<T, F>(&self, thread: &Thread, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        self.ask_within(thread, wait_limit::limit(), job).await
    }

    async fn ask_within<T, F>(&self, thread: &Thread, limit: Option<Duration>, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let stopped = || Error::unavailable("the database was closed");
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            if answer.is_closed() {
                // The caller stopped waiting before it began.
                return Box::new(|_| ());
            }
            let outcome = connection.and_then(job);
            Box::new(move |committed| {
                // A caller that stopped waiting needs no answer; the change stays.
                drop(answer.send(committed.and(outcome)));
            })
        });
        let outcome = async {
            thread.jobs.send(job).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let Some(limit) = limit else {
            return outcome.await;
        };
        // Refused by `check_answers` while the disk does not answer, the breaker only shows it.
        let call = self.breaker.probe();
        let answered = async {
            thread.check_answers(limit)?;
            let outcome = tokio::time::timeout(limit, outcome).await;
            outcome.map_err(|_| thread.late(limit))
        };
        let answered = answered.await;
        call.end(&answered);
        answered?
    }
}

/// An error of SQLite for the caller.
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
        connection.busy_timeout(BUSY)?;
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

/// The files of an open database. SQLite continues in a file that was removed or replaced, and no later process finds
/// its writes.
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

fn read_all(connection: &Connection, files: &Files, mut jobs: mpsc::Receiver<Job>, watch: &Watch) {
    while let Some(job) = jobs.blocking_recv() {
        let _call = watch.begin();
        job(files.check().map(|()| connection))(Ok(()));
    }
}

fn write_all(
    mut connection: Connection,
    files: &Files,
    mut jobs: mpsc::Receiver<Job>,
    watch: &Watch,
) {
    while let Some(first) = jobs.blocking_recv() {
        let _call = watch.begin();
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
