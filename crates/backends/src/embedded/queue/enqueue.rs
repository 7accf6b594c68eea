//! Enqueueing: the accepted messages of a batch are written as one record.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use towpath_core::port::queue::Enqueued;
use towpath_core::{Error, NewMessage, QueueName, Result, StreamName};

use super::super::blob;
use super::super::log::{Class, Position};
use super::super::record::{self, MessageRecord, Record};
use super::super::store::{Inner, Store};

/// When a refused producer may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Messages on their way in, by where they go.
#[derive(Debug, Default)]
pub(in super::super) struct Arriving {
    pub(in super::super) queues: BTreeMap<QueueName, Vec<NewMessage>>,
    pub(in super::super) streams: BTreeMap<StreamName, Vec<NewMessage>>,
}

impl Store {
    /// Checks every message, and writes those that are taken as one record.
    ///
    /// The ticket covers also the records that a duplicate relies on.
    pub(super) fn take_in(
        &self,
        queue: &QueueName,
        messages: &[NewMessage],
    ) -> Result<(Vec<Result<Enqueued>>, Position)> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.blobs.clear();
        let (mut outcomes, record) = self.plan_arrivals(inner, queue, messages)?;
        let written = record.map(|record| self.write(inner, Class::Grow, &record));
        // A count that no caller waits for: it is not worth a sync.
        if let Some(record) = duplicates(queue, &outcomes) {
            inner.blobs.clear();
            self.write(inner, Class::Note, &record)?;
        }
        match written {
            None => {}
            Some(Ok(end)) => {
                self.wake_when_committed(queue, end);
                return Ok((outcomes, end));
            }
            // A refusal is each message's own, so that a batch looks the same whatever was full.
            Some(Err(error)) if error.retry_after().is_some() => {
                for outcome in &mut outcomes {
                    if let Ok(Enqueued::New(_)) = outcome {
                        *outcome = Err(refusal_like(&error));
                    }
                }
            }
            Some(Err(error)) => return Err(error),
        }
        Ok((outcomes, self.log.awaited_end()))
    }

    /// Takes in messages of several places and whatever else belongs to it, all or none, as one record.
    pub(in super::super) fn take_in_all<'a>(
        &self,
        inner: &mut Inner,
        arriving: &'a Arriving,
        mut records: Vec<Record<'a>>,
        class: Class,
    ) -> Result<Position> {
        inner.blobs.clear();
        let settled: Vec<QueueName> = records
            .iter()
            .filter_map(Record::settles)
            .cloned()
            .collect();
        for (queue, messages) in &arriving.queues {
            let (outcomes, record) = self.plan_arrivals(inner, queue, messages)?;
            records.extend(record);
            records.extend(duplicates(queue, &outcomes));
            for outcome in outcomes {
                outcome?;
            }
        }
        for (stream, entries) in &arriving.streams {
            let (outcomes, record) = self.plan_appends(inner, stream, entries)?;
            records.extend(record);
            for outcome in outcomes {
                outcome?;
            }
        }
        if records.is_empty() {
            return Ok(self.log.awaited_end());
        }
        let end = self.write(inner, class, &Record::All(records))?;
        for queue in arriving.queues.keys() {
            self.wake_when_committed(queue, end);
        }
        for stream in arriving.streams.keys() {
            self.wake_when_committed(stream, end);
        }
        for queue in settled {
            self.news(&queue).notify_waiters();
        }
        Ok(end)
    }

    /// The messages of a batch that would be accepted; blobs are added to `inner.blobs`.
    fn plan_arrivals<'a>(
        &self,
        inner: &mut Inner,
        queue: &QueueName,
        messages: &'a [NewMessage],
    ) -> Result<(Vec<Result<Enqueued>>, Option<Record<'a>>)> {
        let now = self.clock.now();
        let state = inner.state.queue(queue);
        let mut room = state
            .settings
            .max_depth
            .map_or(u64::MAX, |max| max.saturating_sub(state.depth()));
        let (mut arrivals, mut outcomes) = (
            Vec::with_capacity(messages.len()),
            Vec::with_capacity(messages.len()),
        );
        let mut in_batch = HashMap::new();
        for message in messages {
            if let Err(refused) = message.check() {
                outcomes.push(Err(refused));
                continue;
            }
            if let Some(dedup_id) = &message.dedup_id {
                let known = in_batch
                    .get(dedup_id)
                    .copied()
                    .or_else(|| state.duplicate_of(dedup_id, now));
                if let Some(first) = known {
                    outcomes.push(Ok(Enqueued::Duplicate(first)));
                    continue;
                }
            }
            if room == 0 {
                let limit = state.settings.max_depth.unwrap_or_default();
                outcomes.push(Err(queue_is_full(limit)));
                continue;
            }
            room -= 1;
            if let Some(dedup_id) = &message.dedup_id {
                in_batch.insert(dedup_id, message.id);
            }
            arrivals.push(MessageRecord {
                id: message.id,
                blob_bytes: blob::encode(message, now, &mut inner.blobs)?,
                key: message.key.as_deref().map(record::key_hash),
                dedup_id: message.dedup_id.as_deref().map(Cow::Borrowed),
                not_before: message.not_before,
                expires: message.expires,
            });
            outcomes.push(Ok(Enqueued::New(message.id)));
        }
        if arrivals.is_empty() {
            return Ok((outcomes, None));
        }
        let first = state.next_number();
        Ok((
            outcomes,
            Some(Record::EnqueuePacked {
                queue: queue.clone(),
                first,
                at: now,
                messages: arrivals,
            }),
        ))
    }
}

/// The record that counts the duplicates of a batch, if there were any.
fn duplicates(queue: &QueueName, outcomes: &[Result<Enqueued>]) -> Option<Record<'static>> {
    let known = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Ok(Enqueued::Duplicate(_))))
        .count() as u64;
    (known > 0).then(|| Record::Duplicates {
        queue: queue.clone(),
        count: known,
    })
}

/// The same refusal once more, for the next message of a batch.
pub(in super::super) fn refusal_like(error: &Error) -> Error {
    Error::overloaded(
        error.to_string(),
        error.retry_after().unwrap_or(RETRY_AFTER),
    )
}

/// The refusal of a queue at its depth.
pub(in super::super) fn queue_is_full(limit: u64) -> Error {
    Error::overloaded(format!("queue is full ({limit} messages)"), RETRY_AFTER)
}
