//! An opened Kafka: a producer, the group members of this process, and clients for queries.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::time::sleep;
use towpath_core::{Clock, Error, ErrorKind, GroupName, QueueName, Result, StreamName};

use super::client_context::ErrorLog;
use super::config::Config;
use super::consumer::{FetchBuffer, GroupConsumer, lock};
use super::entries::Entries;
use super::error;
use super::losses::Losses;
use super::partitioner::Partitioner;
use super::produce;
use super::queue::QueueHandle;
use super::rebalance::JoinedMembers;
use super::topics::{Design, Seen};

/// Group id of reads without a group; it never commits.
const READER: &str = "towpath.reader";

/// Time to live of a cached answer that a group has no position in a topic.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Pause before a retry of something that changes soon.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Time for which the client is polled for the reason of a failed call.
const EXPLAIN_TIMEOUT: Duration = Duration::from_millis(300);

type Consumers = HashMap<String, Arc<BaseConsumer<ErrorLog>>>;
type GroupMembers = BTreeMap<(StreamName, GroupName), Arc<GroupConsumer<Entries>>>;

/// The backend.
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) producer: Mutex<FutureProducer<ErrorLog>>,
    pub(super) admin: AdminClient<ErrorLog>,
    /// Reads committed records without a group; one caller at a time.
    reader: Arc<Mutex<BaseConsumer<ErrorLog>>>,
    /// Queries topics, uncommitted records included.
    asker: Arc<BaseConsumer<ErrorLog>>,
    /// For each of our groups a client that reads and commits offsets without joining.
    pub(super) offset_clients: Mutex<Consumers>,
    members: tokio::sync::Mutex<GroupMembers>,
    /// The queues that this process has used.
    queues: Mutex<BTreeMap<QueueName, Arc<QueueHandle>>>,
    numbers: AtomicU64,
    /// Cached topic metadata.
    pub(super) topics: Mutex<HashMap<String, Seen>>,
    /// Settings of topics that this process creates.
    pub(super) designs: Mutex<HashMap<String, Design>>,
    /// Detected partitioners of topics.
    pub(super) partitioners: Mutex<HashMap<String, Partitioner>>,
    /// Group members of this process, replaced when their topic is.
    pub(super) joined: JoinedMembers,
    pub(super) losses: Arc<Losses>,
    /// Groups without a position in a topic, with the time of the check.
    negative_cache: Mutex<HashMap<(String, String), Instant>>,
    closed: AtomicBool,
}

/// Low and high watermark of each partition.
pub(super) type Watermarks = Vec<(i64, i64)>;

impl Store {
    pub(super) fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let failed = |error| error::of_call("start the client", error);
        let reader = |isolation| {
            let mut client = config.client();
            client.set("group.id", READER);
            client.set("isolation.level", isolation);
            client
        };
        Ok(Arc::new(Self {
            producer: Mutex::new(produce::start(&config)?),
            admin: config
                .client()
                .create_with_context(ErrorLog::default())
                .map_err(failed)?,
            reader: Arc::new(Mutex::new(start_consumer(reader("read_committed"))?)),
            asker: Arc::new(start_consumer(reader("read_uncommitted"))?),
            offset_clients: Mutex::default(),
            members: tokio::sync::Mutex::default(),
            queues: Mutex::default(),
            // Distinct from the receipts of other and of earlier processes.
            numbers: AtomicU64::new(clock.now().as_millis() << 20),
            topics: Mutex::default(),
            designs: Mutex::default(),
            partitioners: Mutex::default(),
            joined: JoinedMembers::default(),
            losses: Arc::default(),
            negative_cache: Mutex::default(),
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

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The handle of a queue, created on first use.
    pub(super) fn handle(&self, queue: &QueueName) -> Result<Arc<QueueHandle>> {
        let topic = self.topic(queue.as_str())?;
        // Room for the suffixes of the other topics.
        if topic.len() > 240 {
            return Err(Error::invalid(format!(
                "queue name `{queue}` too long for Kafka; expected at most 240 bytes with the prefix"
            )));
        }
        let mut queues = lock(&self.queues);
        let new = || Arc::new(QueueHandle::new(queue.clone(), topic));
        Ok(Arc::clone(queues.entry(queue.clone()).or_insert_with(new)))
    }

    /// Every queue that this process has used.
    pub(super) fn handles(&self) -> Vec<Arc<QueueHandle>> {
        lock(&self.queues).values().cloned().collect()
    }

    pub(super) fn group_id(&self, group: &GroupName) -> String {
        format!("{}{group}", self.config.prefix)
    }

    pub(super) fn options(&self) -> AdminOptions {
        let timeout = Some(self.config.timeout);
        AdminOptions::new()
            .operation_timeout(timeout)
            .request_timeout(timeout)
    }

    /// Names of all groups, other programs' included.
    pub(super) async fn all_groups(&self) -> Result<Vec<String>> {
        let timeout = self.config.timeout;
        self.ask(move |asker| {
            let list = asker.fetch_group_list(None, timeout);
            let list = list.map_err(|error| error::of_call("list groups", error))?;
            let names = list.groups().iter().map(|group| group.name().to_owned());
            Ok(names.collect())
        })
        .await
    }

    pub(super) async fn watermarks(&self, topic: &str, partitions: i32) -> Result<Watermarks> {
        self.check_open()?;
        let (topic, timeout) = (topic.to_owned(), self.config.timeout);
        self.ask(move |asker| {
            let of = |partition| {
                let watermarks = watermarks_of(asker, &topic, partition, timeout);
                watermarks.map_err(|error| {
                    error::of_call(&format!("ask for the end of `{topic}`"), error)
                })
            };
            (0..partitions).map(of).collect()
        })
        .await
    }

    /// The same; empty for a missing topic.
    pub(super) async fn watermarks_of(&self, topic: &str) -> Result<Watermarks> {
        match self.partitions(topic).await? {
            Some(count) => self.watermarks(topic, count).await,
            None => Ok(Watermarks::new()),
        }
    }

    /// Low watermark and last stable offset of a topic with one partition.
    pub(super) async fn committed_watermarks(&self, topic: &str) -> Result<(i64, i64)> {
        let (topic, timeout) = (topic.to_owned(), self.config.timeout);
        self.with_reader(move |reader| {
            let watermarks = watermarks_of(reader, &topic, 0, timeout);
            watermarks
                .map_err(|error| error::of_call(&format!("ask for the end of `{topic}`"), error))
        })
        .await
    }

    /// Runs a query about topics and groups; an error has the reason of a missing connection.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&BaseConsumer<ErrorLog>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let asker = Arc::clone(&self.asker);
        blocking(move || match ask(&asker) {
            Ok(answer) => {
                asker.context().forget();
                Ok(answer)
            }
            Err(error) => Err(explain(&asker, error)),
        })
        .await
    }

    /// Runs a closure with the consumer that reads without a group.
    pub(super) async fn with_reader<T: Send + 'static>(
        &self,
        read: impl FnOnce(&BaseConsumer<ErrorLog>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let reader = Arc::clone(&self.reader);
        blocking(move || read(&lock(&reader))).await
    }

    fn offset_client(&self, group: &str) -> Result<Arc<BaseConsumer<ErrorLog>>> {
        let mut offset_clients = lock(&self.offset_clients);
        if let Some(offset_client) = offset_clients.get(group) {
            return Ok(Arc::clone(offset_client));
        }
        let client = self.config.client().set("group.id", group).clone();
        let offset_client = Arc::new(start_consumer(client)?);
        offset_clients.insert(group.to_owned(), Arc::clone(&offset_client));
        Ok(offset_client)
    }

    /// The group's committed offsets in a topic, by partition, with their metadata.
    pub(super) async fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Vec<Option<(i64, String)>>> {
        self.check_open()?;
        let place = (group.to_owned(), topic.to_owned());
        let offset_client = self.offset_client(group)?;
        let timeout = self.config.timeout;
        blocking(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&place.1, 0, partitions - 1);
            let found = committed_of(&offset_client, &list, timeout).map_err(|error| {
                error::of_call(&format!("ask for the position of `{}`", place.0), error)
            })?;
            let of = |partition| {
                let element = found.find_partition(&place.1, partition)?;
                match element.offset() {
                    Place::Offset(at) => Some((at, element.metadata().to_owned())),
                    _ => None,
                }
            };
            Ok((0..partitions).map(of).collect())
        })
        .await
    }

    /// The group's positions in a topic, by partition; `None` when it has none.
    pub(super) async fn positions(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Option<Vec<i64>>> {
        let found = self.committed(group, topic, partitions).await?;
        let is_there = found.iter().any(Option::is_some);
        let at = |one: Option<(i64, String)>| one.map_or(0, |(at, _)| at);
        Ok(is_there.then(|| found.into_iter().map(at).collect()))
    }

    /// The same for any group: a missing position is cached for [`NEGATIVE_TTL`].
    pub(super) async fn positions_if_here(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Option<Vec<i64>>> {
        let place = (group.to_owned(), topic.to_owned());
        let seen = lock(&self.negative_cache).get(&place).copied();
        if seen.is_some_and(|at| at.elapsed() < NEGATIVE_TTL) {
            return Ok(None);
        }
        let found = self.positions(group, topic, partitions).await?;
        if found.is_none() {
            lock(&self.offset_clients).remove(group);
            lock(&self.negative_cache).insert(place, Instant::now());
        }
        Ok(found)
    }

    /// Commits offsets of a group without members.
    pub(super) async fn set_positions(
        &self,
        group: &str,
        topic: &str,
        positions: &[i64],
    ) -> Result<()> {
        lock(&self.negative_cache).remove(&(group.to_owned(), topic.to_owned()));
        let until = Instant::now() + self.config.timeout;
        loop {
            let offset_client = self.offset_client(group)?;
            let (topic, positions) = (topic.to_owned(), positions.to_vec());
            let set = blocking(move || {
                let mut list = TopicPartitionList::new();
                for (partition, at) in (0..).zip(positions) {
                    list.add_partition_offset(&topic, partition, Place::Offset(at))
                        .map_err(|error| error::of_call("set a position", error))?;
                }
                let set = offset_client.commit(&list, CommitMode::Sync);
                set.map_err(|error| error::of_call("set a position", error))
            });
            match set.await {
                // A member that just left.
                Err(_) if Instant::now() < until => sleep(RETRY_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// The member of a group, joined when there is none.
    ///
    /// # Errors
    /// `NotFound` when the group does not exist.
    pub(super) async fn member(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Result<Arc<GroupConsumer<Entries>>> {
        self.check_open()?;
        let place = (stream.clone(), group.clone());
        let mut members = self.members.lock().await;
        if let Some(member) = members.get(&place)
            && !member.is_lost()
        {
            return Ok(Arc::clone(member));
        }
        if let Some(lost) = members.remove(&place) {
            lost.leave().await;
        }
        let (topic, partitions) = self.existing(stream).await?;
        let id = self.group_id(group);
        if self.positions(&id, &topic, partitions).await?.is_none() {
            return Err(no_group(stream, group));
        }
        let member = self.join(&topic, &id).await?;
        members.insert(place, Arc::clone(&member));
        Ok(member)
    }

    /// Joins a group.
    pub(super) async fn join<S: FetchBuffer>(
        &self,
        topic: &str,
        group: &str,
    ) -> Result<Arc<GroupConsumer<S>>> {
        let (config, clock) = (self.config.clone(), Arc::clone(&self.clock));
        let (of, group, losses) = (topic.to_owned(), group.to_owned(), Arc::clone(&self.losses));
        let joined = blocking(move || GroupConsumer::join(&config, &of, &group, clock, losses));
        let member = Arc::new(joined.await?);
        self.joined.add(topic, member.invalidator());
        Ok(member)
    }

    /// The member of a group, if there is one.
    pub(super) async fn member_if_any(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Option<Arc<GroupConsumer<Entries>>> {
        let place = (stream.clone(), group.clone());
        self.members.lock().await.get(&place).cloned()
    }

    pub(super) async fn members_of(&self, stream: &StreamName) -> Vec<Arc<GroupConsumer<Entries>>> {
        let members = self.members.lock().await;
        let of = members.iter().filter(|((one, _), _)| one == stream);
        of.map(|(_, member)| Arc::clone(member)).collect()
    }

    pub(super) async fn all_members(&self) -> Vec<(StreamName, Arc<GroupConsumer<Entries>>)> {
        let members = self.members.lock().await;
        let all = members.iter();
        all.map(|((stream, _), member)| (stream.clone(), Arc::clone(member)))
            .collect()
    }

    /// Leaves the group, and returns once the broker knows; blocks joins meanwhile.
    pub(super) async fn leave(&self, stream: &StreamName, group: &GroupName) {
        let mut members = self.members.lock().await;
        if let Some(member) = members.remove(&(stream.clone(), group.clone())) {
            member.leave().await;
        }
    }

    pub(super) async fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        for handle in self.handles() {
            self.leave_queue(&handle).await;
        }
        let members = std::mem::take(&mut *self.members.lock().await);
        for member in members.into_values() {
            member.leave().await;
        }
        lock(&self.offset_clients).clear();
        let (producer, timeout) = (lock(&self.producer).clone(), self.config.timeout);
        blocking(move || {
            let flushed = producer.flush(timeout);
            flushed.map_err(|error| error::of_call("flush", error))
        })
        .await
    }
}

/// Runs a blocking call on a blocking thread.
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

fn start_consumer(mut client: rdkafka::ClientConfig) -> Result<BaseConsumer<ErrorLog>> {
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        // The end of a partition is reported after this time.
        .set("fetch.wait.max.ms", "20")
        .create_with_context(ErrorLog::default())
        .map_err(|error| error::of_call("start the consumer", error))
}

/// Adds the reason of a missing connection: the client reports it only when polled.
fn explain(asker: &BaseConsumer<ErrorLog>, error: Error) -> Error {
    let until = Instant::now() + EXPLAIN_TIMEOUT;
    while error.kind() == ErrorKind::Unavailable
        && !asker.context().has_reason()
        && Instant::now() < until
    {
        drop(asker.poll(RETRY_PAUSE));
    }
    asker.context().explain(error)
}

/// Watermarks of a partition. Waits during a leader election.
pub(super) fn watermarks_of(
    asker: &BaseConsumer<impl ConsumerContext>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> std::result::Result<(i64, i64), KafkaError> {
    let began = Instant::now();
    loop {
        match asker.fetch_watermarks(topic, partition, timeout) {
            Err(error) if error::has_no_leader(&error) && began.elapsed() < timeout => {
                std::thread::sleep(RETRY_PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Committed offsets of a group. Waits while its coordinator moves.
pub(super) fn committed_of(
    consumer: &BaseConsumer<impl ConsumerContext>,
    list: &TopicPartitionList,
    timeout: Duration,
) -> std::result::Result<TopicPartitionList, KafkaError> {
    let began = Instant::now();
    loop {
        match consumer.committed_offsets(list.clone(), timeout) {
            Err(error) if error::has_no_coordinator(&error) && began.elapsed() < timeout => {
                std::thread::sleep(RETRY_PAUSE);
            }
            answer => return answer,
        }
    }
}
