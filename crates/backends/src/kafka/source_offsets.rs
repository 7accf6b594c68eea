//! The positions port: a position is a record of a compacted topic, produced in one transaction with the entries.
//!
//! Each source has a producer with a transactional id of its own. Starting one ends what an earlier one of that id left
//! open and shuts it out, so of several readers of a source the newest goes on, from where the others really were.

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

/// How long a transaction may be open before the broker ends it.
const TRANSACTION: Duration = Duration::from_secs(30);

/// Entries of one transaction: it costs 10 to 30 ms however few they are, and holds nobody up.
const ENTRIES: usize = 32_000;

/// Longest name of a source in bytes; the transactional id carries it.
const MAX_SOURCE_BYTES: usize = 1_000;

/// After how long without use a producer is closed: sources come and go, and each has connections and threads.
const IDLE: Duration = Duration::from_secs(60);

/// A source's position and the only producer that may move it.
struct Writer {
    producer: Transactions,
    position: Option<Bytes>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Writer>>>;

pub(super) struct Sources {
    store: Arc<Store>,
    /// Each with the moment of its last use.
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

    /// Takes the source over, and finds out where it is.
    async fn take_over(&self, source: &str) -> Result<Writer> {
        let topic = self.topic().await?;
        let config = &self.store.config;
        let id = format!("{}towpath.{source}", config.prefix);
        let producer = Transactions::start(config, id, TRANSACTION).await?;
        let key = source.as_bytes().to_vec();
        let mut found = self.look_up(&topic, move |one| one == key).await?;
        let position = found.remove(source.as_bytes());
        Ok(Writer { producer, position })
    }

    /// The topic of positions, made when it is not there.
    async fn topic(&self) -> Result<String> {
        let config = &self.store.config;
        let topic = format!("{}{TOPIC}", config.prefix);
        self.store.declare(&topic, Design::Compacted).await?;
        Ok(topic)
    }

    /// The newest position of each source that is asked for: what was committed, once no transaction is open any more
    /// that came before.
    async fn look_up(
        &self,
        topic: &str,
        is_asked: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<HashMap<Vec<u8>, Bytes>> {
        let began = Instant::now();
        let (low, high) = self.store.marks(topic, 1).await?[0];
        let topic = topic.to_owned();
        let timeout = self.store.config.timeout + TRANSACTION;
        self.store
            .with_reader(move |reader| {
                let failed = |told| error::of_call("read positions", told);
                // Others may have one open for a moment, or have died with one.
                while reader
                    .fetch_watermarks(&topic, 0, timeout)
                    .map_err(failed)?
                    .1
                    < high
                {
                    if began.elapsed() > timeout {
                        let text = "kafka: a transaction over positions stays open";
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
                            return Err(Error::unavailable("kafka: positions cannot be read"));
                        }
                        _ => {}
                    }
                }
                reader.unassign().map_err(failed)?;
                Ok(positions)
            })
            .await
    }

    /// The topics of positions, of the entries and of those that are set aside; made where they are not there.
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

    /// One transaction. With the error comes whether nothing of it is there for certain.
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
        // Whatever is open after a failure ends when the source is taken over anew.
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
            let told = failed.told();
            (
                error::of_produce("produce in a transaction", told),
                is_undone,
            )
        })
    }
}

/// Ends a producer on a thread of its own, because it waits for its connections.
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
        let writer = self.take_over(source).await;
        let writer = writer.context(|| format!("position of `{source}`"))?;
        let position = writer.position.clone();
        *slot = Some(writer);
        Ok(position)
    }

    async fn append_at(&self, step: AppendAt) -> Result<AppendOutcome> {
        let slot = self.slot(&step.source)?;
        let mut slot = slot.lock().await;
        // Whatever ends this call early leaves the next one to find out what happened.
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.take_over(&step.source).await?,
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
            // Its position is as it was, also where its topic was deleted.
            Err((error, true)) => {
                *slot = Some(writer);
                Err(error).context(|| format!("step of `{}`", step.source))
            }
            Err((error, false)) => {
                info!(
                    source = step.source,
                    error = error.chain(),
                    "the source is taken over anew"
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
            None => self.take_over(source).await?,
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
        done.map_err(|failed| error::of_produce("remove a position", failed.told()))
            .context(|| format!("forget `{source}`"))?;
        // Its producer ends: nothing is left to move.
        drop_apart(Arc::new(tokio::sync::Mutex::new(Some(writer))));
        Ok(true)
    }

    fn batch_entries(&self) -> usize {
        ENTRIES
    }
}
