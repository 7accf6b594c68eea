//! Kafka: streams on topics, read by groups of the broker.
//!
//! ```text
//! append --idempotent, acks=all--> topic --group of the broker--> member --read--> consumers of this process
//!                                                                   ^                      |
//!                                                                   +---commit: position---+
//! ```
//!
//! A process has one group member for each stream that it reads; its consumers share the fetched entries, and
//! partitions spread over processes. The client blocks, so its calls run on threads of their own.
//! Names: `docs/reference/kafka.md`.

mod ack_tracker;
mod buffers;
mod client_context;
mod config;
mod consumer;
mod counts;
mod dead;
mod entries;
mod envelope;
mod error;
mod health;
mod lease;
mod losses;
mod partitioner;
mod produce;
mod queue;
mod queue_session;
mod rebalance;
mod retry;
mod settle;
mod settler;
mod source_offsets;
mod store;
mod stream;
mod topics;
mod transaction;

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::Result;
use towpath_core::backend::{Backend, Capability, Descriptor, Health, Lifecycle};

use store::Store;

/// The descriptor of this family.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "kafka",
    schemes: config::SCHEMES,
    capabilities: &[
        Capability::Queue,
        Capability::Stream,
        Capability::SourceOffsets,
        Capability::Delay,
        Capability::Headers,
    ],
    parameters: config::PARAMETERS,
    check: |url| config::Config::parse(url).map(drop),
    open: |url, clock| {
        Box::pin(async move {
            let config = config::Config::parse(&url)?;
            let shown = config.shown.clone();
            let store = Store::open(config, clock)?;
            Ok(Backend {
                url: shown,
                descriptor: &DESCRIPTOR,
                lifecycle: Arc::new(Handle(Arc::clone(&store))),
                queue: Some(Arc::new(queue::Queues(Arc::clone(&store)))),
                routes: None,
                stream: Some(Arc::new(stream::Topics(Arc::clone(&store)))),
                kv: None,
                rate_limit: None,
                effects: None,
                source_offsets: Some(Arc::new(source_offsets::Sources::new(store))),
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
