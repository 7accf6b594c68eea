//! Storage that all roles of the app share: the keys, the broker, and their one atomic step where they share a store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use towpath_core::message::header::{CONTENT_TYPE, TRACEPARENT, TRACESTATE};
use towpath_core::port::kv::Op;
use towpath_core::port::routes::Publication;
use towpath_core::port::{Effects, Kv, Queue, Routes};
use towpath_core::{Clock, Error, ExchangeName, Headers, NewMessage, Result, ResultExt, Timestamp};

use super::order::Order;
use super::record::Record;
use super::topology::{EVENTS, INTAKE, Topology};
use super::{INVENTORY, ORDER};
use towpath::traces;

/// The ports of the app, and how long it remembers.
#[derive(Clone)]
pub struct OrderStore {
    /// Records, stock, counters, claims.
    pub kv: Arc<dyn Kv>,
    /// The queues of the app.
    pub queue: Arc<dyn Queue>,
    /// Its exchanges.
    pub routes: Arc<dyn Routes>,
    /// Keys and queues in one step; absent where they do not share a store.
    pub effects: Option<Arc<dyn Effects>>,
    /// Its exchanges and queues, to declare.
    pub topology: Topology,
    /// Time to live of `idemp:<id>`.
    pub idempotency_window: Duration,
    /// Retention of a finished order's record; its id cannot be reused before.
    pub retention: Duration,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A record with the value it was read from, which a change must still find.
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) value: Bytes,
}

impl Stored {
    pub(super) fn read(id: &str, value: Bytes) -> Result<Self> {
        let record = Record::read(id, &value)?;
        Ok(Self { record, value })
    }
}

impl OrderStore {
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sets the stock of a SKU; 0 or more.
    ///
    /// # Errors
    /// Those of the keys' backend.
    pub async fn set_stock(&self, sku: &str, quantity: i64) -> Result<()> {
        let value = quantity.to_string().into();
        self.kv.put(&stock_key(sku), value, None).await
    }

    /// The record of an order.
    pub(super) async fn find(&self, id: &str) -> Result<Option<Stored>> {
        let value = self.kv.get(&order_key(id)).await;
        let Some(value) = value.context(|| format!("read order `{id}`"))? else {
            return Ok(None);
        };
        Stored::read(id, value).map(Some)
    }

    /// Changes a record, unless another process did. An open order stays until it is finished.
    pub(super) fn change(
        &self,
        stored: Option<&Stored>,
        record: &Record,
        ttl: Option<Duration>,
    ) -> Op {
        Op::CompareAndSwap {
            key: order_key(&record.order.id),
            expected: stored.map(|stored| stored.value.clone()),
            value: record.write(),
            ttl,
        }
    }

    /// Publishes one message and returns once the broker has it.
    ///
    /// # Errors
    /// `NotFound` when no queue is bound for it; those of the broker.
    pub(super) async fn publish(&self, exchange: ExchangeName, mut one: Publication) -> Result<()> {
        let span = traces::publish(exchange.as_str(), &mut one.message);
        let outcome = match self.routes.publish(&exchange, vec![one]).await {
            Ok(mut outcomes) => outcomes
                .pop()
                .unwrap_or_else(|| Err(Error::unavailable("the broker gave no outcome"))),
            Err(error) => Err(error),
        };
        traces::settled(span, &outcome);
        outcome.map(drop)
    }
}

/// An order on its way to the processor.
pub(super) fn intake(order: &Order, trace: Headers) -> Result<(ExchangeName, Publication)> {
    publication(INTAKE, "", order, trace)
}

/// The event of an order.
pub(super) fn event(
    routing_key: &str,
    order: &Order,
    cause: &Headers,
) -> Result<(ExchangeName, Publication)> {
    let trace = [TRACEPARENT, TRACESTATE].into_iter();
    let trace = trace.filter_map(|name| Some((name, cause.get(name)?)));
    publication(EVENTS, routing_key, order, trace.collect())
}

fn publication(
    exchange: &str,
    routing_key: &str,
    order: &Order,
    headers: Headers,
) -> Result<(ExchangeName, Publication)> {
    let mut message = NewMessage::new(order.payload());
    message.headers = headers;
    message.headers.set(CONTENT_TYPE, "application/json");
    Ok((
        ExchangeName::new(exchange)?,
        Publication {
            routing_key: routing_key.to_owned(),
            message,
        },
    ))
}

pub(super) fn order_key(id: &str) -> String {
    format!("{ORDER}{id}")
}

pub(super) fn stock_key(sku: &str) -> String {
    format!("{INVENTORY}{sku}")
}

/// Adds one to a counter.
pub(super) fn count(key: &str) -> Op {
    Op::Add {
        key: key.to_owned(),
        delta: 1,
        min: 0,
        max: i64::MAX,
    }
}

/// The whole number that a value says.
///
/// # Errors
/// `Corrupt` when it says none.
pub(super) fn number(key: &str, value: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::corrupt(format!(
            "`{key}` is not a whole number; set it with `towpath kv set`"
        ))
    })
}
