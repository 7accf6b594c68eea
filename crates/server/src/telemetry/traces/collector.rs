//! The collector: OTLP over HTTP, as protobuf, with the HTTP client that the rest of the process uses.
//!
//! Source: OpenTelemetry, "OTLP Specification" 1.5, section OTLP/HTTP.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use opentelemetry::Value;
use opentelemetry::trace::Status;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;
use tokio::runtime::Handle;
use towpath_core::{Error, Result, SystemClock};
use tracing::{info, warn};

use super::settings::Settings;
use towpath::net::answer::retry_after;

/// Maximum read length of an answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// The pause before a batch is sent again; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Sends batches of spans.
#[derive(Debug)]
pub(super) struct Collector {
    sender: Sender,
    is_compressed: bool,
    resource: ResourceAttributesWithSchema,
    max_attribute_length: Option<usize>,
    runtime: Handle,
    is_away: AtomicBool,
}

/// Parameters of a call; cheap to clone.
#[derive(Debug, Clone)]
struct Sender {
    client: reqwest::Client,
    url: String,
    headers: HeaderMap,
    timeout: Duration,
}

/// Why a batch was not taken, and whether it may be sent again.
struct Refused {
    problem: String,
    may_help: bool,
    after: Option<Duration>,
}

impl Collector {
    /// Sends to the collector of these settings.
    ///
    /// # Errors
    /// `Invalid` when the client cannot be made.
    pub(super) fn new(settings: &Settings, runtime: Handle) -> Result<Self> {
        let client = match &settings.tls {
            Some(tls) => towpath::net::client_of(tls.clone()),
            None => towpath::net::client(),
        };
        let client = client.timeout(settings.timeout).build().map_err(|error| {
            Error::invalid("traces cannot be sent with these settings").with_source(error)
        })?;
        let mut headers = settings.headers.clone();
        let protobuf = HeaderValue::from_static("application/x-protobuf");
        headers.insert(header::CONTENT_TYPE, protobuf);
        if settings.is_compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self {
            sender: Sender {
                client,
                url: settings.url.clone(),
                headers,
                timeout: settings.timeout,
            },
            is_compressed: settings.is_compressed,
            resource: ResourceAttributesWithSchema::from(&settings.resource),
            max_attribute_length: settings.max_attribute_length,
            runtime,
            is_away: AtomicBool::new(false),
        })
    }

    /// Says once for each change, however long it lasts, whether spans arrive.
    fn note(&self, problem: Option<&str>) {
        let was_away = self.is_away.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_away => warn!(
                problem,
                "trace export failed; dropping traces until the collector answers"
            ),
            None if was_away => info!("trace export resumed"),
            _ => {}
        }
    }
}

impl SpanExporter for Collector {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        if let Some(length) = self.max_attribute_length {
            batch.iter_mut().for_each(|span| shorten(span, length));
        }
        batch.iter_mut().for_each(order_times);
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let mut body = request.encode_to_vec();
        if self.is_compressed {
            let failed = |error: std::io::Error| OTelSdkError::InternalFailure(error.to_string());
            body = gzip(&body).map_err(failed)?;
        }
        let body = Bytes::from(body);
        let end = Instant::now() + self.sender.timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let (sender, body) = (self.sender.clone(), body.clone());
            // This thread has no runtime of its own. Ends within the deadline.
            let call = self.runtime.spawn(async move { sender.send(body).await });
            let refused = match call.await {
                Ok(Ok(())) => {
                    self.note(None);
                    return Ok(());
                }
                Ok(Err(refused)) => refused,
                Err(_) => return Err(OTelSdkError::AlreadyShutdown),
            };
            self.note(Some(&refused.problem));
            let wait = refused.after.unwrap_or(pause);
            if !refused.may_help || Instant::now() + wait >= end {
                return Err(OTelSdkError::InternalFailure(refused.problem));
            }
            // Nothing else runs on this thread.
            std::thread::sleep(wait);
            pause *= 2;
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = ResourceAttributesWithSchema::from(resource);
    }
}

impl Sender {
    async fn send(&self, body: Bytes) -> Result<(), Refused> {
        let request = self.client.post(&self.url).headers(self.headers.clone());
        let lost = |error: reqwest::Error| Refused {
            problem: Error::unavailable("no answer")
                .with_source(error.without_url())
                .chain(),
            may_help: true,
            after: None,
        };
        let mut answer = request.body(body).send().await.map_err(lost)?;
        let (status, after) = (
            answer.status(),
            retry_after(answer.headers(), &SystemClock::new()),
        );
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            let room = ANSWER_BYTES.saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if room == 0 {
                break;
            }
        }
        if !status.is_success() {
            let again = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ];
            return Err(Refused {
                problem: format!("HTTP {status}"),
                may_help: again.contains(&status),
                after,
            });
        }
        let answer = ExportTraceServiceResponse::decode(&body[..]).unwrap_or_default();
        match answer.partial_success {
            Some(partial) if partial.rejected_spans > 0 => Err(Refused {
                problem: format!(
                    "refused {} spans: {}",
                    partial.rejected_spans, partial.error_message
                ),
                may_help: false,
                after: None,
            }),
            _ => Ok(()),
        }
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Cuts the texts of a span to this many characters.
fn shorten(span: &mut SpanData, length: usize) {
    let cut = |text: &str| text.chars().take(length).collect::<String>();
    for attribute in &mut span.attributes {
        if let Value::String(text) = &attribute.value
            && text.as_str().chars().nth(length).is_some()
        {
            attribute.value = Value::String(cut(text.as_str()).into());
        }
    }
    if let Status::Error { description } = &mut span.status
        && description.chars().nth(length).is_some()
    {
        *description = cut(description).into();
    }
}

/// Lets no span end before it begins: its times are those of clocks that are set, and of the one that enqueued.
fn order_times(span: &mut SpanData) {
    span.end_time = span.end_time.max(span.start_time);
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[derive(Debug, Default, Clone)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    #[test]
    fn a_span_of_a_clock_that_was_ahead_does_not_end_before_it_begins() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(kept.clone())
            .build();
        let (begin, end) = (Duration::from_secs(60), Duration::from_secs(59));
        let mut span = provider
            .tracer("test")
            .span_builder("lease")
            .with_start_time(SystemTime::UNIX_EPOCH + begin)
            .start(&provider.tracer("test"));
        span.end_with_timestamp(SystemTime::UNIX_EPOCH + end);
        let mut found = kept.0.lock().unwrap().remove(0);
        assert!(found.end_time < found.start_time);
        order_times(&mut found);
        assert_eq!(found.end_time, found.start_time);
    }
}
