//! A wrong queue: right in all but one way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::Queue;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, MAX_BATCH, MAX_LEASE, MIN_LEASE, Peeked, Selection,
    Settings, Settlement, Stats, Verdict,
};
use towpath_core::{
    ConsumerId, Delivery, Error, Headers, MessageId, NewMessage, QueueName, Receipt, Result,
};

use crate::world::jobs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
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
}

pub(super) fn wrong(inner: Arc<dyn Queue>, way: Way) -> Arc<dyn Queue> {
    Arc::new(Wrong {
        inner,
        wrong: way,
        held: Mutex::default(),
    })
}

struct Wrong {
    inner: Arc<dyn Queue>,
    wrong: Way,
    /// What was handed out and may still be held.
    held: Mutex<Vec<Receipt>>,
}

#[async_trait]
impl Queue for Wrong {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        let mut settings = settings.clone();
        match self.wrong {
            Way::LongWindow => settings.dedup_window = Duration::from_secs(3600),
            Way::NoMaxDepth => settings.max_depth = None,
            _ => {}
        }
        self.inner.declare(queue, &settings).await
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        mut messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        for message in &mut messages {
            match self.wrong {
                Way::NoDedup => message.dedup_id = None,
                Way::NoHeaders => message.headers = Headers::new(),
                Way::NoKeys => message.key = None,
                Way::NoDelay => message.not_before = None,
                Way::NoExpiry => message.expires = None,
                Way::Truncates => message.payload.truncate(1 << 16),
                Way::AllOrNothing => message.check()?,
                _ => {}
            }
        }
        if self.wrong == Way::LosesLast
            && messages.len() > 1
            && let Some(lost) = messages.pop()
        {
            let mut outcomes = self.inner.enqueue(queue, messages).await?;
            outcomes.push(Ok(Enqueued::New(lost.id)));
            return Ok(outcomes);
        }
        match self.wrong {
            Way::RefusesNothing if messages.is_empty() => Err(Error::invalid("an empty batch")),
            Way::OneQueue => self.inner.enqueue(&jobs(), messages).await,
            Way::SplitsBatches => {
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
        match self.wrong {
            Way::ShortLease => request.lease = Duration::from_millis(20),
            Way::NoWait => request.wait = Duration::ZERO,
            Way::AddsMoments => _ = std::time::Instant::now() + request.wait,
            Way::Clamps => {
                request.max = request.max.clamp(1, MAX_BATCH);
                request.lease = request.lease.clamp(MIN_LEASE, MAX_LEASE);
            }
            Way::Detached => {
                let inner = Arc::clone(&self.inner);
                // Goes on when the caller is gone: that is what is wrong.
                return tokio::spawn(async move { inner.lease(request).await })
                    .await
                    .expect("no lease panics");
            }
            _ => {}
        }
        let mut leased = self.inner.lease(request).await?;
        match self.wrong {
            Way::NewestFirst => leased.reverse(),
            Way::GivesBack => {
                let given_back = leased.iter().map(|delivery| Settlement {
                    receipt: delivery.receipt.clone(),
                    verdict: Verdict::RELEASE,
                });
                self.inner.settle(given_back.collect()).await?;
            }
            _ => {}
        }
        if self.wrong == Way::NeverInterrupted {
            leased
                .iter_mut()
                .for_each(|delivery| delivery.interrupted = false);
        }
        if self.wrong == Way::FirstAttempt {
            leased.iter_mut().for_each(|delivery| delivery.attempt = 1);
        }
        let receipts = leased.iter().map(|delivery| delivery.receipt.clone());
        self.held.lock().expect("no holder panics").extend(receipts);
        Ok(leased)
    }

    async fn settle(&self, mut settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        for settlement in &mut settlements {
            match (&settlement.verdict, self.wrong) {
                (Verdict::Retry { .. }, Way::RetryAcks) => settlement.verdict = Verdict::Ack,
                (Verdict::Retry { error, .. }, Way::RetryAtOnce) => {
                    settlement.verdict = Verdict::Retry {
                        after: Duration::ZERO,
                        error: error.clone(),
                    };
                }
                (Verdict::Retry { after, .. }, Way::NoErrors) => {
                    settlement.verdict = Verdict::Retry {
                        after: *after,
                        error: String::new(),
                    };
                }
                (Verdict::DeadLetter { reason }, Way::DeadRetries) => {
                    settlement.verdict = Verdict::Retry {
                        after: Duration::ZERO,
                        error: reason.clone(),
                    };
                }
                (Verdict::Release { .. }, Way::ReleaseAtOnce) => {
                    settlement.verdict = Verdict::RELEASE;
                }
                (Verdict::Ack, Way::AckReleases) => settlement.verdict = Verdict::RELEASE,
                (Verdict::Release { .. }, Way::ReleaseCharges) => {
                    settlement.verdict = Verdict::Retry {
                        after: Duration::ZERO,
                        error: String::new(),
                    };
                }
                _ => {}
            }
        }
        let outcomes = self.inner.settle(settlements).await?;
        if self.wrong == Way::AcceptsStale {
            return Ok(outcomes.into_iter().map(|_| Ok(())).collect());
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>> {
        if self.wrong == Way::NoExtend {
            return Ok(receipts.iter().map(|_| Ok(())).collect());
        }
        self.inner.extend(receipts, lease).await
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        if self.wrong == Way::ForgetsTheDead {
            Ok(2)
        } else {
            self.inner.disconnect(consumer).await
        }
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        self.inner.list().await
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        if self.wrong == Way::MakesUnknown {
            self.inner.peek(queue, 1).await?;
        }
        let mut stats = self.inner.stats(queue).await?;
        if self.wrong == Way::CountsNoRetries {
            stats.retried = 0;
        }
        if self.wrong == Way::MixesAges {
            stats.oldest_ready_age = stats.oldest_age;
        }
        Ok(stats)
    }

    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>> {
        let more = usize::from(self.wrong == Way::PeeksTooMany);
        self.inner.peek(queue, max + more).await
    }

    async fn pause(&self, queue: &QueueName) -> Result<()> {
        if self.wrong == Way::NoPause {
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
        if self.wrong == Way::PurgesTheLeased {
            let held = std::mem::take(&mut *self.held.lock().expect("no holder panics"));
            let taken = held.into_iter().map(|receipt| Settlement {
                receipt,
                verdict: Verdict::Ack,
            });
            self.inner.settle(taken.collect()).await?;
        }
        Ok(purged)
    }

    async fn delete(&self, queue: &QueueName, force: bool) -> Result<u64> {
        if self.wrong == Way::KeepsTheDeleted {
            return self.inner.purge(queue).await;
        }
        let force = force || self.wrong == Way::DeletesTheFull;
        self.inner.delete(queue, force).await
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let after = after.filter(|_| self.wrong != Way::FirstPageOnly);
        let mut letters = self.inner.dead_letters(queue, after, max).await?;
        for letter in &mut letters {
            match self.wrong {
                Way::NoRecords => letter.records.truncate(1),
                Way::NoBounds => letter.records.extend(letter.records.clone()),
                _ => {}
            }
        }
        Ok(letters)
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        if self.wrong == Way::RedrivesLess {
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
