//! One connection, redialled on the next node after an error of the connection.
//!
//! A channel error (a missing queue, a missing permission) ends that channel only.
//! The call that needs the connection dials it; after every node failed, calls are refused for a backoff that
//! grows with jitter, so that a recovering broker is not overloaded.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::runtime::default_runtime;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use rand::Rng;
use tokio::task::JoinHandle;
use towpath_core::{Error, Result};
use tracing::{info, warn};

use super::config::Config;
use super::error;

/// Bounds of the backoff after every node failed.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A connection that redials.
pub(super) struct BrokerConnection {
    purpose: &'static str,
    config: Config,
    /// Held while dialling.
    slot: tokio::sync::Mutex<Slot>,
    /// The number of the connection that may be used; raised when it breaks.
    live: AtomicU64,
    blocked: Arc<Mutex<Option<String>>>,
}

#[derive(Default)]
struct Slot {
    open: Option<OpenConnection>,
    /// The node to try next.
    next: usize,
    failures: u32,
    refused: Option<(Instant, String)>,
}

/// A connection in use.
#[derive(Clone)]
pub(super) struct OpenConnection {
    connection: Arc<Connection>,
    pub(super) node: String,
    pub(super) number: u64,
    _watch: Arc<EventTask>,
}

/// Task that reads connection events, while the connection is used.
struct EventTask(JoinHandle<()>);

impl Drop for EventTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl BrokerConnection {
    pub(super) fn new(purpose: &'static str, config: Config) -> Self {
        Self {
            purpose,
            config,
            slot: tokio::sync::Mutex::default(),
            live: AtomicU64::new(0),
            blocked: Arc::default(),
        }
    }

    /// Why the broker blocks publishers, if it does.
    pub(super) fn blocked(&self) -> Option<String> {
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.clone()
    }

    /// The number of the connection that may be used.
    pub(super) fn number(&self) -> u64 {
        self.live.load(Ordering::Acquire)
    }

    /// Whether a connection of this number may still be used.
    pub(super) fn is_live(&self, number: u64) -> bool {
        self.live.load(Ordering::Acquire) == number
    }

    /// Whether a connection is open, as far as the client knows.
    pub(super) fn is_connected(&self) -> bool {
        let slot = self.slot.try_lock();
        slot.is_ok_and(|slot| {
            let open = slot.open.as_ref();
            open.is_some_and(|open| {
                self.is_live(open.number) && open.connection.status().connected()
            })
        })
    }

    /// The connection, dialled when there is none.
    pub(super) async fn open(&self) -> Result<OpenConnection> {
        let mut slot = self.slot.lock().await;
        if let Some(open) = &slot.open
            && self.is_live(open.number)
            && open.connection.status().connected()
        {
            return Ok(open.clone());
        }
        slot.open = None;
        if let Some((until, why)) = &slot.refused
            && Instant::now() < *until
        {
            return Err(Error::unavailable(why.clone()));
        }
        let mut failures = Vec::new();
        for _ in 0..self.config.nodes.len() {
            let at = slot.next % self.config.nodes.len();
            match self.dial(at).await {
                Ok(open) => {
                    slot.failures = 0;
                    slot.refused = None;
                    slot.open = Some(open.clone());
                    info!(
                        purpose = self.purpose,
                        node = open.node,
                        "connected to rabbitmq"
                    );
                    return Ok(open);
                }
                Err(error) => {
                    slot.next = at + 1;
                    failures.push(error.chain());
                }
            }
        }
        let why = failures.join("; ");
        let longest = FIRST_WAIT
            .saturating_mul(1 << slot.failures.min(10))
            .min(LONGEST_WAIT);
        let wait = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        slot.failures = slot.failures.saturating_add(1);
        slot.refused = Some((Instant::now() + wait, why.clone()));
        Err(Error::unavailable(why))
    }

    async fn dial(&self, at: usize) -> Result<OpenConnection> {
        let (node, uri) = self.config.nodes[at].clone();
        let name = format!("towpath {}", self.purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = default_runtime().map_err(|error| error::of_call(&node, error))?;
        let tls = self.config.tls();
        let dialled = Connection::connect_uri_with_config(uri, properties, tls, runtime);
        let connection = match tokio::time::timeout(self.config.timeout, dialled).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(error::of_call(&node, error)),
            Err(_) => return Err(error::silent(&node, self.config.timeout)),
        };
        let number = self.live.fetch_add(1, Ordering::AcqRel) + 1;
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut events = Box::pin(connection.events_listener());
        let (blocked, shown) = (Arc::clone(&self.blocked), node.clone());
        // Ends with the last user of the connection.
        let watch = crate::task::spawn(async move {
            while let Some(event) = events.next().await {
                let now = match event {
                    Event::ConnectionBlocked(why) => {
                        warn!(node = shown, why, "rabbitmq is blocking publishers");
                        Some(why)
                    }
                    Event::ConnectionUnblocked => None,
                    _ => continue,
                };
                *blocked.lock().unwrap_or_else(PoisonError::into_inner) = now;
            }
        });
        Ok(OpenConnection {
            connection: Arc::new(connection),
            node,
            number,
            _watch: Arc::new(EventTask(watch)),
        })
    }

    /// Abandons the connection: the next call dials another, on another node if there is one.
    pub(super) fn abandon(&self, open: &OpenConnection, why: &Error) {
        let broken = self.live.compare_exchange(
            open.number,
            open.number + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if broken.is_err() {
            return;
        }
        warn!(
            purpose = self.purpose,
            node = open.node,
            error = why.chain(),
            "rabbitmq connection abandoned"
        );
        let connection = Arc::clone(&open.connection);
        // Best effort, bounded by the client's heartbeat: the broker requeues our deliveries.
        crate::task::spawn(async move {
            let closing = connection.close(200, "abandoned".into());
            drop(tokio::time::timeout(LONGEST_WAIT, closing).await);
        });
    }

    /// One call over a connection, with its deadline; an error ends the channel or the connection.
    pub(super) async fn call<T>(
        &self,
        open: &OpenConnection,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        match self.ask(open, call).await? {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.failed(open, error)),
        }
    }

    /// The error of a call. A channel error leaves the connection and its other channels open.
    pub(super) fn failed(&self, open: &OpenConnection, error: lapin::Error) -> Error {
        let keeps = error::is_of_channel(&error) && open.connection.status().connected();
        let error = error::of_call(&open.node, error);
        if !keeps {
            self.abandon(open, &error);
        }
        error
    }

    /// Waits for an answer until the deadline; the caller interprets it.
    pub(super) async fn ask<A>(
        &self,
        open: &OpenConnection,
        call: impl Future<Output = A>,
    ) -> Result<A> {
        match tokio::time::timeout(self.config.timeout, call).await {
            Ok(answer) => Ok(answer),
            Err(_) => {
                if let Some(why) = self.blocked() {
                    // The connection is alive, and the broker will unblock it.
                    return Err(error::blocked(&open.node, &why));
                }
                let error = error::silent(&open.node, self.config.timeout);
                self.abandon(open, &error);
                Err(error)
            }
        }
    }

    /// Opens a channel.
    pub(super) async fn channel(&self, open: &OpenConnection) -> Result<Channel> {
        self.call(open, open.connection.create_channel()).await
    }

    /// Closes the connection for good.
    pub(super) async fn close(&self) {
        let open = self.slot.lock().await.open.take();
        self.live.fetch_add(1, Ordering::AcqRel);
        if let Some(open) = open {
            let closing = open.connection.close(200, "closed".into());
            drop(tokio::time::timeout(self.config.timeout, closing).await);
        }
    }
}
