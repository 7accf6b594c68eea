//! Declares queues, and declares missing ones again.
//!
//! An existing queue is declared passively first, so that a user without the `configure` permission can use it,
//! and used as it is. A lost declaration is detected by a returned message, a
//! cancelled consumer, a refused call, or a check every few seconds, and declared again at most once per pause.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use towpath_core::port::routes::Binding;
use towpath_core::{Error, Result, ResultExt};
use tracing::{info, warn};

use super::connection::OpenConnection;
use super::consumer_channel::ConsumerChannel;
use super::definition::QueueDefinition;
use super::error;
use super::publisher::{Publish, PublishError, PublishResult};
use super::store::{QueueChannel, QueueHandle, Store, lock};

/// The shortest time between two declarations of one thing.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Interval of the check for lost declarations.
const LOOK: Duration = Duration::from_secs(5);

/// More arguments than a queue can have.
const ROUNDS: usize = 24;

/// Queues that another program declares durable and without arguments, before or after this one: those of the order
/// pipeline that `docs/reference/orders.md` describes.
const PLAIN: [&str; 2] = ["orders.queue", "notifier.queue"];

/// An existing queue.
pub(super) struct Declared {
    pub(super) definition: QueueDefinition,
    pub(super) was_there: bool,
}

impl Store {
    /// The channel of a queue. On a new connection, and when the queue was found missing, it is declared
    /// again with its bindings.
    pub(super) async fn queue_channel(&self, handle: &QueueHandle) -> Result<QueueChannel> {
        self.check_open()?;
        let mut kept = handle.queue_channel.lock().await;
        let live = kept
            .as_ref()
            .filter(|queue_channel| self.broker.is_live(queue_channel.open.number))
            .filter(|queue_channel| queue_channel.consumer_channel.channel.status().connected());
        if let Some(queue_channel) = live
            && (!handle.missing.load(Ordering::Acquire) || handle.declared_within(PAUSE))
        {
            return Ok(queue_channel.clone());
        }
        let open = self.broker.open().await?;
        let before = handle.declared_at().is_some();
        handle.missing.store(false, Ordering::Release);
        let declared = match self.declare_all(&open, handle).await {
            Ok(declared) => declared,
            Err(error) => {
                handle.missing.store(true, Ordering::Release);
                return Err(error);
            }
        };
        if !declared.was_there {
            if before {
                warn!(queue = %handle.name, node = open.node, "queue missing; declared again");
            } else {
                info!(queue = %handle.name, node = open.node, "queue declared");
            }
        }
        let renew_after = declared.definition.renew_after();
        *lock(&handle.definition) = Some(declared.definition);
        *lock(&handle.declared_at) = Some(Instant::now());
        // Deliveries of the existing channel are settled on it.
        let consumer_channel = match kept.take() {
            Some(queue_channel)
                if queue_channel.open.number == open.number
                    && queue_channel.consumer_channel.channel.status().connected() =>
            {
                queue_channel.consumer_channel
            }
            _ => ConsumerChannel::in_any_order(self.broker.channel(&open).await?),
        };
        let queue_channel = QueueChannel {
            open,
            consumer_channel,
            renew_after,
        };
        *kept = Some(queue_channel.clone());
        Ok(queue_channel)
    }

    async fn declare_all(&self, open: &OpenConnection, handle: &QueueHandle) -> Result<Declared> {
        let dead = self.declare_side(open, &handle.dead(), self.side()).await;
        let declared = self
            .declare(open, &handle.wire, self.definition(handle))
            .await?;
        if let Err(error) = dead
            && (!declared.was_there || !error::is_permission(&error))
        {
            return Err(error);
        }
        if declared.definition.is_quorum() && self.watch_majority(open).await.is_err() {
            // Only the readiness check loses precision.
            info!("quorum probe disabled; the user may not declare `towpath.probe`");
        }
        self.rebind(open, handle).await?;
        Ok(declared)
    }

    async fn watch_majority(&self, open: &OpenConnection) -> Result<()> {
        let name = self.quorum.queue.clone();
        self.declare_side(open, &name, self.side()).await?;
        self.quorum.is_there().await;
        Ok(())
    }

    /// The definition of a missing queue.
    pub(super) fn definition(&self, handle: &QueueHandle) -> QueueDefinition {
        if let Some(definition) = &*lock(&handle.definition)
            && definition.is_kept_from_loss()
        {
            // Without arguments that this broker does not know or has set differently.
            return definition.clone();
        }
        let is_plain = PLAIN.contains(&handle.name.as_str());
        match self.config.quorum {
            None if is_plain => QueueDefinition::plain(),
            _ => self.side().dead_lettering_to(&handle.dead()),
        }
    }

    /// The definition of the delay and dead-letter queues.
    pub(super) fn side(&self) -> QueueDefinition {
        QueueDefinition::replicated(self.config.quorum.unwrap_or(true))
    }

    /// Whether declared queues are meant to be replicated; not those that other programs declare too.
    pub(super) fn replicates(&self, handle: &QueueHandle) -> bool {
        match self.config.quorum {
            None => !PLAIN.contains(&handle.name.as_str()),
            Some(quorum) => quorum,
        }
    }

    /// Declares a queue, or adopts the existing one.
    pub(super) async fn declare(
        &self,
        open: &OpenConnection,
        name: &str,
        mut definition: QueueDefinition,
    ) -> Result<Declared> {
        let was_there = self.find(open, name).await?.is_some();
        for _ in 0..ROUNDS {
            let channel = self.broker.channel(open).await?;
            let declared =
                channel.queue_declare(name.into(), definition.options(), definition.arguments());
            match self.broker.ask(open, declared).await? {
                Ok(_) => {
                    return Ok(Declared {
                        definition,
                        was_there,
                    });
                }
                Err(error) if was_there && error::is_refused(&error) => break,
                Err(error)
                    if error::is_different(&error)
                        && error::text(&error).is_some_and(|text| definition.learn(text)) => {}
                Err(error) if was_there && error::is_different(&error) => break,
                Err(error) => {
                    let error = self.broker.failed(open, error);
                    return Err(error).context(|| format!("declare queue `{name}` of rabbitmq"));
                }
            }
        }
        let definition = QueueDefinition::unknown();
        Ok(Declared {
            definition,
            was_there,
        })
    }

    /// Declares a queue of our own, unless it exists.
    pub(super) async fn declare_side(
        &self,
        open: &OpenConnection,
        name: &str,
        definition: QueueDefinition,
    ) -> Result<()> {
        if self.find(open, name).await?.is_some() {
            return Ok(());
        }
        self.declare(open, name, definition).await.map(drop)
    }

    /// Numbers of waiting messages and of consumers; `None` for a missing queue.
    ///
    /// # Errors
    /// `Unavailable` also for a classic queue whose node is down.
    pub(super) async fn find(
        &self,
        open: &OpenConnection,
        name: &str,
    ) -> Result<Option<(u64, u64)>> {
        let channel = self.broker.channel(open).await?;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = channel.queue_declare(name.into(), options, FieldTable::default());
        match self.broker.ask(open, asked).await? {
            Ok(queue) => Ok(Some((
                queue.message_count().into(),
                queue.consumer_count().into(),
            ))),
            Err(error) if error::is_not_found(&error) && !error::is_home_node_down(&error) => {
                Ok(None)
            }
            Err(error) => Err(self.broker.failed(open, error)),
        }
    }

    /// Declares a queue again that was found missing after `since`. Returns whether to retry.
    pub(super) async fn declare_again(&self, handle: &QueueHandle, since: Instant) -> Result<bool> {
        if let Some(at) = handle.declared_at() {
            if at > since {
                return Ok(true);
            }
            if at.elapsed() < PAUSE {
                return Ok(false);
            }
        }
        handle.missing.store(true, Ordering::Release);
        self.queue_channel(handle).await?;
        Ok(true)
    }

    /// Publishes to a queue and its delay and dead-letter queues; missing ones are declared, and their messages sent again.
    pub(super) async fn post(
        &self,
        handle: &QueueHandle,
        publishes: Vec<Publish>,
    ) -> Vec<Result<()>> {
        let began = Instant::now();
        let publishes: Arc<[Publish]> = publishes.into();
        let mut outcomes = self.publisher.send_batched(Arc::clone(&publishes)).await;
        let returned = |(at, sent): (usize, &PublishResult)| match sent {
            Err(PublishError::Returned(_)) => Some(at),
            _ => None,
        };
        let lost: Vec<usize> = outcomes.iter().enumerate().filter_map(returned).collect();
        if !lost.is_empty() {
            match self.declare_places(handle, &publishes, &lost, began).await {
                Ok(true) => {
                    let again: Vec<&Publish> = lost.iter().map(|at| &publishes[*at]).collect();
                    for (at, sent) in lost.iter().zip(self.publisher.send(&again).await) {
                        outcomes[*at] = sent;
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    let text = error.chain();
                    for at in lost {
                        outcomes[at] = Err(PublishError::Failed(Error::unavailable(text.clone())));
                    }
                }
            }
        }
        let outcome = |sent: PublishResult| {
            sent.map_err(|lost| match lost {
                // Missing queues are declared, so `NotFound` here is a state of the broker: `Unavailable`.
                PublishError::Returned(text) | PublishError::NoExchange(text) => {
                    Error::unavailable(text)
                }
                PublishError::Failed(error) => error,
            })
        };
        outcomes.into_iter().map(outcome).collect()
    }

    async fn declare_places(
        &self,
        handle: &QueueHandle,
        publishes: &[Publish],
        lost: &[usize],
        since: Instant,
    ) -> Result<bool> {
        let is_worth_it = self.declare_again(handle, since).await?;
        if is_worth_it {
            for at in lost {
                self.declare_delay(handle, &publishes[*at].routing_key)
                    .await?;
            }
        }
        Ok(is_worth_it)
    }

    /// Declares the bindings of a queue that this process made.
    async fn rebind(&self, open: &OpenConnection, handle: &QueueHandle) -> Result<()> {
        let bound: Vec<Binding> = {
            let bound = lock(&self.bound);
            let of_queue = bound.iter().filter(|one| one.queue == handle.name);
            of_queue.cloned().collect()
        };
        for binding in bound {
            self.bind_on(open, handle, &binding).await?;
        }
        Ok(())
    }

    /// Declares a binding; idempotent.
    pub(super) async fn bind_on(
        &self,
        open: &OpenConnection,
        handle: &QueueHandle,
        binding: &Binding,
    ) -> Result<()> {
        let exchange = self.exchange(&binding.exchange).await?;
        // A separate channel: a refusal closes it, and would requeue its deliveries.
        let channel = self.broker.channel(open).await?;
        let bound = channel.queue_bind(
            handle.wire.as_str().into(),
            exchange.into(),
            binding.pattern.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.broker.call(open, bound).await
    }

    /// Checks for lost declarations, every few seconds.
    pub(super) async fn restore_declared(&self) {
        {
            let mut looked = lock(&self.looked);
            if looked.elapsed() < LOOK {
                return;
            }
            *looked = Instant::now();
        }
        if !self.broker.is_connected() {
            // The next call dials, and declares everything.
            return;
        }
        for handle in self.handles() {
            if !handle.is_declared.load(Ordering::Acquire) {
                continue;
            }
            let looked = self.restore_declared_one(&handle).await;
            let was_unwell = handle
                .declare_failing
                .swap(looked.is_err(), Ordering::AcqRel);
            if let Err(error) = looked
                && !was_unwell
            {
                warn!(queue = %handle.name, error = error.chain(), "queue unavailable; checking again every few seconds");
            }
        }
    }

    async fn restore_declared_one(&self, handle: &QueueHandle) -> Result<()> {
        let queue_channel = self.queue_channel(handle).await?;
        if self
            .find(&queue_channel.open, &handle.wire)
            .await?
            .is_none()
        {
            handle.missing.store(true, Ordering::Release);
            return self.queue_channel(handle).await.map(drop);
        }
        let exchanges = {
            let bound = lock(&self.bound);
            let of_queue = bound.iter().filter(|one| one.queue == handle.name);
            of_queue.map(|one| one.exchange.clone()).collect::<Vec<_>>()
        };
        for exchange in exchanges {
            self.forget_exchange(&exchange);
        }
        self.rebind(&queue_channel.open, handle).await
    }
}

/// Sets the message TTL of a queue.
pub(super) fn after_millis(definition: QueueDefinition, millis: u64) -> QueueDefinition {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    definition.with("x-message-ttl", AMQPValue::LongLongInt(millis))
}
