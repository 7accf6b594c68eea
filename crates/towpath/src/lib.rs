//! Durable queues, streams, an outbox and rate limits in your own program: on files in a folder, with nothing
//! installed, or on Redis, RabbitMQ, Kafka and PostgreSQL by changing a URL.
//!
//! ```no_run
//! use towpath::{Engine, Job, JobError, Worker};
//!
//! #[tokio::main]
//! async fn main() -> towpath::Result<()> {
//!     let engine = Engine::open("embedded:./data").await?;
//!     let emails = engine.queue("emails").await?;
//!     emails.send("to: zoe@example.com").await?; // durable when it returns
//!
//!     let worker = Worker::builder(&emails).handler(|job: Job| async move {
//!         println!("sending {}", job.text()?); // an error is tried again later
//!         Ok::<(), JobError>(())
//!     })?;
//!     worker.run().await; // until SIGTERM
//!     engine.close().await
//! }
//! ```
//!
//! # Guide
//!
//! | task | item |
//! | --- | --- |
//! | open a store | [`Engine`] |
//! | store work | [`Queue::send`], [`Queue::send_in`], [`Queue::send_all`] |
//! | handle it | [`Worker`], [`Job`], [`JobError`] |
//! | keep a log that several programs read | [`Stream`], [`Group`] |
//! | leave events in a database transaction | [`outbox`] |
//! | limit a rate over all processes | [`Limiter`], [`limit`] |
//! | send messages on: webhook, command, file | [`sink`] |
//!
//! # Promises
//!
//! - A message is durable when `send` returns: on the embedded store after `fsync`, on a server as that is configured.
//! - It is delivered at least once: a crash between the work and its ack delivers it again, with the same [`Job::id`].
//! - A worker that dies loses its leases, and only messages that had begun are charged an attempt.
//!
//! # Features
//!
//! `redis`, `rabbitmq`, `kafka`, `postgres` and `sqlite` add a driver each, `webhook` the sink that posts to a URL; none is
//! on by default. The embedded store is always there.

pub mod consumer;
#[doc(hidden)]
pub mod disk;
mod engine;
#[doc(hidden)]
pub mod failures;
mod job;
mod limiter;
#[cfg(feature = "webhook")]
#[doc(hidden)]
pub mod net;
pub mod outbox;
pub mod pump;
mod queue;
#[doc(hidden)]
pub mod relay;
#[cfg(feature = "webhook")]
mod shown_url;
pub mod sink;
mod stream;
pub mod supervisor;
#[doc(hidden)]
pub mod traces;
mod worker;

pub use engine::Engine;
pub use job::{Job, JobError};
pub use limiter::Limiter;
pub use queue::Queue;
pub use stream::{Group, Stream};
pub use towpath_core::port::queue::{Settings, Stats};
pub use towpath_core::{
    Error, ErrorKind, Headers, MessageId, NewMessage, Result, Timestamp, retry,
};
pub use worker::{Source, Worker, WorkerBuilder};

/// Policies of rate limits, and their decisions.
pub mod limit {
    pub use towpath_core::limiter::{Amount, Decision, Policy};
}
