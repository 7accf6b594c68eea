//! A channel with its unsettled delivery tags: consecutive settled tags are acked by one frame.
//!
//! A quorum queue writes a log entry for each frame, so a batch ack costs the broker a fraction of single acks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::{Acker, Channel};

use super::store::lock;

pub(super) struct ConsumerChannel {
    pub(super) channel: Channel,
    /// Unsettled delivery tags, where they are added in order; otherwise none.
    in_order: Option<Mutex<BTreeSet<u64>>>,
    /// Held so that frames are sent in the order in which tags were settled.
    turn: tokio::sync::Mutex<()>,
}

/// Source of a message on the broker.
pub(super) struct IncomingMessage {
    /// Its delivery count if it were requeued now.
    pub(super) charged_by_return: u32,
    /// Number of requeues, by the broker's count.
    pub(super) returns: u32,
    pub(super) tag: DeliveryTag,
    /// Number of its connection; the delivery ends with it.
    pub(super) connection: u64,
    /// Its channel; stays open until it is settled.
    pub(super) consumer_channel: Arc<ConsumerChannel>,
}

/// An in-flight message.
pub(super) type InFlightMessage = crate::broker::in_flight::InFlightMessage<IncomingMessage>;

/// Delivery tag and acker of a message.
pub(super) struct DeliveryTag {
    pub(super) number: u64,
    pub(super) acker: Acker,
}

impl ConsumerChannel {
    /// For deliveries to one task, in order.
    pub(super) fn in_order(channel: Channel) -> Arc<Self> {
        Self::new(channel, Some(Mutex::default()))
    }

    /// For basic.get by several tasks.
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

    /// Records a delivery, before it is processed.
    pub(super) fn note(&self, tag: u64) {
        if let Some(unsettled) = &self.in_order {
            lock(unsettled).insert(tag);
        }
    }

    /// Acks messages.
    pub(super) async fn ack(&self, done: &[&DeliveryTag]) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let before = self.strike_off(done);
        let row = done.iter().filter(|tag| tag.number < before);
        let last = row.max_by_key(|tag| tag.number);
        let others = done.iter().filter(|tag| tag.number >= before);
        let acks = others.map(|tag| tag.acker.ack(BasicAckOptions::default()));
        let row = last.map(|tag| tag.acker.ack(BasicAckOptions { multiple: true }));
        try_join_all(row.into_iter().chain(acks)).await.map(drop)
    }

    /// Requeues messages.
    pub(super) async fn nack(&self, unwanted: &[&DeliveryTag]) -> lapin::Result<()> {
        let _turn = self.turn.lock().await;
        let options = || BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        let nacks = unwanted.iter().map(|tag| tag.acker.nack(options()));
        try_join_all(nacks).await?;
        // Only now: if this call is dropped halfway, no multiple ack may cover them.
        self.strike_off(unwanted);
        Ok(())
    }

    /// Marks tags as settled. Returns the lowest unsettled tag.
    fn strike_off(&self, settled: &[&DeliveryTag]) -> u64 {
        let Some(unsettled) = &self.in_order else {
            return 0;
        };
        let mut unsettled = lock(unsettled);
        for tag in settled {
            unsettled.remove(&tag.number);
        }
        unsettled.first().copied().unwrap_or(u64::MAX)
    }
}
