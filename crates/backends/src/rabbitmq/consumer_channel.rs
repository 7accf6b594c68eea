//! A channel that messages come by, and which of them are not settled: what is settled in a row is acked by one frame.
//!
//! A quorum queue keeps a log entry for each frame, so one for a batch costs the broker a fraction of one for each message.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::{Acker, Channel};

use super::store::lock;

pub(super) struct Incoming {
    pub(super) channel: Channel,
    /// Delivery tags, where each was noted before any later one was; otherwise none.
    in_order: Option<Mutex<BTreeSet<u64>>>,
    /// Frames go out in the order in which tags were struck off.
    turn: tokio::sync::Mutex<()>,
}

/// How a message came.
pub(super) struct Arrival {
    /// What its count of deliveries would be if the broker took it back now.
    pub(super) charged_by_return: u32,
    /// How often the broker says that it came back.
    pub(super) returns: u32,
    pub(super) ticket: Ticket,
    /// The connection that it came over; what is in hand ends with it.
    pub(super) connection: u64,
    /// What it came by; stays open as long as it is not settled.
    pub(super) incoming: Arc<Incoming>,
}

/// A message in hand.
pub(super) type Held = crate::broker::in_flight::Held<Arrival>;

/// How one message is settled.
pub(super) struct Ticket {
    pub(super) tag: u64,
    pub(super) acker: Acker,
}

impl Incoming {
    /// Messages come one after the other, to one task.
    pub(super) fn in_order(channel: Channel) -> Arc<Self> {
        Self::new(channel, Some(Mutex::default()))
    }

    /// Messages are fetched, by several at once.
    pub(super) fn in_any_order(channel: Channel) -> Arc<Self> {
        Self::new(channel, None)
    }

    fn new(channel: Channel, in_order: Option<Mutex<BTreeSet<u64>>>) -> Arc<Self> {
        Arc::new(Self {
            channel,
            in_order,
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Notes what came, before anything is done with it.
    pub(super) fn note(&self, tag: u64) {
        if let Some(unsettled) = &self.in_order {
            lock(unsettled).insert(tag);
        }
    }

    /// Lets go of messages for good.
    pub(super) async fn ack(&self, done: &[&Ticket]) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let before = self.strike_off(done);
        let row = done.iter().filter(|ticket| ticket.tag < before);
        let last = row.max_by_key(|ticket| ticket.tag);
        let others = done.iter().filter(|ticket| ticket.tag >= before);
        let acks = others.map(|ticket| ticket.acker.ack(BasicAckOptions::default()));
        let row = last.map(|ticket| ticket.acker.ack(BasicAckOptions { multiple: true }));
        try_join_all(row.into_iter().chain(acks)).await.map(drop)
    }

    /// Puts messages back where they came from.
    pub(super) async fn nack(&self, unwanted: &[&Ticket]) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let options = || BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        let nacks = unwanted.iter().map(|ticket| ticket.acker.nack(options()));
        try_join_all(nacks).await?;
        // Not before: should this be given up halfway, no ack of a row may cover them.
        self.strike_off(unwanted);
        Ok(())
    }

    /// The tag below which everything is settled now.
    fn strike_off(&self, settled: &[&Ticket]) -> u64 {
        let Some(unsettled) = &self.in_order else {
            return 0;
        };
        let mut unsettled = lock(unsettled);
        for ticket in settled {
            unsettled.remove(&ticket.tag);
        }
        unsettled.first().copied().unwrap_or(u64::MAX)
    }
}
