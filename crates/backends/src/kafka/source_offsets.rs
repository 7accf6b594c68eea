//! The source offsets port: a position is a record of a compacted topic, produced in one transaction with the entries.
//!
//! Each source has a producer with its own transactional id. Starting one aborts the open transaction of an earlier one
//! and fences it, so of several readers of a source the newest continues, from the committed position.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{Message as _, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::port::SourceOffsets;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::{Error, NewMessage, Result, ResultExt, StreamName};
use tracing::info;

use super::consumer::lock;
use super::produce::Record;
use super::store::Store;
use super::topics::Design;
use super::transaction::{Failed, Transactions};
use super::{envelope, error};

/// The topic of positions, with one partition: there are few, and each reader looks through it once.
const TOPIC: &str = "towpath.positions";

/// Timeout after which the broker ends an open transaction.
const TRANSACTION: Duration = Duration::from_secs(30);

/// Entries of one transaction: it costs 10 to 30 ms however few they are, and blocks no other client.
const ENTRIES: usize = 32_000;

/// Longest name of a source in bytes; the transactional id carries it.
const MAX_SOURCE_BYTES: usize = 1_000;

/// Time after which an unused producer is closed: each has connections and threads.
const IDLE: Duration = Duration::from_secs(60);

/// A source's position and the only producer that may move it.
struct Writer {
    producer: Transactions,
    position: Option<Bytes>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Writer>>>;

pub(super) struct Sources {
    store: Arc<Store>,
    /// Each with the time of its last use.
    writers: Mutex<HashMap<String, (Slot, Instant)>>,
}

impl Sources {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            writers: Mutex::default(),
        }
    }

    fn slot(&self, source: &str) -> Result<Slot> {
        self.store.check_open()?;
        if source.is_empty() || source.len() > MAX_SOURCE_BYTES {
            return Err(Error::invalid(format!(
                "the name of a source must have 1 to {MAX_SOURCE_BYTES} bytes"
            )));
        }
        let mut writers = lock(&self.writers);
        let now = Instant::now();
        writers.retain(|_, (slot, used)| {
            let is_idle = now.duration_since(*used) > IDLE && Arc::strong_count(slot) == 1;
            if is_idle {
                drop_apart(Arc::clone(slot));
            }
            !is_idle
        });
        let (slot, used) = writers
            .entry(source.to_owned())
            .or_insert_with(|| (Slot::default(), now));
        *used = now;
        Ok(Arc::clone(slot))
    }

    /// Starts the producer of a source, and reads the source's position.
    async fn init_writer(&self, source: &str) -> Result<Writer> {
        let topic = self.topic().await?;
        let config = &self.store.config;
        let id = format!("{}towpath.{source}", config.prefix);
        let producer = Transactions::start(config, id, TRANSACTION).await?;
        let key = source.as_bytes().to_vec();
        let mut found = self.look_up(&topic, move |one| one == key).await?;
        let position = found.remove(source.as_bytes());
        Ok(Writer { producer, position })
    }

    /// The topic of positions, created when missing.
    async fn topic(&self) -> Result<String> {
        let config = &self.store.config;
        let topic = format!("{}{TOPIC}", config.prefix);
        self.store.declare(&topic, Design::Compacted).await?;
        Ok(topic)
    }

    /// The newest committed position of each matching source, once every transaction that was open
    /// before has ended.
    async fn look_up(
        &self,
        topic: &str,
        is_asked: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<HashMap<Vec<u8>, Bytes>> {
        let began = Instant::now();
        let (low, high) = self.store.watermarks(topic, 1).await?[0];
        let topic = topic.to_owned();
        let timeout = self.store.config.timeout + TRANSACTION;
        self.store
            .with_reader(move |reader| {
                let failed = |error| error::of_call("read positions", error);
                // Another process may have a transaction open, or crashed with one.
                while reader
                    .fetch_watermarks(&topic, 0, timeout)
                    .map_err(failed)?
                    .1
                    < high
                {
                    if began.elapsed() > timeout {
                        let text = "kafka: an open transaction blocks the topic of positions";
                        return Err(Error::unavailable(text));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                let mut positions = HashMap::new();
                if low == high {
                    return Ok(positions);
                }
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(&topic, 0, Place::Offset(low))
                    .map_err(failed)?;
                reader.assign(&list).map_err(failed)?;
                loop {
                    match reader.poll(Duration::from_millis(100)) {
                        Some(Ok(record)) => {
                            let Some(source) = record.key().filter(|key| is_asked(key)) else {
                                continue;
                            };
                            match record.payload() {
                                Some(at) => {
                                    positions.insert(source.to_vec(), Bytes::copy_from_slice(at))
                                }
                                None => positions.remove(source),
                            };
                        }
                        Some(Err(KafkaError::PartitionEOF(_))) => break,
                        None if began.elapsed() > timeout => {
                            return Err(Error::unavailable("kafka: cannot read positions"));
                        }
                        _ => {}
                    }
                }
                reader.unassign().map_err(failed)?;
                Ok(positions)
            })
            .await
    }

    /// The topics of positions, entries and rejected input; created when missing.
    async fn topics(&self, step: &AppendAt) -> Result<(String, (String, i32), Option<String>)> {
        let positions = self.topic().await?;
        let stream = match step.entries.is_empty() {
            true => (String::new(), 0),
            false => self.store.ensure(&step.stream).await?,
        };
        let dead = match step.rejected.is_empty() {
            true => None,
            false => {
                let dead = StreamName::new(step.dead.as_str())?;
                Some(self.store.ensure(&dead).await?.0)
            }
        };
        Ok((positions, stream, dead))
    }

    /// One transaction. The error comes with whether it was certainly aborted.
    async fn commit(
        &self,
        writer: &Writer,
        step: &AppendAt,
    ) -> std::result::Result<(), (Error, bool)> {
        let topics = self.topics(step).await.map_err(|error| (error, true))?;
        let (positions, (stream, count), dead) = topics;
        let partitioner = self.store.partitioner(&stream, count).await;

        let entries = step.entries.iter().map(|one| (stream.as_str(), one));
        let rejected = dead.iter().flat_map(|dead| {
            let dead = dead.as_str();
            step.rejected.iter().map(move |one| (dead, one))
        });
        let all: Vec<(&str, &NewMessage)> = entries.chain(rejected).collect();
        for (_, entry) in &all {
            envelope::check(entry).map_err(|error| (error, true))?;
        }
        // The lines of one source stay in order, also where there are several partitions.
        let records = all.iter().map(|(topic, entry)| {
            let key = entry.key.as_deref().unwrap_or(&step.source).as_bytes();
            let is_placed = *topic == stream;
            Record {
                topic,
                partition: partitioner.place(Some(key), count).filter(|_| is_placed),
                key: Some(key),
                payload: Some(&entry.payload),
                headers: envelope::headers(entry),
                at: entry.happened_at,
            }
        });
        let moved = Record {
            topic: &positions,
            partition: None,
            key: Some(step.source.as_bytes()),
            payload: Some(&step.to),
            headers: OwnedHeaders::new(),
            at: None,
        };
        // A transaction left open ends when the source's next producer starts.
        let topics = [Some(&positions), Some(&stream), dead.as_ref()];
        let topics: Vec<&str> = topics.into_iter().flatten().map(String::as_str).collect();
        let records = records.chain([moved]).collect();
        let done = writer.producer.run(records, None);
        let done = self.store.while_declared(&topics, done).await;
        done.map(drop).map_err(|failed| {
            for topic in topics {
                self.store.doubt(topic);
            }
            let is_undone = !matches!(failed, Failed::Unknown(_));
            let error = failed.error();
            (
                error::of_produce("produce in a transaction", error),
                is_undone,
            )
        })
    }
}

/// Drops a producer on another thread, because the drop waits for its connections.
fn drop_apart(slot: Slot) {
    tokio::task::spawn_blocking(move || drop(slot));
}

#[async_trait]
impl SourceOffsets for Sources {
    async fn position(&self, source: &str) -> Result<Option<Bytes>> {
        let slot = self.slot(source)?;
        let mut slot = slot.lock().await;
        if let Some(writer) = &*slot {
            return Ok(writer.position.clone());
        }
        let writer = self.init_writer(source).await;
        let writer = writer.context(|| format!("position of `{source}`"))?;
        let position = writer.position.clone();
        *slot = Some(writer);
        Ok(position)
    }

    async fn append_at(&self, step: AppendAt) -> Result<AppendOutcome> {
        let slot = self.slot(&step.source)?;
        let mut slot = slot.lock().await;
        // A call that ends early leaves the slot empty: the next one reads the position again.
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.init_writer(&step.source).await?,
        };
        if writer.position != step.from {
            let position = writer.position.clone();
            *slot = Some(writer);
            return Ok(AppendOutcome::OffsetConflict(position));
        }
        match self.commit(&writer, &step).await {
            Ok(()) => {
                writer.position = Some(step.to);
                *slot = Some(writer);
                Ok(AppendOutcome::Appended)
            }
            // The position is unchanged, also where its topic was deleted.
            Err((error, true)) => {
                *slot = Some(writer);
                Err(error).context(|| format!("step of `{}`", step.source))
            }
            Err((error, false)) => {
                info!(
                    source = step.source,
                    error = error.chain(),
                    "append failed; reinitialising the source's producer"
                );
                Err(error).context(|| format!("step of `{}`", step.source))
            }
        }
    }

    async fn sources(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.store.check_open()?;
        let topic = self.topic().await?;
        let prefix = prefix.as_bytes().to_vec();
        let found = self.look_up(&topic, move |one| one.starts_with(&prefix));
        let found = found.await.context(|| "list positions")?;
        let named = found.into_iter();
        let named = named.filter_map(|(name, at)| Some((String::from_utf8(name).ok()?, at)));
        Ok(named.collect())
    }

    async fn forget(&self, source: &str, last: Bytes) -> Result<bool> {
        let slot = self.slot(source)?;
        let mut slot = slot.lock().await;
        let writer = match slot.take() {
            Some(writer) => writer,
            None => self.init_writer(source).await?,
        };
        if writer.position != Some(last) {
            *slot = Some(writer);
            return Ok(false);
        }
        let topic = self.topic().await?;
        let removed = Record {
            topic: &topic,
            partition: None,
            key: Some(source.as_bytes()),
            payload: None,
            headers: OwnedHeaders::new(),
            at: None,
        };
        let done = writer.producer.run(vec![removed], None);
        let done = self.store.while_declared(&[topic.as_str()], done).await;
        done.map_err(|failed| error::of_produce("remove a position", failed.error()))
            .context(|| format!("forget `{source}`"))?;
        // The producer is dropped: the source has no position to move.
        drop_apart(Arc::new(tokio::sync::Mutex::new(Some(writer))));
        Ok(true)
    }

    fn batch_entries(&self) -> usize {
        ENTRIES
    }
}
