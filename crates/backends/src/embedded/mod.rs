//! The embedded store: queues in a folder, with nothing installed.
//!
//! ```text
//! operation -> lock: check, append a record, change the state -> unlock -> wait until committed -> answer
//! ```
//!
//! The state is in memory and holds positions; payloads are read back from the
//! log. Opening loads the newest checkpoint and replays the log behind it.
//!
//! Every port is offered, and atomic steps over them. Formats: `docs/format`.

mod backup;
mod blob;
mod checkpoint;
mod config;
#[cfg(test)]
mod damage_test;
mod effects;
#[cfg(test)]
mod flip_test;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kv;
mod lock;
mod log;
mod memory;
mod message_records;
#[cfg(test)]
mod model_test;
mod moving;
#[cfg(test)]
mod moving_test;
mod presence;
#[cfg(test)]
mod presence_test;
mod queue;
mod rate_limit;
mod record;
mod restoring;
mod routes;
#[cfg(test)]
mod sample_test;
#[cfg(test)]
mod size_test;
mod state;
mod store;
#[cfg(test)]
mod store_test;
mod stream;
mod tables;
mod upkeep;
#[cfg(test)]
mod upkeep_test;
mod verify;
#[cfg(test)]
mod verify_test;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::backend::{Backend, Capability, Descriptor, Health, Lifecycle, Snapshot};
use towpath_core::stall::Watch;
use towpath_core::{Error, Result};

pub use log::reserve::NAME as RESERVE;
pub use log::scan_for_fuzzing;
pub use memory::memory_limit;
pub use restoring::{RESTORING, refuse_restoring};
use store::Store;
/// Whether a process has the store in this folder open.
pub fn is_in_use(folder: &std::path::Path) -> bool {
    lock::hold(folder).is_err()
}

pub use verify::{Depth, Verified, verify};

/// The formats on disk and their newest versions; `docs/format` describes them.
pub const FORMATS: &[(&str, u32)] = &[("log", log::FORMAT), ("store", checkpoint::VERSION)];

/// This family's row.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "embedded",
    schemes: &["embedded"],
    capabilities: &[
        Capability::Queue,
        Capability::Routes,
        Capability::Stream,
        Capability::Kv,
        Capability::RateLimit,
        Capability::Effects,
        Capability::SourceOffsets,
        Capability::Delay,
        Capability::Expiry,
        Capability::KeyOrder,
        Capability::Dedup,
        Capability::Headers,
        Capability::Peek,
        Capability::Pause,
        Capability::MaxDepth,
        Capability::DeleteQueue,
        Capability::Bookkeeping,
    ],
    parameters: config::PARAMETERS,
    check: |url| config::Config::parse(url).map(drop),
    open: |url, clock| {
        Box::pin(async move {
            let config = config::Config::parse(&url)?;
            // Opening reads and writes files; a few milliseconds, or as long as the tail of the log is.
            let opening = tokio::task::spawn_blocking(move || Store::open(config, clock));
            let store = opening.await.map_err(|error| {
                Error::corrupt("opening the store panicked").with_source(error)
            })??;
            Ok(Backend {
                url,
                descriptor: &DESCRIPTOR,
                lifecycle: Arc::new(Handle::new(Arc::clone(&store))),
                queue: Some(Arc::clone(&store) as _),
                routes: Some(Arc::clone(&store) as _),
                stream: Some(Arc::clone(&store) as _),
                kv: Some(Arc::clone(&store) as _),
                rate_limit: Some(Arc::clone(&store) as _),
                effects: Some(store),
                source_offsets: None,
            })
        })
    },
};

struct Handle {
    store: Arc<Store>,
    /// The write that tells whether the file system takes any.
    probe: Arc<Watch>,
}

impl Handle {
    fn new(store: Arc<Store>) -> Self {
        let probe = Arc::new(Watch::new());
        Self { store, probe }
    }
}

#[async_trait]
impl Lifecycle for Handle {
    async fn health(&self) -> Result<Health> {
        let health = self.store.health()?;
        // One at a time: on a disk that hangs each would keep a thread.
        if let Some(lasts) = self.probe.lasts() {
            if lasts < self.store.config.timeout {
                return Ok(health);
            }
            let (folder, lasts) = (self.store.folder().display(), lasts.as_secs());
            let text = format!("the disk of `{folder}` has not answered for {lasts} s");
            return Err(Error::unavailable(text));
        }
        let (store, probe) = (Arc::clone(&self.store), Arc::clone(&self.probe));
        tokio::task::spawn_blocking(move || probe.during(|| store.check_writable()))
            .await
            .map_err(|error| Error::unavailable("the check panicked").with_source(error))??;
        Ok(health)
    }

    async fn close(&self) -> Result<()> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.close())
            .await
            .map_err(|error| Error::unavailable("closing the store panicked").with_source(error))?
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.snapshot())
            .await
            .map_err(|error| Error::unavailable("the snapshot panicked").with_source(error))?
    }

    fn folder(&self) -> Option<&Path> {
        Some(self.store.folder())
    }

    fn stalled(&self) -> Option<Duration> {
        let timeout = self.store.config.timeout;
        let probe = self.probe.lasts().filter(|lasts| *lasts >= timeout);
        self.store.log.stalled().max(probe)
    }

    fn refusals(&self) -> Vec<(&'static str, bool)> {
        self.store.refusals()
    }

    async fn failed(&self) -> Error {
        self.store.failed().await
    }
}
