//! Towpath as a library: durable queues, streams, an outbox and rate limits in your own program.

pub mod consumer;
pub mod disk;
pub mod net;
pub mod pump;
pub mod sink;
pub mod supervisor;
pub mod traces;
