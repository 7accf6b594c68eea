//! Storage drivers, one folder each. [`BACKENDS`] is the only list of them.

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod broker;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "redis"))]
mod duration;
pub mod embedded;
mod identity;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(any(feature = "kafka", feature = "redis"))]
mod percent;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod private;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(all(test, feature = "redis"))]
mod reference_test;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(any(
    feature = "kafka",
    feature = "postgres",
    feature = "rabbitmq",
    feature = "redis"
))]
mod task;

use std::sync::Arc;

use towpath_core::backend::{self, Backend, Descriptor};
use towpath_core::database::{self, Database};
use towpath_core::{Clock, Result};

/// Crates of clients whose lines may not be logged: they print payloads in warnings, and return each error that they
/// log to their caller, which logs it with its context.
pub const UNLOGGED: &[&str] = &["lapin"];

/// Every backend of this build.
pub const BACKENDS: &[Descriptor] = &[
    embedded::DESCRIPTOR,
    #[cfg(feature = "redis")]
    redis::DESCRIPTOR,
    #[cfg(feature = "rabbitmq")]
    rabbitmq::DESCRIPTOR,
    #[cfg(feature = "kafka")]
    kafka::DESCRIPTOR,
    #[cfg(feature = "postgres")]
    postgres::BACKEND,
];

/// Every database of this build.
pub const DATABASES: &[database::Descriptor] = &[
    #[cfg(feature = "sqlite")]
    sqlite::DESCRIPTOR,
    #[cfg(feature = "postgres")]
    postgres::DESCRIPTOR,
];

/// Opens the database that a URL names.
///
/// # Errors
/// As [`open`].
pub async fn open_database(url: &str) -> Result<Database> {
    let descriptor = database::find(DATABASES, url)?;
    (descriptor.open)(url.to_owned()).await
}

/// Opens the backend that a URL names.
///
/// # Errors
/// `Invalid` for an unknown scheme, naming the available ones, or a bad URL; `Unavailable` when it cannot be opened.
pub async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Backend> {
    let descriptor = backend::find(BACKENDS, url)?;
    (descriptor.open)(url.to_owned(), clock).await
}

#[cfg(test)]
mod tests {
    use towpath_core::SystemClock;

    use super::*;

    #[tokio::test]
    async fn an_unknown_backend_is_answered_with_those_there_are() {
        let error = open("reddis://localhost", Arc::new(SystemClock::new()))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown backend `reddis`; available: embedded, redis, rabbitmq, kafka, postgres"
        );
    }
}
