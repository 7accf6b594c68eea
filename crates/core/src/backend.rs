//! Descriptors of drivers, and the opened backend.

use std::fmt;
use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::port::source_offsets::KvSourceOffsets;
use crate::port::{Effects, Kv, Queue, RateLimit, Routes, SourceOffsets, Stream};
use crate::{Clock, Error, Result, address};

/// One thing a backend can or cannot do. The conformance suite tests both answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// Work queues with leases.
    Queue,
    /// Routing by key into several queues at once.
    Routes,
    /// Append-only logs with consumer groups.
    Stream,
    /// Keys, values, counters and fields.
    Kv,
    /// Shared limits.
    RateLimit,
    /// Several ports changed in one atomic step.
    Effects,
    /// Source offsets, moved in the step that appends the entries read.
    SourceOffsets,
    /// Delayed messages.
    Delay,
    /// Messages dropped after a moment.
    Expiry,
    /// One key's messages delivered in order, one at a time.
    KeyOrder,
    /// Repeated dedup ids recognised within a window.
    Dedup,
    /// Headers kept with the payload.
    Headers,
    /// Payloads read without leasing.
    Peek,
    /// Delivery stopped and started per queue.
    Pause,
    /// A bound on the number of ready messages.
    MaxDepth,
    /// Queues deleted.
    DeleteQueue,
    /// A queue's settings, its counters, and the entries that a stream's consumers hold, kept across
    /// restarts; elsewhere they begin with the process.
    Bookkeeping,
}

impl Capability {
    /// Every capability, in the order of the documentation.
    pub const ALL: [Self; 17] = [
        Self::Queue,
        Self::Routes,
        Self::Stream,
        Self::Kv,
        Self::RateLimit,
        Self::Effects,
        Self::SourceOffsets,
        Self::Delay,
        Self::Expiry,
        Self::KeyOrder,
        Self::Dedup,
        Self::Headers,
        Self::Peek,
        Self::Pause,
        Self::MaxDepth,
        Self::DeleteQueue,
        Self::Bookkeeping,
    ];

    /// The word used in the documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Routes => "routes",
            Self::Stream => "stream",
            Self::Kv => "kv",
            Self::RateLimit => "rate limit",
            Self::Effects => "effects",
            Self::SourceOffsets => "positions",
            Self::Delay => "delay",
            Self::Expiry => "expiry",
            Self::KeyOrder => "order per key",
            Self::Dedup => "dedup",
            Self::Headers => "headers",
            Self::Peek => "peek",
            Self::Pause => "pause",
            Self::MaxDepth => "maximum depth",
            Self::DeleteQueue => "delete queues",
            Self::Bookkeeping => "bookkeeping",
        }
    }
}

/// A future that opens a backend.
pub type Opening = Pin<Box<dyn Future<Output = Result<Backend>> + Send>>;

/// One row of the backend table: all there is to know before opening.
pub struct Descriptor {
    /// The family's name, as messages and documentation call it.
    pub name: &'static str,
    /// The URL schemes it answers to, the first one preferred.
    pub schemes: &'static [&'static str],
    /// Its capabilities.
    pub capabilities: &'static [Capability],
    /// The URL parameters it takes: name, default, meaning.
    pub parameters: &'static [(&'static str, &'static str, &'static str)],
    /// Whether a URL is one of this family, down to each parameter, without opening anything. `open` gives the same errors.
    pub check: fn(url: &str) -> Result<()>,
    /// Opens the backend at a URL. The URL is checked strictly: an unknown parameter is `Invalid`.
    pub open: fn(url: String, clock: Arc<dyn Clock>) -> Opening,
}

impl Descriptor {
    /// Whether the family offers `capability`.
    pub fn offers(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }
}

/// The row of the table that answers to a URL's scheme.
///
/// # Errors
/// `Invalid` for an unknown scheme, naming the backends there are.
pub fn find(table: &'static [Descriptor], url: &str) -> Result<&'static Descriptor> {
    let scheme = url.split(':').next().unwrap_or_default();
    table
        .iter()
        .find(|descriptor| url.contains(':') && descriptor.schemes.contains(&scheme))
        .ok_or_else(|| {
            let known: Vec<&str> = table.iter().map(|descriptor| descriptor.name).collect();
            let known = known.join(", ");
            // Text that is not a scheme may be a password.
            Error::invalid(if address::is_scheme(scheme) {
                format!("unknown backend `{scheme}`; available: {known}")
            } else {
                format!("the URL of a backend begins with its scheme, like `redis://`; available: {known}")
            })
        })
}

/// Whether a backend works, for `/readyz`, `doctor` and the banner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Facts to show, one line each: `durability: fsync before acknowledgement`.
    pub facts: Vec<(String, String)>,
    /// Measured numbers; the name ends with the unit: `log_bytes`.
    pub figures: Vec<(&'static str, u64)>,
    /// Warnings for the operator although the backend works.
    pub warnings: Vec<String>,
}

/// The lifecycle of every opened backend.
#[async_trait]
pub trait Lifecycle: Send + Sync {
    /// Asks the backend whether it can take and give messages now.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` with the reason when it cannot.
    async fn health(&self) -> Result<Health>;

    /// Flushes pending writes and releases every resource.
    ///
    /// Idempotent. Calls that still wait answer `Unavailable`.
    ///
    /// # Errors
    /// `Unavailable` when something acknowledged as "not yet durable" could not be made so.
    async fn close(&self) -> Result<()>;

    /// Begins to read everything that was acknowledged by now, while the backend works.
    ///
    /// Dropping the snapshot ends it.
    ///
    /// # Errors
    /// `Unsupported` by servers, which have tools of their own; `Corrupt` when a file is missing;
    /// `Unavailable` for I/O.
    async fn snapshot(&self) -> Result<Snapshot> {
        Err(Error::unsupported(
            "this backend is backed up with its own tools",
        ))
    }

    /// The folder that it keeps everything in; `None` when that is with a server.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Reasons for which the backend may refuse writes, each with whether it does now; empty where only the health check
    /// of a server shows it.
    fn refusals(&self) -> Vec<(&'static str, bool)> {
        Vec::new()
    }

    /// Duration of a stall of its disk, once above its timeout; `None` while the disk responds, and
    /// for servers.
    fn stalled(&self) -> Option<Duration> {
        None
    }

    /// Resolves with the reason when the backend has stopped for good and the
    /// process should end; pending for ever on backends that reconnect.
    async fn failed(&self) -> Error {
        std::future::pending().await
    }
}

/// The files of a backend as they were at one moment.
pub struct Snapshot {
    /// The list, in the order of the bytes.
    pub files: Vec<SnapshotFile>,
    /// The bytes of all files, one after the other. Reading blocks, and fails when a file cannot be read.
    pub bytes: Box<dyn Read + Send>,
}

/// A file of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Its path below the backend's folder, with `/` between names.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// An opened backend: the ports it offers.
#[derive(Clone)]
pub struct Backend {
    /// The URL it was opened with, secrets replaced by `***`.
    pub url: String,
    /// Its row in the table.
    pub descriptor: &'static Descriptor,
    /// Health and closing.
    pub lifecycle: Arc<dyn Lifecycle>,
    /// Work queues.
    pub queue: Option<Arc<dyn Queue>>,
    /// Routing into queues.
    pub routes: Option<Arc<dyn Routes>>,
    /// Logs with consumer groups.
    pub stream: Option<Arc<dyn Stream>>,
    /// Keys and values.
    pub kv: Option<Arc<dyn Kv>>,
    /// Shared limits.
    pub rate_limit: Option<Arc<dyn RateLimit>>,
    /// Atomic steps over several of its ports.
    pub effects: Option<Arc<dyn Effects>>,
    /// Source offsets of a backend with its own implementation: use [`Backend::require_source_offsets`].
    pub source_offsets: Option<Arc<dyn SourceOffsets>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Backend {
    /// The queue port, or an error that names the caller and the backends that have it.
    ///
    /// # Errors
    /// `Unsupported` when the family has no queues.
    pub fn require_queue(&self, needed_by: &str) -> Result<Arc<dyn Queue>> {
        self.queue
            .clone()
            .ok_or_else(|| self.lacks(needed_by, "queues"))
    }

    /// The routes port, or an error as [`Backend::require_queue`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no routes.
    pub fn require_routes(&self, needed_by: &str) -> Result<Arc<dyn Routes>> {
        self.routes
            .clone()
            .ok_or_else(|| self.lacks(needed_by, "routes"))
    }

    /// The key and value port, or an error as [`Backend::require_queue`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no keys.
    pub fn require_kv(&self, needed_by: &str) -> Result<Arc<dyn Kv>> {
        self.kv
            .clone()
            .ok_or_else(|| self.lacks(needed_by, "keys and values"))
    }

    /// The stream port, or an error as [`Backend::require_queue`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no streams.
    pub fn require_stream(&self, needed_by: &str) -> Result<Arc<dyn Stream>> {
        self.stream
            .clone()
            .ok_or_else(|| self.lacks(needed_by, "streams"))
    }

    /// The positions port, or an error as [`Backend::require_queue`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no positions, and no keys and atomic steps to keep them by.
    pub fn require_source_offsets(&self, needed_by: &str) -> Result<Arc<dyn SourceOffsets>> {
        if let Some(positions) = &self.source_offsets {
            return Ok(Arc::clone(positions));
        }
        match (self.kv.clone(), self.effects.clone()) {
            (Some(kv), Some(effects)) => Ok(Arc::new(KvSourceOffsets { kv, effects })),
            _ => Err(self.lacks(needed_by, "positions")),
        }
    }

    /// The rate limit port, or an error as [`Backend::require_queue`].
    ///
    /// # Errors
    /// `Unsupported` when the family has no limits.
    pub fn require_rate_limit(&self, needed_by: &str) -> Result<Arc<dyn RateLimit>> {
        self.rate_limit
            .clone()
            .ok_or_else(|| self.lacks(needed_by, "rate limits"))
    }

    fn lacks(&self, needed_by: &str, what: &str) -> Error {
        let offers: Vec<&str> = self
            .descriptor
            .capabilities
            .iter()
            .map(|one| one.as_str())
            .collect();
        Error::unsupported(format!(
            "`{needed_by}` needs {what}; backend `{}` offers {}",
            self.descriptor.name,
            offers.join(", ")
        ))
    }
}
