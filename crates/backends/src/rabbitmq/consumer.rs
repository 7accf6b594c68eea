//! Consumers that stand: while somebody leases again and again, the broker sends ahead, up to what one lease asks for.
//!
//! Fetching each message costs the broker a consensus step; a consumer with a prefetch shares one among many.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery as Arrival;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::task::JoinHandle;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{ConsumerId, Result};
use tracing::warn;

use super::consumer_channel::{Held, Incoming};
use super::error;
use super::lease::ENOUGH_BYTES;
use super::store::{Desk, Known, Store, lock};

/// How long one stands that nobody leases by.
const IDLE: Duration = Duration::from_secs(1);

/// How long a new one is given to be sent what is there.
const MOMENT: Duration = Duration::from_millis(20);

/// How long its channel stays after that.
const LINGER: Duration = Duration::from_secs(5);

/// Messages put into the hand before those who wait for them are woken.
const CHUNK: usize = 1_000;

/// A consumer of the broker that works for one of ours.
pub(super) struct Standing {
    desk: Desk,
    incoming: Arc<Incoming>,
    tag: ShortString,
    /// Messages that it may have unsettled.
    window: u16,
    used: Mutex<Instant>,
    received: Mutex<Option<JoinHandle<()>>>,
    end: Arc<End>,
}

/// How a consumer of the broker ends.
#[derive(Default)]
struct End {
    /// Asked for here.
    asked: AtomicBool,
    /// Nothing comes by it any more.
    came: AtomicBool,
}

impl Standing {
    /// Notes that somebody still leases by it.
    pub(super) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Whether the broker still sends by it.
    fn stands(&self) -> bool {
        self.incoming.channel.status().connected() && !self.end.came.load(Ordering::Acquire)
    }

    /// Ends it, and returns once everything that it was sent is in the hand.
    async fn end(&self, store: &Store) {
        self.end.asked.store(true, Ordering::Release);
        if self.end.came.load(Ordering::Acquire) {
            return;
        }
        let options = BasicCancelOptions::default();
        let cancel = self
            .incoming
            .channel
            .basic_cancel(self.tag.clone(), options);
        // A connection that fails here is given up, and takes the consumer along.
        if store.link.call(&self.desk.open, cancel).await.is_err() {
            return;
        }
        let received = lock(&self.received).take();
        if let Some(received) = received {
            drop(tokio::time::timeout(store.config.timeout, received).await);
        }
        // The broker forgets acks that it has read and not passed on when their channel ends.
        let incoming = Arc::clone(&self.incoming);
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(incoming);
        });
    }
}

impl Store {
    /// The consumer that stands for this lease's, made when there is none, and anew when all
    /// that it may have is leased or when it may have more than fits.
    pub(super) async fn stand(
        self: &Arc<Self>,
        known: &Arc<Known>,
        request: &LeaseRequest,
    ) -> Result<Arc<Standing>> {
        let desk = self.desk(known).await?;
        let largest = known.largest.load(Ordering::Relaxed).max(1);
        let window = request.in_flight.max(request.max);
        let window = window.min(ENOUGH_BYTES / largest).max(1);
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        // One at a time: two leases of one consumer share it.
        let mut all = known.standing.lock().await;
        if let Some(standing) = all.get(&request.consumer)
            && standing.desk.open.number == desk.open.number
            && standing.stands()
        {
            let ours = |held: &&Held| Arc::ptr_eq(&held.origin.incoming, &standing.incoming);
            let leased = known.hand(self).leased().filter(ours).count();
            if leased < usize::from(standing.window) && standing.window <= window {
                standing.touch();
                return Ok(Arc::clone(standing));
            }
            standing.end(self).await;
        }
        all.remove(&request.consumer);
        let channel = self.link.channel(&desk.open).await?;
        let bound = channel.basic_qos(window, BasicQosOptions::default());
        self.link.call(&desk.open, bound).await?;
        let consume = channel.basic_consume(
            known.wire.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = match self.link.ask(&desk.open, consume).await? {
            Ok(consumer) => consumer,
            Err(told) => {
                // The next call declares it.
                known
                    .missing
                    .fetch_or(error::is_not_found(&told), Ordering::AcqRel);
                return Err(self.link.failed(&desk.open, told));
            }
        };
        let incoming = Incoming::in_order(channel);
        let end = Arc::new(End::default());
        let standing = Arc::new(Standing {
            tag: consumer.tag(),
            incoming: Arc::clone(&incoming),
            window,
            used: Mutex::new(Instant::now()),
            received: Mutex::default(),
            desk: desk.clone(),
            end: Arc::clone(&end),
        });
        let receiving = receive(
            Arc::downgrade(self),
            Arc::clone(known),
            desk,
            incoming,
            consumer,
            end,
        );
        let mut news = std::pin::pin!(known.news.notified());
        news.as_mut().enable();
        // Ends with the consumer, and that with its connection at the latest.
        *lock(&standing.received) = Some(tokio::spawn(receiving));
        all.insert(request.consumer.clone(), Arc::clone(&standing));
        drop(all);
        // Then the first lease is as full as one that fetches.
        drop(tokio::time::timeout(MOMENT, news).await);
        Ok(standing)
    }

    /// Ends those that nobody leases by any more.
    pub(super) async fn end_idle(&self, known: &Known) {
        let is_idle = |_: &ConsumerId, standing: &Arc<Standing>| {
            let waits = Arc::strong_count(standing) > 1;
            !waits && lock(&standing.used).elapsed() >= IDLE
        };
        self.end_where(known, is_idle).await;
    }

    /// Ends those that are so. Everything that they were sent is in the hand then.
    pub(super) async fn end_where(
        &self,
        known: &Known,
        which: impl Fn(&ConsumerId, &Arc<Standing>) -> bool,
    ) {
        let mut all = known.standing.lock().await;
        let gone: Vec<_> = all
            .extract_if(|who, standing| which(who, standing))
            .collect();
        drop(all);
        for (_, standing) in gone {
            if self.link.is_live(standing.desk.open.number) {
                standing.end(self).await;
            }
        }
    }
}

/// Puts what the broker sends into the hand, until the consumer ends.
async fn receive(
    store: Weak<Store>,
    known: Arc<Known>,
    desk: Desk,
    incoming: Arc<Incoming>,
    consumer: Consumer,
    end: Arc<End>,
) {
    let mut chunks = consumer.ready_chunks(CHUNK);
    while let Some(arrivals) = chunks.next().await {
        let Some(store) = store.upgrade() else { return };
        for arrival in arrivals {
            if let Err(error) = put(&store, &known, &desk, &incoming, arrival).await {
                warn!(queue = %known.name, error = error.chain(), "a message comes back with the connection's end");
            }
        }
        known.news.notify_waiters();
    }
    end.came.store(true, Ordering::Release);
    let is_live = |store: Arc<Store>| store.link.is_live(desk.open.number);
    if !end.asked.load(Ordering::Acquire) && store.upgrade().is_some_and(is_live) {
        known.missing.store(true, Ordering::Release);
        warn!(
            queue = %known.name,
            node = desk.open.node,
            "consumer cancelled by rabbitmq; consuming again"
        );
    }
    // Those who wait look again.
    known.news.notify_waiters();
}

async fn put(
    store: &Store,
    known: &Known,
    desk: &Desk,
    incoming: &Arc<Incoming>,
    arrival: lapin::Result<Arrival>,
) -> Result<()> {
    match arrival {
        Ok(arrival) => store.arrive(known, desk, incoming, arrival).await,
        Err(told) => Err(store.link.failed(&desk.open, told)),
    }
}
