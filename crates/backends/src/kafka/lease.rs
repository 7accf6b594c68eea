//! Leasing buffered messages of a queue, and waiting for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, ErrorKind, Result};
use tracing::warn;

use crate::broker::in_flight::{ATTEMPTS_EXHAUSTED, LeaseTerms};

use super::buffers::{InFlightMessage, ReadyBuffer};
use super::queue::QueueHandle;
use super::queue_session::QueueSession;
use super::settler::{Action, SettleItem};
use super::store::Store;

/// Timeout of the first assignment, after which a lease returns empty.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

impl Store {
    pub(super) async fn lease(self: &Arc<Self>, request: &LeaseRequest) -> Result<Vec<Delivery>> {
        let until = Instant::now().checked_add(request.wait);
        let handle = self.handle(&request.queue)?;
        handle.counters.saw(&request.consumer);
        loop {
            let session = self.session(&handle).await?;
            if request.wait.is_zero() {
                // Records of the broker must be fetched first.
                let ready = &session.members.ready;
                if ready.wait_assigned(JOIN_TIMEOUT).await {
                    let watermarks = self.watermarks_of(&handle.topic).await?;
                    let is_enough =
                        |buffer: &ReadyBuffer| buffer.in_flight().counts().0 >= request.max as u64;
                    ready.wait_fetched(&watermarks, is_enough).await;
                }
            }
            let mut changed = std::pin::pin!(session.members.ready.changed());
            changed.as_mut().enable();
            self.check_open()?;
            let deliveries = self.lease_ready(&handle, &session, request).await?;
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if !deliveries.is_empty() || left.is_zero() {
                return Ok(deliveries);
            }
            let expiry = session.members.ready.buffer().in_flight().next_expiry();
            let until_expiry = expiry.map(|at| at.saturating_duration_since(Instant::now()));
            let limit = left.min(LOOK).min(until_expiry.unwrap_or(LOOK));
            drop(tokio::time::timeout(limit, changed).await);
        }
    }

    /// Leases buffered messages; those without attempts left become dead letters.
    async fn lease_ready(
        &self,
        handle: &QueueHandle,
        session: &QueueSession,
        request: &LeaseRequest,
    ) -> Result<Vec<Delivery>> {
        loop {
            let terms = LeaseTerms {
                queue: &handle.name,
                consumer: &request.consumer,
                lease: request.lease,
                max: request.max,
                attempts: handle.attempts(),
            };
            let (deliveries, spent) = {
                let mut buffer = session.members.ready.buffer();
                buffer.lease(&terms, || self.next_number())
            };
            if !deliveries.is_empty() {
                session.ready.count();
            }
            let now = self.clock.now();
            let items = spent.into_iter().map(|mut held| {
                let reason = match held.origin.refusal.clone() {
                    Some(refusal) => {
                        let (partition, at) = (held.origin.partition, held.origin.at);
                        let topic = &handle.topic;
                        warn!(
                            topic,
                            partition,
                            offset = at,
                            refusal,
                            "record refused; dead letter"
                        );
                        format!("refused: {refusal}; record {topic}/{partition}/{at}")
                    }
                    None => ATTEMPTS_EXHAUSTED.to_owned(),
                };
                held.envelope.mark_dead(&reason, now);
                self.item(held, Action::DeadLetter)
            });
            let items: Vec<SettleItem> = items.collect();
            if items.is_empty() {
                return Ok(deliveries);
            }
            let buried = session.ready.settle(items).await;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            let failed = buried.into_iter().filter_map(Result::err);
            // A message of a revoked partition belongs to another process.
            if let Some(error) = { failed }.find(|one| one.kind() != ErrorKind::Conflict) {
                return Err(error);
            }
        }
    }

    /// A settle item whose message gets a new number if it fails.
    pub(super) fn item(&self, held: InFlightMessage, action: Action) -> SettleItem {
        SettleItem {
            number: self.next_number(),
            attempts: held.charged,
            held,
            action,
            is_cut: false,
        }
    }
}
