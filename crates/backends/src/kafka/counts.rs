//! Counts of a queue, and purging it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::Result;
use towpath_core::port::queue::Stats;

use crate::broker::counters::Counters;

use super::buffers::{AckBuffer, InFlightMessage};
use super::consumer::{GroupConsumer, lock};
use super::lease::JOIN_TIMEOUT;
use super::queue::QueueHandle;
use super::settler::{Action, QueueMembers, SettleItem};
use super::store::{Store, Watermarks};
use super::{ack_tracker, error};

impl Store {
    pub(super) async fn count(&self, handle: &QueueHandle) -> Result<Option<Stats>> {
        if self.partitions(&handle.topic).await?.is_none() {
            // Only a queue declared by this process is declared again.
            if !lock(&self.designs).contains_key(&handle.topic) {
                return Ok(None);
            }
            self.ensure_queue(handle).await?;
        }
        let watermarks = self.watermarks_of(&handle.topic).await?;
        let delayed_watermarks = self.watermarks_of(&handle.delayed_topic).await?;
        let (mut ready, mut leased, mut delayed) = (0, 0, 0);
        let (mut oldest, mut longest_ready, mut holding) = (None, None, Vec::new());
        let (mut longest_leased, mut oldest_delayed) = (None, None);
        let (mut missing, mut delayed_missing) = (
            vec![None; watermarks.len()],
            vec![None; delayed_watermarks.len()],
        );
        if let Some(session) = handle.session_if_any().await {
            let members = &session.members;
            members.ready.wait_fetched(&watermarks, |_| false).await;
            members
                .delayed
                .wait_fetched(&delayed_watermarks, |_| false)
                .await;
            missing = missing_of(&members.ready, &watermarks);
            delayed_missing = missing_of(&members.delayed, &delayed_watermarks);
            let buffer = members.ready.buffer();
            (ready, leased) = buffer.in_flight().counts();
            holding = buffer.in_flight().consumers().cloned().collect();
            oldest = buffer.in_flight().oldest();
            longest_ready = buffer.in_flight().longest_ready();
            longest_leased = buffer.in_flight().longest_leased();
            drop(buffer);
            let buffer = members.delayed.buffer();
            delayed = buffer.count();
            oldest_delayed = buffer.oldest();
            oldest = oldest.into_iter().chain(oldest_delayed).min();
        }
        ready += self.unfetched(&handle.topic, &watermarks, &missing).await?;
        delayed += self
            .unfetched(&handle.delayed_topic, &delayed_watermarks, &delayed_missing)
            .await?;
        let mut stats = handle.counters.stats(&handle.name, holding);
        stats.ready = ready;
        stats.leased = leased;
        stats.delayed = delayed;
        stats.dead = self.count_dead(handle).await?;
        stats.oldest_age = oldest.map(|at| self.clock.now().since(at));
        stats.oldest_ready_age = longest_ready;
        stats.oldest_leased_age = longest_leased;
        stats.oldest_delayed_age = oldest_delayed.map(|at| self.clock.now().since(at));
        Ok(Some(Counters::balanced(stats)))
    }

    /// Drops waiting messages: of assigned partitions all, of others those that their processes have not fetched.
    pub(super) async fn purge(self: &Arc<Self>, handle: &Arc<QueueHandle>) -> Result<u64> {
        let session = self.session(handle).await?;
        let QueueMembers { ready, delayed } = &session.members;
        ready.wait_assigned(JOIN_TIMEOUT).await;
        delayed.wait_assigned(JOIN_TIMEOUT).await;
        let watermarks = self.watermarks_of(&handle.topic).await?;
        let delayed_watermarks = self.watermarks_of(&handle.delayed_topic).await?;
        let mut dropped = 0;
        loop {
            ready.wait_fetched(&watermarks, |_| false).await;
            delayed.wait_fetched(&delayed_watermarks, |_| false).await;
            let (waiting, delayed) = (ready.buffer().drain(), delayed.buffer().drain());
            let count = waiting.len() + delayed.len();
            let mut outcomes = session.ready.settle(self.gone(waiting)).await;
            outcomes.extend(session.delayed.settle(self.gone(delayed)).await);
            outcomes.into_iter().collect::<Result<()>>()?;
            dropped += count as u64;
            if count == 0 {
                break;
            }
        }
        for (topic, watermarks, ours) in [
            (&handle.topic, &watermarks, missing_of(ready, &watermarks)),
            (
                &handle.delayed_topic,
                &delayed_watermarks,
                missing_of(delayed, &delayed_watermarks),
            ),
        ] {
            dropped += self.delete_others(topic, watermarks, &ours).await?;
        }
        handle
            .counters
            .dropped
            .fetch_add(dropped, Ordering::Relaxed);
        Ok(dropped)
    }

    fn gone(&self, all: Vec<InFlightMessage>) -> Vec<SettleItem> {
        let items = all.into_iter().map(|held| self.item(held, Action::Ack));
        items.collect()
    }

    /// Unsettled records of a queue's topic that this process has not fetched; `missing` are those of its
    /// own partitions.
    async fn unfetched(
        &self,
        topic: &str,
        watermarks: &Watermarks,
        missing: &[Option<u64>],
    ) -> Result<u64> {
        let ours = missing.iter().flatten().sum::<u64>();
        if missing.iter().all(Option::is_some) {
            return Ok(ours);
        }
        let partitions = i32::try_from(watermarks.len()).unwrap_or(i32::MAX);
        let committed = self.committed(topic, topic, partitions).await?;
        // The client has its own threads, and there may be many queues.
        lock(&self.offset_clients).remove(topic);
        let others = watermarks.iter().zip(committed).zip(missing);
        let others = others.filter(|(_, ours)| ours.is_none());
        let count = others.map(|(((low, high), committed), _)| {
            let (at, metadata) = committed.unwrap_or_default();
            let behind = (high - at.max(*low)).max(0).unsigned_abs();
            behind.saturating_sub(ack_tracker::settled(&metadata))
        });
        Ok(ours + count.sum::<u64>())
    }

    /// Deletes the records of partitions assigned elsewhere, up to these watermarks. Returns their number.
    async fn delete_others(
        &self,
        topic: &str,
        watermarks: &Watermarks,
        missing: &[Option<u64>],
    ) -> Result<u64> {
        let none_of_ours: Vec<Option<u64>> = missing.iter().map(|one| one.map(|_| 0)).collect();
        let count = self.unfetched(topic, watermarks, &none_of_ours).await?;
        let mut list = TopicPartitionList::new();
        for (partition, ((low, high), ours)) in (0..).zip(watermarks.iter().zip(missing)) {
            if ours.is_none() && low < high {
                list.add_partition_offset(topic, partition, Place::Offset(*high))
                    .map_err(|error| error::of_call("purge", error))?;
            }
        }
        if list.count() > 0 {
            let deleted = self.admin.delete_records(&list, &self.options()).await;
            deleted.map_err(|error| error::of_call("purge", error))?;
        }
        Ok(count)
    }
}

/// Records of each partition not fetched yet; `None` for partitions that are not assigned.
fn missing_of<S: AckBuffer>(
    member: &GroupConsumer<S>,
    watermarks: &Watermarks,
) -> Vec<Option<u64>> {
    let mut buffer = member.buffer();
    let trackers = buffer.trackers();
    let all = (0..).zip(watermarks);
    all.map(|(one, (_, high))| trackers.missing(one, *high))
        .collect()
}
