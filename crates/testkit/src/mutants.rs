//! Wrong queues: each breaks one promise, and a named case must notice.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::Failed;
use towpath_core::port::Queue;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, Peeked, Selection, Settings, Settlement, Stats, Verdict,
};
use towpath_core::{
    ConsumerId, Delivery, Headers, MessageId, NewMessage, QueueName, Receipt, Result,
};

use crate::{Subject, World, queue, run};

/// One way to be wrong, and who notices.
pub struct Mutant {
    /// What it does wrong.
    pub name: &'static str,
    /// The case that must go red.
    pub caught_by: &'static str,
    wrap: fn(Arc<dyn Queue>) -> Arc<dyn Queue>,
}

macro_rules! mutants {
    ($($name:ident $wrong:ident caught by $case:ident;)*) => {
        /// Every mutant.
        pub const MUTANTS: &[Mutant] = &[$(Mutant {
            name: stringify!($name),
            caught_by: stringify!($case),
            wrap: |inner| Arc::new(Wrong { inner, wrong: Way::$wrong }),
        }),*];
    };
}

mutants! {
    forgets_retries RetryAcks caught by a_retried_delivery_comes_back_with_its_attempt_raised;
    redelivers_early ShortLease caught by does_not_redeliver_before_the_lease_expires;
    accepts_stale_receipts AcceptsStale caught by refuses_a_stale_receipt;
    loses_the_last_of_a_batch LosesLast caught by gives_back_what_was_enqueued;
    forgets_dedup_ids NoDedup caught by recognises_a_repeated_dedup_id;
    ignores_pause NoPause caught by a_paused_queue_takes_and_does_not_give;
    drops_headers NoHeaders caught by keeps_headers_key_and_id;
    never_raises_the_attempt FirstAttempt caught by redelivers_after_the_lease_expires;
    redrives_one_too_few RedrivesLess caught by redrives_with_the_same_id_and_fresh_attempts;
    charges_releases ReleaseCharges caught by a_released_delivery_is_not_charged;
    forgets_the_dead ForgetsTheDead caught by a_disconnected_consumers_deliveries_come_back_at_once;
    ignores_keys NoKeys caught by delivers_one_message_of_a_key_at_a_time;
    delivers_delayed_at_once NoDelay caught by holds_a_delayed_message_back;
}

/// Passes when the case fails on the mutant.
pub(crate) fn is_caught(
    mutant: &'static Mutant,
    subject: &'static Subject,
) -> std::result::Result<(), Failed> {
    let case = queue::cases()
        .into_iter()
        .find(|case| case.name == mutant.caught_by);
    let case = case.ok_or_else(|| format!("there is no case `{}`", mutant.caught_by))?;
    match run(case, World::wrapped(subject, mutant.wrap)) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("`{}` passes although the queue {}", case.name, mutant.name).into()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
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
    ForgetsTheDead,
    NoKeys,
    NoDelay,
}

struct Wrong {
    inner: Arc<dyn Queue>,
    wrong: Way,
}

#[async_trait]
impl Queue for Wrong {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        self.inner.declare(queue, settings).await
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
        self.inner.enqueue(queue, messages).await
    }

    async fn lease(&self, mut request: LeaseRequest) -> Result<Vec<Delivery>> {
        if self.wrong == Way::ShortLease {
            request.lease = Duration::from_millis(20);
        }
        let mut leased = self.inner.lease(request).await?;
        if self.wrong == Way::FirstAttempt {
            leased.iter_mut().for_each(|delivery| delivery.attempt = 1);
        }
        Ok(leased)
    }

    async fn settle(&self, mut settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        for settlement in &mut settlements {
            match (&settlement.verdict, self.wrong) {
                (Verdict::Retry { .. }, Way::RetryAcks) => settlement.verdict = Verdict::Ack,
                (Verdict::Release, Way::ReleaseCharges) => {
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
        self.inner.stats(queue).await
    }

    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>> {
        self.inner.peek(queue, max).await
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
        self.inner.purge(queue).await
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.inner.dead_letters(queue, after, max).await
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
