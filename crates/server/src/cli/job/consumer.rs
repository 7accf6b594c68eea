//! A queue of another process as a consumer of the delivery loop.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use towpath::consumer::Consumer;
use towpath_core::attempt::Attempt;
use towpath_core::message::Headers;
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{
    ConsumerId, Delivery, Error, Message, QueueName, Receipt, Result, Timestamp, attempt,
};

use super::super::client::Client;
use super::super::{Exit, Failure};
use crate::admin::{DeliveryView, Leased, Settled, SettledOne};
use crate::queue_settings::Span;

/// Longest wait of a lease: the delivery loop looks for a stop in between.
const WAIT: &str = "500ms";

/// Most settlements of a request.
const MAX: usize = 1_000;

/// Leases and settles over the admin API.
pub(super) struct ApiConsumer {
    client: Client,
    queue: QueueName,
    path: String,
    lease: Duration,
    receipts: Mutex<Receipts>,
}

/// The receipts of the server, by the numbers that the delivery loop knows them by.
#[derive(Default)]
struct Receipts {
    last: u64,
    texts: HashMap<u64, String>,
}

impl ApiConsumer {
    pub(super) fn new(client: Client, queue: QueueName, path: String, lease: Duration) -> Self {
        Self {
            client,
            queue,
            path,
            lease,
            receipts: Mutex::default(),
        }
    }

    fn receipts(&self) -> MutexGuard<'_, Receipts> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self, receipt: &Receipt) -> String {
        let receipts = self.receipts();
        receipts
            .texts
            .get(&receipt.number)
            .cloned()
            .unwrap_or_default()
    }

    fn delivery(&self, view: DeliveryView) -> Result<Delivery> {
        let payload = match view.encoding.as_str() {
            "base64" => STANDARD.decode(&view.payload).map_err(|error| {
                Error::corrupt("the server sent a payload that is not base64").with_source(error)
            })?,
            _ => view.payload.into_bytes(),
        };
        let enqueued_at: jiff::Timestamp = view.enqueued_at.parse().map_err(|error| {
            Error::corrupt("the server sent a time that is not RFC 3339").with_source(error)
        })?;
        let millis = u64::try_from(enqueued_at.as_millisecond()).unwrap_or_default();
        let number = {
            let mut receipts = self.receipts();
            receipts.last += 1;
            let number = receipts.last;
            receipts.texts.insert(number, view.receipt);
            number
        };
        Ok(Delivery {
            message: Message {
                id: view.id.parse()?,
                payload: payload.into(),
                headers: view.headers.into_iter().collect::<Headers>(),
                key: view.key,
                enqueued_at: Timestamp::from_millis(millis),
            },
            receipt: Receipt {
                queue: self.queue.clone(),
                number,
                fence: number,
            },
            attempt: view.attempt,
            interrupted: view.interrupted,
            lease: self.lease,
        })
    }

    /// Forgets the receipts whose deliveries are over, and gives the outcomes as a queue does.
    fn outcomes(&self, receipts: &[&Receipt], settled: Settled, is_end: bool) -> Vec<Result<()>> {
        let pairs = receipts.iter().zip(settled.results);
        let outcomes = pairs.map(|(receipt, one): (_, SettledOne)| {
            let detail = one.detail.unwrap_or_default();
            let outcome = match one.outcome.as_str() {
                "ok" => Ok(()),
                "unavailable" => return Err(Error::unavailable(detail)),
                _ => Err(Error::conflict(detail)),
            };
            if is_end || outcome.is_err() {
                self.receipts().texts.remove(&receipt.number);
            }
            outcome
        });
        outcomes.collect()
    }
}

#[async_trait]
impl Consumer for ApiConsumer {
    async fn lease(&self, max: usize, _: usize) -> Result<Vec<Delivery>> {
        let lease = Span(self.lease).to_string();
        let body = json!({"max": max.min(MAX), "wait": WAIT, "lease": lease});
        let leased: Leased = self.post("lease", &body).await?;
        let deliveries = leased.deliveries.into_iter();
        deliveries.map(|view| self.delivery(view)).collect()
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        for some in settlements.chunks(MAX) {
            let bodies: Vec<_> = some.iter().map(|one| self.body(one)).collect();
            let body = json!({ "settlements": bodies });
            let settled = self.post("settle", &body).await?;
            let receipts: Vec<_> = some.iter().map(|one| &one.receipt).collect();
            outcomes.extend(self.outcomes(&receipts, settled, true));
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        let mut outcomes = Vec::with_capacity(receipts.len());
        for some in receipts.chunks(MAX) {
            let texts: Vec<_> = some.iter().map(|receipt| self.text(receipt)).collect();
            let lease = Span(self.lease).to_string();
            let body = json!({"receipts": texts, "lease": lease});
            let extended = self.post("extend", &body).await?;
            let receipts: Vec<_> = some.iter().collect();
            outcomes.extend(self.outcomes(&receipts, extended, false));
        }
        Ok(outcomes)
    }

    /// Releases the rest: the server does not know which of its deliveries are those of this consumer.
    async fn disconnect(&self) -> Result<u64> {
        let numbers: Vec<u64> = self.receipts().texts.keys().copied().collect();
        let left = numbers.into_iter().map(|number| Settlement {
            receipt: Receipt {
                queue: self.queue.clone(),
                number,
                fence: number,
            },
            disposition: Disposition::RELEASE,
        });
        let outcomes = self.settle(left.collect()).await?;
        Ok(outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64)
    }

    fn recorded_as(&self) -> Option<&ConsumerId> {
        None
    }

    fn lease_time(&self) -> Duration {
        self.lease
    }
}

impl ApiConsumer {
    async fn post<T: DeserializeOwned>(&self, route: &str, body: &Value) -> Result<T> {
        let path = format!("{}/{route}", self.path);
        self.client.post(&path, body).await.map_err(error_of)
    }

    fn body(&self, settlement: &Settlement) -> Value {
        let receipt = self.text(&settlement.receipt);
        let after = |after: Duration| Span(after).to_string();
        match &settlement.disposition {
            Disposition::Ack => json!({"receipt": receipt, "disposition": "ack"}),
            Disposition::Retry {
                after: delay,
                error,
            } => json!({
                "receipt": receipt, "disposition": "retry", "after": after(*delay), "reason": plain(error),
            }),
            Disposition::DeadLetter { reason } => json!({
                "receipt": receipt, "disposition": "dead_letter", "reason": plain(reason),
            }),
            Disposition::Release { after: delay } => json!({
                "receipt": receipt, "disposition": "release", "after": after(*delay),
            }),
        }
    }
}

/// The error of a text that may be the record of an attempt.
fn plain(text: &str) -> String {
    let record = Attempt::read(text).map(|attempt| attempt.error);
    record.unwrap_or_else(|| attempt::error_of(text).to_owned())
}

/// The kind decides whether the delivery loop tries again: a refused credential or name stays refused.
fn error_of(failure: Failure) -> Error {
    let Failure::Said(exit, text) = failure else {
        return Error::unavailable("the response could not be shown");
    };
    match exit {
        Exit::Denied | Exit::Usage => Error::invalid(text),
        _ => Error::unavailable(text),
    }
}
