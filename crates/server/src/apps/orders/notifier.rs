//! Telling customers: one notification per order, by a claim with a lease and a send with an idempotency key.
//!
//! ```text
//! claim notif:<id> (expires) -> send -> in one step: notif:<id> done, notifications:<id> sent, counted
//! ```
//!
//! A notifier that dies after sending sends again, under the same idempotency key: at least once on the wire,
//! once for a receiver that heeds the key.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::effects::{Outcome as Applied, Transaction};
use towpath_core::port::kv::{Committed, Op};
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, ErrorKind, Result};
use tracing::warn;

use super::channel::{Channel, News};
use super::order::Order;
use super::record::State;
use super::store::{OrderStore, count};
use super::topology::REJECTIONS;
use super::{ACCEPTED_COUNT, NOTIFIED_COUNT};
use towpath::pump::{Destination, Handler};

/// What `notif:<id>` says once its order needs no more notification. The value is the reference system's.
const DONE: &[u8] = b"1";

/// Time to live of `notif:<id>` when it is done. As in the reference system.
const DONE_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Time that a claim lasts beyond the send.
const MARGIN: Duration = Duration::from_secs(5);

/// Delay of an event whose order is claimed by another notifier.
const CLAIMED_ELSEWHERE: Duration = Duration::from_secs(1);

/// Notifies the customer of each event.
pub struct Notifier {
    /// The app's ports.
    pub store: OrderStore,
    /// The notification channel.
    pub channel: Arc<Channel>,
    /// Timeout of one send.
    pub timeout: Duration,
    /// Attempts before an event is a dead letter.
    pub attempts: u32,
}

/// The hash with the outcome of an order's notification.
pub(super) fn notification_key(id: &str) -> String {
    format!("notifications:{id}")
}

impl Notifier {
    async fn notify(&self, delivery: &Delivery) -> Result<Outcome> {
        let order = match Order::parse(&delivery.message.payload) {
            Ok(order) => order,
            Err(refusal) => {
                let reason = format!("not an order: {}", refusal.as_str());
                return Ok(Outcome::Reject { reason });
            }
        };
        let claim = Bytes::from(format!("claimed by {}", delivery.message.id));
        let outcome = match self.claim(&order, &claim).await? {
            Claim::Mine => {
                let news = self.news(&order, delivery).await?;
                self.channel
                    .send(&order, &news, delivery, self.timeout)
                    .await
            }
            Claim::Done => return Ok(Outcome::Done),
            Claim::Elsewhere => {
                return Ok(Outcome::Retry {
                    after: Some(CLAIMED_ELSEWHERE),
                    error: format!("another notifier has claimed order `{}`", order.id),
                });
            }
        };
        match outcome {
            Outcome::Done | Outcome::Settled => self.record_sent(&order, delivery, &claim).await,
            Outcome::Retry { after, error } => {
                let last = delivery.attempt >= self.attempts;
                let status = if last { "failed" } else { "retrying" };
                self.record_failure(&order, delivery, claim, status, &error)
                    .await;
                Ok(Outcome::Retry { after, error })
            }
            Outcome::Unavailable {
                cause,
                after,
                error,
            } => {
                self.record_failure(&order, delivery, claim, "retrying", &error)
                    .await;
                Ok(Outcome::Unavailable {
                    cause,
                    after,
                    error,
                })
            }
            Outcome::Reject { reason } => {
                self.record_failure(&order, delivery, claim, "failed", &reason)
                    .await;
                Ok(Outcome::Reject { reason })
            }
        }
    }

    /// The notification, by the queue of the event.
    async fn news(&self, order: &Order, delivery: &Delivery) -> Result<News> {
        if !is_rejection(delivery) {
            return Ok(News::Processed);
        }
        let stored = self.store.find(&order.id).await?;
        let reason = stored.and_then(|stored| stored.record.reason);
        Ok(News::Rejected(reason.unwrap_or_else(|| {
            "the reason is not kept any more".to_owned()
        })))
    }

    /// Takes the order, or takes it up again: the same event is never in two hands.
    async fn claim(&self, order: &Order, claim: &Bytes) -> Result<Claim> {
        let swap = |expected: Option<Bytes>| Op::CompareAndSwap {
            key: claim_key(&order.id),
            expected,
            value: claim.clone(),
            ttl: Some(self.timeout + MARGIN),
        };
        let kv = &self.store.kv;
        match kv.commit(vec![swap(None)]).await? {
            Committed::Applied(_) => {}
            Committed::Refused { current, .. } if current.as_ref() == Some(claim) => {
                if let Committed::Refused { .. } = kv.commit(vec![swap(current)]).await? {
                    return Ok(Claim::Elsewhere);
                }
            }
            Committed::Refused { current, .. } if current.as_deref() == Some(DONE) => {
                return Ok(Claim::Done);
            }
            Committed::Refused { .. } => return Ok(Claim::Elsewhere),
        }
        // The claim ends after a day, the status stays longer.
        let known = kv.fields(&notification_key(&order.id)).await?;
        let sent = known
            .iter()
            .any(|(name, value)| name == "status" && value.as_ref() == b"sent");
        Ok(if sent { Claim::Done } else { Claim::Mine })
    }

    async fn record_sent(
        &self,
        order: &Order,
        delivery: &Delivery,
        claim: &Bytes,
    ) -> Result<Outcome> {
        loop {
            let kv = self.sent(order, delivery, claim).await?;
            let (refused, outcome) = match &self.store.effects {
                None => match self.store.kv.commit(kv).await? {
                    Committed::Applied(_) => (None, Outcome::Done),
                    Committed::Refused { index, .. } => (Some(index), Outcome::Done),
                },
                Some(effects) => match effects.apply(acked(delivery, kv)).await {
                    Ok(Applied::Applied(_)) => (None, Outcome::Settled),
                    Ok(Applied::Refused { index, .. }) => (Some(index), Outcome::Settled),
                    // The lease is lost: the pump's own settlement says so, and counts it.
                    Err(error) if error.kind() == ErrorKind::Conflict => return Ok(Outcome::Done),
                    Err(error) => return Err(error),
                },
            };
            match refused {
                None => return Ok(outcome),
                Some(0) => {
                    let error = format!("the claim on order `{}` ended during the send", order.id);
                    return Ok(Outcome::Retry { after: None, error });
                }
                // The gateway or a processor changed the record meanwhile. A sent notification is not sent again.
                Some(_) => {}
            }
        }
    }

    /// The ops of a notification that was sent; the first one is refused when the claim has ended.
    async fn sent(&self, order: &Order, delivery: &Delivery, claim: &Bytes) -> Result<Vec<Op>> {
        let mut ops = vec![Op::CompareAndSwap {
            key: claim_key(&order.id),
            expected: Some(claim.clone()),
            value: Bytes::from_static(DONE),
            ttl: Some(DONE_FOR),
        }];
        if !is_rejection(delivery) {
            ops.push(count(NOTIFIED_COUNT));
        }
        ops.extend(self.fields(order, delivery, "sent", ""));
        // Processed by a program without records, as the event says.
        if let Some(stored) = self.store.find(&order.id).await?
            && matches!(stored.record.state, State::Accepted | State::Reserved)
            && stored.record.hash == order.hash()
        {
            let mut record = stored.record.clone();
            if record.state == State::Reserved {
                // The gateway's own confirmation comes later, and is refused.
                record.accept(self.store.now());
                ops.push(count(ACCEPTED_COUNT));
            }
            record.state = State::Processed;
            record.note(self.store.now(), "processed elsewhere");
            ops.push(
                self.store
                    .change(Some(&stored), &record, Some(self.store.retention)),
            );
        }
        Ok(ops)
    }

    /// Records a failed attempt and releases the claim: a notifier of the reference system takes any claim for a sent
    /// notification, and may be the next to receive the event. Best effort: the queue has the same error, and claims end.
    async fn record_failure(
        &self,
        order: &Order,
        delivery: &Delivery,
        claim: Bytes,
        status: &str,
        error: &str,
    ) {
        let key = claim_key(&order.id);
        let mut ops = vec![
            Op::CompareAndSwap {
                key: key.clone(),
                expected: Some(claim.clone()),
                value: claim,
                ttl: Some(MARGIN),
            },
            Op::Delete { key },
        ];
        ops.extend(self.fields(order, delivery, status, error));
        if let Err(error) = self.store.kv.commit(ops).await {
            warn!(
                order = order.id,
                error = error.chain(),
                "notification status not recorded"
            );
        }
    }

    fn fields(&self, order: &Order, delivery: &Delivery, status: &str, error: &str) -> Vec<Op> {
        let key = notification_key(&order.id);
        let fields = [
            ("status", status.to_owned()),
            ("channel", self.channel.as_str().to_owned()),
            ("attempts", delivery.attempt.to_string()),
            ("at", self.store.now().to_string()),
            ("error", error.to_owned()),
        ];
        let set = fields.into_iter().map(|(field, value)| Op::SetField {
            key: key.clone(),
            field: field.to_owned(),
            value: value.into(),
        });
        let expire = Op::Expire {
            key: key.clone(),
            ttl: Some(self.store.retention.max(DONE_FOR)),
        };
        set.chain([expire]).collect()
    }
}

fn acked(delivery: &Delivery, kv: Vec<Op>) -> Transaction {
    Transaction {
        kv,
        settle: vec![Settlement {
            receipt: delivery.receipt.clone(),
            disposition: Disposition::Ack,
        }],
        ..Transaction::default()
    }
}

/// The claim on a notification.
enum Claim {
    Mine,
    /// It was sent already.
    Done,
    Elsewhere,
}

fn is_rejection(delivery: &Delivery) -> bool {
    delivery.receipt.queue.as_str() == REJECTIONS
}

fn claim_key(id: &str) -> String {
    format!("notif:{id}")
}

#[async_trait]
impl Handler for Notifier {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.notify(delivery).await.unwrap_or_else(Outcome::from)
    }

    fn destination(&self) -> Option<&Destination> {
        self.channel.destination()
    }
}
