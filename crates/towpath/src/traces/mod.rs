//! Traces: spans of requests and single messages, made by the tracer that the program installs.
//!
//! ```text
//! (the client's span) -> server -> enqueue -> lease -> deliver -> client
//! ```
//!
//! A message carries the position in its trace in its `traceparent` header, a task of ours in `position`. Spans are
//! made here and not by `tracing`'s stack, because a batch holds the messages of many traces at once.

mod context;
mod messages;
mod position;
#[cfg(feature = "webhook")]
mod requests;

use std::sync::OnceLock;

use opentelemetry_sdk::trace::SdkTracer;

pub use self::context::TraceContext;
pub use self::messages::{
    append, deliver, delivered, enqueue, enqueued, failed, of_delivery, publish, settled,
};
pub use self::position::{traceparent, within};
#[cfg(feature = "webhook")]
pub use self::requests::{Served, answered, client, respond, server};

/// Set once, like the logs: without it no span is made.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether contexts are neither read nor passed on. Set once, before anything is served.
static IS_SILENT: OnceLock<()> = OnceLock::new();

/// Makes spans with this tracer from now on. The first one stays.
pub fn install(tracer: SdkTracer) {
    TRACER.set(tracer).ok();
}

/// Neither reads nor passes on the context of a trace from now on.
pub fn silence() {
    IS_SILENT.set(()).ok();
}
