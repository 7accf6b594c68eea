//! The effects port: one record for everything, so that it stands or falls together.

use async_trait::async_trait;
use towpath_core::port::effects::{Effects, Outcome, Transaction};
use towpath_core::port::kv::Committed;
use towpath_core::{Result, ResultExt};

use super::kv::records_of;
use super::log::{Class, Position};
use super::queue::Arriving;
use super::record::Record;
use super::routes::matching;
use super::store::Store;
use super::stream::finish;

#[async_trait]
impl Effects for Store {
    async fn apply(&self, transaction: Transaction) -> Result<Outcome> {
        let (outcome, end) = self.apply_all(transaction)?;
        self.log.committed(end).await.context(|| "apply effects")?;
        Ok(outcome)
    }
}

impl Store {
    fn apply_all(&self, transaction: Transaction) -> Result<(Outcome, Position)> {
        let now = self.clock.now();
        let (mut guard, cold) = self.lock_with(&transaction.kv)?;
        let inner = &mut *guard;
        let plan = inner.state.kv.plan(&transaction.kv, &cold, now)?;
        let (committed, mut records) = records_of(plan);
        let values = match committed {
            Committed::Applied(values) => values,
            Committed::Refused { index, current } => {
                return Ok((Outcome::Refused { index, current }, self.log.awaited_end()));
            }
        };
        let plan = self.plan_endings(inner, &transaction.settle);
        for outcome in plan.outcomes {
            outcome?;
        }
        records.extend(
            plan.by_queue
                .into_iter()
                .map(|(queue, settled)| Record::Settle {
                    queue,
                    at: now,
                    settled,
                }),
        );
        for (stream, group, finished) in &transaction.commit {
            records.extend(finish(inner, stream, group, finished)?);
        }
        let mut arriving = Arriving::default();
        for (stream, entry) in transaction.append {
            arriving.streams.entry(stream).or_default().push(entry);
        }
        for (queue, message) in transaction.enqueue {
            arriving.queues.entry(queue).or_default().push(message);
        }
        for (exchange, publication) in transaction.publish {
            for queue in matching(&inner.state, &exchange, &publication.routing_key)? {
                arriving
                    .queues
                    .entry(queue)
                    .or_default()
                    .push(publication.message.clone());
            }
        }
        // Acks and changes of keys are taken while the disk is low: they lead to space.
        let class = if arriving.queues.is_empty() && arriving.streams.is_empty() {
            Class::Settle
        } else {
            Class::Grow
        };
        let end = self.take_in_all(inner, &arriving, records, class)?;
        Ok((Outcome::Applied(values), end))
    }
}
