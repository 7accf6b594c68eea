//! Ingest: a POST becomes a queued message, a worker hands it to a sink.
//!
//! ```text
//! POST /enqueue -> [request] -> Enqueue -> queue -> pump -> file | webhook | command | stdout
//! ```
//!
//! The reply is sent once the message is durable; the worker acks once the
//! sink has it. Nothing in between is the only copy.

mod api;
mod enqueue;
mod request;

pub use api::{bodies, router, routes};
pub use enqueue::{Enqueue, Limits};
#[cfg(fuzzing)]
pub use request::decode_anything;
