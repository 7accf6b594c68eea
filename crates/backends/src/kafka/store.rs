//! An opened Kafka: a producer, the groups that this process is a member of, and what it asks brokers.

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

use super::client_context::Heard;
use super::config::Config;
use super::consumer::{Member, Shelf, lock};
use super::entries::Entries;
use super::error;
use super::losses::Losses;
use super::partitioner::Partitioner;
use super::produce;
use super::queue::Known;
use super::rebalance::Joined;
use super::topics::{Design, Seen};

/// The group under whose name records are looked at; it never has a position.
const READER: &str = "towpath.reader";

/// How long a group that has no position in a topic is not asked for one again.
const ELSEWHERE: Duration = Duration::from_secs(30);

/// The pause before something is asked again that changes in a moment.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// How long the client is asked why a call was not answered.
const NEWS: Duration = Duration::from_millis(300);

type Consumers = HashMap<String, Arc<BaseConsumer<Heard>>>;
type Members = BTreeMap<(StreamName, GroupName), Arc<Member<Entries>>>;

/// The backend.
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) producer: Mutex<FutureProducer<Heard>>,
    pub(super) admin: AdminClient<Heard>,
    /// Reads without a group what was committed; one caller at a time.
    reader: Arc<Mutex<BaseConsumer<Heard>>>,
    /// Asks about topics, also about what is not committed yet.
    asker: Arc<BaseConsumer<Heard>>,
    /// For each group of ours one that asks for positions and sets them, and joins nothing.
    pub(super) clerks: Mutex<Consumers>,
    members: tokio::sync::Mutex<Members>,
    /// The queues that this process has used.
    queues: Mutex<BTreeMap<QueueName, Arc<Known>>>,
    numbers: AtomicU64,
    /// The topics that were seen.
    pub(super) topics: Mutex<HashMap<String, Seen>>,
    /// How the topics are made that this process uses.
    pub(super) designs: Mutex<HashMap<String, Design>>,
    /// How keys are hashed, of topics that were asked about.
    pub(super) partitioners: Mutex<HashMap<String, Partitioner>>,
    /// Members of this process, to be replaced when their topic is.
    pub(super) joined: Joined,
    pub(super) losses: Arc<Losses>,
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
            client
        };
        Ok(Arc::new(Self {
            producer: Mutex::new(produce::start(&config)?),
            admin: config
                .client()
                .create_with_context(Heard::default())
                .map_err(failed)?,
            reader: Arc::new(Mutex::new(consumer(reader("read_committed"))?)),
            asker: Arc::new(consumer(reader("read_uncommitted"))?),
            clerks: Mutex::default(),
            members: tokio::sync::Mutex::default(),
            queues: Mutex::default(),
            // Receipts of another process or an earlier one are never taken for ours.
            numbers: AtomicU64::new(clock.now().as_millis() << 20),
            topics: Mutex::default(),
            designs: Mutex::default(),
            partitioners: Mutex::default(),
            joined: Joined::default(),
            losses: Arc::default(),
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

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The queue's entry, made when it is new to this process.
    pub(super) fn known(&self, queue: &QueueName) -> Result<Arc<Known>> {
        let topic = self.topic(queue.as_str())?;
        // Room for what stands behind the name.
        if topic.len() > 240 {
            return Err(Error::invalid(format!(
                "the name of queue `{queue}` is too long for Kafka; 240 bytes with the prefix are the limit"
            )));
        }
        let mut queues = lock(&self.queues);
        let new = || Arc::new(Known::new(queue.clone(), topic));
        Ok(Arc::clone(queues.entry(queue.clone()).or_insert_with(new)))
    }

    /// Every queue that this process has used.
    pub(super) fn all_known(&self) -> Vec<Arc<Known>> {
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

    /// Names of all groups, also those of others.
    pub(super) async fn all_groups(&self) -> Result<Vec<String>> {
        let timeout = self.config.timeout;
        self.ask(move |asker| {
            let list = asker.fetch_group_list(None, timeout);
            let list = list.map_err(|told| error::of_call("list groups", told))?;
            let names = list.groups().iter().map(|group| group.name().to_owned());
            Ok(names.collect())
        })
        .await
    }

    pub(super) async fn marks(&self, topic: &str, partitions: i32) -> Result<Marks> {
        self.check_open()?;
        let (topic, timeout) = (topic.to_owned(), self.config.timeout);
        self.ask(move |asker| {
            let of = |partition| {
                let marks = marks_of(asker, &topic, partition, timeout);
                marks.map_err(|told| error::of_call(&format!("ask for the end of `{topic}`"), told))
            };
            (0..partitions).map(of).collect()
        })
        .await
    }

    /// The same; none where there is no such topic.
    pub(super) async fn marks_of(&self, topic: &str) -> Result<Marks> {
        match self.partitions(topic).await? {
            Some(count) => self.marks(topic, count).await,
            None => Ok(Marks::new()),
        }
    }

    /// The first offset of a topic with one partition, and the one behind the last that is committed.
    pub(super) async fn committed_mark(&self, topic: &str) -> Result<(i64, i64)> {
        let (topic, timeout) = (topic.to_owned(), self.config.timeout);
        self.with_reader(move |reader| {
            let marks = marks_of(reader, &topic, 0, timeout);
            marks.map_err(|told| error::of_call(&format!("ask for the end of `{topic}`"), told))
        })
        .await
    }

    /// Lets a closure ask about topics and groups; an error says why there is no connection.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&BaseConsumer<Heard>) -> Result<T> + Send + 'static,
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

    /// Lets a closure have the consumer that reads without a group.
    pub(super) async fn with_reader<T: Send + 'static>(
        &self,
        read: impl FnOnce(&BaseConsumer<Heard>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let reader = Arc::clone(&self.reader);
        blocking(move || read(&lock(&reader))).await
    }

    fn clerk(&self, group: &str) -> Result<Arc<BaseConsumer<Heard>>> {
        let mut clerks = lock(&self.clerks);
        if let Some(clerk) = clerks.get(group) {
            return Ok(Arc::clone(clerk));
        }
        let client = self.config.client().set("group.id", group).clone();
        let clerk = Arc::new(consumer(client)?);
        clerks.insert(group.to_owned(), Arc::clone(&clerk));
        Ok(clerk)
    }

    /// The group's positions in a topic, by partition, with what is noted at them.
    pub(super) async fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: i32,
    ) -> Result<Vec<Option<(i64, String)>>> {
        self.check_open()?;
        let place = (group.to_owned(), topic.to_owned());
        let clerk = self.clerk(group)?;
        let timeout = self.config.timeout;
        blocking(move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&place.1, 0, partitions - 1);
            let found = committed_of(&clerk, &list, timeout).map_err(|told| {
                error::of_call(&format!("ask for the position of `{}`", place.0), told)
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
    ) -> Result<Arc<Member<Entries>>> {
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
    pub(super) async fn join<S: Shelf>(&self, topic: &str, group: &str) -> Result<Arc<Member<S>>> {
        let (config, clock) = (self.config.clone(), Arc::clone(&self.clock));
        let (of, group, losses) = (topic.to_owned(), group.to_owned(), Arc::clone(&self.losses));
        let joined = blocking(move || Member::join(&config, &of, &group, clock, losses));
        let member = Arc::new(joined.await?);
        self.joined.add(topic, member.loser());
        Ok(member)
    }

    /// Our member of a group, if there is one.
    pub(super) async fn member_if_any(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Option<Arc<Member<Entries>>> {
        let place = (stream.clone(), group.clone());
        self.members.lock().await.get(&place).cloned()
    }

    pub(super) async fn members_of(&self, stream: &StreamName) -> Vec<Arc<Member<Entries>>> {
        let members = self.members.lock().await;
        let of = members.iter().filter(|((one, _), _)| one == stream);
        of.map(|(_, member)| Arc::clone(member)).collect()
    }

    pub(super) async fn all_members(&self) -> Vec<(StreamName, Arc<Member<Entries>>)> {
        let members = self.members.lock().await;
        let all = members.iter();
        all.map(|((stream, _), member)| (stream.clone(), Arc::clone(member)))
            .collect()
    }

    /// Leaves the group, and returns once the broker knows; nobody here joins meanwhile.
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
        for known in self.all_known() {
            self.leave_queue(&known).await;
        }
        let members = std::mem::take(&mut *self.members.lock().await);
        for member in members.into_values() {
            member.leave().await;
        }
        lock(&self.clerks).clear();
        let (producer, timeout) = (lock(&self.producer).clone(), self.config.timeout);
        blocking(move || {
            let flushed = producer.flush(timeout);
            flushed.map_err(|told| error::of_call("flush", told))
        })
        .await
    }
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

fn consumer(mut client: rdkafka::ClientConfig) -> Result<BaseConsumer<Heard>> {
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        // The end of a partition is told after as long.
        .set("fetch.wait.max.ms", "20")
        .create_with_context(Heard::default())
        .map_err(|told| error::of_call("start the consumer", told))
}

/// Adds why no connection is there: the client tells that only when it is asked for news.
fn explain(asker: &BaseConsumer<Heard>, error: Error) -> Error {
    let until = Instant::now() + NEWS;
    while error.kind() == ErrorKind::Unavailable
        && !asker.context().has_reason()
        && Instant::now() < until
    {
        drop(asker.poll(SOON));
    }
    asker.context().explain(error)
}

/// The ends of a partition. A leader that is being elected is waited for.
pub(super) fn marks_of(
    asker: &BaseConsumer<impl ConsumerContext>,
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

/// A group's positions. While it finds its place, as when a node is being replaced, it is waited for.
pub(super) fn committed_of(
    consumer: &BaseConsumer<impl ConsumerContext>,
    list: &TopicPartitionList,
    timeout: Duration,
) -> std::result::Result<TopicPartitionList, KafkaError> {
    let began = Instant::now();
    loop {
        match consumer.committed_offsets(list.clone(), timeout) {
            Err(told) if error::is_homeless(&told) && began.elapsed() < timeout => {
                std::thread::sleep(SOON);
            }
            answer => return answer,
        }
    }
}
