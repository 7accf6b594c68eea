//! Handing out what this process has of a queue, and waiting for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, ErrorKind, Result};
use tracing::warn;

use crate::broker::in_flight::{SPENT, Terms};

use super::buffers::{Held, Ready};
use super::queue::Known;
use super::queue_session::Desk;
use super::settler::{Job, To};
use super::store::Store;

/// How long the group may take to let a new member in, before a lease says that nothing is there.
pub(super) const LET_IN: Duration = Duration::from_secs(2);

/// The longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

impl Store {
    pub(super) async fn lease(self: &Arc<Self>, request: &LeaseRequest) -> Result<Vec<Delivery>> {
        let until = Instant::now().checked_add(request.wait);
        let known = self.known(&request.queue)?;
        known.tally.saw(&request.consumer);
        loop {
            let desk = self.desk(&known).await?;
            if request.wait.is_zero() {
                // Nothing that is there may be on its way.
                let ready = &desk.members.ready;
                if ready.is_let_in(LET_IN).await {
                    let marks = self.marks_of(&known.topic).await?;
                    let is_enough = |shelf: &Ready| shelf.hand().counts().0 >= request.max as u64;
                    ready.arrive(&marks, is_enough).await;
                }
            }
            let mut news = std::pin::pin!(desk.members.ready.news());
            news.as_mut().enable();
            self.check_open()?;
            let deliveries = self.hand_out(&known, &desk, request).await?;
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if !deliveries.is_empty() || left.is_zero() {
                return Ok(deliveries);
            }
            let expiry = desk.members.ready.shelf().hand().next_expiry();
            let until_expiry = expiry.map(|at| at.saturating_duration_since(Instant::now()));
            let limit = left.min(LOOK).min(until_expiry.unwrap_or(LOOK));
            drop(tokio::time::timeout(limit, news).await);
        }
    }

    /// Leases what is here; what has no attempts left becomes a dead letter.
    async fn hand_out(
        &self,
        known: &Known,
        desk: &Desk,
        request: &LeaseRequest,
    ) -> Result<Vec<Delivery>> {
        loop {
            let terms = Terms {
                queue: &known.name,
                consumer: &request.consumer,
                lease: request.lease,
                max: request.max,
                attempts: known.attempts(),
            };
            let (deliveries, spent) = {
                let mut shelf = desk.members.ready.shelf();
                shelf.lease(&terms, || self.next_number())
            };
            if !deliveries.is_empty() {
                desk.ready.count();
            }
            let now = self.clock.now();
            let jobs = spent.into_iter().map(|mut held| {
                let reason = match held.origin.refusal.clone() {
                    Some(refusal) => {
                        let (partition, at) = (held.origin.partition, held.origin.at);
                        let topic = &known.topic;
                        warn!(
                            topic,
                            partition,
                            offset = at,
                            refusal,
                            "record refused; dead letter"
                        );
                        format!("refused: {refusal}; record {topic}/{partition}/{at}")
                    }
                    None => SPENT.to_owned(),
                };
                held.envelope.die(&reason, now);
                self.job(held, To::Dead)
            });
            let jobs: Vec<Job> = jobs.collect();
            if jobs.is_empty() {
                return Ok(deliveries);
            }
            let buried = desk.ready.settle(jobs).await;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            let failed = buried.into_iter().filter_map(Result::err);
            // One whose partition moved meanwhile is another process's.
            if let Some(error) = { failed }.find(|one| one.kind() != ErrorKind::Conflict) {
                return Err(error);
            }
        }
    }

    /// A job whose message comes back under a new number if it fails.
    pub(super) fn job(&self, held: Held, to: To) -> Job {
        Job {
            number: self.next_number(),
            attempts: held.charged,
            held,
            to,
            is_cut: false,
        }
    }
}
