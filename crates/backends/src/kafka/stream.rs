//! The stream port: topics, and groups of the broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::port::Stream;
use towpath_core::port::queue::{check_batch, check_max};
use towpath_core::port::stream::{Entry, GroupStats, Offset, ReadRequest, Start, Stats, Trim};
use towpath_core::{ConsumerId, Error, GroupName, NewMessage, Result, ResultExt, StreamName};
use tracing::info;

use super::consumer::GroupConsumer;
use super::entries::{Entries, offset, wire};
use super::produce::Record;
use super::store::{Store, blocking, no_group};
use super::{envelope, error};

/// Time for a lost connection to recover.
const RECONNECTED: Duration = Duration::from_secs(3);

/// Minimum timeout of the first assignment, after which a read returns empty.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Topics of Kafka itself, and topics of ours that are not streams.
const INTERNAL: [&str; 2] = ["__", "towpath."];

pub(super) struct Topics(pub(super) Arc<Store>);

#[async_trait]
impl Stream for Topics {
    async fn append(
        &self,
        stream: &StreamName,
        entries: Vec<NewMessage>,
    ) -> Result<Vec<Result<Offset>>> {
        check_batch(entries.len())?;
        let (topic, count) = self.0.ensure(stream).await?;
        let partitioner = self.0.partitioner(&topic, count).await;
        let checked: Vec<Result<()>> = entries.iter().map(envelope::check).collect();
        let taken = entries.iter().zip(&checked).filter(|(_, one)| one.is_ok());
        let taken: Vec<&NewMessage> = taken.map(|(entry, _)| entry).collect();
        let record = |at: usize| Record {
            topic: &topic,
            partition: partitioner.place(taken[at].key.as_deref().map(str::as_bytes), count),
            key: taken[at].key.as_deref().map(str::as_bytes),
            payload: Some(&taken[at].payload),
            headers: envelope::headers(taken[at]),
            at: taken[at].happened_at,
        };
        let declare = async { self.0.ensure(stream).await.map(drop) };
        let produced = self.0.produce(taken.len(), record, declare).await?;
        let members = self.0.members_of(stream).await;
        let mut produced = produced.into_iter();
        let mut outcome = |checked: Result<()>| {
            checked?;
            let produced = produced.next();
            let (partition, at) = produced.unwrap_or_else(|| Err(no_answer()))?;
            for member in &members {
                member.note_produced(partition, at);
            }
            Ok(offset(partition, at))
        };
        let outcomes = checked
            .into_iter()
            .map(|checked| outcome(checked).context(|| format!("append to `{stream}`")));
        Ok(outcomes.collect())
    }

    async fn create_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        start: Start,
    ) -> Result<()> {
        let (topic, partitions) = self.0.ensure(stream).await?;
        let id = self.0.group_id(group);
        if self.0.positions(&id, &topic, partitions).await?.is_some() {
            return Ok(());
        }
        let positions = self.start(&topic, partitions, start).await?;
        info!(
            topic,
            group = id,
            ?start,
            "no committed position; creating the group"
        );
        let set = self.0.set_positions(&id, &topic, &positions).await;
        set.context(|| format!("create group `{group}` of `{stream}`"))
    }

    async fn seek(&self, stream: &StreamName, group: &GroupName, to: Start) -> Result<()> {
        let (topic, partitions) = self.existing_group(stream, group).await?;
        let positions = self.start(&topic, partitions, to).await?;
        // A position can only be set while the group has no members.
        self.0.leave(stream, group).await;
        let id = self.0.group_id(group);
        let set = self.0.set_positions(&id, &topic, &positions).await;
        set.context(|| format!("seek group `{group}` of `{stream}`"))
    }

    async fn delete_group(&self, stream: &StreamName, group: &GroupName) -> Result<()> {
        self.0.leave(stream, group).await;
        let id = self.0.group_id(group);
        let until = Instant::now() + self.0.config.timeout;
        loop {
            let deleted = self.0.admin.delete_groups(&[&id], &self.0.options()).await;
            let deleted = deleted.map_err(|error| error::of_call("delete a group", error))?;
            let code = deleted
                .into_iter()
                .find_map(|one| one.err().map(|(_, code)| code));
            match code {
                None | Some(Code::GroupIdNotFound) => return Ok(()),
                // A member that just left.
                Some(Code::NonEmptyGroup) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some(code) => {
                    return Err(error::of_call("delete a group", KafkaError::AdminOp(code)));
                }
            }
        }
    }

    async fn read(&self, request: ReadRequest) -> Result<Vec<Entry>> {
        check_max(request.max)?;
        let member = self.0.member(&request.stream, &request.group).await?;
        let began = Instant::now();
        let take = |max| member.buffer().deliver(&request.consumer, max);
        let mut entries = take(request.max);
        // A waiting call may return with the first entry; another one gets everything available.
        let enough = if request.wait.is_zero() {
            request.max - entries.len()
        } else {
            usize::from(entries.is_empty())
        };
        if enough > 0 {
            self.wait_fetched(&request, &member, enough).await?;
            entries.extend(take(request.max - entries.len()));
        }
        let left = request.wait.saturating_sub(began.elapsed());
        if entries.is_empty() && member.until(left, |buffer| buffer.waiting() > 0).await {
            entries = take(request.max);
        }
        self.0.check_open()?;
        Ok(entries)
    }

    async fn commit(
        &self,
        stream: &StreamName,
        group: &GroupName,
        finished: &[Offset],
    ) -> Result<()> {
        let Some(member) = self.0.member_if_any(stream, group).await else {
            // An entry not held here went to another process, or is delivered again.
            return self.existing_group(stream, group).await.map(drop);
        };
        let finished = finished.to_vec();
        let committed = blocking(move || commit(&member, &finished)).await;
        committed.context(|| format!("commit `{group}` of `{stream}`"))
    }

    async fn claim(
        &self,
        stream: &StreamName,
        group: &GroupName,
        consumer: &ConsumerId,
        min_idle: Duration,
        max: usize,
    ) -> Result<Vec<Entry>> {
        check_max(max)?;
        let member = self.0.member(stream, group).await?;
        let claimed = member.buffer().claim(consumer, min_idle, max);
        Ok(claimed)
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let members = self.0.all_members().await;
        let held = members
            .iter()
            .map(|(_, member)| member.buffer().disconnect(consumer));
        Ok(held.sum())
    }

    async fn range(
        &self,
        stream: &StreamName,
        after: Option<Offset>,
        max: usize,
    ) -> Result<Vec<Entry>> {
        check_max(max)?;
        let (topic, partitions) = self.0.existing(stream).await?;
        let watermarks = self.0.watermarks(&topic, partitions).await?;
        let (first, behind) = after.map_or((0, -1), wire);
        let mut entries = Vec::new();
        for (partition, (low, high)) in (0..).zip(watermarks) {
            let from = if partition == first { behind + 1 } else { 0 }.max(low);
            if partition < first || from >= high || entries.len() == max {
                continue;
            }
            let span = (topic.clone(), partition, from, high);
            entries.extend(self.fetch(span, max - entries.len()).await?);
        }
        Ok(entries)
    }

    async fn trim(&self, stream: &StreamName, trim: Trim) -> Result<u64> {
        let (topic, partitions) = self.0.existing(stream).await?;
        let watermarks = self.0.watermarks(&topic, partitions).await?;
        let groups = match trim {
            Trim::Finished => self.groups(&topic, partitions).await?,
            Trim::KeepLast(_) => BTreeMap::new(),
        };
        let mut list = TopicPartitionList::new();
        let mut trimmed = 0;
        for (partition, (low, high)) in watermarks.into_iter().enumerate() {
            let first = match trim {
                Trim::Finished => groups.values().map(|of| of[partition]).min(),
                Trim::KeepLast(count) => Some(high.saturating_sub_unsigned(count)),
            };
            let Some(first) = first.filter(|first| *first > low) else {
                continue;
            };
            let partition = i32::try_from(partition).unwrap_or(i32::MAX);
            list.add_partition_offset(&topic, partition, Place::Offset(first))
                .map_err(|error| error::of_call("trim", error))?;
            trimmed += first.abs_diff(low);
        }
        if list.count() == 0 {
            return Ok(0);
        }
        let deleted = self.0.admin.delete_records(&list, &self.0.options()).await;
        let what = format!("trim `{stream}`");
        let deleted = deleted.map_err(|error| error::of_call(&what, error))?;
        for element in deleted.elements() {
            element
                .error()
                .map_err(|error| error::of_call(&what, error))?;
        }
        for member in self.0.members_of(stream).await {
            for element in list.elements() {
                if let Place::Offset(first) = element.offset() {
                    let mut buffer = member.buffer();
                    buffer.drop_below(element.partition(), first);
                }
            }
        }
        Ok(trimmed)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        let mut names = self.0.all_topics().await?;
        names.sort();
        for (topic, _) in names {
            let name = topic.strip_prefix(self.0.config.prefix.as_str());
            let name = name.filter(|name| !INTERNAL.iter().any(|start| name.starts_with(start)));
            if let Some(stream) = name.and_then(|name| StreamName::new(name).ok()) {
                all.push(self.stats(&stream).await?);
            }
        }
        Ok(all)
    }

    async fn stats(&self, stream: &StreamName) -> Result<Stats> {
        let (topic, partitions) = self.0.existing(stream).await?;
        let watermarks = self.0.watermarks(&topic, partitions).await?;
        let total =
            |of: fn(&(i64, i64)) -> i64| watermarks.iter().map(of).sum::<i64>().unsigned_abs();
        let kept = || (0..).zip(&watermarks).filter(|(_, (low, high))| high > low);
        let mut stats = Stats {
            stream: stream.clone(),
            entries: total(|(low, high)| high - low),
            appended: total(|(_, high)| *high),
            first: kept()
                .map(|(partition, (low, _))| offset(partition, *low))
                .next(),
            last: kept()
                .map(|(partition, (_, high))| offset(partition, high - 1))
                .last(),
            groups: Vec::new(),
        };
        for (name, positions) in self.groups(&topic, partitions).await? {
            let Ok(group) = GroupName::new(&name[self.0.config.prefix.len()..]) else {
                continue;
            };
            let member = self.0.member_if_any(stream, &group).await;
            let known = member
                .map(|member| member.buffer().counts())
                .unwrap_or_default();
            let (mut lag, mut pending, mut oldest) = (0, 0, None);
            let mut committed: Option<(u64, Offset)> = None;
            for ((partition, at), (low, high)) in (0..).zip(&positions).zip(&watermarks) {
                let known = known.get(&partition).copied().unwrap_or_default();
                let behind = (*high).saturating_sub(*at.max(low)).max(0).unsigned_abs();
                let open = behind.saturating_sub(known.done);
                if open > 0 && oldest.is_none() {
                    let span = (topic.clone(), partition, *at.max(low), *high);
                    oldest = self.fetch(span, 1).await?.pop();
                }
                // The partition that is furthest behind.
                if *at > 0 && committed.is_none_or(|(most, _)| behind > most) {
                    committed = Some((behind, offset(partition, at - 1)));
                }
                lag += open;
                pending += known.held;
            }
            stats.groups.push(GroupStats {
                group,
                lag,
                pending,
                oldest_age: oldest.map(|entry| self.0.clock.now().since(entry.message.enqueued_at)),
                committed: committed.map(|(_, offset)| offset),
            });
        }
        Ok(stats)
    }
}

/// A range of a topic: name, partition, start and end.
type Span = (String, i32, i64, i64);

impl Topics {
    async fn existing_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
    ) -> Result<(String, i32)> {
        let (topic, partitions) = self.0.existing(stream).await?;
        let id = self.0.group_id(group);
        match self.0.positions(&id, &topic, partitions).await? {
            Some(_) => Ok((topic, partitions)),
            None => Err(no_group(stream, group)),
        }
    }

    /// Positions by partition.
    async fn start(&self, topic: &str, partitions: i32, start: Start) -> Result<Vec<i64>> {
        let watermarks = self.0.watermarks(topic, partitions).await?;
        let of = |(partition, (low, high)): (i32, (i64, i64))| match start {
            Start::Beginning => low,
            Start::End => high,
            Start::After(offset) => match wire(offset) {
                (this, at) if this == partition => (at + 1).clamp(low, high),
                _ => low,
            },
        };
        Ok((0..).zip(watermarks).map(of).collect())
    }

    /// The groups with a position in a topic, by name.
    async fn groups(&self, topic: &str, partitions: i32) -> Result<BTreeMap<String, Vec<i64>>> {
        let mut found = BTreeMap::new();
        for group in self.0.all_groups().await? {
            if group.starts_with(&self.0.config.prefix)
                && let Some(at) = self.0.positions_if_here(&group, topic, partitions).await?
            {
                found.insert(group, at);
            }
        }
        Ok(found)
    }

    /// Waits until the broker's records for this member are fetched, or enough of them.
    async fn wait_fetched(
        &self,
        request: &ReadRequest,
        member: &GroupConsumer<Entries>,
        enough: usize,
    ) -> Result<()> {
        let (stream, wait) = (&request.stream, request.wait);
        if !member.wait_assigned(wait.max(JOIN_TIMEOUT)).await {
            // A crashed member holds its partitions until its session times out.
            return Ok(());
        }
        let (topic, partitions) = self.0.existing(stream).await?;
        let watermarks = self.0.watermarks(&topic, partitions).await?;
        member
            .wait_fetched(&watermarks, |buffer| buffer.waiting() >= enough)
            .await;
        Ok(())
    }

    /// Reads without a group.
    async fn fetch(&self, (topic, partition, from, end): Span, max: usize) -> Result<Vec<Entry>> {
        let (timeout, clock) = (self.0.config.timeout, Arc::clone(&self.0.clock));
        let read = self.0.with_reader(move |reader| {
            let failed = |error| error::of_call(&format!("read `{topic}`"), error);
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, partition, Place::Offset(from))
                .map_err(failed)?;
            reader.assign(&list).map_err(failed)?;
            // The client reconnects within two seconds after a restart of the broker.
            let (until, mut entries) = (Instant::now() + timeout.max(RECONNECTED), Vec::new());
            while entries.len() < max && Instant::now() < until {
                match reader.poll(Duration::from_millis(100)) {
                    Some(Ok(record)) if record.partition() == partition => {
                        entries.push(Entry {
                            offset: offset(partition, record.offset()),
                            message: envelope::read(&record, clock.now()).envelope.message,
                            attempt: 0,
                        });
                        if record.offset() + 1 >= end {
                            break;
                        }
                    }
                    Some(Err(KafkaError::PartitionEOF(of))) if of == partition => break,
                    _ => {}
                }
            }
            reader.unassign().map_err(failed)?;
            if entries.is_empty() && Instant::now() >= until {
                let text = format!("kafka: no record of `{topic}` within {timeout:?}");
                return Err(Error::unavailable(text));
            }
            Ok(entries)
        });
        read.await
    }
}

/// Marks entries as finished, and commits the position. Blocks.
fn commit(member: &GroupConsumer<Entries>, finished: &[Offset]) -> Result<()> {
    let _turn = member.commit_lock().blocking_lock();
    if member.is_lost() {
        // Its entries are of a deleted topic: they are delivered again.
        return Err(Error::not_found("the topic was deleted"));
    }
    let moved = member.buffer().finish(finished);
    if moved.is_empty() {
        return Ok(());
    }
    let failed = |error| error::of_call("commit", error);
    let mut list = TopicPartitionList::new();
    for (partition, at) in &moved {
        list.add_partition_offset(&member.topic, *partition, Place::Offset(*at))
            .map_err(failed)?;
    }
    member.commit(&list).map_err(failed)?;
    member.buffer().note_committed(&moved);
    Ok(())
}

fn no_answer() -> Error {
    Error::unavailable("kafka: no answer from the client")
}
