//! The queue port.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, MAX_BATCH, Peeked, Place as Standpoint, Queue, Selection,
    Settings, Settlement, Stats, Verdict, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, ErrorKind, Headers, Message, MessageId, NewMessage, QueueName,
    Receipt, Result, ResultExt, StreamName,
};

use super::log::{Class, Position};
use super::record::{self, Arrival, Ending, Record};
use super::state::{Dead, Entry, Found, Leasing, Place, Standing};
use super::store::{Inner, Store};

/// When a refused producer may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a message is given up that no consumer gave up.
const SPENT: &str =
    "its attempts are spent: every consumer that had it let the lease expire or died";

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

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        if messages.len() > MAX_BATCH {
            return Err(Error::invalid(format!(
                "a batch of {} is over the limit of {MAX_BATCH}",
                messages.len()
            )));
        }
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
            let HandedOut { leased, look_again } = self.hand_out(&request)?;
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
                let queue = inner.state.queue(&receipt.queue);
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
        let mut inner = self.lock();
        Ok(inner
            .state
            .queues
            .iter_mut()
            .map(|(name, queue)| {
                queue.tick(now, monotonic);
                queue.stats(name, now, monotonic)
            })
            .collect())
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut inner = self.lock();
        let state = inner
            .state
            .queues
            .get_mut(queue)
            .ok_or_else(|| Error::not_found(format!("there is no queue `{queue}`")))?;
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
        let places: Vec<Place> = found.iter().map(|(entry, _)| entry.place).collect();
        found
            .into_iter()
            .zip(self.read_back(&places))
            // A damaged one is passed over here, and becomes a dead letter that says so when its turn comes.
            .filter(
                |(_, message)| !matches!(message, Err(error) if error.kind() == ErrorKind::Corrupt),
            )
            .map(|((entry, standing), message)| {
                Ok(Peeked {
                    message: message?,
                    place: match standing {
                        Some(Standing::Delayed(_)) => Standpoint::Delayed,
                        Some(Standing::Leased { .. }) => Standpoint::Leased,
                        Some(Standing::Ready | Standing::Parked) | None => Standpoint::Ready,
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
        let (count, end) = {
            let mut inner = self.lock();
            let numbers = inner.state.queue(queue).waiting();
            let count = numbers.len() as u64;
            let record = Record::Drop {
                queue: queue.clone(),
                numbers,
            };
            (count, self.write(&mut inner, Class::Settle, &record)?)
        };
        self.log.committed(end).await?;
        Ok(count)
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let found: Vec<Dead> = {
            let mut inner = self.lock();
            let dead = &inner.state.queue(queue).dead;
            let behind = after.and_then(|after| {
                dead.values()
                    .find(|one| one.entry.id == after)
                    .map(|one| one.entry.number)
            });
            dead.values()
                .filter(|one| behind.is_none_or(|behind| one.entry.number > behind))
                .take(max)
                .cloned()
                .collect()
        };
        let places: Vec<Place> = found.iter().map(|one| one.entry.place).collect();
        Ok(found
            .into_iter()
            .zip(self.read_back(&places))
            .map(|(one, message)| DeadLetter {
                message: message.unwrap_or_else(|_| unreadable(&one.entry)),
                reason: one.reason,
                history: one.history,
                attempts: one.entry.attempts,
                died_at: one.died_at,
                origin: queue.clone(),
            })
            .collect())
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let (count, end) = {
            let mut inner = self.lock();
            let numbers = dead_numbers(&mut inner, queue, selection);
            let (count, first) = (numbers.len() as u64, inner.state.queue(queue).next_number());
            let record = Record::Redrive {
                queue: queue.clone(),
                first,
                numbers,
            };
            (count, self.write(&mut inner, Class::Settle, &record)?)
        };
        self.log.committed(end).await?;
        self.news(queue).notify_waiters();
        Ok(count)
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let (count, end) = {
            let mut inner = self.lock();
            let numbers = dead_numbers(&mut inner, queue, selection);
            let count = numbers.len() as u64;
            (
                count,
                self.write(
                    &mut inner,
                    Class::Settle,
                    &Record::DropDead {
                        queue: queue.clone(),
                        numbers,
                    },
                )?,
            )
        };
        self.log.committed(end).await?;
        Ok(count)
    }
}

/// Messages on their way in, by where they go.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    pub(super) queues: BTreeMap<QueueName, Vec<NewMessage>>,
    pub(super) streams: BTreeMap<StreamName, Vec<NewMessage>>,
}

/// What settlements come to.
pub(super) struct Endings<'a> {
    /// One each.
    pub(super) outcomes: Vec<Result<()>>,
    /// Numbers and endings of those that hold.
    pub(super) by_queue: BTreeMap<QueueName, Vec<(u64, Ending<'a>)>>,
}

/// What a look for work gave.
struct HandedOut {
    /// Entries with the fence of their lease.
    leased: Vec<(Entry, u64)>,
    /// When something may fall due.
    look_again: Option<Duration>,
}

impl Store {
    /// Checks every message, and writes those that are taken as one record.
    ///
    /// The ticket covers also what a duplicate rests on.
    fn take_in(
        &self,
        queue: &QueueName,
        messages: &[NewMessage],
    ) -> Result<(Vec<Result<Enqueued>>, Position)> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.blobs.clear();
        let (mut outcomes, record) = self.plan_arrivals(inner, queue, messages)?;
        let written = record.map(|record| self.write(inner, Class::Grow, &record));
        // A count, and nobody waits for it: it is not worth a sync.
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
    pub(super) fn take_in_all<'a>(
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

    /// What would be taken of a batch; blobs are added to `inner.blobs`.
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
            arrivals.push(Arrival {
                id: message.id,
                blob_bytes: record::encode_blob(message, now, &mut inner.blobs)?,
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
            Some(Record::Enqueue {
                queue: queue.clone(),
                first,
                at: now,
                messages: arrivals,
            }),
        ))
    }

    /// Leases what there is.
    fn hand_out(&self, request: &LeaseRequest) -> Result<HandedOut> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let committed = self.log.committed_position();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let leasing = Leasing {
            consumer: &request.consumer,
            max: request.max,
            deadline: monotonic.saturating_add(millis(request.lease)),
            committed,
            now,
        };
        let leased = loop {
            let mut fence = inner.state.fence;
            let state = inner.state.queue(&request.queue);
            state.tick(now, monotonic);
            state.seen(&request.consumer, monotonic);
            let mut found = state.lease(&mut fence, &leasing);
            inner.state.fence = fence;
            if found.expired.is_empty() && found.spent.is_empty() {
                break found.leased;
            }
            let leased = std::mem::take(&mut found.leased);
            self.sort_out(inner, &request.queue, found)?;
            // The keys that they held may let others go.
            if leased.is_empty() {
                continue;
            }
            if inner.state.queue(&request.queue).has_ready() {
                self.news(&request.queue).notify_waiters();
            }
            break leased;
        };
        if !leased.is_empty() {
            // Not waited for: a crash within one sync of the lease may forget that this attempt was begun.
            let numbers = leased.iter().map(|(entry, _)| entry.number).collect();
            let queue = request.queue.clone();
            self.note(inner, &Record::Leased { queue, numbers })?;
        }
        let (due, deadline) = inner.state.queue(&request.queue).next_event();
        let due = due.map(|due| due.since(now));
        let expiry =
            deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(monotonic)));
        Ok(HandedOut {
            leased,
            look_again: due.into_iter().chain(expiry).min(),
        })
    }

    /// Drops what has expired, and gives up what has no attempts left.
    fn sort_out(&self, inner: &mut Inner, queue: &QueueName, found: Found) -> Result<()> {
        if !found.expired.is_empty() {
            let record = Record::Drop {
                queue: queue.clone(),
                numbers: found.expired,
            };
            self.write(inner, Class::Settle, &record)?;
        }
        if !found.spent.is_empty() {
            let spent = found.spent.into_iter().map(|number| {
                let reason = SPENT.into();
                (number, Ending::Dead { reason })
            });
            let record = Record::Settle {
                queue: queue.clone(),
                at: self.clock.now(),
                settled: spent.collect(),
            };
            self.write(inner, Class::Settle, &record)?;
        }
        Ok(())
    }

    /// Reads what was leased; a message that cannot be read becomes a dead letter, and the rest is served.
    fn deliveries(
        &self,
        request: &LeaseRequest,
        leased: Vec<(Entry, u64)>,
    ) -> Result<Vec<Delivery>> {
        let places: Vec<Place> = leased.iter().map(|(entry, _)| entry.place).collect();
        let mut deliveries = Vec::with_capacity(leased.len());
        let mut damaged = Vec::new();
        for ((entry, fence), message) in leased.into_iter().zip(self.read_back(&places)) {
            match message {
                Ok(message) => deliveries.push(Delivery {
                    message,
                    receipt: Receipt {
                        queue: request.queue.clone(),
                        number: entry.number,
                        fence,
                    },
                    attempt: entry.attempts,
                    lease: request.lease,
                }),
                Err(error) => {
                    tracing::error!(queue = %request.queue, id = %entry.id, error = error.chain(), "a message cannot be read");
                    damaged.push((
                        entry.number,
                        Ending::Dead {
                            reason: error.chain().into(),
                        },
                    ));
                }
            }
        }
        if !damaged.is_empty() {
            let record = Record::Settle {
                queue: request.queue.clone(),
                at: self.clock.now(),
                settled: damaged,
            };
            self.write(&mut self.lock(), Class::Settle, &record)?;
        }
        Ok(deliveries)
    }

    /// Ends what the receipts still hold, queue by queue.
    fn end_deliveries(&self, settlements: &[Settlement]) -> Result<(Vec<Result<()>>, Position)> {
        let now = self.clock.now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let plan = self.plan_endings(inner, settlements);
        let mut end = self.log.awaited_end();
        for (queue, settled) in plan.by_queue {
            let gives_back = settled
                .iter()
                .any(|(_, ending)| !matches!(ending, Ending::Ack));
            end = self.write(
                inner,
                Class::Settle,
                &Record::Settle {
                    queue: queue.clone(),
                    at: now,
                    settled,
                },
            )?;
            // A key that was let go may let another message go.
            if gives_back || inner.state.queue(&queue).has_ready() {
                self.news(&queue).notify_waiters();
            }
        }
        Ok((plan.outcomes, end))
    }

    /// What the receipts still hold, and what becomes of it.
    pub(super) fn plan_endings<'a>(
        &self,
        inner: &mut Inner,
        settlements: &'a [Settlement],
    ) -> Endings<'a> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut plan = Endings {
            outcomes: Vec::with_capacity(settlements.len()),
            by_queue: BTreeMap::new(),
        };
        let mut seen = HashSet::new();
        for Settlement { receipt, verdict } in settlements {
            let state = inner.state.queue(&receipt.queue);
            state.tick(now, monotonic);
            // One receipt ends one delivery, also within one call.
            if !state.holds(receipt.number, receipt.fence)
                || !seen.insert((&receipt.queue, receipt.number))
            {
                plan.outcomes.push(Err(stale(receipt)));
                continue;
            }
            let spent = state
                .settings
                .retry
                .is_spent(state.attempts(receipt.number));
            let ending = match verdict {
                Verdict::Ack => Ending::Ack,
                Verdict::Release => Ending::Release,
                Verdict::DeadLetter { reason } => Ending::Dead {
                    reason: reason.as_str().into(),
                },
                Verdict::Retry { error, .. } if spent => Ending::Dead {
                    reason: error.as_str().into(),
                },
                Verdict::Retry { after, error } => Ending::Retry {
                    due: now.after(*after),
                    error: error.as_str().into(),
                },
            };
            plan.by_queue
                .entry(receipt.queue.clone())
                .or_default()
                .push((receipt.number, ending));
            plan.outcomes.push(Ok(()));
        }
        plan
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

/// What counts the duplicates of a batch, if there were any.
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
pub(super) fn refusal_like(error: &Error) -> Error {
    Error::overloaded(
        error.to_string(),
        error.retry_after().unwrap_or(RETRY_AFTER),
    )
}

/// The refusal of a queue at its depth.
pub(super) fn queue_is_full(limit: u64) -> Error {
    Error::overloaded(format!("queue is full ({limit} messages)"), RETRY_AFTER)
}

fn dead_numbers(inner: &mut Inner, queue: &QueueName, selection: &Selection) -> Vec<u64> {
    let dead = &inner.state.queue(queue).dead;
    match selection {
        Selection::All => dead.keys().copied().collect(),
        Selection::Ids(ids) => {
            let ids: HashSet<&MessageId> = ids.iter().collect();
            dead.values()
                .filter(|one| ids.contains(&one.entry.id))
                .map(|one| one.entry.number)
                .collect()
        }
    }
}

/// What is left of a message that cannot be read back.
fn unreadable(entry: &Entry) -> Message {
    Message {
        id: entry.id,
        payload: bytes::Bytes::new(),
        headers: Headers::new(),
        key: None,
        enqueued_at: entry.enqueued_at,
    }
}

fn stale(receipt: &Receipt) -> Error {
    Error::conflict(format!(
        "the lease of message number {} of `{}` had expired, and the message went on",
        receipt.number, receipt.queue
    ))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
