//! Dead letters: a compacted topic, by their ids. A dropped or redriven one is deleted by its key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::port::queue::{DeadLetter, Selection};
use towpath_core::{Error, MessageId, Result, ResultExt};
use tracing::warn;

use super::envelope::Read;
use super::produce::Record;
use super::queue::QueueHandle;
use super::settler::Action;
use super::store::Store;
use super::transaction::{Failed, Transactions};
use super::{envelope, error};

/// Dead letters redriven or dropped in one transaction.
const AT_ONCE: usize = 500;

/// Timeout of such a transaction.
const TRANSACTION: Duration = Duration::from_secs(30);

/// Time for dead letters of this process to become visible.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// Index of the dead letters, by offset.
#[derive(Default)]
pub(super) struct Index {
    /// Behind the last record read.
    next: i64,
    ids: BTreeMap<i64, MessageId>,
    places: HashMap<MessageId, i64>,
}

impl Index {
    fn add(&mut self, record: &BorrowedMessage<'_>) {
        self.next = record.offset() + 1;
        let id = record.key().and_then(|key| std::str::from_utf8(key).ok());
        let Some(id) = id.and_then(|id| id.parse::<MessageId>().ok()) else {
            return;
        };
        if let Some(at) = self.places.remove(&id) {
            self.ids.remove(&at);
        }
        if record.payload().is_some() {
            self.places.insert(id, record.offset());
            self.ids.insert(record.offset(), id);
        }
    }
}

impl Store {
    /// Number of dead letters.
    pub(super) async fn count_dead(&self, handle: &QueueHandle) -> Result<u64> {
        let mut index = handle.dead.lock().await;
        self.look(handle, &mut index).await?;
        Ok(index.ids.len() as u64)
    }

    pub(super) async fn dead_letters(
        &self,
        handle: &QueueHandle,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let mut index = handle.dead.lock().await;
        self.look(handle, &mut index).await?;
        let after = after.and_then(|after| index.places.get(&after).copied());
        let from = after.map_or(0, |at| at + 1);
        let places: Vec<i64> = index
            .ids
            .range(from..)
            .map(|(at, _)| *at)
            .take(max)
            .collect();
        let letters = self.read_letters(handle, places).await?;
        Ok(letters
            .into_iter()
            .filter_map(
                |Read {
                     envelope, left_at, ..
                 }| {
                    let mut letter = envelope.dead_letter(handle.name.clone())?;
                    if let Some(left_at) = left_at {
                        letter.reason += &format!("; payload and headers are in record {left_at}");
                    }
                    Some(letter)
                },
            )
            .collect())
    }

    pub(super) async fn redrive(&self, handle: &QueueHandle, selection: &Selection) -> Result<u64> {
        self.ensure_queue(handle).await?;
        let what = || format!("redrive to `{}`", handle.name);
        self.remove(handle, selection, true).await.context(what)
    }

    pub(super) async fn drop_dead(
        &self,
        handle: &QueueHandle,
        selection: &Selection,
    ) -> Result<u64> {
        let what = || format!("drop dead letters of `{}`", handle.name);
        let dropped = self.remove(handle, selection, false).await.context(what)?;
        handle
            .counters
            .dropped
            .fetch_add(dropped, Ordering::Relaxed);
        Ok(dropped)
    }

    /// Deletes the selected dead letters that still exist, and redrives them if asked to.
    async fn remove(
        &self,
        handle: &QueueHandle,
        selection: &Selection,
        redrives: bool,
    ) -> Result<u64> {
        let mut index = handle.dead.lock().await;
        self.look(handle, &mut index).await?;
        if index.ids.is_empty() {
            return Ok(0);
        }
        // One operator at a time across processes: a second one fences the first.
        let id = format!("{}.operator", handle.topic);
        let transactions = Transactions::start(&self.config, id, TRANSACTION).await?;
        self.look(handle, &mut index).await?;
        let wanted: Option<HashSet<MessageId>> = match selection {
            Selection::All => None,
            Selection::Ids(ids) => Some(ids.iter().copied().collect()),
        };
        let chosen = index.ids.iter();
        let chosen = chosen.filter(|(_, id)| wanted.as_ref().is_none_or(|all| all.contains(id)));
        let chosen: Vec<i64> = chosen.map(|(at, _)| *at).collect();
        let mut count = 0;
        for places in chosen.chunks(AT_ONCE) {
            let mut letters = self.read_letters(handle, places.to_vec()).await?;
            // One without its payload stays a dead letter.
            letters.retain(|one| !redrives || one.left_at.is_none());
            letters.iter_mut().for_each(|one| one.envelope.redrive());
            count += self
                .move_letters(handle, &transactions, letters, redrives)
                .await?;
        }
        self.look(handle, &mut index).await?;
        Ok(count)
    }

    /// Deletes these dead letters, and redrives them if asked to. One that the queue's topic refuses
    /// stays.
    async fn move_letters(
        &self,
        handle: &QueueHandle,
        transactions: &Transactions,
        mut letters: Vec<Read>,
        redrives: bool,
    ) -> Result<u64> {
        let mut alone = Vec::new();
        let mut count = 0;
        while !letters.is_empty() {
            let keys: Vec<String> = { letters.iter() }
                .map(|one| one.envelope.message.id.to_string())
                .collect();
            let back = letters.iter().filter(|_| redrives).map(|one| Record {
                topic: &handle.topic,
                partition: None,
                key: envelope::key(&one.envelope, one.raw.as_deref()),
                payload: Some(&one.envelope.message.payload),
                headers: envelope::of_queue(&one.envelope, one.raw.as_deref()),
                at: None,
            });
            let deleted = keys.iter().map(|key| Record {
                topic: &handle.dead_topic,
                partition: Some(0),
                key: Some(key.as_bytes()),
                payload: None,
                headers: OwnedHeaders::new(),
                at: None,
            });
            let records: Vec<Record<'_>> = back.chain(deleted).collect();
            let back = if redrives { letters.len() } else { 0 };
            let topics = [handle.topic.as_str(), handle.dead_topic.as_str()];
            let done = transactions.run(records, None);
            match self.while_declared(&topics, done).await {
                Ok(places) => {
                    count += letters.len() as u64;
                    for (_, at) in &places[back..] {
                        handle.note_dead(*at);
                    }
                    if let Some(session) = handle.session_if_any().await {
                        for place in &places[..back] {
                            session.members.note_marked(Action::Requeue, *place);
                        }
                    }
                    letters.clear();
                }
                Err(Failed::TooLarge(..)) if letters.len() == 1 => {
                    let id = &letters[0].envelope.message.id;
                    warn!(queue = %handle.name, %id, "dead letter too large for its queue; not redriven");
                    letters.clear();
                }
                // The refused batch does not name its too large record: each is sent alone.
                Err(Failed::TooLarge(_, which)) => {
                    let all = std::mem::take(&mut letters).into_iter().enumerate();
                    for (at, letter) in all {
                        let of = if which.contains(&at) {
                            &mut alone
                        } else {
                            &mut letters
                        };
                        of.push(letter);
                    }
                }
                Err(failed) => {
                    self.doubt(&handle.topic);
                    self.doubt(&handle.dead_topic);
                    return Err(error::of_produce("move dead letters", failed.error()));
                }
            }
            if letters.is_empty() {
                letters.extend(alone.pop());
            }
        }
        Ok(count)
    }

    /// Reads the records since the last call into the index.
    async fn look(&self, handle: &QueueHandle, index: &mut Index) -> Result<()> {
        if self.partitions(&handle.dead_topic).await?.is_none() {
            *index = Index::default();
            return Ok(());
        }
        let asked = Instant::now();
        let (low, end) = loop {
            let (low, end) = self.committed_watermarks(&handle.dead_topic).await?;
            // Transaction markers are written shortly after the transaction ended.
            if end >= handle.dead_end.load(Ordering::Acquire) {
                break (low, end);
            }
            if asked.elapsed() > SEEN_WITHIN {
                // The topic was recreated.
                handle.dead_end.store(end, Ordering::Release);
                break (low, end);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        if index.next > end {
            // The topic was recreated: the index is of the old one.
            *index = Index::default();
        }
        if index.next < end {
            let (from, seen) = (index.next.max(low), std::mem::take(index));
            *index = self.scan(handle, (from, end), seen, Index::add).await?;
            index.next = end;
        }
        Ok(())
    }

    /// The dead letters at these offsets, in order.
    async fn read_letters(&self, handle: &QueueHandle, places: Vec<i64>) -> Result<Vec<Read>> {
        let (Some(first), Some(last)) = (places.first().copied(), places.last().copied()) else {
            return Ok(Vec::new());
        };
        let (now, wanted) = (self.clock.now(), places.into_iter().collect::<HashSet<_>>());
        let read = move |letters: &mut Vec<Read>, record: &BorrowedMessage<'_>| {
            if wanted.contains(&record.offset()) {
                letters.push(envelope::read(record, now));
            }
        };
        self.scan(handle, (first, last + 1), Vec::new(), read).await
    }

    /// Passes each record of a range of the topic to `see`.
    async fn scan<T: Send + 'static>(
        &self,
        handle: &QueueHandle,
        (from, end): (i64, i64),
        mut seen: T,
        mut see: impl FnMut(&mut T, &BorrowedMessage<'_>) + Send + 'static,
    ) -> Result<T> {
        let (topic, timeout) = (handle.dead_topic.clone(), self.config.timeout);
        self.with_reader(move |reader| {
            let failed = |error| error::of_call(&format!("read `{topic}`"), error);
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Place::Offset(from))
                .map_err(failed)?;
            reader.assign(&list).map_err(failed)?;
            let mut last_record = Instant::now();
            loop {
                match reader.poll(Duration::from_millis(100)) {
                    Some(Ok(record)) => {
                        last_record = Instant::now();
                        see(&mut seen, &record);
                        if record.offset() + 1 >= end {
                            break;
                        }
                    }
                    Some(Err(KafkaError::PartitionEOF(0))) => break,
                    _ if last_record.elapsed() > timeout => {
                        let text = format!("kafka: no record of `{topic}` within {timeout:?}");
                        return Err(Error::unavailable(text));
                    }
                    _ => {}
                }
            }
            reader.unassign().map_err(failed)?;
            Ok(seen)
        })
        .await
    }
}
