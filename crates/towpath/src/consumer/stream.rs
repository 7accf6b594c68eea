//! A consumer group of a stream as an consumer.
//!
//! ```text
//! entries of an earlier process of this name -> entries that other consumers held for too long -> new entries
//! ```
//!
//! Older entries always come before newer ones, so a single consumer keeps the order of the stream across crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::port::stream::{Entry, Offset, ReadRequest, Start, Stream};
use towpath_core::{
    ConsumerId, Delivery, Error, ErrorKind, GroupName, Headers, NewMessage, QueueName, Receipt,
    Result, ResultExt, StreamName,
};
use tracing::{error, info, warn};

use super::Consumer;

/// Short enough to end soon after a stop, long enough to cost nothing when idle.
const WAIT: Duration = Duration::from_millis(500);

/// Maximum stored length of a reason.
const REASON_BYTES: usize = 1_024;

/// Most entries that wait for another attempt before no more are read, where order does not matter.
const RETURNED: usize = 1_000;

/// Interval of claims of other consumers' entries.
const LOOK: Duration = Duration::from_millis(500);

/// Called with the payload lengths of entries that were done.
pub type Done = Box<dyn Fn(&mut dyn Iterator<Item = u64>) + Send + Sync>;

/// One consumer of one group.
pub struct StreamConsumer {
    stream: Arc<dyn Stream>,
    dead_letters: Arc<dyn Queue>,
    member: GroupMember,
    claim_after: Duration,
    done: Done,
    state: Mutex<State>,
}

/// A consumer of a group.
#[derive(Debug, Clone)]
pub struct GroupMember {
    /// The stream.
    pub stream: StreamName,
    /// The group; made at the beginning of the stream when it is not there.
    pub group: GroupName,
    /// The consumer. A new process of the same name adopts the entries of the old one.
    pub consumer: ConsumerId,
    /// The queue of entries that became dead letters.
    pub dead: QueueName,
    /// Attempts before a failing entry becomes a dead letter.
    pub attempts: u32,
    /// Whether later entries wait for an entry that is tried again.
    pub is_ordered: bool,
}

#[derive(Default)]
struct State {
    /// Whether all entries of earlier processes have been claimed.
    caught_up: bool,
    next: u64,
    leased: BTreeMap<u64, Entry>,
    /// Returned entries, oldest first, with the time of their next lease.
    returned: VecDeque<(Instant, Entry)>,
    looked: Option<Instant>,
    /// The queue's numbering wants a name for receipts.
    name: Option<QueueName>,
}

impl StreamConsumer {
    /// A consumer that takes over entries which others have held for `claim_after`. Those that the sink took are passed to `done`.
    pub fn new(
        stream: Arc<dyn Stream>,
        dead_letters: Arc<dyn Queue>,
        member: GroupMember,
        claim_after: Duration,
        done: Done,
    ) -> Self {
        Self {
            stream,
            dead_letters,
            member,
            claim_after,
            done,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next entries, oldest first; `NotFound` when the group is gone.
    async fn next(&self, max: usize) -> Result<Vec<Entry>> {
        let GroupMember {
            stream,
            group,
            consumer,
            ..
        } = &self.member;
        if !self.state().caught_up {
            // Entries of an earlier process of this name are ours at once.
            self.stream.disconnect(consumer).await?;
        }
        let (caught_up, looked) = {
            let state = self.state();
            (state.caught_up, state.looked)
        };
        if !caught_up || looked.is_none_or(|at| at.elapsed() >= LOOK) {
            let idle = self.claim_after;
            let left = self
                .stream
                .claim(stream, group, consumer, idle, max)
                .await?;
            if !left.is_empty() {
                info!(count = left.len(), %stream, "claimed pending entries of other consumers");
                return Ok(left);
            }
            let mut state = self.state();
            state.caught_up = true;
            state.looked = Some(Instant::now());
        }
        let request = ReadRequest {
            stream: stream.clone(),
            group: group.clone(),
            consumer: consumer.clone(),
            max,
            wait: WAIT,
        };
        self.stream.read(request).await
    }

    /// Makes the group, also one that was lost.
    async fn create(&self) -> Result<()> {
        let GroupMember { stream, group, .. } = &self.member;
        let created = self
            .stream
            .create_group(stream, group, Start::Beginning)
            .await;
        created.context(|| format!("make group `{group}` of `{stream}`"))?;
        self.state().caught_up = false;
        Ok(())
    }

    fn hand_out(&self, entries: Vec<Entry>) -> Result<Vec<Delivery>> {
        let mut state = self.state();
        let name = match &state.name {
            Some(name) => name.clone(),
            None => QueueName::new(self.member.stream.as_str())?,
        };
        state.name = Some(name.clone());
        let deliveries = entries.into_iter().map(|entry| {
            let number = state.next;
            state.next += 1;
            let delivery = Delivery {
                message: entry.message.clone(),
                receipt: Receipt {
                    queue: name.clone(),
                    number,
                    fence: number,
                },
                attempt: entry.attempt.max(1),
                interrupted: false,
                lease: self.claim_after,
            };
            state.leased.insert(number, entry);
            delivery
        });
        Ok(deliveries.collect())
    }

    /// Makes a dead letter of an entry, whatever is wrong with it: without its headers when the queue refuses them, and
    /// only in the log when it refuses the payload too; the entry stays in the stream then.
    async fn dead_letter(&self, entry: &Entry, reason: &str) -> Result<()> {
        let reason = &reason[..reason.floor_char_boundary(REASON_BYTES)];
        let headers = [entry.message.headers.clone(), Headers::new()];
        let mut refused = None;
        for mut headers in headers {
            headers.set("reason", reason);
            let mut message = NewMessage::new(entry.message.payload.clone());
            message.headers = headers;
            let enqueued = self
                .dead_letters
                .enqueue(&self.member.dead, vec![message])
                .await
                .and_then(|outcomes| outcomes.into_iter().try_for_each(|one| one.map(drop)));
            match enqueued {
                Err(error) if error.kind() != ErrorKind::Unavailable => refused = Some(error),
                enqueued => return enqueued,
            }
        }
        if let Some(refused) = refused {
            error!(
                stream = %self.member.stream,
                offset = ?entry.offset,
                error = refused.chain(),
                "dead letter refused; entry skipped"
            );
        }
        Ok(())
    }
}

#[async_trait]
impl Consumer for StreamConsumer {
    async fn lease(&self, max: usize, _in_flight: usize) -> Result<Vec<Delivery>> {
        let due: Vec<Entry> = {
            let mut state = self.state();
            let now = Instant::now();
            let mut due = Vec::new();
            let mut at = 0;
            while due.len() < max && at < state.returned.len() {
                if state.returned[at].0 <= now {
                    due.extend(state.returned.remove(at).map(|(_, entry)| entry));
                } else if self.member.is_ordered {
                    break;
                } else {
                    at += 1;
                }
            }
            due
        };
        if !due.is_empty() {
            return self.hand_out(due);
        }
        let returned = self.state().returned.len();
        let most = if self.member.is_ordered { 1 } else { RETURNED };
        if returned >= most {
            // Returned entries are older than all others.
            tokio::time::sleep(WAIT / 10).await;
            return Ok(Vec::new());
        }
        match self.next(max).await {
            Ok(entries) => self.hand_out(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.create().await?;
                // A group that does not stay is not made without end.
                tokio::time::sleep(WAIT / 5).await;
                Ok(Vec::new())
            }
            Err(error) => {
                // Entries of an answer that did not arrive belong to this consumer, and are older than the next ones.
                self.state().caught_up = false;
                Err(error)
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let (mut finished, mut returned) = (Vec::<(u64, Offset)>::new(), Vec::new());
        let mut dead_lettered = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(settlements.len());
        for Settlement {
            receipt,
            disposition,
        } in settlements
        {
            let entry = self.state().leased.get(&receipt.number).cloned();
            let Some(entry) = entry else {
                outcomes.push(Err(Error::conflict("the entry is settled already")));
                continue;
            };
            match disposition {
                Disposition::Ack => finished.push((receipt.number, entry.offset)),
                Disposition::DeadLetter { reason } => {
                    warn!(stream = %self.member.stream, reason, "entry became a dead letter");
                    self.dead_letter(&entry, &reason).await?;
                    finished.push((receipt.number, entry.offset));
                    dead_lettered.insert(receipt.number);
                }
                Disposition::Retry { error, .. }
                    if entry.attempt.max(1) >= self.member.attempts =>
                {
                    self.dead_letter(&entry, &error).await?;
                    finished.push((receipt.number, entry.offset));
                    dead_lettered.insert(receipt.number);
                }
                Disposition::Retry { after, .. } => returned.push((receipt.number, after, true)),
                Disposition::Release { after } => returned.push((receipt.number, after, false)),
            }
            outcomes.push(Ok(()));
        }
        let offsets: Vec<Offset> = finished.iter().map(|(_, offset)| *offset).collect();
        if !offsets.is_empty() {
            let GroupMember { stream, group, .. } = &self.member;
            match self.stream.commit(stream, group, &offsets).await {
                // The group was deleted with its position. It starts again, and the sink drops lines that it has.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                committed => committed?,
            }
        }
        let mut state = self.state();
        let mut done = finished.iter().filter_map(|(number, _)| {
            let entry = state.leased.remove(number)?;
            (!dead_lettered.contains(number)).then_some(entry.message.payload.len() as u64)
        });
        (self.done)(&mut done);
        let now = Instant::now();
        for (number, after, charged) in returned.into_iter().rev() {
            if let Some(mut entry) = state.leased.remove(&number) {
                entry.attempt += u32::from(charged);
                state.returned.push_front((now + after, entry));
            }
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        // Entries have no lease: they stay with a consumer that is alive.
        Ok(receipts.iter().map(|_| Ok(())).collect())
    }

    async fn disconnect(&self) -> Result<u64> {
        *self.state() = State::default();
        self.stream.disconnect(&self.member.consumer).await
    }

    fn recorded_as(&self) -> Option<&ConsumerId> {
        None
    }

    fn lease_time(&self) -> Duration {
        self.claim_after
    }
}
