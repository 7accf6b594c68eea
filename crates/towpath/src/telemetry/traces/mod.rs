//! Traces: spans of requests and single messages, sent to a collector by OTLP over HTTP when one is configured.
//!
//! ```text
//! (the client's span) -> server -> enqueue -> lease -> deliver -> client
//! ```
//!
//! A message carries the position in its trace in its `traceparent` header, a task of ours in `position`. Spans are
//! made here and not by `tracing`'s stack, because a batch holds the messages of many traces at once.

mod collector;
mod context;
mod messages;
mod position;
mod requests;
mod settings;

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanLimits,
};
use tokio::runtime::Handle;
use towpath_core::Result;
use tracing::warn;

use self::collector::Collector;
use self::settings::Settings;
use crate::config;

pub use self::context::TraceContext;
pub use self::messages::{
    append, deliver, delivered, enqueue, enqueued, failed, of_delivery, publish, settled,
};
pub use self::position::{traceparent, within};
pub use self::requests::{Served, answered, client, respond, server};

/// Time limit for the last spans at the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);

/// Set once, like the logs: without it no span is made.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether contexts are neither read nor passed on. Set once, before anything is served.
static IS_SILENT: OnceLock<()> = OnceLock::new();

/// The way to the collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Sends spans from now on, if the configuration names a collector.
    ///
    /// They are sent from a thread of their own, a bounded number waits, and more are dropped: a collector that is
    /// unavailable holds nothing up.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be followed, like another protocol or a certificate that cannot be read.
    pub fn start(config: &config::Traces) -> Result<Option<Self>> {
        if !settings::propagates(config) {
            IS_SILENT.set(()).ok();
        }
        let Some(settings) = Settings::of(config)? else {
            return Ok(None);
        };
        let collector = Collector::new(&settings, Handle::current())?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(settings.batch_queue)
            .with_max_export_batch_size(settings.batch_size)
            .with_scheduled_delay(settings.batch_delay)
            .build();
        let processor = BatchSpanProcessor::builder(collector)
            .with_batch_config(batch)
            .build();
        let limits = SpanLimits {
            max_attributes_per_span: settings.max_attributes,
            ..SpanLimits::default()
        };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(settings.sampler)
            .with_span_limits(limits)
            .with_resource(settings.resource)
            .build();
        // Started twice in one process, as tests may: the first one stays.
        TRACER.set(provider.tracer("towpath")).ok();
        Ok(Some(Self { provider }))
    }

    /// Sends the remaining spans, for at most two seconds.
    pub async fn finish(self) {
        let ended =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FAREWELL));
        if let Ok(Err(error)) = ended.await {
            warn!(%error, "last traces not exported");
        }
    }
}
