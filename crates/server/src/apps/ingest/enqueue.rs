//! The service behind `POST /enqueue`: one queue, its limits, its idempotency.

use std::sync::Arc;

use bytes::Bytes;
use towpath_core::port::Queue;
use towpath_core::port::queue::Enqueued;
use towpath_core::{Error, ErrorKind, NewMessage, QueueName, Result, ResultExt};

use crate::idempotency::{Digest, OTHER_REQUEST};
use crate::telemetry::LastCall;
use towpath::traces::{self, TraceContext};

/// Limits of a client's request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one message, and of the body that brings it.
    pub message_bytes: usize,
    /// Bytes of the body of a batch.
    pub batch_bytes: usize,
}

/// Fields of the request beside the message.
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
    /// Limits of a client's request.
    pub limits: Limits,
    /// The last call to the queue.
    pub calls: LastCall,
}

/// The outcome of a request that the queue answered.
#[derive(Debug)]
pub(super) enum Answered<T> {
    /// Its messages are stored, now or before, or refused.
    Taken(T),
    /// Its idempotency key belongs to a request with another body; nothing was stored.
    OtherRequest,
}

impl Enqueue {
    /// A service over the queue called `name`.
    pub fn new(queue: Arc<dyn Queue>, name: QueueName, limits: Limits) -> Self {
        Self {
            queue,
            name,
            limits,
            calls: LastCall::default(),
        }
    }

    /// The queue messages go to.
    pub fn queue_name(&self) -> &QueueName {
        &self.name
    }

    /// Stores one message and returns once it is durable.
    ///
    /// # Errors
    /// Those of the queue as a whole, none of which is the client's mistake.
    pub(super) async fn one(
        &self,
        message: Bytes,
        context: Context,
    ) -> Result<Answered<Result<Enqueued>>> {
        Ok(match self.many(vec![message], context).await? {
            Answered::OtherRequest => Answered::OtherRequest,
            Answered::Taken(mut outcomes) => {
                let none = || Err(Error::unavailable("the queue gave no outcome"));
                Answered::Taken(outcomes.pop().unwrap_or_else(none))
            }
        })
    }

    /// Stores a batch and returns once all of it is durable. One outcome per message.
    ///
    /// With an idempotency key every message gets one of its own from its
    /// place in the batch, so that a repeated batch stores nothing twice. The
    /// first message of such a batch is stored before the others: it tells
    /// whether the key belongs to another batch.
    ///
    /// # Errors
    /// As [`Enqueue::one`].
    pub(super) async fn many(
        &self,
        messages: Vec<Bytes>,
        context: Context,
    ) -> Result<Answered<Vec<Result<Enqueued>>>> {
        let digest = |key: &String| Digest::of(key, messages.iter().map(|message| &**message));
        let digest = context.idempotency_key.as_ref().map(digest);
        let mut messages = self.marked(messages, &context, digest);
        let Some(digest) = digest else {
            return Ok(Answered::Taken(self.enqueue(messages).await?));
        };
        let rest = messages.split_off(messages.len().min(1));
        let mut outcomes = self.enqueue(messages).await?;
        if let Some(Ok(first)) = outcomes.first()
            && digest.is_other(*first, 0)
        {
            return Ok(Answered::OtherRequest);
        }
        if !rest.is_empty() {
            let rest = self.enqueue(rest).await?.into_iter().zip(1..);
            outcomes.extend(rest.map(|(outcome, place)| match outcome {
                Ok(taken) if digest.is_other(taken, place) => Err(Error::conflict(OTHER_REQUEST)),
                outcome => outcome,
            }));
        }
        Ok(Answered::Taken(outcomes))
    }

    fn marked(
        &self,
        messages: Vec<Bytes>,
        context: &Context,
        digest: Option<Digest>,
    ) -> Vec<NewMessage> {
        let single = messages.len() == 1;
        let new = |(index, payload): (usize, Bytes)| {
            let mut message = NewMessage::new(payload);
            message.dedup_id = context.idempotency_key.as_ref().map(|key| match single {
                true => key.clone(),
                false => format!("{key}#{index}"),
            });
            if let Some(digest) = digest {
                digest.mark(&mut message, index);
            }
            if let Some(trace) = &context.trace {
                trace.write(&mut message.headers);
            }
            message
        };
        messages.into_iter().enumerate().map(new).collect()
    }

    async fn enqueue(&self, mut messages: Vec<NewMessage>) -> Result<Vec<Result<Enqueued>>> {
        let begin = |message| traces::enqueue(&self.name, message);
        let spans: Vec<_> = messages.iter_mut().filter_map(begin).collect();
        let outcomes = self.queue.enqueue(&self.name, messages).await;
        traces::enqueued(spans, &outcomes);
        self.calls.note_error(match &outcomes {
            Err(error) => Some(error),
            Ok(outcomes) => backend_error(outcomes),
        });
        outcomes.context(|| format!("enqueue into `{}`", self.name))
    }
}

/// The error of a batch of which nothing was taken, when it is not about the messages themselves.
fn backend_error(outcomes: &[Result<Enqueued>]) -> Option<&Error> {
    if outcomes.iter().any(Result::is_ok) {
        return None;
    }
    let mut errors = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    errors.find(|error| !is_about_message(error))
}

/// Whether a message's own outcome is about the message: over a limit, or with something that the backend does not offer.
fn is_about_message(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported)
}
