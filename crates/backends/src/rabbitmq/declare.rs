//! Queues that are declared, and declared again when they are missing.
//!
//! A queue that is there is looked at passively first, so that a user without the `configure` permission can use it,
//! and used as it is. What this process declared and the broker no longer has is noticed by a returned message, a
//! cancelled consumer, a refused call, or by looking every few seconds, and declared again at most once a pause.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use towpath_core::port::routes::Binding;
use towpath_core::{Error, Result, ResultExt};
use tracing::{info, warn};

use super::connection::Open;
use super::consumer_channel::Incoming;
use super::definition::Shape;
use super::error;
use super::publisher::{Letter, Lost, Sent};
use super::store::{Desk, Known, Store, lock};

/// The shortest time between two declarations of one thing.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// How often what was declared is looked for.
const LOOK: Duration = Duration::from_secs(5);

/// More arguments than a queue can have.
const ROUNDS: usize = 24;

/// Queues that another program declares durable and without arguments, before or after this one: those of the order
/// pipeline that `docs/reference/orders.md` describes.
const PLAIN: [&str; 2] = ["orders.queue", "notifier.queue"];

/// A queue that is there now.
pub(super) struct Declared {
    pub(super) shape: Shape,
    pub(super) was_there: bool,
}

impl Store {
    /// The channel of a queue that is there. On a new connection, and when the queue was found missing, it is declared
    /// again with its bindings.
    pub(super) async fn desk(&self, known: &Known) -> Result<Desk> {
        self.check_open()?;
        let mut kept = known.desk.lock().await;
        let live = kept
            .as_ref()
            .filter(|desk| self.link.is_live(desk.open.number))
            .filter(|desk| desk.incoming.channel.status().connected());
        if let Some(desk) = live
            && (!known.missing.load(Ordering::Acquire) || known.declared_within(PAUSE))
        {
            return Ok(desk.clone());
        }
        let open = self.link.open().await?;
        let before = known.declared_at().is_some();
        known.missing.store(false, Ordering::Release);
        let declared = match self.declare_all(&open, known).await {
            Ok(declared) => declared,
            Err(error) => {
                known.missing.store(true, Ordering::Release);
                return Err(error);
            }
        };
        if !declared.was_there {
            if before {
                warn!(queue = %known.name, node = open.node, "queue missing; declared again");
            } else {
                info!(queue = %known.name, node = open.node, "queue declared");
            }
        }
        let renew_after = declared.shape.renew_after();
        *lock(&known.shape) = Some(declared.shape);
        *lock(&known.declared_at) = Some(Instant::now());
        // What came by the channel that is there is settled on it.
        let incoming = match kept.take() {
            Some(desk)
                if desk.open.number == open.number
                    && desk.incoming.channel.status().connected() =>
            {
                desk.incoming
            }
            _ => Incoming::in_any_order(self.link.channel(&open).await?),
        };
        let desk = Desk {
            open,
            incoming,
            renew_after,
        };
        *kept = Some(desk.clone());
        Ok(desk)
    }

    async fn declare_all(&self, open: &Open, known: &Known) -> Result<Declared> {
        let dead = self.declare_side(open, &known.dead(), self.side()).await;
        let declared = self.declare(open, &known.wire, self.shape(known)).await?;
        if let Err(error) = dead
            && (!declared.was_there || !error::is_permission(&error))
        {
            return Err(error);
        }
        if declared.shape.is_quorum() && self.watch_majority(open).await.is_err() {
            // Only readiness knows less then.
            info!("quorum queues cannot be probed: the user may not declare `towpath.probe`");
        }
        self.rebind(open, known).await?;
        Ok(declared)
    }

    async fn watch_majority(&self, open: &Open) -> Result<()> {
        let name = self.majority.queue.clone();
        self.declare_side(open, &name, self.side()).await?;
        self.majority.is_there().await;
        Ok(())
    }

    /// What a queue is made as when it is not there.
    pub(super) fn shape(&self, known: &Known) -> Shape {
        if let Some(shape) = &*lock(&known.shape)
            && shape.is_kept_from_loss()
        {
            // Without what this broker does not know or has otherwise.
            return shape.clone();
        }
        let is_plain = PLAIN.contains(&known.name.as_str());
        match self.config.quorum {
            None if is_plain => Shape::plain(),
            _ => self.side().dead_lettering_to(&known.dead()),
        }
    }

    /// What the queues beside one are made as.
    pub(super) fn side(&self) -> Shape {
        Shape::replicated(self.config.quorum.unwrap_or(true))
    }

    /// Whether queues that are made are meant to be replicated by the broker; not those that others make as well.
    pub(super) fn replicates(&self, known: &Known) -> bool {
        match self.config.quorum {
            None => !PLAIN.contains(&known.name.as_str()),
            Some(quorum) => quorum,
        }
    }

    /// Makes a queue, or adopts the one that is there.
    pub(super) async fn declare(
        &self,
        open: &Open,
        name: &str,
        mut shape: Shape,
    ) -> Result<Declared> {
        let was_there = self.find(open, name).await?.is_some();
        for _ in 0..ROUNDS {
            let channel = self.link.channel(open).await?;
            let declared = channel.queue_declare(name.into(), shape.options(), shape.arguments());
            match self.link.ask(open, declared).await? {
                Ok(_) => return Ok(Declared { shape, was_there }),
                Err(told) if was_there && error::is_refused(&told) => break,
                Err(told)
                    if error::is_different(&told)
                        && error::text(&told).is_some_and(|text| shape.learn(text)) => {}
                Err(told) if was_there && error::is_different(&told) => break,
                Err(told) => {
                    let error = self.link.failed(open, told);
                    return Err(error).context(|| format!("declare queue `{name}` of rabbitmq"));
                }
            }
        }
        let shape = Shape::unknown();
        Ok(Declared { shape, was_there })
    }

    /// Makes a queue that is ours alone, unless it is there.
    pub(super) async fn declare_side(&self, open: &Open, name: &str, shape: Shape) -> Result<()> {
        if self.find(open, name).await?.is_some() {
            return Ok(());
        }
        self.declare(open, name, shape).await.map(drop)
    }

    /// How many messages wait in a queue, and how many consumers it has; `None` when it is not there.
    ///
    /// # Errors
    /// `Unavailable` also for a classic queue whose node is down.
    pub(super) async fn find(&self, open: &Open, name: &str) -> Result<Option<(u64, u64)>> {
        let channel = self.link.channel(open).await?;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = channel.queue_declare(name.into(), options, FieldTable::default());
        match self.link.ask(open, asked).await? {
            Ok(queue) => Ok(Some((
                queue.message_count().into(),
                queue.consumer_count().into(),
            ))),
            Err(told) if error::is_not_found(&told) && !error::is_home_node_down(&told) => Ok(None),
            Err(told) => Err(self.link.failed(open, told)),
        }
    }

    /// Declares a queue again of which something was missing after `since`. Whether it is worth to try again.
    pub(super) async fn declare_again(&self, known: &Known, since: Instant) -> Result<bool> {
        if let Some(at) = known.declared_at() {
            if at > since {
                return Ok(true);
            }
            if at.elapsed() < PAUSE {
                return Ok(false);
            }
        }
        known.missing.store(true, Ordering::Release);
        self.desk(known).await?;
        Ok(true)
    }

    /// Sends to a queue or to those beside it; what is missing of them is declared again, and the messages sent again.
    pub(super) async fn post(&self, known: &Known, letters: Vec<Letter>) -> Vec<Result<()>> {
        let began = Instant::now();
        let mut outcomes = self.publisher.send(&letters).await;
        let returned = |(at, sent): (usize, &Sent)| match sent {
            Err(Lost::Returned(_)) => Some(at),
            _ => None,
        };
        let lost: Vec<usize> = outcomes.iter().enumerate().filter_map(returned).collect();
        if !lost.is_empty() {
            match self.declare_places(known, &letters, &lost, began).await {
                Ok(true) => {
                    let again: Vec<Letter> = lost.iter().map(|at| letters[*at].clone()).collect();
                    for (at, sent) in lost.iter().zip(self.publisher.send(&again).await) {
                        outcomes[*at] = sent;
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    let text = error.chain();
                    for at in lost {
                        outcomes[at] = Err(Lost::Failed(Error::unavailable(text.clone())));
                    }
                }
            }
        }
        let outcome = |sent: Sent| {
            sent.map_err(|lost| match lost {
                // The caller named a queue, and a queue that is missing is made: it is the broker's state that is wrong.
                Lost::Returned(text) | Lost::NoExchange(text) => Error::unavailable(text),
                Lost::Failed(error) => error,
            })
        };
        outcomes.into_iter().map(outcome).collect()
    }

    async fn declare_places(
        &self,
        known: &Known,
        letters: &[Letter],
        lost: &[usize],
        since: Instant,
    ) -> Result<bool> {
        let is_worth_it = self.declare_again(known, since).await?;
        if is_worth_it {
            for at in lost {
                self.declare_delay(known, &letters[*at].routing_key).await?;
            }
        }
        Ok(is_worth_it)
    }

    /// Makes the bindings of a queue that were made here.
    async fn rebind(&self, open: &Open, known: &Known) -> Result<()> {
        let bound: Vec<Binding> = {
            let bound = lock(&self.bound);
            let of_queue = bound.iter().filter(|one| one.queue == known.name);
            of_queue.cloned().collect()
        };
        for binding in bound {
            self.bind_on(open, known, &binding).await?;
        }
        Ok(())
    }

    /// Makes one binding; idempotent.
    pub(super) async fn bind_on(
        &self,
        open: &Open,
        known: &Known,
        binding: &Binding,
    ) -> Result<()> {
        let exchange = self.exchange(&binding.exchange).await?;
        // A channel of its own: a refusal ends it, and with it what came by it.
        let channel = self.link.channel(open).await?;
        let bound = channel.queue_bind(
            known.wire.as_str().into(),
            exchange.into(),
            binding.pattern.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        self.link.call(open, bound).await
    }

    /// Looks for what was declared, every few seconds.
    pub(super) async fn look_after(&self) {
        {
            let mut looked = lock(&self.looked);
            if looked.elapsed() < LOOK {
                return;
            }
            *looked = Instant::now();
        }
        if !self.link.is_connected() {
            // The next call dials, and declares everything then.
            return;
        }
        for known in self.all_known() {
            if !known.is_declared.load(Ordering::Acquire) {
                continue;
            }
            let looked = self.look_after_one(&known).await;
            let was_unwell = known.is_unwell.swap(looked.is_err(), Ordering::AcqRel);
            if let Err(error) = looked
                && !was_unwell
            {
                warn!(queue = %known.name, error = error.chain(), "queue unavailable; looking again every few seconds");
            }
        }
    }

    async fn look_after_one(&self, known: &Known) -> Result<()> {
        let desk = self.desk(known).await?;
        if self.find(&desk.open, &known.wire).await?.is_none() {
            known.missing.store(true, Ordering::Release);
            return self.desk(known).await.map(drop);
        }
        let exchanges = {
            let bound = lock(&self.bound);
            let of_queue = bound.iter().filter(|one| one.queue == known.name);
            of_queue.map(|one| one.exchange.clone()).collect::<Vec<_>>()
        };
        for exchange in exchanges {
            self.forget_exchange(&exchange);
        }
        self.rebind(&desk.open, known).await
    }
}

/// The argument for how long a queue keeps messages.
pub(super) fn after_millis(shape: Shape, millis: u64) -> Shape {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    shape.with("x-message-ttl", AMQPValue::LongLongInt(millis))
}
