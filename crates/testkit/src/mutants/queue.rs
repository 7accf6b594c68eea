//! Mutants of the queue port.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::Queue;
use towpath_core::port::queue::{
    DeadLetter, Disposition, Enqueued, LeaseRequest, MAX_BATCH, MAX_LEASE, MIN_LEASE, Peeked,
    Selection, Settings, Settlement, Stats,
};
use towpath_core::{
    ConsumerId, Delivery, Error, Headers, MessageId, NewMessage, QueueName, Receipt, Result,
};

use crate::world::jobs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    RetryAcks,
    ShortLease,
    AcceptsStale,
    LosesLast,
    NoDedup,
    NoPause,
    NoHeaders,
    FirstAttempt,
    RedrivesLess,
    ReleaseCharges,
    ReleaseAtOnce,
    NeverInterrupted,
    ForgetsTheDead,
    NoKeys,
    NoDelay,
    PurgesTheLeased,
    CountsNoRetries,
    LongWindow,
    NoMaxDepth,
    NoExpiry,
    NoExtend,
    NewestFirst,
    RetryAtOnce,
    NoErrors,
    DeadRetries,
    AckReleases,
    FirstPageOnly,
    NoWait,
    Clamps,
    Truncates,
    RefusesNothing,
    AllOrNothing,
    SplitsBatches,
    PeeksTooMany,
    MakesUnknown,
    OneQueue,
    Detached,
    AddsMoments,
    GivesBack,
    MixesAges,
    NoRecords,
    NoBounds,
    DeletesTheFull,
    KeepsTheDeleted,
    ForgetsSettings,
}

pub(super) fn mutate(inner: Arc<dyn Queue>, mutation: Mutation) -> Arc<dyn Queue> {
    Arc::new(Mutated {
        inner,
        mutation,
        held: Mutex::default(),
    })
}

struct Mutated {
    inner: Arc<dyn Queue>,
    mutation: Mutation,
    /// Receipts of deliveries that may still be leased.
    held: Mutex<Vec<Receipt>>,
}

#[async_trait]
impl Queue for Mutated {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        let mut settings = settings.clone();
        match self.mutation {
            Mutation::LongWindow => settings.dedup_window = Duration::from_secs(3600),
            Mutation::NoMaxDepth => settings.max_depth = None,
            _ => {}
        }
        self.inner.declare(queue, &settings).await
    }

    async fn settings(&self, queue: &QueueName) -> Result<Settings> {
        match self.mutation {
            Mutation::ForgetsSettings => Ok(Settings::default()),
            _ => self.inner.settings(queue).await,
        }
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        mut messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        for message in &mut messages {
            match self.mutation {
                Mutation::NoDedup => message.dedup_id = None,
                Mutation::NoHeaders => message.headers = Headers::new(),
                Mutation::NoKeys => message.key = None,
                Mutation::NoDelay => message.not_before = None,
                Mutation::NoExpiry => message.expires = None,
                Mutation::Truncates => message.payload.truncate(1 << 16),
                Mutation::AllOrNothing => message.check()?,
                _ => {}
            }
        }
        if self.mutation == Mutation::LosesLast
            && messages.len() > 1
            && let Some(lost) = messages.pop()
        {
            let mut outcomes = self.inner.enqueue(queue, messages).await?;
            outcomes.push(Ok(Enqueued::New(lost.id)));
            return Ok(outcomes);
        }
        match self.mutation {
            Mutation::RefusesNothing if messages.is_empty() => {
                Err(Error::invalid("an empty batch"))
            }
            Mutation::OneQueue => self.inner.enqueue(&jobs(), messages).await,
            Mutation::SplitsBatches => {
                let mut outcomes = Vec::new();
                for batch in messages.chunks(MAX_BATCH) {
                    outcomes.extend(self.inner.enqueue(queue, batch.to_vec()).await?);
                }
                Ok(outcomes)
            }
            _ => self.inner.enqueue(queue, messages).await,
        }
    }

    async fn lease(&self, mut request: LeaseRequest) -> Result<Vec<Delivery>> {
        match self.mutation {
            Mutation::ShortLease => request.lease = Duration::from_millis(20),
            Mutation::NoWait => request.wait = Duration::ZERO,
            Mutation::AddsMoments => _ = std::time::Instant::now() + request.wait,
            Mutation::Clamps => {
                request.max = request.max.clamp(1, MAX_BATCH);
                request.lease = request.lease.clamp(MIN_LEASE, MAX_LEASE);
            }
            Mutation::Detached => {
                let inner = Arc::clone(&self.inner);
                // Continues after the caller dropped the call: that is the fault.
                return tokio::spawn(async move { inner.lease(request).await })
                    .await
                    .expect("no lease panics");
            }
            _ => {}
        }
        let mut leased = self.inner.lease(request).await?;
        match self.mutation {
            Mutation::NewestFirst => leased.reverse(),
            Mutation::GivesBack => {
                let given_back = leased.iter().map(|delivery| Settlement {
                    receipt: delivery.receipt.clone(),
                    disposition: Disposition::RELEASE,
                });
                self.inner.settle(given_back.collect()).await?;
            }
            _ => {}
        }
        if self.mutation == Mutation::NeverInterrupted {
            leased
                .iter_mut()
                .for_each(|delivery| delivery.interrupted = false);
        }
        if self.mutation == Mutation::FirstAttempt {
            leased.iter_mut().for_each(|delivery| delivery.attempt = 1);
        }
        let receipts = leased.iter().map(|delivery| delivery.receipt.clone());
        self.held.lock().expect("no holder panics").extend(receipts);
        Ok(leased)
    }

    async fn settle(&self, mut settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        for settlement in &mut settlements {
            match (&settlement.disposition, self.mutation) {
                (Disposition::Retry { .. }, Mutation::RetryAcks) => {
                    settlement.disposition = Disposition::Ack
                }
                (Disposition::Retry { error, .. }, Mutation::RetryAtOnce) => {
                    settlement.disposition = Disposition::Retry {
                        after: Duration::ZERO,
                        error: error.clone(),
                    };
                }
                (Disposition::Retry { after, .. }, Mutation::NoErrors) => {
                    settlement.disposition = Disposition::Retry {
                        after: *after,
                        error: String::new(),
                    };
                }
                (Disposition::DeadLetter { reason }, Mutation::DeadRetries) => {
                    settlement.disposition = Disposition::Retry {
                        after: Duration::ZERO,
                        error: reason.clone(),
                    };
                }
                (Disposition::Release { .. }, Mutation::ReleaseAtOnce) => {
                    settlement.disposition = Disposition::RELEASE;
                }
                (Disposition::Ack, Mutation::AckReleases) => {
                    settlement.disposition = Disposition::RELEASE
                }
                (Disposition::Release { .. }, Mutation::ReleaseCharges) => {
                    settlement.disposition = Disposition::Retry {
                        after: Duration::ZERO,
                        error: String::new(),
                    };
                }
                _ => {}
            }
        }
        let outcomes = self.inner.settle(settlements).await?;
        if self.mutation == Mutation::AcceptsStale {
            return Ok(outcomes.into_iter().map(|_| Ok(())).collect());
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>> {
        if self.mutation == Mutation::NoExtend {
            return Ok(receipts.iter().map(|_| Ok(())).collect());
        }
        self.inner.extend(receipts, lease).await
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        if self.mutation == Mutation::ForgetsTheDead {
            Ok(2)
        } else {
            self.inner.disconnect(consumer).await
        }
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        self.inner.list().await
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        if self.mutation == Mutation::MakesUnknown {
            self.inner.peek(queue, 1).await?;
        }
        let mut stats = self.inner.stats(queue).await?;
        if self.mutation == Mutation::CountsNoRetries {
            stats.retried = 0;
        }
        if self.mutation == Mutation::MixesAges {
            stats.oldest_ready_age = stats.oldest_age;
        }
        Ok(stats)
    }

    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>> {
        let more = usize::from(self.mutation == Mutation::PeeksTooMany);
        self.inner.peek(queue, max + more).await
    }

    async fn pause(&self, queue: &QueueName) -> Result<()> {
        if self.mutation == Mutation::NoPause {
            Ok(())
        } else {
            self.inner.pause(queue).await
        }
    }

    async fn resume(&self, queue: &QueueName) -> Result<()> {
        self.inner.resume(queue).await
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let purged = self.inner.purge(queue).await?;
        if self.mutation == Mutation::PurgesTheLeased {
            let held = std::mem::take(&mut *self.held.lock().expect("no holder panics"));
            let taken = held.into_iter().map(|receipt| Settlement {
                receipt,
                disposition: Disposition::Ack,
            });
            self.inner.settle(taken.collect()).await?;
        }
        Ok(purged)
    }

    async fn delete(&self, queue: &QueueName, force: bool) -> Result<u64> {
        if self.mutation == Mutation::KeepsTheDeleted {
            return self.inner.purge(queue).await;
        }
        let force = force || self.mutation == Mutation::DeletesTheFull;
        self.inner.delete(queue, force).await
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let after = after.filter(|_| self.mutation != Mutation::FirstPageOnly);
        let mut letters = self.inner.dead_letters(queue, after, max).await?;
        for letter in &mut letters {
            match self.mutation {
                Mutation::NoRecords => letter.records.truncate(1),
                Mutation::NoBounds => letter.records.extend(letter.records.clone()),
                _ => {}
            }
        }
        Ok(letters)
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        if self.mutation == Mutation::RedrivesLess {
            let dead = self.inner.dead_letters(queue, None, 1000).await?;
            let some = dead.iter().skip(1).map(|one| one.message.id).collect();
            return Ok(self.inner.redrive(queue, &Selection::Ids(some)).await? + 1);
        }
        self.inner.redrive(queue, selection).await
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        self.inner.drop_dead(queue, selection).await
    }
}
