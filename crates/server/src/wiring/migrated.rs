//! A database whose tables are made when it answers: at the start, or later.

use std::time::Duration;

use tokio::sync::watch;
use towpath_core::database::Database;
use towpath_core::{Error, ErrorKind, Result, retry};
use tracing::{debug, info, warn};

use crate::stores::migrate;
use crate::telemetry::Health;
use towpath::supervisor::Stop;

/// Timeout of the start for a database.
const START: Duration = Duration::from_secs(3);

/// Interval of retries, and of checks whether a database that answers accepts changes.
const AGAIN: retry::Policy =
    retry::Policy::forever(Duration::from_millis(200), Duration::from_secs(5));
const CHECK: Duration = Duration::from_secs(2);

/// The name in health.
pub(super) const DATABASE: &str = "database";

/// A database, and whether its tables are made.
#[derive(Clone)]
pub(super) struct Migrated {
    pub(super) database: Database,
    is_ready: watch::Sender<bool>,
}

impl Migrated {
    /// Makes the tables. A server that does not answer is waited for by [`Self::keep`].
    ///
    /// # Errors
    /// Errors that waiting does not fix: a wrong URL, a file that cannot be opened, tables that do not fit.
    pub(super) async fn open(database: Database) -> Result<Self> {
        let late = || Error::unavailable(format!("{} does not answer", database.url));
        let made = match database.file.is_some() {
            true => migrate(&database).await,
            false => tokio::time::timeout(START, migrate(&database))
                .await
                .unwrap_or_else(|_| Err(late())),
        };
        let is_ready = made.is_ok();
        match made {
            Err(error) if database.file.is_none() && error.kind() == ErrorKind::Unavailable => {
                let (url, error) = (&database.url, error.chain());
                warn!(database = url, error, "database unavailable; retrying");
            }
            other => other?,
        }
        let is_ready = watch::Sender::new(is_ready);
        Ok(Self { database, is_ready })
    }

    /// Says in health when the tables are not made yet.
    pub(super) fn show(&self, health: &Health) {
        let is_ready = *self.is_ready.borrow();
        let waiting = || format!("waiting for {}", self.database.url);
        health.set(DATABASE, (!is_ready).then(waiting));
    }

    /// Resolves when the tables are made.
    pub(super) async fn ready(&self) {
        let mut is_ready = self.is_ready.subscribe();
        // The sender lives as long as this does.
        drop(is_ready.wait_for(|is_ready| *is_ready).await);
    }

    /// Whether the tables were made before a stop was requested.
    pub(super) async fn ready_before(&self, stop: &Stop) -> bool {
        tokio::select! {
            () = self.ready() => true,
            () = stop.requested() => false,
        }
    }

    /// Waits until the tables are made, for a role that cannot begin without them.
    ///
    /// # Errors
    /// Whether waiting does not fix the error.
    pub(super) async fn wait(&self, health: &Health) -> Result<()> {
        let mut attempts = 0;
        while !*self.is_ready.borrow() {
            attempts += 1;
            tokio::time::sleep(AGAIN.longest_delay(attempts)).await;
            match migrate(&self.database).await {
                Ok(()) => drop(self.is_ready.send_replace(true)),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    // [`Self::open`] has logged it.
                    let error = error.chain();
                    debug!(error, "database still unavailable; retrying");
                    health.set(DATABASE, Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        health.set(DATABASE, None);
        Ok(())
    }

    /// Makes the tables when the database answers, and says in health whether it accepts changes.
    pub(super) async fn keep(&self, health: &Health, stop: &Stop) -> Result<()> {
        let mut attempts = 0;
        while !stop.is_requested() {
            let is_ready = *self.is_ready.borrow();
            let outcome = match is_ready {
                true => self.database.outbox.check().await,
                false => migrate(&self.database).await,
            };
            let problem = outcome.err().map(|error| error.chain());
            let pause = match &problem {
                None => {
                    if !is_ready || attempts > 0 {
                        info!(database = self.database.url, "database available");
                    }
                    attempts = 0;
                    self.is_ready.send_replace(true);
                    CHECK
                }
                Some(error) => {
                    if attempts == 0 && is_ready {
                        let url = &self.database.url;
                        warn!(database = url, error, "database unavailable; retrying");
                    }
                    attempts += 1;
                    AGAIN.longest_delay(attempts)
                }
            };
            health.set(DATABASE, problem);
            stop.sleep(pause).await;
        }
        Ok(())
    }
}
