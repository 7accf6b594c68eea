//! An opened Kafka: a producer, the groups that this process is a member of, and what it asks brokers.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::ToBytes;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;
use towpath_core::{Clock, Error, GroupName, Result, StreamName};

use super::config::{Config, MAX_RECORD_BYTES, is_plain};
use super::error;
use super::member::{Member, lock};

/// The group under whose name records are looked at; it never has a position.
const READER: &str = "towpath.reader";

/// How long a group that has no position in a topic is not asked for one again.
const ELSEWHERE: Duration = Duration::from_secs(30);

/// How many timeouts a record may take: a broker that is being replaced is waited for, and none is sent twice.
const DELIVERY: u32 = 6;

/// The pause when a producer's own queue is full.
const FULL: Duration = Duration::from_millis(5);

/// The pause before something is asked again that changes in a moment.
const SOON: Duration = Duration::from_millis(50);

type Consumers = HashMap<String, Arc<BaseConsumer>>;
type Members = BTreeMap<(StreamName, GroupName), Arc<Member>>;

/// The backend.
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    producer: Mutex<FutureProducer>,
    pub(super) admin: AdminClient<DefaultClientContext>,
    /// Reads without a group what was committed; one caller at a time.
    reader: Arc<Mutex<BaseConsumer>>,
    /// Asks about topics, also about what is not committed yet.
    asker: Arc<BaseConsumer>,
    /// For each group of ours one that asks for positions and sets them, and joins nothing.
    clerks: Mutex<Consumers>,
    members: tokio::sync::Mutex<Members>,
    /// Partitions of the topics that are known to be there.
    topics: Mutex<HashMap<String, i32>>,
    /// When a group was seen that has no position in the topic.
    elsewhere: Mutex<HashMap<(String, String), Instant>>,
    closed: AtomicBool,
}

/// The first offset that is kept and the one behind the newest, of each partition.
pub(super) type Marks = Vec<(i64, i64)>;

impl Store {
    pub(super) fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let failed = |told| error::of_call("start the client", told);
        let reader = |isolation| {
            let mut client = config.client();
            client.set("group.id", READER);
            client.set("isolation.level", isolation);
            consumer(client)
        };
        Ok(Arc::new(Self {
            producer: Mutex::new(producer(&config)?),
            admin: config.client().create().map_err(failed)?,
            reader: Arc::new(Mutex::new(reader("read_committed")?)),
            asker: Arc::new(reader("read_uncommitted")?),
            clerks: Mutex::default(),
            members: tokio::sync::Mutex::default(),
            topics: Mutex::default(),
            elsewhere: Mutex::default(),
            closed: AtomicBool::new(false),
            config,
            clock,
        }))
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::unavailable("the backend is closed"))
        } else {
            Ok(())
        }
    }

    /// The topic of a stream.
    pub(super) fn topic(&self, stream: &StreamName) -> Result<String> {
        let topic = format!("{}{stream}", self.config.prefix);
        if topic.len() > 249 || !topic.chars().all(is_plain) || topic == "." || topic == ".." {
            return Err(Error::invalid(format!(
                "`{topic}` is no name of a topic: Kafka takes 249 letters, digits, `.`, `_` and `-`"
            )));
        }
        Ok(topic)
    }

    pub(super) fn group_id(&self, group: &GroupName) -> String {
        format!("{}{group}", self.config.prefix)
    }

    /// How many partitions the topic has; `None` when it is not there.
    pub(super) async fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        self.check_open()?;
        if let Some(count) = lock(&self.topics).get(topic) {
            return Ok(Some(*count));
        }
        let (asker, asked) = (Arc::clone(&self.asker), topic.to_owned());
        let timeout = self.config.timeout;
        let found = blocking(move || {
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
        let topic = self.topic(stream)?;
        match self.partitions(&topic).await? {
            Some(count) => Ok((topic, count)),
            None => Err(Error::not_found(format!("there is no stream `{stream}`"))),
        }
    }

    /// The topic of a stream, made when it is not there: without an end to what it keeps.
    pub(super) async fn ensure(&self, stream: &StreamName) -> Result<(String, i32)> {
        let topic = self.topic(stream)?;
        if let Some(count) = self.partitions(&topic).await? {
            return Ok((topic, count));
        }
        let replication = TopicReplication::Fixed(self.config.replication.unwrap_or(-1));
        let largest = MAX_RECORD_BYTES.to_string();
        let new = NewTopic::new(&topic, self.config.partitions, replication)
            .set("max.message.bytes", &largest)
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1");
        let count = self.make(&topic, new).await?;
        Ok((topic, count))
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

    /// Hands a record to a producer; waits while its queue is full.
    pub(super) async fn send<K: ToBytes + ?Sized + Sync>(
        &self,
        producer: &FutureProducer,
        mut record: FutureRecord<'_, K, [u8]>,
    ) -> std::result::Result<DeliveryFuture, KafkaError> {
        loop {
            match producer.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((told, back)) if error::code(&told) == Some(Code::QueueFull) => record = back,
                Err((told, _)) => return Err(told),
            }
            sleep(FULL).await;
        }
    }

    pub(super) fn options(&self) -> AdminOptions {
        let timeout = Some(self.config.timeout);
        AdminOptions::new()
            .operation_timeout(timeout)
            .request_timeout(timeout)
    }

    /// Names of all topics, also those of others, with their partitions.
    pub(super) async fn all_topics(&self) -> Result<Vec<(String, i32)>> {
        let (asker, timeout) = (Arc::clone(&self.asker), self.config.timeout);
        blocking(move || {
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

    /// Names of all groups, also those of others.
    pub(super) async fn all_groups(&self) -> Result<Vec<String>> {
        let (asker, timeout) = (Arc::clone(&self.asker), self.config.timeout);
        blocking(move || {
            let list = asker.fetch_group_list(None, timeout);
            let list = list.map_err(|told| error::of_call("list groups", told))?;
            let names = list.groups().iter().map(|group| group.name().to_owned());
            Ok(names.collect())
        })
        .await
    }

    pub(super) async fn marks(&self, topic: &str, partitions: i32) -> Result<Marks> {
        self.check_open()?;
        let (asker, topic) = (Arc::clone(&self.asker), topic.to_owned());
        let timeout = self.config.timeout;
        blocking(move || {
            let of = |partition| {
                let marks = marks_of(&asker, &topic, partition, timeout);
                marks.map_err(|told| error::of_call(&format!("ask for the end of `{topic}`"), told))
            };
            (0..partitions).map(of).collect()
        })
        .await
    }

    /// Lets a closure have the consumer that reads without a group.
    pub(super) async fn with_reader<T: Send + 'static>(
        &self,
        read: impl FnOnce(&BaseConsumer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let reader = Arc::clone(&self.reader);
        blocking(move || read(&lock(&reader))).await
    }

    fn clerk(&self, group: &str) -> Result<Arc<BaseConsumer>> {
        let mut clerks = lock(&self.clerks);
        if let Some(clerk) = clerks.get(group) {
            return Ok(Arc::clone(clerk));
        }
        let client = self.config.client().set("group.id", group).clone();
        let clerk = Arc::new(consumer(client)?);
        clerks.insert(group.to_owned(), Arc::clone(&clerk));
        Ok(clerk)
    }

    /// The group's positions in a topic, by partition; `None` when it has none.
    pub(super) async fn positions(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Option<Vec<i64>>> {
        self.check_open()?;
        let place = (group.to_owned(), topic.to_owned());
        let clerk = self.clerk(group)?;
        let timeout = self.config.timeout;
        let found = blocking(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&place.1, 0, partitions - 1);
            let found = clerk.committed_offsets(list, timeout);
            let found = found.map_err(|told| {
                error::of_call(&format!("ask for the position of `{}`", place.0), told)
            })?;
            let of = |partition| {
                let element = found.find_partition(&place.1, partition);
                match element.map(|element| element.offset()) {
                    Some(Place::Offset(at)) => Some(at),
                    _ => None,
                }
            };
            Ok((0..partitions).map(of).collect::<Vec<_>>())
        });
        let found = found.await?;
        let is_there = found.iter().any(Option::is_some);
        Ok(is_there.then(|| found.into_iter().map(|at| at.unwrap_or(0)).collect()))
    }

    /// The same for a group that may have nothing to do with the topic: those are asked once in a while.
    pub(super) async fn positions_if_here(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Option<Vec<i64>>> {
        let place = (group.to_owned(), topic.to_owned());
        let seen = lock(&self.elsewhere).get(&place).copied();
        if seen.is_some_and(|at| at.elapsed() < ELSEWHERE) {
            return Ok(None);
        }
        let found = self.positions(group, topic, partitions).await?;
        if found.is_none() {
            lock(&self.clerks).remove(group);
            lock(&self.elsewhere).insert(place, Instant::now());
        }
        Ok(found)
    }

    /// Sets the positions of a group that nobody is a member of.
    pub(super) async fn set_positions(
        &self,
        group: &str,
        topic: &str,
        positions: &[i64],
    ) -> Result<()> {
        lock(&self.elsewhere).remove(&(group.to_owned(), topic.to_owned()));
        let until = Instant::now() + self.config.timeout;
        loop {
            let clerk = self.clerk(group)?;
            let (topic, positions) = (topic.to_owned(), positions.to_vec());
            let set = blocking(move || {
                let mut list = TopicPartitionList::new();
                for (partition, at) in (0..).zip(positions) {
                    list.add_partition_offset(&topic, partition, Place::Offset(at))
                        .map_err(|told| error::of_call("set a position", told))?;
                }
                let set = clerk.commit(&list, CommitMode::Sync);
                set.map_err(|told| error::of_call("set a position", told))
            });
            match set.await {
                // A member that left a moment ago.
                Err(_) if Instant::now() < until => sleep(SOON).await,
                outcome => return outcome,
            }
        }
    }

    /// Our member of a group, joined when there is none.
    ///
    /// # Errors
    /// `NotFound` when there is no such group.
    pub(super) async fn member(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Result<Arc<Member>> {
        self.check_open()?;
        let place = (stream.clone(), group.clone());
        let mut members = self.members.lock().await;
        if let Some(member) = members.get(&place) {
            return Ok(Arc::clone(member));
        }
        let (topic, partitions) = self.existing(stream).await?;
        let id = self.group_id(group);
        if self.positions(&id, &topic, partitions).await?.is_none() {
            return Err(no_group(stream, group));
        }
        let (config, clock) = (self.config.clone(), Arc::clone(&self.clock));
        let joined = blocking(move || Member::join(&config, &topic, &id, clock));
        let member = Arc::new(joined.await?);
        members.insert(place, Arc::clone(&member));
        Ok(member)
    }

    /// Our member of a group, if there is one.
    pub(super) async fn member_if_any(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Option<Arc<Member>> {
        let place = (stream.clone(), group.clone());
        self.members.lock().await.get(&place).cloned()
    }

    pub(super) async fn all_members(&self) -> Vec<(StreamName, Arc<Member>)> {
        let members = self.members.lock().await;
        let all = members.iter();
        all.map(|((stream, _), member)| (stream.clone(), Arc::clone(member)))
            .collect()
    }

    /// Leaves the group, and returns once the broker knows; nobody here joins meanwhile.
    pub(super) async fn leave(&self, stream: &StreamName, group: &GroupName) {
        let mut members = self.members.lock().await;
        if let Some(member) = members.remove(&(stream.clone(), group.clone())) {
            leave(member).await;
        }
    }

    pub(super) fn producer(&self) -> FutureProducer {
        lock(&self.producer).clone()
    }

    /// Takes a new producer after one that cannot go on: it had lost its place in the numbering of the records.
    pub(super) fn renew_producer(&self) -> Result<()> {
        *lock(&self.producer) = producer(&self.config)?;
        Ok(())
    }

    pub(super) fn forget_topic(&self, topic: &str) {
        lock(&self.topics).remove(topic);
    }

    pub(super) async fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let members = std::mem::take(&mut *self.members.lock().await);
        for member in members.into_values() {
            leave(member).await;
        }
        lock(&self.clerks).clear();
        let (producer, timeout) = (self.producer(), self.config.timeout);
        blocking(move || {
            let flushed = producer.flush(timeout);
            flushed.map_err(|told| error::of_call("flush", told))
        })
        .await
    }
}

async fn leave(member: Arc<Member>) {
    let left = blocking(move || {
        let mut member = member;
        // Calls that still use it end soon.
        loop {
            match Arc::try_unwrap(member) {
                Ok(member) => {
                    member.leave();
                    return Ok(());
                }
                Err(used) => member = used,
            }
            member.end();
            std::thread::sleep(SOON);
        }
    });
    drop(left.await);
}

/// Runs what blocks on a thread where that harms nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::unavailable("a call of the client panicked").with_source(error)),
    }
}

pub(super) fn no_group(stream: &StreamName, group: &GroupName) -> Error {
    Error::not_found(format!("stream `{stream}` has no group `{group}`"))
}

fn producer(config: &Config) -> Result<FutureProducer> {
    let delivery = (config.timeout * DELIVERY).as_millis().to_string();
    config
        .client()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("message.max.bytes", MAX_RECORD_BYTES.to_string())
        .set("message.timeout.ms", delivery)
        .create()
        .map_err(|told| error::of_call("start the producer", told))
}

fn consumer(mut client: rdkafka::ClientConfig) -> Result<BaseConsumer> {
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .create()
        .map_err(|told| error::of_call("start the consumer", told))
}

/// The ends of a partition. A leader that is being elected is waited for.
fn marks_of(
    asker: &BaseConsumer,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> std::result::Result<(i64, i64), KafkaError> {
    let began = Instant::now();
    loop {
        match asker.fetch_watermarks(topic, partition, timeout) {
            Err(told) if error::is_leaderless(&told) && began.elapsed() < timeout => {
                std::thread::sleep(SOON);
            }
            answer => return answer,
        }
    }
}
