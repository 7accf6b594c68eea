//! The topics of streams and queues: which there are, and making those that there are not.

use std::time::Instant;

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;
use towpath_core::{Error, Result, StreamName};

use super::config::{LARGEST, is_plain};
use super::member::lock;
use super::queue::Known;
use super::store::{SOON, Store};
use super::{error, retry};

impl Store {
    /// The topic of a stream or a queue.
    pub(super) fn topic(&self, name: &str) -> Result<String> {
        let topic = format!("{}{name}", self.config.prefix);
        if topic.len() > 249 || !topic.chars().all(is_plain) || topic == "." || topic == ".." {
            return Err(Error::invalid(format!(
                "`{topic}` is no name of a topic: Kafka takes 249 letters, digits, `.`, `_` and `-`"
            )));
        }
        Ok(topic)
    }

    /// How many partitions the topic has; `None` when it is not there.
    pub(super) async fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.check_open()?;
        if let Some(count) = lock(&self.topics).get(topic) {
            return Ok(Some(*count));
        }
        let (asked, timeout) = (topic.to_owned(), self.config.timeout);
        let found = self.ask(move |asker| {
            let metadata = asker.fetch_metadata(Some(&asked), timeout);
            let metadata = metadata
                .map_err(|told| error::of_call(&format!("ask for topic `{asked}`"), told))?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == asked);
            let there = topic.filter(|topic| topic.error().is_none());
            Ok(there.map_or(0, |topic| topic.partitions().len()))
        });
        let count = i32::try_from(found.await?).unwrap_or(i32::MAX);
        if count == 0 {
            return Ok(None);
        }
        lock(&self.topics).insert(topic.to_owned(), count);
        Ok(Some(count))
    }

    /// The partitions of a topic that has to be there.
    pub(super) async fn existing(&self, stream: &StreamName) -> Result<(String, i32)> {
        let topic = self.topic(stream.as_str())?;
        match self.partitions(&topic).await? {
            Some(count) => Ok((topic, count)),
            None => Err(Error::not_found(format!("there is no stream `{stream}`"))),
        }
    }

    /// The topic of a stream, made when it is not there: without an end to what it keeps.
    pub(super) async fn ensure(&self, stream: &StreamName) -> Result<(String, i32)> {
        let topic = self.topic(stream.as_str())?;
        if let Some(count) = self.partitions(&topic).await? {
            return Ok((topic, count));
        }
        let new = self.topic_to_keep(&topic, self.config.partitions);
        let count = self.make(&topic, new).await?;
        Ok((topic, count))
    }

    /// A topic without an end to what it keeps.
    fn topic_to_keep<'a>(&self, topic: &'a str, partitions: i32) -> NewTopic<'a> {
        self.new_topic(topic, partitions)
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1")
    }

    pub(super) fn new_topic<'a>(&self, topic: &'a str, partitions: i32) -> NewTopic<'a> {
        let replication = TopicReplication::Fixed(self.config.replication.unwrap_or(-1));
        NewTopic::new(topic, partitions, replication).set("max.message.bytes", LARGEST)
    }

    pub(super) async fn ensure_queue(&self, known: &Known) -> Result<()> {
        if self.partitions(&known.topic).await?.is_none() {
            let new = self.topic_to_keep(&known.topic, self.config.partitions);
            self.make(&known.topic, new).await?;
        }
        Ok(())
    }

    pub(super) async fn ensure_later(&self, known: &Known) -> Result<()> {
        if self.partitions(&known.later_topic).await?.is_none() {
            let new = self.topic_to_keep(&known.later_topic, retry::STEPS);
            self.make(&known.later_topic, new).await?;
        }
        Ok(())
    }

    pub(super) async fn ensure_dead(&self, known: &Known) -> Result<()> {
        if self.partitions(&known.dead_topic).await?.is_none() {
            let new = self.new_topic(&known.dead_topic, 1);
            let new = new.set("cleanup.policy", "compact");
            self.make(&known.dead_topic, new).await?;
        }
        Ok(())
    }

    /// Makes a topic, and returns how many partitions it has once it can be seen.
    pub(super) async fn make(&self, topic: &str, new: NewTopic<'_>) -> Result<i32> {
        let what = format!("make topic `{topic}`");
        let made = self.admin.create_topics([&new], &self.options()).await;
        let made = made.map_err(|told| error::of_call(&what, told))?;
        for outcome in made {
            match outcome {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
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
                let text = format!("kafka: topic `{topic}` was made and cannot be seen yet");
                return Err(Error::unavailable(text));
            }
            sleep(SOON).await;
        }
    }

    /// Names of all topics, also those of others, with their partitions.
    pub(super) async fn all_topics(&self) -> Result<Vec<(String, i32)>> {
        let timeout = self.config.timeout;
        self.ask(move |asker| {
            let metadata = asker.fetch_metadata(None, timeout);
            let metadata = metadata.map_err(|told| error::of_call("list topics", told))?;
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
