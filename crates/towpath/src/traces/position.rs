//! Where in which trace a task is, and its propagation.
//!
//! The position belongs to a task of the runtime and lasts as long as one request or one delivery. It is there without
//! a collector as well: a client's trace context is passed on.

use std::future::Future;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::task::futures::TaskLocalFuture;
use towpath_core::Headers;
use towpath_core::message::header::{TRACEPARENT, TRACESTATE};

use super::IS_SILENT;

tokio::task_local! {
    static HERE: Option<SpanContext>;
}

/// Does work at a position.
pub fn within<F: Future>(
    position: Option<SpanContext>,
    work: F,
) -> TaskLocalFuture<Option<SpanContext>, F> {
    HERE.scope(position, work)
}

/// The position of this task.
pub(super) fn here() -> Option<SpanContext> {
    HERE.try_with(Clone::clone).ok().flatten()
}

/// The position of this task, or the one that these headers of a message say.
pub(super) fn here_or(headers: &Headers) -> Option<SpanContext> {
    here().or_else(|| of_message(headers))
}

/// The position that a message carries.
pub(super) fn of_message(headers: &Headers) -> Option<SpanContext> {
    headers.get(TRACEPARENT)?;
    extracted(&OfMessage(headers))
}

/// The position of this task as text, as `traceparent` has it.
pub fn traceparent() -> Option<String> {
    let here = here().filter(|_| IS_SILENT.get().is_none())?;
    let mut headers = Headers::new();
    inject(&here, &mut headers);
    headers.get(TRACEPARENT).map(str::to_owned)
}

/// Has a message carry a position.
pub(super) fn inject(position: &SpanContext, headers: &mut Headers) {
    if IS_SILENT.get().is_none() {
        let context = Context::new().with_remote_span_context(position.clone());
        TraceContextPropagator::new().inject_context(&context, &mut ToMessage(headers));
    }
}

pub(super) fn extracted(source: &dyn Extractor) -> Option<SpanContext> {
    if IS_SILENT.get().is_some() {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), source);
    let position = context.span().span_context().clone();
    position.is_valid().then_some(position)
}

struct OfMessage<'a>(&'a Headers);

impl Extractor for OfMessage<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

struct ToMessage<'a>(&'a mut Headers);

impl Injector for ToMessage<'_> {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.0.set(TRACEPARENT, value),
            TRACESTATE if !value.is_empty() => self.0.set(TRACESTATE, value),
            _ => {}
        }
    }
}
