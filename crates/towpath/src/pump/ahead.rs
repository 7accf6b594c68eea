//! Work beside the delivery of a batch: settles the previous batch, and leases the next one.

#![expect(clippy::disallowed_methods, reason = "spans have the machine's time")]

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use towpath_core::port::queue::Disposition;
use towpath_core::{Delivery, Error, Receipt, Result};

use super::settling::{Ended, Facts, Settling};
use super::{GIVE_BACK, Pump, warn_of_lost};
use crate::supervisor::Stop;

/// A lease that was asked for.
pub(super) struct LeaseCall {
    pub(super) at: SystemTime,
    pub(super) max: usize,
}

/// A lease call with its result.
type Leased = (LeaseCall, Result<Vec<Delivery>>);

/// See the module. A lease call is never dropped halfway, and its messages are renewed until their turn comes.
pub(super) struct Ahead<'a> {
    pump: &'a Pump,
    stop: &'a Stop,
    call: Option<Pin<Box<dyn Future<Output = Leased> + Send + 'a>>>,
    leased: Option<Leased>,
    renew_at: Instant,
    pub(super) settling: Settling<'a>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(pump: &'a Pump, stop: &'a Stop) -> Self {
        Self {
            pump,
            stop,
            call: None,
            leased: None,
            renew_at: Instant::now(),
            settling: Settling::new(pump, stop),
        }
    }

    /// Asks for the next batch.
    pub(super) fn begin(&mut self, max: usize) {
        let call = LeaseCall {
            at: SystemTime::now(),
            max,
        };
        let pump = self.pump;
        self.call = Some(Box::pin(async move {
            let leased = pump.consumer.lease(max, max).await;
            (call, leased)
        }));
    }

    /// Whether a batch was asked for or leased.
    pub(super) const fn is_begun(&self) -> bool {
        self.call.is_some() || self.leased.is_some()
    }

    /// The batch that was asked for, or one of this size. Settles meanwhile.
    pub(super) async fn lease(&mut self, max: usize) -> Leased {
        if !self.is_begun() {
            self.begin(max);
        }
        loop {
            if let Some(leased) = self.leased.take() {
                return leased;
            }
            self.step().await;
        }
    }

    /// A step of the work beside a delivery; pending while there is nothing to do. Cancel-safe.
    pub(super) async fn step(&mut self) {
        let often = self.pump.consumer.lease_time() / 3;
        let has_batch = matches!(&self.leased, Some((_, Ok(batch))) if !batch.is_empty());
        let call = self.call.as_mut();
        tokio::select! {
            _ = self.settling.next() => {}
            leased = async { call.expect("checked").await }, if call.is_some() => {
                self.call = None;
                self.leased = Some(leased);
                self.renew_at = Instant::now() + often;
            }
            () = tokio::time::sleep_until(self.renew_at), if has_batch => self.renew(often).await,
        }
    }

    async fn renew(&mut self, often: Duration) {
        self.renew_at = Instant::now() + often;
        if let Some((_, Ok(batch))) = &self.leased {
            let receipts: Vec<Receipt> = batch.iter().map(|one| one.receipt.clone()).collect();
            warn_of_lost(self.pump.renew(&receipts, often).await.len());
        }
    }

    /// Adds ended deliveries to those that wait for their settlement.
    pub(super) fn settle(
        &mut self,
        ended: impl Iterator<Item = (Delivery, Disposition, Option<Facts>)>,
    ) {
        for (delivery, disposition, facts) in ended {
            let delivery = delivery.into();
            self.settling.add(Ended {
                delivery,
                disposition,
                facts,
            });
        }
    }

    /// Settles everything.
    ///
    /// # Errors
    /// `Unavailable` when the stop leaves no more time for it.
    pub(super) async fn finish(&mut self) -> Result<()> {
        tokio::select! {
            biased;
            settled = self.settling.finish(Duration::MAX) => settled,
            // Unsettled deliveries come back by their lease or at the next start.
            () = self.stop.nearly_over(GIVE_BACK / 2) => {
                Err(Error::unavailable("a batch was not settled before the stop"))
            }
        }
    }

    /// Releases the batch whose turn has not come, and settles everything.
    ///
    /// # Errors
    /// As [`Ahead::finish`].
    pub(super) async fn give_back(&mut self) -> Result<()> {
        if self.is_begun()
            && let (_, Ok(batch)) = self.lease(1).await
        {
            self.stop.account.add("leased", batch.len() as u64);
            let ended = batch
                .into_iter()
                .map(|one| (one, Disposition::RELEASE, None));
            self.settle(ended);
        }
        self.finish().await
    }
}
