//! An opened RabbitMQ: its two connections, the queues that are in use, and what is in hand of each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::{BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::Notify;
use towpath_core::port::queue::Settings;
use towpath_core::port::routes::Binding;
use towpath_core::{Clock, ConsumerId, Error, QueueName, Result};
use tracing::warn;

use crate::broker::counters::Tally;
use crate::broker::in_flight::Hand;

use super::config::Config;
use super::connection::{Link, Open};
use super::consumer::Standing;
use super::consumer_channel::{Arrival, Held, Incoming, Ticket};
use super::definition::Shape;
use super::envelope;
use super::error;
use super::other_brokers::Elsewhere;
use super::publisher::{Letter, Publisher};
use super::quorum::Majority;

/// How long the broker is given before the end of a connection to pass on acks that it has read.
const PASSED_ON: Duration = Duration::from_millis(100);
const LONGEST_PASSED_ON: Duration = Duration::from_secs(2);

/// How often what nobody here wants is looked for.
const TEND: Duration = Duration::from_millis(250);

/// The backend.
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    /// Publishing has a connection of its own: the broker holds up a whole connection that publishes too fast.
    pub(super) publisher: Publisher,
    pub(super) link: Arc<Link>,
    queues: Mutex<BTreeMap<QueueName, Arc<Known>>>,
    /// One operator at a time looks through dead letters or bindings.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Bindings that were seen.
    pub(super) bindings: Mutex<BTreeSet<Binding>>,
    /// Bindings that this process made.
    pub(super) bound: Mutex<BTreeSet<Binding>>,
    /// Exchanges that are there, by the connection they were declared on.
    pub(super) exchanges: Mutex<HashMap<String, u64>>,
    /// When each exchange was last declared again.
    pub(super) restored: tokio::sync::Mutex<HashMap<String, Instant>>,
    /// When what was declared was last looked for.
    pub(super) looked: Mutex<Instant>,
    pub(super) majority: Arc<Majority>,
    pub(super) elsewhere: Elsewhere,
    numbers: AtomicU64,
    closed: AtomicBool,
}

/// A queue in use.
pub(super) struct Known {
    pub(super) name: QueueName,
    /// Its name on the broker.
    pub(super) wire: String,
    pub(super) settings: Mutex<Settings>,
    hand: Mutex<Hand<Arrival>>,
    /// Held while messages go back to the broker: they are neither in the hand nor in the queue then, or in both.
    pub(super) returning: tokio::sync::Mutex<()>,
    /// Something waits in the hand.
    pub(super) news: Notify,
    pub(super) desk: tokio::sync::Mutex<Option<Desk>>,
    /// Asked for by name, so that it is looked after also while no call uses it.
    pub(super) is_declared: AtomicBool,
    /// Found missing since it was last declared.
    pub(super) missing: AtomicBool,
    pub(super) declared_at: Mutex<Option<Instant>>,
    /// Not to be declared again just now, and logged.
    pub(super) is_unwell: AtomicBool,
    /// What it is, as far as the broker says.
    pub(super) shape: Mutex<Option<Shape>>,
    /// Since when messages were seen to wait without a consumer.
    pub(super) stuck_since: Mutex<Option<Instant>>,
    /// Delays, in milliseconds, that have a queue; `None` until somebody looked.
    pub(super) delays: Mutex<Option<BTreeSet<u64>>>,
    /// Bytes of the largest payload that came.
    pub(super) largest: AtomicUsize,
    pub(super) tally: Tally,
    pub(super) standing: tokio::sync::Mutex<HashMap<ConsumerId, Arc<Standing>>>,
}

/// The channel that messages of one queue are fetched and acked on.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) open: Open,
    pub(super) incoming: Arc<Incoming>,
    /// How often a message may have come back before it is published again; `None` where the broker does not count.
    pub(super) renew_after: Option<u32>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// What is in hand, without what a lost connection or channel took along.
    pub(super) fn hand(&self, store: &Store) -> MutexGuard<'_, Hand<Arrival>> {
        let mut hand = lock(&self.hand);
        let connection = store.link.number();
        // Messages in a row mostly came by one channel.
        let last = std::cell::Cell::new((std::ptr::null(), false));
        drop(hand.drain(|held| {
            let incoming = &held.origin.incoming;
            let (known, mut is_lost) = last.get();
            if known != Arc::as_ptr(incoming) {
                is_lost = !incoming.channel.status().connected();
                last.set((Arc::as_ptr(incoming), is_lost));
            }
            is_lost || held.origin.connection != connection
        }));
        hand
    }

    pub(super) fn declared_at(&self) -> Option<Instant> {
        *lock(&self.declared_at)
    }

    /// Whether it was declared so recently.
    pub(super) fn declared_within(&self, pause: Duration) -> bool {
        self.declared_at().is_some_and(|at| at.elapsed() < pause)
    }

    /// Where its dead letters are.
    pub(super) fn dead(&self) -> String {
        format!("{}.dead", self.wire)
    }
}

impl Store {
    pub(super) fn open(config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        let link = Arc::new(Link::new("consuming", config.clone()));
        let majority = Arc::new(Majority::new(Arc::clone(&link), &config.prefix));
        let publishing = Link::new("publishing", config.clone());
        let store = Arc::new(Self {
            publisher: Publisher::new(publishing, Arc::clone(&majority)),
            link,
            majority,
            bound: Mutex::default(),
            restored: tokio::sync::Mutex::default(),
            looked: Mutex::new(Instant::now()),
            queues: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            bindings: Mutex::default(),
            exchanges: Mutex::default(),
            // Receipts of another process or an earlier one are never taken for ours.
            numbers: AtomicU64::new(clock.now().as_millis() << 20),
            closed: AtomicBool::new(false),
            elsewhere: Elsewhere::new(&config),
            config,
            clock,
        });
        // Ends with the store.
        tokio::spawn(tend(Arc::downgrade(&store)));
        store.watch_elsewhere();
        store
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(Error::unavailable("the backend is closed"))
        } else {
            Ok(())
        }
    }

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The queue's entry, made when it is new to this process.
    pub(super) fn known(&self, queue: &QueueName) -> Result<Arc<Known>> {
        let wire = format!("{}{queue}", self.config.prefix);
        // Room for what stands behind the names of the queues beside it.
        if wire.len() > 230 {
            return Err(Error::invalid(format!(
                "the name of queue `{queue}` is too long for RabbitMQ; 230 bytes with the prefix are the limit"
            )));
        }
        let mut queues = lock(&self.queues);
        let known = queues.entry(queue.clone()).or_insert_with(|| {
            Arc::new(Known {
                name: queue.clone(),
                wire,
                settings: Mutex::default(),
                hand: Mutex::default(),
                returning: tokio::sync::Mutex::default(),
                news: Notify::new(),
                desk: tokio::sync::Mutex::default(),
                is_declared: AtomicBool::new(false),
                missing: AtomicBool::new(false),
                declared_at: Mutex::default(),
                is_unwell: AtomicBool::new(false),
                shape: Mutex::default(),
                stuck_since: Mutex::default(),
                delays: Mutex::default(),
                largest: AtomicUsize::new(0),
                tally: Tally::default(),
                standing: tokio::sync::Mutex::default(),
            })
        });
        Ok(Arc::clone(known))
    }

    /// Every queue that this process has used.
    pub(super) fn all_known(&self) -> Vec<Arc<Known>> {
        lock(&self.queues).values().cloned().collect()
    }

    /// How many messages wait in each of these queues, and how many consumers each has; `None` for those that are not
    /// there.
    pub(super) async fn count(&self, names: &[String]) -> Result<Vec<Option<(u64, u64)>>> {
        self.check_open()?;
        let open = self.link.open().await?;
        let mut channel = None;
        let mut counts = Vec::new();
        for name in names {
            let on = match channel.take() {
                Some(on) => on,
                None => self.link.channel(&open).await?,
            };
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let asked = on.queue_declare(name.as_str().into(), options, FieldTable::default());
            match self.link.ask(&open, asked).await? {
                Ok(queue) => {
                    let (messages, consumers) = (queue.message_count(), queue.consumer_count());
                    counts.push(Some((messages.into(), consumers.into())));
                    channel = Some(on);
                }
                // The refusal closes the channel, and only that.
                Err(told) if error::is_not_found(&told) => counts.push(None),
                Err(told) => return Err(self.link.failed(&open, told)),
            }
        }
        Ok(counts)
    }

    /// Ends what was handed out, and returns once the broker has read that.
    pub(super) async fn ack(&self, desk: &Desk, done: &[Held]) -> Result<()> {
        for (incoming, tickets) in by_channel(done) {
            self.link.call(&desk.open, incoming.ack(&tickets)).await?;
            self.settle_down(desk, &incoming.channel).await?;
        }
        Ok(())
    }

    /// An answer on a channel comes after everything that was sent on it before.
    pub(super) async fn settle_down(&self, desk: &Desk, channel: &Channel) -> Result<()> {
        let asked = channel.basic_qos(0, BasicQosOptions::default());
        self.link.call(&desk.open, asked).await
    }

    /// Sends a message on to another queue, or anew into its own, confirmed.
    pub(super) fn letter(to: String, held: &Held) -> Letter {
        Self::letter_of(to, held, held.charged)
    }

    /// The same with another number of attempts.
    pub(super) fn letter_of(to: String, held: &Held, attempts: u32) -> Letter {
        let mut envelope = held.envelope.clone();
        envelope.attempts = attempts;
        Letter {
            exchange: String::new(),
            routing_key: to,
            properties: envelope::properties(&envelope),
            payload: envelope.message.payload,
        }
    }

    /// Gives messages back to the broker with the attempts that they really had.
    pub(super) async fn give_back(&self, known: &Known, all: Vec<Held>) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let desk = self.desk(known).await?;
        self.give_back_at(&desk, known, all).await
    }

    async fn give_back_at(&self, desk: &Desk, known: &Known, all: Vec<Held>) -> Result<()> {
        let (untold, told): (Vec<Held>, Vec<Held>) = all
            .into_iter()
            .filter(|held| held.origin.connection == desk.open.number)
            // A return raises the broker's count, and that may be limited.
            .partition(|held| {
                held.charged != held.origin.charged_by_return || held.origin.returns > 0
            });
        for (incoming, tickets) in by_channel(&told) {
            self.link.call(&desk.open, incoming.nack(&tickets)).await?;
        }
        // The broker would count wrong: a copy with the right number takes the place.
        let letters = untold
            .iter()
            .map(|held| Self::letter(known.wire.clone(), held));
        let sent = self.post(known, letters.collect()).await;
        let (done, failed): (Vec<_>, Vec<_>) = untold
            .into_iter()
            .zip(sent)
            .partition(|(_, sent)| sent.is_ok());
        let done: Vec<Held> = done.into_iter().map(|(held, _)| held).collect();
        self.ack(desk, &done).await?;
        match failed.into_iter().next() {
            Some((_, Err(error))) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn close(&self) -> Result<()> {
        let known = self.all_known();
        if !self.closed.swap(true, Ordering::AcqRel) {
            let (began, is_used) = (Instant::now(), !known.is_empty());
            for known in known {
                known.news.notify_waiters();
                let _returning = known.returning.lock().await;
                self.end_where(&known, |_, _| true).await;
                let held = known.hand(self).drain_all();
                if held.is_empty() {
                    continue;
                }
                // What cannot be given back comes back with the connection's end.
                let desk = known.desk.lock().await.clone();
                if let Some(desk) = desk
                    && let Err(error) = self.give_back_at(&desk, &known, held).await
                {
                    warn!(queue = %known.name, error = error.chain(), "deliveries come back with the connection's end");
                }
            }
            // The broker forgets acks that it has read and not passed on when their channel ends, and says nothing when it
            // has passed them on. A cancelled consumer and a confirmed copy are answered once passed on, so what that took
            // is a measure.
            if is_used {
                let moment = began.elapsed() * 2;
                tokio::time::sleep(moment.clamp(PASSED_ON, LONGEST_PASSED_ON)).await;
            }
            self.elsewhere.close().await;
            self.publisher.link.close().await;
            self.link.close().await;
        }
        Ok(())
    }
}

/// What came by each channel.
fn by_channel(all: &[Held]) -> Vec<(&Arc<Incoming>, Vec<&Ticket>)> {
    let mut found: Vec<(&Arc<Incoming>, Vec<&Ticket>)> = Vec::new();
    for held in all {
        let known =
            |(incoming, _): &&mut (&Arc<Incoming>, _)| Arc::ptr_eq(incoming, &held.origin.incoming);
        match found.iter_mut().find(known) {
            Some((_, tickets)) => tickets.push(&held.origin.ticket),
            None => found.push((&held.origin.incoming, vec![&held.origin.ticket])),
        }
    }
    found
}

/// Gives back what waits in this process and nobody here takes, as long as the store is open.
async fn tend(store: Weak<Store>) {
    loop {
        tokio::time::sleep(TEND).await;
        let Some(store) = store.upgrade() else {
            return;
        };
        if store.check_open().is_err() {
            return;
        }
        store.look_after().await;
        for known in store.all_known() {
            let _returning = known.returning.lock().await;
            store.end_idle(&known).await;
            let late = known.hand(&store).drain_late();
            if let Err(error) = store.give_back(&known, late).await {
                warn!(queue = %known.name, error = error.chain(), "a message comes back with the connection's end");
            }
        }
    }
}
