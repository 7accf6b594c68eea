//! Spans of single messages: enqueued, appended, published, leased, delivered.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use towpath_core::message::header::TRACEPARENT;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, NewMessage, QueueName, Result, StreamName};

use super::TRACER;
use super::position::{here, here_or, inject, of_message};

/// Begins the span of putting a message into a queue; the message carries it on.
pub fn enqueue(queue: &QueueName, message: &mut NewMessage) -> Option<Span> {
    begin("enqueue", queue.as_str(), message)
}

/// The same for an entry of a stream.
pub fn append(stream: &StreamName, message: &mut NewMessage) -> Option<Span> {
    begin("append", stream.as_str(), message)
}

/// The same for messages published to routes.
pub fn publish(exchange: &str, message: &mut NewMessage) -> Option<Span> {
    begin("publish", exchange, message)
}

/// The parent is the request or the delivery that this task works on, or the message's own. Without a collector
/// the message carries the former on.
fn begin(name: &'static str, destination: &str, message: &mut NewMessage) -> Option<Span> {
    let Some(tracer) = TRACER.get() else {
        if message.headers.get(TRACEPARENT).is_none()
            && let Some(here) = here()
        {
            inject(&here, &mut message.headers);
        }
        return None;
    };
    let attributes = [
        KeyValue::new("messaging.system", "towpath"),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.destination.name", destination.to_owned()),
        KeyValue::new("messaging.message.id", message.id.to_string()),
    ];
    let span = tracer
        .span_builder(name)
        .with_kind(SpanKind::Producer)
        .with_attributes(attributes)
        .start_with_context(tracer, &below(here_or(&message.headers)));
    inject(span.span_context(), &mut message.headers);
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

/// Ends the spans of one step.
pub fn settled<T>(spans: impl IntoIterator<Item = Span>, outcome: &Result<T>) {
    if let Err(error) = outcome {
        failed(spans, error);
    }
}

/// The spans of a leased batch, one a message: `lease`, from when it could have been leased until now,
/// and `deliver`, which begins now. Empty without a collector.
pub fn deliver(batch: &[Delivery], sink: &'static str, asked_at: SystemTime) -> Vec<Span> {
    let Some(tracer) = TRACER.get() else {
        return Vec::new();
    };
    let begin = |delivery| delivery_spans(tracer, delivery, sink, asked_at);
    batch.iter().map(begin).collect()
}

/// The trace position of the delivery of these spans: requests and messages of its handler belong there.
pub fn of_delivery(spans: &[Span], delivery: &Delivery) -> Option<SpanContext> {
    match spans.first() {
        Some(span) => Some(span.span_context().clone()),
        None => of_message(&delivery.message.headers),
    }
}

fn delivery_spans(
    tracer: &SdkTracer,
    delivery: &Delivery,
    sink: &'static str,
    asked_at: SystemTime,
) -> Span {
    let message = &delivery.message;
    let attributes = [
        KeyValue::new("messaging.system", "towpath"),
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
    let operation = |name, kind| {
        [
            KeyValue::new("messaging.operation.name", name),
            KeyValue::new("messaging.operation.type", kind),
        ]
    };
    let enqueued_at =
        SystemTime::UNIX_EPOCH + Duration::from_millis(message.enqueued_at.as_millis());
    let lease = tracer
        .span_builder("lease")
        .with_kind(SpanKind::Consumer)
        .with_start_time(asked_at.max(enqueued_at))
        .with_attributes(
            attributes
                .iter()
                .cloned()
                .chain(operation("lease", "receive")),
        )
        .start_with_context(tracer, &below(of_message(&message.headers)));
    let leased = below(Some(lease.span_context().clone()));
    let more = operation("deliver", "process");
    let more = more
        .into_iter()
        .chain([KeyValue::new("towpath.sink", sink)]);
    tracer
        .span_builder("deliver")
        .with_kind(SpanKind::Client)
        .with_attributes(attributes.into_iter().chain(more))
        .start_with_context(tracer, &leased)
}

/// Ends the spans with the outcome of each message.
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
pub fn failed(spans: impl IntoIterator<Item = Span>, error: &Error) {
    for mut span in spans {
        span.set_status(Status::error(error.chain()));
    }
}

/// The parent of a span: this position, or none.
pub(super) fn below(position: Option<SpanContext>) -> Context {
    match position {
        Some(position) => Context::new().with_remote_span_context(position),
        None => Context::new(),
    }
}
