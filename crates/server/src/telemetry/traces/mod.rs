//! Spans, sent to a collector by OTLP over HTTP when one is configured.

mod collector;
mod settings;

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanLimits,
};
use tokio::runtime::Handle;
use towpath::traces;
use towpath_core::Result;
use tracing::warn;

use self::collector::Collector;
use self::settings::Settings;
use crate::config;

/// Time limit for the last spans at the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);

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
            traces::silence();
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
        traces::install(provider.tracer("towpath"));
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
