//! How much of a queue is where, and emptying it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::Result;
use towpath_core::port::queue::Stats;

use crate::broker::tally::Tally;

use super::bench::{Bench, Held};
use super::lease::LET_IN;
use super::member::{Member, lock};
use super::queue::Known;
use super::registrar::{Job, Members, To};
use super::store::{Marks, Store};
use super::{error, lane};

impl Store {
    pub(super) async fn count(&self, known: &Known) -> Result<Option<Stats>> {
        if self.partitions(&known.topic).await?.is_none() {
            // One that this process declared is declared again; one that it only looked for is not.
            if !lock(&self.designs).contains_key(&known.topic) {
                return Ok(None);
            }
            self.ensure_queue(known).await?;
        }
        let marks = self.marks_of(&known.topic).await?;
        let later_marks = self.marks_of(&known.later_topic).await?;
        let (mut ready, mut leased, mut delayed) = (0, 0, 0);
        let (mut oldest, mut longest_ready, mut holding) = (None, None, Vec::new());
        let (mut longest_leased, mut oldest_delayed) = (None, None);
        let (mut missing, mut later_missing) =
            (vec![None; marks.len()], vec![None; later_marks.len()]);
        if let Some(desk) = known.desk_if_any().await {
            let members = &desk.members;
            members.ready.arrive(&marks, |_| false).await;
            members.later.arrive(&later_marks, |_| false).await;
            missing = missing_of(&members.ready, &marks);
            later_missing = missing_of(&members.later, &later_marks);
            let shelf = members.ready.shelf();
            (ready, leased) = shelf.hand().counts();
            holding = shelf.hand().consumers().cloned().collect();
            oldest = shelf.hand().oldest();
            longest_ready = shelf.hand().longest_ready();
            longest_leased = shelf.hand().longest_leased();
            drop(shelf);
            let shelf = members.later.shelf();
            delayed = shelf.count();
            oldest_delayed = shelf.oldest();
            oldest = oldest.into_iter().chain(oldest_delayed).min();
        }
        ready += self.unfetched(&known.topic, &marks, &missing).await?;
        delayed += self
            .unfetched(&known.later_topic, &later_marks, &later_missing)
            .await?;
        let mut stats = known.tally.stats(&known.name, holding);
        stats.ready = ready;
        stats.leased = leased;
        stats.delayed = delayed;
        stats.dead = self.count_dead(known).await?;
        stats.oldest_age = oldest.map(|at| self.clock.now().since(at));
        stats.oldest_ready_age = longest_ready;
        stats.oldest_leased_age = longest_leased;
        stats.oldest_delayed_age = oldest_delayed.map(|at| self.clock.now().since(at));
        Ok(Some(Tally::balanced(stats)))
    }

    /// Drops what waits: of our partitions until nothing is there, of others' what their processes have not fetched.
    pub(super) async fn purge(self: &Arc<Self>, known: &Arc<Known>) -> Result<u64> {
        let desk = self.desk(known).await?;
        let Members { ready, later } = &desk.members;
        ready.is_let_in(LET_IN).await;
        later.is_let_in(LET_IN).await;
        let marks = self.marks_of(&known.topic).await?;
        let later_marks = self.marks_of(&known.later_topic).await?;
        let mut dropped = 0;
        loop {
            ready.arrive(&marks, |_| false).await;
            later.arrive(&later_marks, |_| false).await;
            let (waiting, delayed) = (ready.shelf().drain(), later.shelf().drain());
            let count = waiting.len() + delayed.len();
            let mut outcomes = desk.ready.settle(self.gone(waiting)).await;
            outcomes.extend(desk.later.settle(self.gone(delayed)).await);
            outcomes.into_iter().collect::<Result<()>>()?;
            dropped += count as u64;
            if count == 0 {
                break;
            }
        }
        for (topic, marks, ours) in [
            (&known.topic, &marks, missing_of(ready, &marks)),
            (
                &known.later_topic,
                &later_marks,
                missing_of(later, &later_marks),
            ),
        ] {
            dropped += self.delete_others(topic, marks, &ours).await?;
        }
        known.tally.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(dropped)
    }

    fn gone(&self, all: Vec<Held>) -> Vec<Job> {
        let jobs = all.into_iter().map(|held| self.job(held, To::Gone));
        jobs.collect()
    }

    /// Records of a queue's topic that nobody has settled and this process has not fetched; `missing` are those of its
    /// own partitions.
    async fn unfetched(&self, topic: &str, marks: &Marks, missing: &[Option<u64>]) -> Result<u64> {
        let ours = missing.iter().flatten().sum::<u64>();
        if missing.iter().all(Option::is_some) {
            return Ok(ours);
        }
        let partitions = i32::try_from(marks.len()).unwrap_or(i32::MAX);
        let committed = self.committed(topic, topic, partitions).await?;
        // What asks keeps threads of its own: there may be many queues.
        lock(&self.clerks).remove(topic);
        let others = marks.iter().zip(committed).zip(missing);
        let others = others.filter(|(_, ours)| ours.is_none());
        let count = others.map(|(((low, high), committed), _)| {
            let (at, note) = committed.unwrap_or_default();
            let behind = (high - at.max(*low)).max(0).unsigned_abs();
            behind.saturating_sub(lane::settled(&note))
        });
        Ok(ours + count.sum::<u64>())
    }

    /// Deletes what others have of a queue's topic, up to these marks. How many records that were.
    async fn delete_others(
        &self,
        topic: &str,
        marks: &Marks,
        missing: &[Option<u64>],
    ) -> Result<u64> {
        let none_of_ours: Vec<Option<u64>> = missing.iter().map(|one| one.map(|_| 0)).collect();
        let count = self.unfetched(topic, marks, &none_of_ours).await?;
        let mut list = TopicPartitionList::new();
        for (partition, ((low, high), ours)) in (0..).zip(marks.iter().zip(missing)) {
            if ours.is_none() && low < high {
                list.add_partition_offset(topic, partition, Place::Offset(*high))
                    .map_err(|told| error::of_call("purge", told))?;
            }
        }
        if list.count() > 0 {
            let deleted = self.admin.delete_records(&list, &self.options()).await;
            deleted.map_err(|told| error::of_call("purge", told))?;
        }
        Ok(count)
    }
}

/// How much of each partition is not here yet; `None` for those that are not ours.
fn missing_of<S: Bench>(member: &Member<S>, marks: &Marks) -> Vec<Option<u64>> {
    let mut shelf = member.shelf();
    let lanes = shelf.lanes();
    let all = (0..).zip(marks);
    all.map(|(one, (_, high))| lanes.missing(one, *high))
        .collect()
}
