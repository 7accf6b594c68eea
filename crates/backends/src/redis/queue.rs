//! The queue port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use towpath_core::port::queue::{
    DeadLetter, Disposition, Enqueued, LeaseRequest, MessageState, Peeked, Queue, Selection,
    Settings, Settlement, Stats, check_batch, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, Headers, Message, MessageId, NewMessage, QueueName, Receipt,
    Result, ResultExt, Timestamp,
};

use super::batcher::{Acks, Enqueue, Lease, run_batched};
use super::notify::Kind;
use super::reply;
use super::script::{self, Call};
use super::servers::Servers;
use super::store::{ResourceHandle, Store, is_nothing, millis};

/// Retry time of a refused producer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Most messages of one script, so that other clients of the server do not wait for long.
pub(super) const STEP: usize = 1_000;

/// Most payload bytes in one command.
const STEP_BYTES: usize = 32 << 20;

/// Longest sleep while waiting: messages returned by other processes are seen after it.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Headers and key beside the payload, read only by us; empty without both.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Blob {
    pub(super) headers: Headers,
    pub(super) key: Option<String>,
}

impl Blob {
    pub(super) fn encode(message: &NewMessage) -> Result<Vec<u8>> {
        if message.headers.is_empty() && message.key.is_none() {
            return Ok(Vec::new());
        }
        let blob = Self {
            headers: message.headers.clone(),
            key: message.key.clone(),
        };
        postcard::to_stdvec(&blob)
            .map_err(|error| Error::invalid("the headers cannot be stored").with_source(error))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        postcard::from_bytes(bytes).map_err(|error| {
            Error::corrupt("the headers of a message unreadable").with_source(error)
        })
    }
}

#[async_trait]
impl Queue for Store {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        let handle = self.queue(queue).await?;
        self.write_settings(&handle.keys, settings)
            .await
            .context(|| format!("declare `{queue}`"))?;
        self.declared.queue(queue, settings);
        Ok(())
    }

    async fn settings(&self, queue: &QueueName) -> Result<Settings> {
        let keys = self.keys.named(queue.as_str())?;
        let settings = self.read_settings(&keys).await;
        match settings.context(|| format!("read the settings of `{queue}`"))? {
            Some(settings) => Ok(settings),
            // Also a list that another program made.
            None => self.stats(queue).await.map(|_| Settings::default()),
        }
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        check_batch(messages.len())?;
        self.servers.check_open()?;
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut rest = messages.as_slice();
        while !rest.is_empty() {
            let (step, after) = rest.split_at(step_of(rest));
            rest = after;
            self.enqueue_batched(queue, step, &mut outcomes)
                .await
                .context(|| format!("enqueue into `{queue}`"))?;
        }
        Ok(outcomes)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        // `None` for a wait without end.
        let until = Instant::now().checked_add(request.wait);
        let handle = self.queue_to_lease(&request.queue).await?;
        handle.remember(&request.consumer);
        loop {
            // Listen before checking, so that no wakeup is missed.
            let mut changed = std::pin::pin!(handle.wakeup.changed.notified());
            changed.as_mut().enable();
            let mut closing = std::pin::pin!(self.closing.notified());
            closing.as_mut().enable();
            let lease = Lease {
                request: request.clone(),
                session: self.session.clone(),
                consumer_timeout: self.config.consumer_timeout,
            };
            let found = run_batched(&self.servers, &handle, lease)
                .await
                .context(|| format!("lease from `{}`", request.queue))?;
            if !found.deliveries.is_empty() {
                return Ok(found.deliveries);
            }
            // The messages found ended, and may have unlocked others of their key.
            if found.look_again == Some(Duration::ZERO) {
                continue;
            }
            let left = until.map_or(Duration::MAX, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(Vec::new());
            }
            // A paused queue is not empty: its list would wake us at once.
            let _waiting = (!found.paused).then(|| handle.wakeup.wait());
            tokio::select! {
                () = &mut changed => {}
                () = &mut closing => {}
                () = tokio::time::sleep(found.look_again.unwrap_or(LOOK).min(LOOK).min(left)) => {}
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let mut outcomes: Vec<Result<()>> = settlements.iter().map(|_| Ok(())).collect();
        let mut by_queue: BTreeMap<&QueueName, Vec<usize>> = BTreeMap::new();
        for (at, settlement) in settlements.iter().enumerate() {
            by_queue
                .entry(&settlement.receipt.queue)
                .or_default()
                .push(at);
        }
        for (queue, places) in by_queue {
            let handle = self.queue(queue).await?;
            for step in places.chunks(STEP) {
                let some = step.iter().map(|at| &settlements[*at]);
                let answers = self
                    .settle_step(&handle, some)
                    .await
                    .context(|| format!("settle for `{queue}`"))?;
                for (at, answer) in step.iter().zip(answers) {
                    if reply::number(answer)? == 0 {
                        outcomes[*at] = Err(stale(&settlements[*at].receipt));
                    }
                }
            }
            handle.wakeup.changed.notify_waiters();
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>> {
        check_lease(lease)?;
        let mut outcomes: Vec<Result<()>> = receipts.iter().map(|_| Ok(())).collect();
        let mut by_queue: BTreeMap<&QueueName, Vec<usize>> = BTreeMap::new();
        for (at, receipt) in receipts.iter().enumerate() {
            by_queue.entry(&receipt.queue).or_default().push(at);
        }
        for (queue, places) in by_queue {
            let handle = self.queue(queue).await?;
            let mut call = handle.call(&script::EXTEND);
            call.arg(millis(lease));
            for at in &places {
                call.arg(number_text(receipts[*at].number))
                    .arg(receipts[*at].fence);
            }
            let answers = self
                .servers
                .run(call)
                .await
                .context(|| format!("extend for `{queue}`"))?;
            for (at, answer) in places.into_iter().zip(reply::list(answers)?) {
                if reply::number(answer)? == 0 {
                    outcomes[at] = Err(stale(&receipts[at]));
                }
            }
        }
        Ok(outcomes)
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for queue in self.names(Kind::Queue).await? {
            let handle = self.queue(&QueueName::new(queue)?).await?;
            count += self.disconnect_consumer(&handle, consumer, "").await?;
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for queue in self.names(Kind::Queue).await? {
            all.extend(self.find_stats(&QueueName::new(queue)?).await?);
        }
        Ok(all)
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        self.find_stats(queue)
            .await?
            .ok_or_else(|| Error::not_found(format!("unknown queue `{queue}`")))
    }

    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>> {
        let handle = self.queue(queue).await?;
        let mut call = handle.call(&script::PEEK);
        call.arg(max.min(STEP));
        reply::list(self.servers.run(call).await?)?
            .into_iter()
            .map(|one| {
                let [place, attempts, id, at, blob, payload] = reply::tuple(one)?;
                Ok(Peeked {
                    message: message(id, at, blob, payload)?,
                    state: match reply::text(place)?.as_str() {
                        "leased" => MessageState::Leased,
                        "delayed" => MessageState::Delayed,
                        _ => MessageState::Ready,
                    },
                    attempts: attempts_of(attempts)?,
                })
            })
            .collect()
    }

    async fn pause(&self, queue: &QueueName) -> Result<()> {
        self.set_paused(queue, true).await
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.set_paused(queue, false).await?;
        self.wake(queue);
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let handle = self.queue(queue).await?;
        let (mut total, mut left, mut newest) = (0, None::<u64>, String::new());
        loop {
            let mut call = handle.call(&script::PURGE);
            call.arg(left.map(|left| left.to_string()).unwrap_or_default())
                .arg(&newest);
            let [dropped, from_list, length, cut] = reply::tuple(self.servers.run(call).await?)?;
            let (dropped, from_list) = (reply::number(dropped)?, reply::number(from_list)?);
            // Messages from before the call, not those that arrive meanwhile.
            left = Some(
                left.unwrap_or(reply::number(length)?)
                    .saturating_sub(from_list),
            );
            newest = reply::text(cut)?;
            total += dropped;
            if dropped == 0 {
                return Ok(total);
            }
        }
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let handle = self.queue(queue).await?;
        let mut call = handle.call(&script::DEAD_LETTERS);
        call.arg(after.map(|id| id.as_bytes().to_vec()).unwrap_or_default())
            .arg(max.min(STEP));
        reply::list(self.servers.run(call).await?)?
            .into_iter()
            .map(|one| {
                let [id, at, attempts, blob, payload, reason, history, died_at] =
                    reply::tuple(one)?;
                let earlier = reply::list(history)?.into_iter().map(lossy);
                let earlier = earlier.collect::<Result<Vec<_>>>()?;
                Ok(DeadLetter::new(
                    message(id, at, blob, payload)?,
                    (&lossy(reason)?, &earlier),
                    attempts_of(attempts)?,
                    Timestamp::from_millis(reply::number(died_at)?),
                    queue.clone(),
                ))
            })
            .collect()
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let count = self.move_dead_letters(queue, "redrive", selection).await?;
        self.wake(queue);
        Ok(count)
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        self.move_dead_letters(queue, "drop", selection).await
    }
}

/// Answer of the lease script.
pub(super) struct LeaseReply {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) paused: bool,
    /// When a message may become due.
    pub(super) look_again: Option<Duration>,
}

impl Store {
    /// Sends one step of messages, and adds an outcome for each.
    async fn enqueue_batched(
        &self,
        queue: &QueueName,
        messages: &[NewMessage],
        outcomes: &mut Vec<Result<Enqueued>>,
    ) -> Result<()> {
        let handle = self.queue(queue).await?;
        let checked: Vec<Result<()>> = messages.iter().map(NewMessage::check).collect();
        let pairs = messages.iter().zip(&checked);
        let sent: Vec<NewMessage> = pairs
            .filter(|(_, checked)| checked.is_ok())
            .map(|(message, _)| message.clone())
            .collect();
        let answers = match sent.is_empty() {
            true => Vec::new(),
            false => run_batched(&self.servers, &handle, Enqueue(sent)).await?,
        };
        let mut answers = answers.into_iter();
        for (message, checked) in messages.iter().zip(checked) {
            outcomes.push(match checked {
                Err(refused) => Err(refused),
                Ok(()) => match answers.next().unwrap_or_default() {
                    Value::Int(1) => Ok(Enqueued::New(message.id)),
                    Value::Int(0) => Err(queue_is_full(queue)),
                    first => Ok(Enqueued::Duplicate(id_of(first)?)),
                },
            });
        }
        handle.wakeup.changed.notify_waiters();
        Ok(())
    }

    /// Settles deliveries; acks share a script with those of other callers.
    async fn settle_step<'a>(
        &self,
        handle: &Arc<ResourceHandle>,
        settlements: impl Iterator<Item = &'a Settlement> + Clone,
    ) -> Result<Vec<Value>> {
        let acks = settlements.clone().map(|one| match one.disposition {
            Disposition::Ack => Some(one.receipt.clone()),
            _ => None,
        });
        if let Some(acks) = acks.collect() {
            return run_batched(&self.servers, handle, Acks(acks)).await;
        }
        let mut call = handle.call(&script::SETTLE);
        for settlement in settlements {
            add_settlement(&mut call, &settlement.receipt, &settlement.disposition);
        }
        reply::list(self.servers.run(call).await?)
    }

    async fn find_stats(&self, queue: &QueueName) -> Result<Option<Stats>> {
        let keys = self.keys.named(queue.as_str())?;
        let mut call = script::STATS.on([&keys.list]);
        call.arg(&keys.side);
        let answer = self
            .servers
            .run(call)
            .await
            .context(|| format!("count `{queue}`"))?;
        if is_nothing(&answer) {
            return Ok(None);
        }
        let [
            ready,
            delayed,
            leased,
            dead,
            enqueued,
            acked,
            retried,
            dropped,
            duplicates,
            age,
            ready_age,
            leased_age,
            delayed_age,
            consumers,
            paused,
        ] = reply::tuple(answer)?;
        Ok(Some(Stats {
            queue: queue.clone(),
            ready: reply::number(ready)?,
            delayed: reply::number(delayed)?,
            leased: reply::number(leased)?,
            dead: reply::number(dead)?,
            enqueued: reply::number(enqueued)?,
            acked: reply::number(acked)?,
            retried: reply::number(retried)?,
            dropped: reply::number(dropped)?,
            duplicates: reply::number(duplicates)?,
            oldest_age: age_of(age)?,
            oldest_ready_age: age_of(ready_age)?,
            oldest_leased_age: age_of(leased_age)?,
            oldest_delayed_age: age_of(delayed_age)?,
            consumers: reply::number(consumers)?,
            paused: reply::number(paused)? == 1,
        }))
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<()> {
        let handle = self.queue(queue).await?;
        let mut set = redis::cmd("HSET");
        set.arg(handle.keys.queue())
            .arg("paused")
            .arg(u8::from(paused));
        self.servers
            .query(handle.keys.list.as_bytes(), &set)
            .await
            .map(drop)
    }

    /// Redrives or drops dead letters, step by step.
    async fn move_dead_letters(
        &self,
        queue: &QueueName,
        what: &str,
        selection: &Selection,
    ) -> Result<u64> {
        let handle = self.queue(queue).await?;
        let mut total = 0;
        match selection {
            Selection::All => {
                let mut newest = String::new();
                loop {
                    let mut call = handle.call(&script::REDRIVE);
                    call.arg(what).arg(&newest);
                    let [moved, cut, more] = reply::tuple(self.servers.run(call).await?)?;
                    total += reply::number(moved)?;
                    newest = reply::text(cut)?;
                    if reply::number(more)? == 0 {
                        return Ok(total);
                    }
                }
            }
            Selection::Ids(ids) => {
                for step in ids.chunks(STEP) {
                    let mut call = handle.call(&script::REDRIVE);
                    call.arg(what).arg("");
                    for id in step {
                        call.arg(&id.as_bytes()[..]);
                    }
                    let [moved, ..] = reply::tuple::<3>(self.servers.run(call).await?)?;
                    total += reply::number(moved)?;
                }
                Ok(total)
            }
        }
    }
}

/// Leases up to `max` ready messages.
pub(super) async fn lease(
    servers: &Servers,
    handle: &ResourceHandle,
    Lease {
        request,
        session,
        consumer_timeout,
    }: &Lease,
    max: usize,
) -> Result<LeaseReply> {
    let mut call = handle.call(&script::LEASE);
    call.arg(request.consumer.as_str())
        .arg(session)
        .arg(max)
        .arg(millis(request.lease))
        .arg(millis(*consumer_timeout));
    let [paused, look_again, taken] = reply::tuple(servers.run(call).await?)?;
    let deliveries = reply::list(taken)?
        .into_iter()
        .map(|one| {
            let [number, fence, attempt, id, at, blob, payload, interrupted] = reply::tuple(one)?;
            Ok(Delivery {
                message: message(id, at, blob, payload)?,
                receipt: Receipt {
                    queue: request.queue.clone(),
                    number: reply::number(number)?,
                    fence: reply::number(fence)?,
                },
                attempt: attempts_of(attempt)?,
                interrupted: reply::number(interrupted)? == 1,
                lease: request.lease,
            })
        })
        .collect::<Result<_>>()?;
    Ok(LeaseReply {
        deliveries,
        paused: reply::number(paused)? == 1,
        // -1 for never.
        look_again: match look_again {
            Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
            other => return Err(reply::unexpected("a time", &other)),
        },
    })
}

/// Number of these messages for one command; at least one.
pub(super) fn step_of(messages: &[NewMessage]) -> usize {
    let mut bytes = 0;
    let fitting = messages
        .iter()
        .take(STEP)
        .take_while(|message| {
            bytes += message.payload.len();
            bytes <= STEP_BYTES
        })
        .count();
    fitting.max(1)
}

/// The seven arguments of a message, as `enqueue_lib.lua` reads them.
pub(super) fn add_message(call: &mut Call, message: &NewMessage) -> Result<()> {
    let moment = |moment: Option<Timestamp>| {
        moment
            .map(|moment| clamp(moment).to_string())
            .unwrap_or_default()
    };
    call.arg(&message.payload[..])
        .arg(&message.id.as_bytes()[..])
        .arg(Blob::encode(message)?)
        .arg(message.key.as_deref().unwrap_or_default())
        .arg(message.dedup_id.as_deref().unwrap_or_default())
        .arg(moment(message.not_before))
        .arg(moment(message.expires));
    Ok(())
}

/// A time in milliseconds that Lua represents exactly; beyond that is never.
fn clamp(moment: Timestamp) -> u64 {
    moment.as_millis().min(1 << 52)
}

/// The five arguments of a settlement, as `settle_lib.lua` reads them.
pub(super) fn add_settlement(call: &mut Call, receipt: &Receipt, disposition: &Disposition) {
    let (disposition, after, text) = match disposition {
        Disposition::Ack => ("ack", 0, ""),
        Disposition::Retry { after, error } => {
            ("retry", millis(*after).min(1 << 52), error.as_str())
        }
        Disposition::DeadLetter { reason } => ("dead", 0, reason.as_str()),
        Disposition::Release { after } => ("release", millis(*after).min(1 << 52), ""),
    };
    call.arg(number_text(receipt.number))
        .arg(receipt.fence)
        .arg(disposition)
        .arg(after)
        .arg(text);
}

/// A number as the scripts write it: sixteen digits, so that they sort.
fn number_text(number: u64) -> String {
    format!("{number:016}")
}

fn attempts_of(value: Value) -> Result<u32> {
    u32::try_from(reply::number(value)?)
        .map_err(|error| Error::corrupt("a number of attempts is out of range").with_source(error))
}

fn id_of(value: Value) -> Result<MessageId> {
    let bytes = reply::bytes(value)?;
    <[u8; 16]>::try_from(bytes)
        .map(MessageId::from_bytes)
        .map_err(|_| Error::corrupt("a message id does not have sixteen bytes"))
}

/// Text that the server cut to a length.
fn lossy(value: Value) -> Result<String> {
    Ok(String::from_utf8_lossy(&reply::bytes(value)?).into_owned())
}

fn message(id: Value, at: Value, blob: Value, payload: Value) -> Result<Message> {
    let Blob { headers, key } = Blob::decode(&reply::bytes(blob)?)?;
    Ok(Message {
        id: id_of(id)?,
        payload: Bytes::from(reply::bytes(payload)?),
        headers,
        key,
        enqueued_at: Timestamp::from_millis(reply::number(at)?),
    })
}

/// The error of a full queue.
pub(super) fn queue_is_full(queue: &QueueName) -> Error {
    Error::overloaded(format!("queue `{queue}` is full"), RETRY_AFTER)
}

pub(super) fn stale(receipt: &Receipt) -> Error {
    Error::conflict(format!(
        "lease of message number {} of `{}` expired and the message was delivered again or returned",
        receipt.number, receipt.queue
    ))
}

/// An age in milliseconds; -1 for none.
fn age_of(value: Value) -> Result<Option<Duration>> {
    match value {
        Value::Int(ms) => Ok(u64::try_from(ms).ok().map(Duration::from_millis)),
        other => Err(reply::unexpected("an age", &other)),
    }
}
