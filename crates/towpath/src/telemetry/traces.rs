//! Traces: spans of single messages, sent to a collector by OTLP over HTTP when one is configured.
//!
//! ```text
//! (the client's span) -> enqueue -> lease -> deliver
//! ```
//!
//! A message carries the position in its trace in its `traceparent` header. Spans are made here and not by
//! `tracing`'s stack, because a batch holds the messages of many traces at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use tokio::runtime::Handle;
use towpath_core::message::header::TRACEPARENT;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, Headers, NewMessage, QueueName, Result};
use tracing::{info, warn};

/// How long one call of the collector may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long the last spans may take at the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is read of an answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// Set once, like the logs: without it no span is made.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The way to the collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Sends spans to this collector from now on, `/v1/traces` added to the URL.
    ///
    /// They are sent from a thread of their own, at most 2,048 wait, and more are dropped: a collector that is
    /// away holds nothing up. The other variables of OpenTelemetry (service name, sampler, headers, delays) hold.
    ///
    /// # Errors
    /// `Invalid` when the exporter cannot be made of these settings.
    pub fn start(endpoint: &str) -> Result<Self> {
        let unusable = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::invalid("traces cannot be sent with these settings").with_source(error)
        };
        let client = crate::http::client()
            .timeout(DEADLINE)
            .build()
            .map_err(|error| unusable(error.into()))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_http_client(Collector {
                client,
                runtime: Handle::current(),
                away: AtomicBool::new(false),
            })
            .build()
            .map_err(|error| unusable(error.into()))?;
        let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or("towpath".to_owned());
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name(name).build())
            .build();
        // Started twice in one process, as tests may: the first one stays.
        TRACER.set(provider.tracer("towpath")).ok();
        Ok(Self { provider })
    }

    /// Sends what is left, for at most two seconds.
    pub async fn finish(self) {
        let ended =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FAREWELL));
        if let Ok(Err(error)) = ended.await {
            warn!(%error, "the last traces were not sent");
        }
    }
}

/// Begins the span of taking a message in; the message carries it on.
pub fn enqueue(queue: &QueueName, message: &mut NewMessage) -> Option<Span> {
    let tracer = TRACER.get()?;
    let parent = position(&message.headers);
    let span = tracer
        .span_builder("enqueue")
        .with_kind(SpanKind::Producer)
        .with_attributes([
            KeyValue::new("messaging.destination.name", queue.to_string()),
            KeyValue::new("messaging.message.id", message.id.to_string()),
        ])
        .start_with_context(tracer, &parent);
    let context = Context::new().with_remote_span_context(span.span_context().clone());
    TraceContextPropagator::new().inject_context(&context, &mut Carrier(&mut message.headers));
    Some(span)
}

/// Ends the spans of messages that were taken or refused.
pub fn enqueued<T>(spans: Vec<Span>, outcomes: &Result<Vec<Result<T>>>) {
    match outcomes {
        Ok(outcomes) => {
            for (mut span, outcome) in spans.into_iter().zip(outcomes) {
                if let Err(error) = outcome {
                    span.set_status(Status::error(error.chain()));
                }
            }
        }
        Err(error) => failed(spans, error),
    }
}

/// The spans of a leased batch, one a message: `lease`, from when it could have been leased until now,
/// and `deliver`, which begins now. Empty when nobody asked for traces.
pub fn deliver(batch: &[Delivery], sink: &'static str, asked_at: SystemTime) -> Vec<Span> {
    let Some(tracer) = TRACER.get() else {
        return Vec::new();
    };
    let begin = |delivery: &Delivery| {
        let message = &delivery.message;
        let attributes = [
            KeyValue::new(
                "messaging.destination.name",
                delivery.receipt.queue.to_string(),
            ),
            KeyValue::new("messaging.message.id", message.id.to_string()),
            KeyValue::new(
                "messaging.message.delivery_attempt",
                i64::from(delivery.attempt),
            ),
        ];
        let enqueued_at =
            SystemTime::UNIX_EPOCH + Duration::from_millis(message.enqueued_at.as_millis());
        let lease = tracer
            .span_builder("lease")
            .with_kind(SpanKind::Consumer)
            .with_start_time(asked_at.max(enqueued_at))
            .with_attributes(attributes.clone())
            .start_with_context(tracer, &position(&message.headers));
        let leased = Context::new().with_remote_span_context(lease.span_context().clone());
        tracer
            .span_builder("deliver")
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
            .with_attributes([KeyValue::new("towpath.sink", sink)])
            .start_with_context(tracer, &leased)
    };
    batch.iter().map(begin).collect()
}

/// Ends the spans with what became of each message.
pub fn delivered(spans: Vec<Span>, outcomes: &[Outcome]) {
    for (mut span, outcome) in spans.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Done | Outcome::Settled => {}
            Outcome::Retry { error, .. } | Outcome::Unavailable { error, .. } => {
                span.set_status(Status::error(error.clone()))
            }
            Outcome::Reject { reason } => span.set_status(Status::error(reason.clone())),
        }
    }
}

/// Ends the spans of a batch that failed as a whole.
pub fn failed(spans: Vec<Span>, error: &Error) {
    for mut span in spans {
        span.set_status(Status::error(error.chain()));
    }
}

/// Where in which trace a message is; nowhere when its header says nothing that can be read.
fn position(headers: &Headers) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Source(headers))
}

struct Source<'a>(&'a Headers);

impl Extractor for Source<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

struct Carrier<'a>(&'a mut Headers);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        // The only header of a trace that is passed on.
        if key == TRACEPARENT {
            self.0.set(key.to_owned(), value);
        }
    }
}

/// Calls the collector with the HTTP client that the rest of the process uses.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    runtime: Handle,
    away: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        // The exporter's thread has no runtime of its own. Ends within the deadline.
        let call = self
            .runtime
            .spawn(async move { call(&client, request).await });
        let answer = call.await?;
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        // Once for each change, however long it lasts.
        match (
            &problem,
            self.away.swap(problem.is_some(), Ordering::Relaxed),
        ) {
            (Some(problem), false) => {
                warn!(
                    problem,
                    "traces cannot be sent and are dropped until the collector answers"
                );
            }
            (None, true) => info!("traces are sent again"),
            _ => {}
        }
        answer
    }
}

async fn call(
    client: &reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client
        .execute(request.try_into()?)
        .await
        .map_err(|error| error.without_url())?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = ANSWER_BYTES.saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}
