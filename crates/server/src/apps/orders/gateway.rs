//! Accepting orders.
//!
//! Where keys and queues share a store an order is accepted in one atomic step. Elsewhere in three:
//!
//! ```text
//! reserve (record, for a few seconds) -> publish, confirmed -> confirm (record, counter)
//! ```
//!
//! A gateway that dies in between leaves a reservation that ends: until then a retry waits, then it takes over.
//! So "Duplicate order" is only ever said of an order that was published.

use std::time::Duration;

use bytes::Bytes;
use towpath_core::port::effects::{self, Transaction};
use towpath_core::port::kv::{Committed, Op};
use towpath_core::{Error, ErrorKind, Headers, Result, ResultExt};
use tracing::warn;

use super::ACCEPTED_COUNT;
use super::order::Order;
use super::record::{Record, State};
use super::store::{OrderStore, Stored, count, intake};
use towpath::traces;

/// Time for publishing before another gateway may reserve the order.
const RESERVATION: Duration = Duration::from_secs(5);

/// Interval of checks of another gateway's reservation.
const LOOK: Duration = Duration::from_millis(50);

/// The outcome of placing an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    /// It is on its way.
    New,
    /// The same order was accepted before.
    Duplicate,
    /// Its id belongs to another order.
    Taken,
}

/// Which half of accepting failed, for the contract's texts.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was published.
    Keys(Error),
    /// It is not known to be published; a retry is welcome.
    Publish(Error),
}

/// Accepts orders.
#[derive(Clone)]
pub struct Gateway(pub OrderStore);

impl Gateway {
    /// Takes a new order, given as its JSON text, and returns once it is durable.
    ///
    /// # Errors
    /// `Invalid` for an invalid order; `Conflict` when its id was used before; those of the backends.
    pub async fn take(&self, text: &[u8]) -> Result<()> {
        let order = Order::parse(text).map_err(|refusal| Error::invalid(refusal.as_str()))?;
        match self.accept(&order, Headers::default()).await {
            Ok(Accepted::New) => Ok(()),
            Ok(Accepted::Duplicate | Accepted::Taken) => Err(Error::conflict(format!(
                "order `{}` was accepted before",
                order.id
            ))),
            Err(Failure::Keys(error) | Failure::Publish(error)) => Err(error),
        }
    }

    /// Takes an order, and returns once it is durable.
    pub(super) async fn accept(
        &self,
        order: &Order,
        trace: Headers,
    ) -> std::result::Result<Accepted, Failure> {
        match &self.0.effects {
            Some(effects) => self.at_once(&**effects, order, trace).await,
            None => self.in_steps(order, trace).await,
        }
    }

    async fn at_once(
        &self,
        effects: &dyn effects::Effects,
        order: &Order,
        trace: Headers,
    ) -> std::result::Result<Accepted, Failure> {
        let record = Record::new(order, State::Accepted, self.0.now());
        let apply = async || {
            let (exchange, mut one) = intake(order, trace.clone())?;
            let span = traces::publish(exchange.as_str(), &mut one.message);
            let transaction = Transaction {
                kv: vec![
                    self.0.change(None, &record, None),
                    self.idempotency(order),
                    count(ACCEPTED_COUNT),
                ],
                publish: vec![(exchange, one)],
                ..Transaction::default()
            };
            let outcome = effects.apply(transaction).await;
            traces::settled(span, &outcome);
            outcome
        };
        let mut outcome = apply().await;
        if matches!(&outcome, Err(error) if error.kind() == ErrorKind::NotFound) {
            // The binding was removed while we run.
            outcome = match self.0.topology.declare().await {
                Ok(()) => apply().await,
                Err(error) => Err(error),
            };
        }
        match outcome.map_err(Failure::Publish)? {
            effects::Outcome::Applied(_) => Ok(Accepted::New),
            effects::Outcome::Refused { index: 0, current } => {
                let record = Record::read(&order.id, &current.unwrap_or_default());
                let record = record.map_err(Failure::Keys)?;
                if record.hash != order.hash() {
                    Ok(Accepted::Taken)
                } else if record.state == State::Reserved {
                    // Left by a gateway that worked in steps.
                    self.in_steps(order, trace).await
                } else {
                    Ok(Accepted::Duplicate)
                }
            }
            effects::Outcome::Refused { .. } => Ok(Accepted::Duplicate),
        }
    }

    async fn in_steps(
        &self,
        order: &Order,
        trace: Headers,
    ) -> std::result::Result<Accepted, Failure> {
        let reserved = match self.reserve(order).await.map_err(Failure::Keys)? {
            Reserved::Here(stored) => stored,
            Reserved::Known(accepted) => return Ok(accepted),
        };
        let published = self.publish(order, trace).await;
        if let Err(error) = published {
            if error.kind() != ErrorKind::Unavailable || error.retry_after().is_some() {
                self.withdraw(&reserved).await;
            }
            return Err(Failure::Publish(error));
        }
        // From here on the order is durable: the processor completes steps that fail now.
        if let Err(error) = self.confirm(&reserved).await {
            warn!(
                order = order.id,
                error = error.chain(),
                "acceptance not counted; counted when the order is processed"
            );
        }
        Ok(Accepted::New)
    }

    /// Takes the id, or finds out whose it is. Waits while another gateway may still be publishing this order.
    async fn reserve(&self, order: &Order) -> Result<Reserved> {
        // Mostly it is new: no read first.
        let mut found: Option<Stored> = None;
        loop {
            let now = self.0.now();
            if let Some(Stored { record, .. }) = &found {
                if record.hash != order.hash() {
                    return Ok(Reserved::Known(Accepted::Taken));
                }
                if record.state != State::Reserved {
                    return Ok(Reserved::Known(Accepted::Duplicate));
                }
                if record.reserved_until.is_some_and(|until| until > now) {
                    tokio::time::sleep(LOOK).await;
                    found = self.0.find(&order.id).await?;
                    continue;
                }
            }
            let mut record = Record::new(order, State::Reserved, now);
            record.reserved_until = Some(now.after(RESERVATION));
            let window = self.0.idempotency_window.max(RESERVATION * 2);
            let mut ops = vec![self.0.change(found.as_ref(), &record, Some(window))];
            if found.is_none() {
                ops.push(self.idempotency(order));
            }
            match self.0.kv.commit(ops).await? {
                Committed::Applied(_) => {
                    let value = record.write();
                    return Ok(Reserved::Here(Box::new(Stored { record, value })));
                }
                // Another gateway was first.
                Committed::Refused { index: 0, current } => {
                    let stored = current.map(|value| Stored::read(&order.id, value));
                    found = stored.transpose()?;
                }
                // A gateway that keeps no records holds the id.
                Committed::Refused { .. } => return Ok(Reserved::Known(Accepted::Duplicate)),
            }
        }
    }

    async fn publish(&self, order: &Order, trace: Headers) -> Result<()> {
        let (exchange, one) = intake(order, trace)?;
        let publish = async || {
            let sent = self.0.publish(exchange.clone(), one.clone());
            // A publish that outlasts the reservation might meet another gateway's.
            match tokio::time::timeout(RESERVATION, sent).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::unavailable(format!(
                    "no confirmation within {RESERVATION:?}"
                ))),
            }
        };
        match publish().await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.0.topology.declare().await?;
                publish().await
            }
            outcome => outcome,
        }
        .context(|| format!("publish order `{}`", order.id))
    }

    async fn confirm(&self, reserved: &Stored) -> Result<()> {
        let mut record = reserved.record.clone();
        record.accept(self.0.now());
        let ops = vec![
            self.0.change(Some(reserved), &record, None),
            count(ACCEPTED_COUNT),
        ];
        // Refused: a processor was quicker, and has counted it.
        self.0.kv.commit(ops).await.map(drop)
    }

    /// Gives the id back after a publish that surely did not happen. Best effort: the reservation expires.
    async fn withdraw(&self, reserved: &Stored) {
        let id = &reserved.record.order.id;
        let gone = self.0.change(Some(reserved), &reserved.record, None);
        let keys = [super::store::order_key(id), idempotency_key(id)];
        let ops = std::iter::once(gone).chain(keys.map(|key| Op::Delete { key }));
        if let Err(error) = self.0.kv.commit(ops.collect()).await {
            warn!(
                order = id,
                error = error.chain(),
                "reservation not released; it expires"
            );
        }
    }

    /// The key that gateways without records look at.
    fn idempotency(&self, order: &Order) -> Op {
        Op::PutIfAbsent {
            key: idempotency_key(&order.id),
            value: Bytes::from_static(b"1"),
            ttl: Some(self.0.idempotency_window),
        }
    }
}

enum Reserved {
    Here(Box<Stored>),
    Known(Accepted),
}

fn idempotency_key(id: &str) -> String {
    format!("idemp:{id}")
}
