//! The service behind `POST /enqueue`: one queue, its limits, its idempotency.

use std::sync::Arc;

use bytes::Bytes;
use towpath_core::port::Queue;
use towpath_core::port::queue::Enqueued;
use towpath_core::{Error, NewMessage, QueueName, Result, ResultExt};

use crate::telemetry::TraceContext;
use crate::telemetry::traces;

/// What a client may send at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one message, and of the body that brings it.
    pub message_bytes: usize,
    /// Bytes of the body of a batch.
    pub batch_bytes: usize,
}

/// What the client says beside the message.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    /// Makes a retry harmless: the first message's id is answered again.
    pub(super) idempotency_key: Option<String>,
    /// W3C trace context to pass on.
    pub(super) trace: Option<TraceContext>,
}

/// Puts messages into the ingest queue.
#[derive(Clone)]
pub struct Enqueue {
    queue: Arc<dyn Queue>,
    name: QueueName,
    /// What a client may send at most.
    pub limits: Limits,
}

impl Enqueue {
    /// A service over the queue called `name`.
    pub fn new(queue: Arc<dyn Queue>, name: QueueName, limits: Limits) -> Self {
        Self {
            queue,
            name,
            limits,
        }
    }

    /// The queue messages go to.
    pub fn queue_name(&self) -> &QueueName {
        &self.name
    }

    /// Stores one message and returns once it is durable.
    pub(super) async fn one(&self, message: Bytes, context: Context) -> Result<Enqueued> {
        let mut outcomes = self.many(vec![message], context).await?;
        outcomes
            .pop()
            .unwrap_or_else(|| Err(Error::unavailable("the queue gave no outcome")))
    }

    /// Stores a batch and returns once all of it is durable. One outcome per message.
    ///
    /// With an idempotency key every message gets one of its own from its
    /// place in the batch, so that a repeated batch stores nothing twice.
    pub(super) async fn many(
        &self,
        messages: Vec<Bytes>,
        context: Context,
    ) -> Result<Vec<Result<Enqueued>>> {
        let single = messages.len() == 1;
        let mut messages: Vec<NewMessage> = messages
            .into_iter()
            .enumerate()
            .map(|(index, payload)| {
                let mut message = NewMessage::new(payload);
                message.dedup_id = context.idempotency_key.as_ref().map(|key| {
                    if single {
                        key.clone()
                    } else {
                        format!("{key}#{index}")
                    }
                });
                if let Some(trace) = &context.trace {
                    trace.write(&mut message.headers);
                }
                message
            })
            .collect();
        let begin = |message| traces::enqueue(&self.name, message);
        let spans: Vec<_> = messages.iter_mut().filter_map(begin).collect();
        let outcomes = self.queue.enqueue(&self.name, messages).await;
        traces::enqueued(spans, &outcomes);
        outcomes.context(|| format!("enqueue into `{}`", self.name))
    }
}
