//! Redis: queues on its lists, streams, routes, keys and values, rate limits, shared by many processes.
//!
//! ```text
//! LPUSH by any client --> list `messages` (bare payloads) --lease.lua--> side keys: leased, delayed, dead
//!                             |                                              |
//!                             +--> BRPOP by any client                       +--> returned, retried, redriven
//! ```
//!
//! Every change is one script, so it is atomic. Scripts read
//! the server's clock, not ours. Keys: `docs/reference/redis.md`.

mod asynq;
mod batcher;
mod config;
mod connection;
mod declared;
mod effects;
mod error;
mod health;
mod keys;
mod kv;
mod notify;
mod queue;
mod rate_limit;
mod reply;
mod routes;
mod script;
mod servers;
mod store;
mod stream;

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::Result;
use towpath_core::backend::{Backend, Capability, Descriptor, Health, Lifecycle};

pub use asynq::{Leftover, TaskQueue};
pub use rate_limit::decide_at_for_testing;
use store::Store;

/// The descriptor of this family.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "redis",
    schemes: config::SCHEMES,
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
        Capability::Bookkeeping,
    ],
    parameters: config::PARAMETERS,
    check: |url| {
        let config = config::Config::parse(url)?;
        keys::Keys::new(&config).map(drop)
    },
    open: |url, _clock| {
        Box::pin(async move {
            let config = config::Config::parse(&url)?;
            let shown = config.shown.clone();
            let store = Store::open(config)?;
            Ok(Backend {
                url: shown,
                descriptor: &DESCRIPTOR,
                lifecycle: Arc::new(Handle(Arc::clone(&store))),
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

struct Handle(Arc<Store>);

#[async_trait]
impl Lifecycle for Handle {
    async fn health(&self) -> Result<Health> {
        self.0.health().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}
