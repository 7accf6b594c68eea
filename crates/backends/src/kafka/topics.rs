//! The topics of streams and queues: lookup and creation.

use std::time::{Duration, Instant};

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;
use towpath_core::{Error, Result, StreamName};
use tracing::{debug, info, warn};

use super::config::{LARGEST, is_plain};
use super::consumer::lock;
use super::queue::QueueHandle;
use super::store::{RETRY_PAUSE, Store};
use super::{error, retry};

/// Time to live of cached topic metadata.
const FRESH: Duration = Duration::from_secs(1);

/// Longest wait for newer metadata.
const RENEWED: Duration = Duration::from_secs(2);

/// A topic as the cluster last described it.
pub(super) struct Seen {
    /// Its partitions; 0 since it was found deleted.
    count: i32,
    asked: Instant,
    /// A call that used it failed since.
    is_doubtful: bool,
}

/// Settings of a new topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Design {
    /// For a stream: with this many partitions, without retention limits.
    Stream(i32),
    /// The same, for a queue.
    Queue(i32),
    /// One partition that keeps the newest record of each key.
    Compacted,
}

impl Seen {
    fn new(count: i32) -> Self {
        Self {
            count,
            asked: Instant::now(),
            is_doubtful: false,
        }
    }
}

impl Store {
    /// The topic of a stream or a queue.
    pub(super) fn topic(&self, name: &str) -> Result<String> {
        let topic = format!("{}{name}", self.config.prefix);
        if topic.len() > 249 || !topic.chars().all(is_plain) || topic == "." || topic == ".." {
            return Err(Error::invalid(format!(
                "invalid topic name `{topic}`; expected at most 249 letters, digits, `.`, `_` or `-`"
            )));
        }
        Ok(topic)
    }

    /// Number of partitions of the topic; `None` when it does not exist. A deletion is noticed within
    /// [`FRESH`].
    pub(super) async fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.check_open()?;
        let known = {
            let mut topics = lock(&self.topics);
            match topics.get_mut(topic) {
                Some(seen) if seen.count > 0 && seen.asked.elapsed() < FRESH => {
                    return Ok(Some(seen.count));
                }
                // Other calls use the cached count while this one asks.
                Some(seen) if seen.count > 0 && !seen.is_doubtful => {
                    seen.asked = Instant::now();
                    Some(seen.count)
                }
                _ => None,
            }
        };
        let limit = known.map_or(self.config.timeout, |_| self.config.timeout.min(RENEWED));
        let found = match (self.ask_for(topic, limit).await, known) {
            (Ok(found), _) => found,
            // Without an answer the topic counts as present.
            (Err(_), Some(count)) => return Ok(Some(count)),
            (Err(error), None) => return Err(error),
        };
        let mut topics = lock(&self.topics);
        match topics.get_mut(topic) {
            None if found == 0 => {}
            None => drop(topics.insert(topic.to_owned(), Seen::new(found))),
            Some(seen) => *seen = Seen::new(found),
        }
        drop(topics);
        if found == 0 {
            self.joined.invalidate(topic, "the topic was deleted");
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// A call failed: the metadata is refreshed before the next one.
    pub(super) fn doubt(&self, topic: &str) {
        if let Some(seen) = lock(&self.topics).get_mut(topic) {
            seen.is_doubtful = true;
            seen.asked = seen.asked.checked_sub(FRESH).unwrap_or(seen.asked);
        }
    }

    /// The topic's partitions; 0 when it does not exist.
    async fn ask_for(&self, topic: &str, limit: Duration) -> Result<i32> {
        let asked = topic.to_owned();
        let found = self.ask(move |asker| {
            let metadata = asker.fetch_metadata(Some(&asked), limit);
            let metadata = metadata
                .map_err(|error| error::of_call(&format!("ask for topic `{asked}`"), error))?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == asked);
            let there = topic.filter(|topic| topic.error().is_none());
            Ok(there.map_or(0, |topic| topic.partitions().len()))
        });
        Ok(i32::try_from(found.await?).unwrap_or(i32::MAX))
    }

    /// The partitions of a topic that has to be there.
    pub(super) async fn existing(&self, stream: &StreamName) -> Result<(String, i32)> {
        let topic = self.topic(stream.as_str())?;
        match self.partitions(&topic).await? {
            Some(count) => Ok((topic, count)),
            None => Err(Error::not_found(format!("unknown stream `{stream}`"))),
        }
    }

    /// The topic of a stream, created without retention limits when missing.
    pub(super) async fn ensure(&self, stream: &StreamName) -> Result<(String, i32)> {
        let topic = self.topic(stream.as_str())?;
        let design = Design::Stream(self.config.partitions);
        let count = self.declare(&topic, design).await?;
        Ok((topic, count))
    }

    pub(super) async fn ensure_queue(&self, handle: &QueueHandle) -> Result<()> {
        let design = Design::Queue(self.config.partitions);
        self.declare(&handle.topic, design).await.map(drop)
    }

    pub(super) async fn ensure_delayed(&self, handle: &QueueHandle) -> Result<()> {
        let design = Design::Queue(retry::STEPS);
        self.declare(&handle.delayed_topic, design).await.map(drop)
    }

    pub(super) async fn ensure_dead(&self, handle: &QueueHandle) -> Result<()> {
        let declared = self.declare(&handle.dead_topic, Design::Compacted);
        declared.await.map(drop)
    }

    /// Creates a missing topic. Returns its partitions.
    pub(super) async fn declare(&self, topic: &str, design: Design) -> Result<i32> {
        {
            let mut designs = lock(&self.designs);
            if !designs.contains_key(topic) {
                designs.insert(topic.to_owned(), design);
            }
        }
        match self.partitions(topic).await? {
            Some(count) => Ok(count),
            None => self.make(topic, design).await,
        }
    }

    /// Waits for a transaction over these topics, and recreates deleted ones meanwhile: with a missing topic,
    /// broker and client retry until the transaction times out.
    pub(super) async fn while_declared<T>(
        &self,
        topics: &[&str],
        transaction: impl Future<Output = T>,
    ) -> T {
        let mut transaction = std::pin::pin!(transaction);
        loop {
            tokio::select! {
                done = &mut transaction => return done,
                () = sleep(FRESH) => {}
            }
            for topic in topics {
                self.doubt(topic);
                let design = lock(&self.designs).get(*topic).copied();
                if let Some(design) = design
                    && let Err(error) = self.declare(topic, design).await
                {
                    debug!(topic, error = error.chain(), "topic not declared");
                }
            }
        }
    }

    /// Creates a topic, and returns its partitions once it is visible.
    async fn make(&self, topic: &str, design: Design) -> Result<i32> {
        let what = format!("create topic `{topic}`");
        let replication = TopicReplication::Fixed(self.config.replication.unwrap_or(-1));
        let new = |partitions| {
            NewTopic::new(topic, partitions, replication).set("max.message.bytes", LARGEST)
        };
        let new = match design {
            Design::Stream(partitions) | Design::Queue(partitions) => new(partitions)
                .set("retention.ms", "-1")
                .set("retention.bytes", "-1"),
            Design::Compacted => new(1).set("cleanup.policy", "compact"),
        };
        let made = self.admin.create_topics([&new], &self.options()).await;
        let made = made.map_err(|error| error::of_call(&what, error))?;
        lock(&self.partitioners).remove(topic);
        for outcome in made {
            match outcome {
                Ok(_) if lock(&self.topics).contains_key(topic) => {
                    warn!(topic, "topic was deleted with its messages; created again");
                    self.losses.note_deleted(topic);
                }
                Ok(_) => info!(topic, "topic created"),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    return Err(error::of_call(&what, KafkaError::AdminOp(code)));
                }
            }
        }
        let until = Instant::now() + self.config.timeout;
        loop {
            if let Some(count) = self.partitions(topic).await? {
                return Ok(count);
            }
            if Instant::now() >= until {
                let text = format!("kafka: topic `{topic}` was created and is not visible yet");
                return Err(Error::unavailable(text));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Names of all topics, also those of others, with their partitions.
    pub(super) async fn all_topics(&self) -> Result<Vec<(String, i32)>> {
        let timeout = self.config.timeout;
        self.ask(move |asker| {
            let metadata = asker.fetch_metadata(None, timeout);
            let metadata = metadata.map_err(|error| error::of_call("list topics", error))?;
            let all = metadata.topics().iter();
            Ok(all
                .map(|topic| {
                    let count = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
                    (topic.name().to_owned(), count)
                })
                .collect())
        })
        .await
    }
}
