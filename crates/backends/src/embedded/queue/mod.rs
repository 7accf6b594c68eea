//! The queue port.

mod enqueue;
mod lease;
mod settle;

use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, MessageState, Peeked, Queue, Selection, Settings,
    Settlement, Stats, check_batch, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, ErrorKind, Headers, Message, MessageId, NewMessage, QueueName,
    Receipt, Result, ResultExt,
};

use super::log::Class;
use super::record::Record;
use super::state::{Entry, MessagePhase, Stored};
use super::store::Store;
pub(super) use enqueue::{Arriving, queue_is_full, refusal_like};
use lease::ReadyBatch;
use settle::stale;

/// Most messages that an operation on all of a queue changes at once, and so while others wait.
const STEP: usize = 10_000;

/// Most queues whose numbers are collected while others wait.
const LIST_STEP: usize = 256;

/// The longest sleep while waiting, so that a clock that tests move is looked at.
const LOOK: Duration = Duration::from_millis(50);

#[async_trait]
impl Queue for Store {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        let end = {
            let mut inner = self.lock();
            if inner
                .state
                .queues
                .get(queue)
                .is_some_and(|known| known.settings == *settings)
            {
                self.log.awaited_end()
            } else {
                let record = Record::Declare {
                    queue: queue.clone(),
                    settings: settings.clone(),
                };
                self.write(&mut inner, Class::Settle, &record)?
            }
        };
        self.log.committed(end).await
    }

    async fn settings(&self, queue: &QueueName) -> Result<Settings> {
        let inner = self.lock();
        let known = inner.state.queues.get(queue);
        let known = known.ok_or_else(|| no_queue(queue))?;
        Ok(known.settings.clone())
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        check_batch(messages.len())?;
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let (outcomes, end) = self.take_in(queue, &messages)?;
        self.log
            .committed(end)
            .await
            .context(|| format!("enqueue into `{queue}`"))?;
        Ok(outcomes)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        // `None` for a moment that no clock reaches.
        let until = Instant::now().checked_add(request.wait);
        let news = self.news(&request.queue);
        loop {
            // Listening starts before looking, so that nothing slips through in between.
            let mut notified = std::pin::pin!(news.notified());
            notified.as_mut().enable();
            if self.is_closed() {
                return Err(Error::unavailable("the store is closed"));
            }
            let ReadyBatch { leased, look_again } = self.lease_ready(&request)?;
            if !leased.is_empty() {
                let deliveries = self.deliveries(&request, leased)?;
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
                continue;
            }
            let left = until.map_or(Duration::MAX, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(Vec::new());
            }
            let sleep = look_again.map_or(left, |next| {
                next.clamp(Duration::from_millis(1), LOOK).min(left)
            });
            tokio::select! {
                () = &mut notified => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        if settlements.is_empty() {
            return Ok(Vec::new());
        }
        let (outcomes, end) = self.end_deliveries(&settlements)?;
        self.log.committed(end).await.context(|| "settle")?;
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>> {
        check_lease(lease)?;
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let deadline = monotonic.saturating_add(millis(lease));
        let mut inner = self.lock();
        Ok(receipts
            .iter()
            .map(|receipt| {
                let Some(queue) = inner.state.queues.get_mut(&receipt.queue) else {
                    return Err(stale(receipt));
                };
                queue.tick(now, monotonic);
                match queue.extend(receipt.number, receipt.fence, deadline) {
                    true => Ok(()),
                    false => Err(stale(receipt)),
                }
            })
            .collect())
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut inner = self.lock();
        let mut count = 0;
        for (name, queue) in &mut inner.state.queues {
            let theirs = queue.disconnect(consumer);
            if theirs > 0 {
                self.news(name).notify_waiters();
            }
            count += theirs;
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut all: Vec<Stats> = Vec::new();
        loop {
            let from = all.last().map(|last| last.queue.clone());
            let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut inner = self.lock();
            let queues = inner
                .state
                .queues
                .range_mut::<QueueName, _>((from, Bound::Unbounded));
            let before = all.len();
            all.extend(queues.take(LIST_STEP).map(|(name, queue)| {
                queue.tick(now, monotonic);
                queue.stats(name, now, monotonic)
            }));
            if all.len() < before + LIST_STEP {
                return Ok(all);
            }
        }
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut inner = self.lock();
        let state = inner
            .state
            .queues
            .get_mut(queue)
            .ok_or_else(|| no_queue(queue))?;
        state.tick(now, monotonic);
        Ok(state.stats(queue, now, monotonic))
    }

    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>> {
        let found = {
            let (now, monotonic) = (self.clock.now(), self.monotonic());
            let committed = self.log.committed_position();
            let mut inner = self.lock();
            let state = inner.state.queue(queue);
            state.tick(now, monotonic);
            state.peek(max, committed)
        };
        let stored: Vec<Stored> = found.iter().map(|(entry, _)| entry.stored()).collect();
        found
            .into_iter()
            .zip(self.read_back(&stored))
            // A damaged one is skipped here, and becomes a dead letter with that reason when it is leased.
            .filter(
                |(_, message)| !matches!(message, Err(error) if error.kind() == ErrorKind::Corrupt),
            )
            .map(|((entry, phase), message)| {
                Ok(Peeked {
                    message: message?,
                    state: match phase {
                        Some(MessagePhase::Delayed(_)) => MessageState::Delayed,
                        Some(MessagePhase::Leased { .. }) => MessageState::Leased,
                        Some(MessagePhase::Ready | MessagePhase::Parked) | None => {
                            MessageState::Ready
                        }
                    },
                    attempts: entry.attempts,
                })
            })
            .collect()
    }

    async fn pause(&self, queue: &QueueName) -> Result<()> {
        self.set_paused(queue, true).await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.set_paused(queue, false).await?;
        self.news(queue).notify_waiters();
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let last = self.lock().state.queue(queue).next_number();
        let (mut count, mut from) = (0, 0);
        loop {
            let end = {
                let mut inner = self.lock();
                let numbers = inner.state.queue(queue).waiting(from, last, STEP);
                let Some(newest) = numbers.last() else {
                    break;
                };
                from = newest + 1;
                count += numbers.len() as u64;
                let queue = queue.clone();
                let record = Record::Drop { queue, numbers };
                self.write(&mut inner, Class::Settle, &record)?
            };
            self.log.committed(end).await?;
        }
        Ok(count)
    }

    async fn delete(&self, queue: &QueueName, force: bool) -> Result<u64> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let (count, end) = {
            let mut inner = self.lock();
            let state = &mut inner.state;
            let known = state.queues.get_mut(queue);
            let known = known.ok_or_else(|| no_queue(queue))?;
            known.tick(now, monotonic);
            let stats = known.stats(queue, now, monotonic);
            let waiting = stats.ready + stats.delayed + stats.leased;
            let in_use = if stats.consumers > 0 {
                Some(format!(
                    "has {} consumers; stop them first",
                    stats.consumers
                ))
            } else if let Some((exchange, pattern)) = state.bindings.leading_to(queue) {
                Some(format!("is where route `{pattern}` of `{exchange}` leads"))
            } else if !force && waiting + stats.dead > 0 {
                let dead = stats.dead;
                Some(format!(
                    "is not empty: {waiting} messages and {dead} dead letters; force drops them"
                ))
            } else {
                None
            };
            if let Some(reason) = in_use {
                return Err(Error::conflict(format!("queue `{queue}` {reason}")));
            }
            let queue = queue.clone();
            let end = self.write(&mut inner, Class::Settle, &Record::QueueGone { queue })?;
            (waiting + stats.dead, end)
        };
        self.log.committed(end).await?;
        self.forget_source(queue);
        Ok(count)
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let found = self.lock().state.queue(queue).dead.page(after, max);
        let stored: Vec<Stored> = found.iter().map(|one| one.entry.stored()).collect();
        found
            .into_iter()
            .zip(self.read_back(&stored))
            .map(|(one, message)| {
                let message = match message {
                    Err(error) if error.kind() == ErrorKind::Corrupt => unreadable(&one.entry),
                    message => message?,
                };
                let why = (one.reason.as_str(), one.history.as_slice());
                let attempts = one.entry.attempts;
                Ok(DeadLetter::new(
                    message,
                    why,
                    attempts,
                    one.died_at,
                    queue.clone(),
                ))
            })
            .collect()
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let record = |first, numbers| Record::Redrive {
            queue: queue.clone(),
            first,
            numbers,
        };
        let count = self.step_dead(queue, selection, record).await?;
        self.news(queue).notify_waiters();
        Ok(count)
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let record = |_, numbers| Record::DropDead {
            queue: queue.clone(),
            numbers,
        };
        self.step_dead(queue, selection, record).await
    }
}

impl Store {
    /// Writes a record of the selected dead letters that are there now, some at a time. Returns how many they were.
    ///
    /// - `record`: from the queue's next number and the numbers of the letters.
    async fn step_dead(
        &self,
        queue: &QueueName,
        selection: &Selection,
        record: impl Fn(u64, Vec<u64>) -> Record<'static>,
    ) -> Result<u64> {
        let last = self.lock().state.queue(queue).dead.last();
        let (mut count, mut after) = (0, 0);
        loop {
            let end = {
                let mut inner = self.lock();
                let state = inner.state.queue(queue);
                let numbers = state.dead.select(selection, after, last, STEP);
                let Some(newest) = numbers.last() else {
                    return Ok(count);
                };
                after = *newest;
                count += numbers.len() as u64;
                let record = record(state.next_number(), numbers);
                self.write(&mut inner, Class::Settle, &record)?
            };
            self.log.committed(end).await?;
        }
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<()> {
        let end = self.write(
            &mut self.lock(),
            Class::Settle,
            &Record::Pause {
                queue: queue.clone(),
                paused,
            },
        )?;
        self.log.committed(end).await
    }
}

fn no_queue(queue: &QueueName) -> Error {
    Error::not_found(format!("there is no queue `{queue}`"))
}

/// The known facts of a message that cannot be read back.
fn unreadable(entry: &Entry) -> Message {
    Message {
        id: entry.id,
        payload: bytes::Bytes::new(),
        headers: Headers::new(),
        key: None,
        enqueued_at: entry.enqueued_at,
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
