//! RabbitMQ: queues and routes on a broker that many processes share.
//!
//! ```text
//! enqueue --confirmed--> `q` --get--> in flight --ack--> done
//!                         ^             |--------------> `q.delay.<ms>` --TTL--> `q`   (retry)
//!                         +-------------|                (release, expired lease, connection lost)
//!                                       +--------------> `q.dead` --redrive--> `q`
//! ```
//!
//! `q` itself needs no arguments, so a classic queue without arguments is adopted as it is; queues declared here are
//! quorum queues. A message that moves is published again, confirmed, and only then acked at its source.
//! In-flight messages are known to this process only, and are requeued when its connection closes.
//! Names and headers: `docs/reference/rabbitmq.md`.

mod config;
mod connection;
mod consumer;
mod consumer_channel;
mod dead;
mod declare;
mod definition;
mod delay;
mod envelope;
mod error;
mod health;
mod lease;
mod other_brokers;
mod publish_batcher;
mod publisher;
mod queue;
mod quorum;
mod routes;
mod settle;
mod store;

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::Result;
use towpath_core::backend::{Backend, Capability, Descriptor, Health, Lifecycle};

use store::Store;

/// The descriptor of this family.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "rabbitmq",
    schemes: config::SCHEMES,
    capabilities: &[
        Capability::Queue,
        Capability::Routes,
        Capability::Delay,
        Capability::Headers,
    ],
    parameters: config::PARAMETERS,
    check: |url| config::Config::parse(url).map(drop),
    open: |url, clock| {
        Box::pin(async move {
            let config = config::Config::parse(&url)?;
            let shown = config.shown.clone();
            let store = Store::open(config, clock);
            Ok(Backend {
                url: shown,
                descriptor: &DESCRIPTOR,
                lifecycle: Arc::new(Handle(Arc::clone(&store))),
                queue: Some(Arc::new(queue::Queues(Arc::clone(&store)))),
                routes: Some(Arc::new(routes::Exchanges(store))),
                stream: None,
                kv: None,
                rate_limit: None,
                effects: None,
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

    fn refusals(&self) -> Vec<(&'static str, bool)> {
        self.0.refusals()
    }
}
