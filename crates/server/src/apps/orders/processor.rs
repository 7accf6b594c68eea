//! Processing orders: stock taken, record moved, counted, announced, each once however often an order is delivered.

use async_trait::async_trait;
use towpath_core::port::effects::{self, Transaction};
use towpath_core::port::kv::{Committed, Op};
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, ErrorKind, Result};
use tracing::{debug, warn};

use super::order::Order;
use super::record::{Record, State};
use super::store::{OrderStore, Stored, count, event, stock_key};
use super::topology::{CREATED, REJECTED};
use super::{ACCEPTED_COUNT, PROCESSED_COUNT, REJECTED_COUNT};
use towpath::pump::{Destination, Handler};
use towpath::traces;

/// Maximum number of lost races of one delivery, before it is retried later.
const RACES: usize = 10;

/// Processes orders, the ack included where keys and queues share a store.
///
/// An order with too little stock is rejected for good; an invalid order is a dead letter;
/// stock that is not a number is retried and ends as a dead letter.
pub struct Processor(pub OrderStore);

/// Outcome of a delivery whose record has moved.
enum Done {
    /// The ack was part of the step.
    Settled,
    /// The pump has to ack.
    Written,
    /// The record was changed meanwhile.
    Raced,
    /// There is too little stock, for this reason.
    Short(String),
}

impl Processor {
    async fn process(&self, delivery: &Delivery) -> Result<Outcome> {
        let order = match Order::parse(&delivery.message.payload) {
            Ok(order) => order,
            Err(refusal) => {
                let reason = format!("not an order: {}", refusal.as_str());
                return Ok(Outcome::Reject { reason });
            }
        };
        let outcome = self.attempt(delivery, &order).await;
        match &outcome {
            Ok(Outcome::Retry { error, .. }) => self.note_failure(delivery, &order, error).await,
            // An unavailable store is not the order's fault, and could not store the note.
            Err(error) if error.kind() != ErrorKind::Unavailable => {
                self.note_failure(delivery, &order, &error.chain()).await;
            }
            _ => {}
        }
        outcome
    }

    /// Notes at an open order why it was not processed yet. Best effort: the queue has the same error.
    async fn note_failure(&self, delivery: &Delivery, order: &Order, error: &str) {
        let note = async {
            let Some(stored) = self.0.find(&order.id).await? else {
                return Ok(());
            };
            let is_open = stored.record.state == State::Accepted;
            if !is_open || stored.record.hash != order.hash() {
                return Ok(());
            }
            let record = Record {
                attempts: delivery.attempt,
                reason: Some(error.to_owned()),
                ..stored.record.clone()
            };
            let op = self.0.change(Some(&stored), &record, None);
            self.0.kv.commit(vec![op]).await.map(drop)
        };
        let noted: Result<()> = note.await;
        if let Err(error) = noted {
            warn!(
                order = order.id,
                error = error.chain(),
                "failed attempt not recorded"
            );
        }
    }

    async fn attempt(&self, delivery: &Delivery, order: &Order) -> Result<Outcome> {
        for _ in 0..RACES {
            let stored = self.0.find(&order.id).await?;
            if let Some(Stored { record, .. }) = &stored {
                if record.hash != order.hash() {
                    let reason = format!("id `{}` belongs to another order", order.id);
                    return Ok(Outcome::Reject { reason });
                }
                if matches!(record.state, State::Processed | State::Rejected) {
                    return self.repeated(delivery, order, record.state).await;
                }
            }
            let mut done = self.sell(delivery, order, stored.as_ref()).await?;
            if let Done::Short(reason) = done {
                done = self
                    .reject(delivery, order, stored.as_ref(), reason)
                    .await?;
            }
            let outcome = match done {
                Done::Settled => Outcome::Settled,
                Done::Written => Outcome::Done,
                Done::Raced | Done::Short(_) => continue,
            };
            debug!(
                order = order.id,
                attempt = delivery.attempt,
                "order finished"
            );
            return Ok(outcome);
        }
        Ok(Outcome::Retry {
            after: None,
            error: format!("the record of `{}` changes all the time", order.id),
        })
    }

    async fn sell(
        &self,
        delivery: &Delivery,
        order: &Order,
        stored: Option<&Stored>,
    ) -> Result<Done> {
        let record = self.finished(delivery, order, stored, State::Processed, None);
        let mut ops = self.ops(stored, &record, PROCESSED_COUNT);
        let stock = ops.len();
        let key = stock_key(&order.sku);
        ops.push(Op::Add {
            key: key.clone(),
            delta: -order.qty,
            min: 0,
            max: i64::MAX,
        });
        let refused = match self.step(delivery, order, CREATED, ops).await? {
            Ok(done) => return Ok(done),
            Err(refused) => refused,
        };
        if refused.0 != stock {
            return Ok(Done::Raced);
        }
        Ok(Done::Short(match refused.1 {
            None => format!("unknown sku `{}`", order.sku),
            Some(left) => format!(
                "not enough stock of `{}`: {} left, {} ordered",
                order.sku,
                String::from_utf8_lossy(&left),
                order.qty
            ),
        }))
    }

    async fn reject(
        &self,
        delivery: &Delivery,
        order: &Order,
        stored: Option<&Stored>,
        reason: String,
    ) -> Result<Done> {
        debug!(order = order.id, reason, "rejecting order");
        let record = self.finished(delivery, order, stored, State::Rejected, Some(reason));
        let ops = self.ops(stored, &record, REJECTED_COUNT);
        let refused = self.step(delivery, order, REJECTED, ops).await?;
        Ok(refused.unwrap_or(Done::Raced))
    }

    /// Moves the record, counts, and announces: in one step with the ack, or one after the other.
    /// `Err` is the op whose condition did not hold.
    async fn step(
        &self,
        delivery: &Delivery,
        order: &Order,
        routing_key: &str,
        ops: Vec<Op>,
    ) -> Result<std::result::Result<Done, (usize, Option<bytes::Bytes>)>> {
        let Some(effects) = &self.0.effects else {
            return Ok(match self.0.kv.commit(ops).await? {
                Committed::Applied(_) => {
                    self.announce(delivery, order, routing_key).await?;
                    Ok(Done::Written)
                }
                Committed::Refused { index, current } => Err((index, current)),
            });
        };
        let (exchange, mut one) = event(routing_key, order, &delivery.message.headers)?;
        let span = traces::publish(exchange.as_str(), &mut one.message);
        let transaction = Transaction {
            kv: ops,
            publish: vec![(exchange, one)],
            settle: vec![Settlement {
                receipt: delivery.receipt.clone(),
                disposition: Disposition::Ack,
            }],
            ..Transaction::default()
        };
        let without_event = Transaction {
            publish: Vec::new(),
            ..transaction.clone()
        };
        let outcome = match effects.apply(transaction).await {
            // A queue for rejections is optional.
            Err(error) if error.kind() == ErrorKind::NotFound && routing_key == REJECTED => {
                effects.apply(without_event).await
            }
            outcome => outcome,
        };
        traces::settled(span, &outcome);
        match outcome {
            Ok(effects::Outcome::Applied(_)) => Ok(Ok(Done::Settled)),
            Ok(effects::Outcome::Refused { index, current }) => Ok(Err((index, current))),
            // The lease is lost: the pump's own settlement says so, and counts it.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(Ok(Done::Written)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.0.topology.declare().await?;
                Err(
                    Error::unavailable("the route of the event had to be declared again")
                        .with_source(error),
                )
            }
            Err(error) => Err(error),
        }
    }

    /// A delivery of a finished order: nothing changes, but its event may still have to be published where it is not
    /// part of the step. It may be published twice; the notifier drops the second one.
    async fn repeated(&self, delivery: &Delivery, order: &Order, state: State) -> Result<Outcome> {
        if self.0.effects.is_none() {
            let processed = state == State::Processed;
            let routing_key = if processed { CREATED } else { REJECTED };
            self.announce(delivery, order, routing_key).await?;
        }
        Ok(Outcome::Done)
    }

    /// Publishes the event.
    async fn announce(&self, delivery: &Delivery, order: &Order, routing_key: &str) -> Result<()> {
        let (exchange, one) = event(routing_key, order, &delivery.message.headers)?;
        match self.0.publish(exchange, one).await {
            Err(error) if error.kind() == ErrorKind::NotFound && routing_key == REJECTED => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.0.topology.declare().await?;
                Err(
                    Error::unavailable("the route of the event had to be declared again")
                        .with_source(error),
                )
            }
            outcome => outcome,
        }
    }

    fn finished(
        &self,
        delivery: &Delivery,
        order: &Order,
        stored: Option<&Stored>,
        state: State,
        reason: Option<String>,
    ) -> Record {
        let now = self.0.now();
        let mut record = match stored {
            Some(Stored { record, .. }) => record.clone(),
            // Published by a gateway that keeps no records.
            None => Record::new(order, State::Accepted, now),
        };
        if record.state == State::Reserved {
            record.accept(now);
        }
        let text = reason.as_ref().map_or_else(
            || "processed".to_owned(),
            |reason| format!("rejected: {reason}"),
        );
        record.note(now, text);
        Record {
            state,
            reason,
            attempts: delivery.attempt,
            ..record
        }
    }

    /// Moves the record and counts, including steps that the gateway did not count.
    fn ops(&self, stored: Option<&Stored>, record: &Record, counter: &str) -> Vec<Op> {
        let mut ops = vec![
            self.0.change(stored, record, Some(self.0.retention)),
            count(counter),
        ];
        if stored.is_none_or(|stored| stored.record.state == State::Reserved) {
            ops.push(count(ACCEPTED_COUNT));
        }
        ops
    }
}

#[async_trait]
impl Handler for Processor {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.process(delivery).await.unwrap_or_else(Outcome::from)
    }

    fn destination(&self) -> Option<&Destination> {
        None
    }
}
