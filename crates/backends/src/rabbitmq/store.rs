//! An opened RabbitMQ: two connections, the queues in use, and their in-flight messages.

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

use crate::broker::counters::Counters;
use crate::broker::in_flight::InFlight;

use super::config::Config;
use super::connection::{BrokerConnection, OpenConnection};
use super::consumer::PrefetchConsumer;
use super::consumer_channel::{ConsumerChannel, DeliveryTag, InFlightMessage, IncomingMessage};
use super::definition::QueueDefinition;
use super::envelope;
use super::error;
use super::other_brokers::OtherBrokers;
use super::publisher::{Publish, Publisher};
use super::quorum::QuorumCheck;

/// Time for the broker to process acks before a connection closes.
const PASSED_ON: Duration = Duration::from_millis(100);
const LONGEST_PASSED_ON: Duration = Duration::from_secs(2);

/// Interval of maintenance.
const MAINTAIN_INTERVAL: Duration = Duration::from_millis(250);

/// The backend.
pub(super) struct Store {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    /// Publishing has its own connection: the broker throttles a whole connection that publishes too fast.
    pub(super) publisher: Arc<Publisher>,
    pub(super) broker: Arc<BrokerConnection>,
    queues: Mutex<BTreeMap<QueueName, Arc<QueueHandle>>>,
    /// One operation at a time on dead letters or bindings.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Recorded bindings.
    pub(super) bindings: Mutex<BTreeSet<Binding>>,
    /// Bindings that this process made.
    pub(super) bound: Mutex<BTreeSet<Binding>>,
    /// Existing exchanges, by the connection they were declared on.
    pub(super) exchanges: Mutex<HashMap<String, u64>>,
    /// When each exchange was last declared again.
    pub(super) restored: tokio::sync::Mutex<HashMap<String, Instant>>,
    /// When lost declarations were last checked for.
    pub(super) looked: Mutex<Instant>,
    pub(super) quorum: Arc<QuorumCheck>,
    pub(super) other_brokers: OtherBrokers,
    numbers: AtomicU64,
    closed: AtomicBool,
}

/// A queue in use.
pub(super) struct QueueHandle {
    pub(super) name: QueueName,
    /// Its name on the broker.
    pub(super) wire: String,
    pub(super) settings: Mutex<Settings>,
    in_flight: Mutex<InFlight<IncomingMessage>>,
    /// Held while messages are requeued: they are then neither in flight nor in the queue, or in both.
    pub(super) returning: tokio::sync::Mutex<()>,
    /// A message became ready.
    pub(super) changed: Notify,
    pub(super) queue_channel: tokio::sync::Mutex<Option<QueueChannel>>,
    /// Declared by a caller: checked also while no call uses it.
    pub(super) is_declared: AtomicBool,
    /// Found missing since it was last declared.
    pub(super) missing: AtomicBool,
    pub(super) declared_at: Mutex<Option<Instant>>,
    /// Whether declaring it failed, and was logged.
    pub(super) declare_failing: AtomicBool,
    /// Its definition, as far as known.
    pub(super) definition: Mutex<Option<QueueDefinition>>,
    /// Since when messages wait without a consumer.
    pub(super) stuck_since: Mutex<Option<Instant>>,
    /// Delays that have a queue, in milliseconds; `None` until checked.
    pub(super) delays: Mutex<Option<BTreeSet<u64>>>,
    /// Bytes of the largest payload received.
    pub(super) largest: AtomicUsize,
    pub(super) counters: Counters,
    pub(super) consumers: tokio::sync::Mutex<HashMap<ConsumerId, Arc<PrefetchConsumer>>>,
}

/// The channel of basic.get and acks of one queue.
#[derive(Clone)]
pub(super) struct QueueChannel {
    pub(super) open: OpenConnection,
    pub(super) consumer_channel: Arc<ConsumerChannel>,
    /// Requeues after which a message is published again; `None` where the broker does not count.
    pub(super) renew_after: Option<u32>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl QueueHandle {
    /// The in-flight messages, without those of a closed connection or channel.
    pub(super) fn in_flight(&self, store: &Store) -> MutexGuard<'_, InFlight<IncomingMessage>> {
        let mut in_flight = lock(&self.in_flight);
        let connection = store.broker.number();
        // Consecutive messages mostly have the same channel.
        let last = std::cell::Cell::new((std::ptr::null(), false));
        drop(in_flight.drain(|held| {
            let consumer_channel = &held.origin.consumer_channel;
            let (handle, mut is_lost) = last.get();
            if handle != Arc::as_ptr(consumer_channel) {
                is_lost = !consumer_channel.channel.status().connected();
                last.set((Arc::as_ptr(consumer_channel), is_lost));
            }
            is_lost || held.origin.connection != connection
        }));
        in_flight
    }

    pub(super) fn declared_at(&self) -> Option<Instant> {
        *lock(&self.declared_at)
    }

    /// Whether it was declared within this time.
    pub(super) fn declared_within(&self, pause: Duration) -> bool {
        self.declared_at().is_some_and(|at| at.elapsed() < pause)
    }

    /// Its queue of dead letters.
    pub(super) fn dead(&self) -> String {
        format!("{}.dead", self.wire)
    }
}

impl Store {
    pub(super) fn open(config: Config, clock: Arc<dyn Clock>) -> Arc<Self> {
        let broker = Arc::new(BrokerConnection::new("consuming", config.clone()));
        let quorum = Arc::new(QuorumCheck::new(Arc::clone(&broker), &config.prefix));
        let publishing = BrokerConnection::new("publishing", config.clone());
        let store = Arc::new(Self {
            publisher: Arc::new(Publisher::new(publishing, Arc::clone(&quorum))),
            broker,
            quorum,
            bound: Mutex::default(),
            restored: tokio::sync::Mutex::default(),
            looked: Mutex::new(Instant::now()),
            queues: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            bindings: Mutex::default(),
            exchanges: Mutex::default(),
            // Distinct from the receipts of other and of earlier processes.
            numbers: AtomicU64::new(clock.now().as_millis() << 20),
            closed: AtomicBool::new(false),
            other_brokers: OtherBrokers::new(&config),
            config,
            clock,
        });
        // Ends with the store.
        crate::task::spawn(maintain(Arc::downgrade(&store)));
        store.watch_other_brokers();
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

    /// The handle of a queue, created on first use.
    pub(super) fn handle(&self, queue: &QueueName) -> Result<Arc<QueueHandle>> {
        let wire = format!("{}{queue}", self.config.prefix);
        // Room for the suffixes of the other queues.
        if wire.len() > 230 {
            return Err(Error::invalid(format!(
                "queue name `{queue}` too long for RabbitMQ; expected at most 230 bytes with the prefix"
            )));
        }
        let mut queues = lock(&self.queues);
        let handle = queues.entry(queue.clone()).or_insert_with(|| {
            Arc::new(QueueHandle {
                name: queue.clone(),
                wire,
                settings: Mutex::default(),
                in_flight: Mutex::default(),
                returning: tokio::sync::Mutex::default(),
                changed: Notify::new(),
                queue_channel: tokio::sync::Mutex::default(),
                is_declared: AtomicBool::new(false),
                missing: AtomicBool::new(false),
                declared_at: Mutex::default(),
                declare_failing: AtomicBool::new(false),
                definition: Mutex::default(),
                stuck_since: Mutex::default(),
                delays: Mutex::default(),
                largest: AtomicUsize::new(0),
                counters: Counters::default(),
                consumers: tokio::sync::Mutex::default(),
            })
        });
        Ok(Arc::clone(handle))
    }

    /// Every queue that this process has used.
    pub(super) fn handles(&self) -> Vec<Arc<QueueHandle>> {
        lock(&self.queues).values().cloned().collect()
    }

    /// Numbers of waiting messages and of consumers of each of these queues; `None` for those that do not
    /// exist.
    pub(super) async fn count(&self, names: &[String]) -> Result<Vec<Option<(u64, u64)>>> {
        self.check_open()?;
        let open = self.broker.open().await?;
        let mut channel = None;
        let mut counts = Vec::new();
        for name in names {
            let on = match channel.take() {
                Some(on) => on,
                None => self.broker.channel(&open).await?,
            };
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let asked = on.queue_declare(name.as_str().into(), options, FieldTable::default());
            match self.broker.ask(&open, asked).await? {
                Ok(queue) => {
                    let (messages, consumers) = (queue.message_count(), queue.consumer_count());
                    counts.push(Some((messages.into(), consumers.into())));
                    channel = Some(on);
                }
                // The refusal closes the channel only.
                Err(error) if error::is_not_found(&error) => counts.push(None),
                Err(error) => return Err(self.broker.failed(&open, error)),
            }
        }
        Ok(counts)
    }

    /// Acks deliveries, and returns once the broker has read the acks.
    pub(super) async fn ack(
        &self,
        queue_channel: &QueueChannel,
        done: &[InFlightMessage],
    ) -> Result<()> {
        for (consumer_channel, tags) in by_channel(done) {
            self.broker
                .call(&queue_channel.open, consumer_channel.ack(&tags))
                .await?;
            self.flush(queue_channel, &consumer_channel.channel).await?;
        }
        Ok(())
    }

    /// Waits for an answer on a channel, which follows everything sent on it before.
    pub(super) async fn flush(
        &self,
        queue_channel: &QueueChannel,
        channel: &Channel,
    ) -> Result<()> {
        let asked = channel.basic_qos(0, BasicQosOptions::default());
        self.broker.call(&queue_channel.open, asked).await
    }

    /// A copy of a message for another queue, or its own.
    pub(super) fn publish(to: String, held: &InFlightMessage) -> Publish {
        Self::publish_with_attempts(to, held, held.charged)
    }

    /// The same with this number of attempts.
    pub(super) fn publish_with_attempts(
        to: String,
        held: &InFlightMessage,
        attempts: u32,
    ) -> Publish {
        let mut envelope = held.envelope.clone();
        envelope.attempts = attempts;
        Publish {
            exchange: String::new(),
            routing_key: to,
            properties: envelope::properties(&envelope),
            payload: envelope.message.payload,
        }
    }

    /// Returns messages to the broker with their true attempts.
    pub(super) async fn return_messages(
        &self,
        handle: &QueueHandle,
        all: Vec<InFlightMessage>,
    ) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let queue_channel = self.queue_channel(handle).await?;
        self.return_messages_on(&queue_channel, handle, all).await
    }

    async fn return_messages_on(
        &self,
        queue_channel: &QueueChannel,
        handle: &QueueHandle,
        all: Vec<InFlightMessage>,
    ) -> Result<()> {
        let (recounted, returned): (Vec<InFlightMessage>, Vec<InFlightMessage>) = all
            .into_iter()
            .filter(|held| held.origin.connection == queue_channel.open.number)
            // A requeue raises the broker's count, which may be limited.
            .partition(|held| {
                held.charged != held.origin.charged_by_return || held.origin.returns > 0
            });
        for (consumer_channel, tags) in by_channel(&returned) {
            self.broker
                .call(&queue_channel.open, consumer_channel.nack(&tags))
                .await?;
        }
        // The broker's count would be wrong: a copy carries the right one.
        let publishes = recounted
            .iter()
            .map(|held| Self::publish(handle.wire.clone(), held));
        let sent = self.post(handle, publishes.collect()).await;
        let (done, failed): (Vec<_>, Vec<_>) = recounted
            .into_iter()
            .zip(sent)
            .partition(|(_, sent)| sent.is_ok());
        let done: Vec<InFlightMessage> = done.into_iter().map(|(held, _)| held).collect();
        self.ack(queue_channel, &done).await?;
        match failed.into_iter().next() {
            Some((_, Err(error))) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn close(&self) -> Result<()> {
        let handles = self.handles();
        if !self.closed.swap(true, Ordering::AcqRel) {
            let (began, is_used) = (Instant::now(), !handles.is_empty());
            for handle in handles {
                handle.changed.notify_waiters();
                let _returning = handle.returning.lock().await;
                self.cancel_where(&handle, |_, _| true).await;
                let held = handle.in_flight(self).drain_all();
                if held.is_empty() {
                    continue;
                }
                // Messages that cannot be returned are requeued when the connection closes.
                let queue_channel = handle.queue_channel.lock().await.clone();
                if let Some(queue_channel) = queue_channel
                    && let Err(error) = self.return_messages_on(&queue_channel, &handle, held).await
                {
                    warn!(queue = %handle.name, error = error.chain(), "deliveries not returned; requeued when the connection closes");
                }
            }
            // The broker drops acks that it has read and not processed when their channel closes, and does not report when it
            // has processed them. Cancels and confirms are answered after processing, so the time those took
            // is a measure.
            if is_used {
                let moment = began.elapsed() * 2;
                tokio::time::sleep(moment.clamp(PASSED_ON, LONGEST_PASSED_ON)).await;
            }
            self.other_brokers.close().await;
            self.publisher.broker.close().await;
            self.broker.close().await;
        }
        Ok(())
    }
}

/// Messages by channel.
fn by_channel(all: &[InFlightMessage]) -> Vec<(&Arc<ConsumerChannel>, Vec<&DeliveryTag>)> {
    let mut found: Vec<(&Arc<ConsumerChannel>, Vec<&DeliveryTag>)> = Vec::new();
    for held in all {
        let handle = |(consumer_channel, _): &&mut (&Arc<ConsumerChannel>, _)| {
            Arc::ptr_eq(consumer_channel, &held.origin.consumer_channel)
        };
        match found.iter_mut().find(handle) {
            Some((_, tags)) => tags.push(&held.origin.tag),
            None => found.push((&held.origin.consumer_channel, vec![&held.origin.tag])),
        }
    }
    found
}

/// Maintenance, as long as the store is open: restores declarations, and returns messages without a consumer.
async fn maintain(store: Weak<Store>) {
    loop {
        tokio::time::sleep(MAINTAIN_INTERVAL).await;
        let Some(store) = store.upgrade() else {
            return;
        };
        if store.check_open().is_err() {
            return;
        }
        store.restore_declared().await;
        for handle in store.handles() {
            let _returning = handle.returning.lock().await;
            store.cancel_idle(&handle).await;
            let late = handle.in_flight(&store).drain_late();
            if let Err(error) = store.return_messages(&handle, late).await {
                warn!(queue = %handle.name, error = error.chain(), "messages not returned; requeued when the connection closes");
            }
        }
    }
}
