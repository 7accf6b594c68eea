//! The balance: accepted = processed + rejected + in flight + dead.
//!
//! The counters move with the records, so the records say whether the counters are right; the queue says
//! whether in-flight orders exist.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use towpath_core::port::queue::MAX_BATCH;
use towpath_core::{ErrorKind, QueueName, Result};
use utoipa::ToSchema;

use super::order::Order;
use super::record::State;
use super::store::{OrderStore, number};
use super::topology::ORDERS;
use super::{ACCEPTED_COUNT, NOTIFIED_COUNT, ORDER, PROCESSED_COUNT, REJECTED_COUNT};

/// Maximum number of audits while orders come and go.
const LOOKS: usize = 5;

/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Keys and dead letters of one page.
const PAGE: usize = 1000;

/// Records that are read at once.
const CONCURRENCY: usize = 64;

/// The counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) accepted: u64,
    pub(super) processed: u64,
    pub(super) rejected: u64,
    pub(super) notified: u64,
}

/// The balance of the orders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// Whether accepted = processed + rejected + in flight + dead, and no order breaks it.
    pub balanced: bool,
    /// Orders that were acknowledged to a client.
    pub accepted: u64,
    /// Orders whose stock was taken.
    pub processed: u64,
    /// Rejected orders.
    pub rejected: u64,
    /// Accepted orders that are ready, delayed or leased.
    pub in_flight: u64,
    /// Accepted orders among the dead letters.
    pub dead: u64,
    /// Orders whose customer was notified.
    pub notified: u64,
    /// Dead letters other than accepted orders.
    pub poison: u64,
    /// Messages of the queue on other brokers, which no processor here reaches: they are among those in flight.
    #[serde(default)]
    pub stranded: u64,
    /// Orders that are counted more than once, because another program accepted or processed them and keeps no records:
    /// with any of these the balance says nothing.
    #[serde(default)]
    pub by_others: u64,
    /// Accepted orders that are missing: not finished, in no queue, and not among the dead letters.
    pub lost: Vec<String>,
}

/// Compares counters, records and stock.
#[derive(Clone)]
pub struct Reconciliation(pub OrderStore);

/// The findings of one audit.
struct Audit {
    open: BTreeSet<String>,
    dead: BTreeSet<String>,
    dead_letters: u64,
    /// `None` when the queue cannot be looked into, or holds more than can be looked at.
    waiting: Option<BTreeSet<String>>,
    /// Messages in the queue.
    depth: u64,
    /// Messages of the queue on other brokers.
    stranded: u64,
}

impl Reconciliation {
    /// The balance; while orders come and go up to five audits are made.
    ///
    /// Reads the record of every order that is kept: for operators, not for each request.
    ///
    /// # Errors
    /// Those of the keys and the broker.
    pub async fn balance(&self) -> Result<Balance> {
        let mut lost: Option<BTreeSet<String>> = None;
        let mut balance = Balance::default();
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let before = self.totals().await?;
            let found = self.audit().await?;
            let quiet = before == self.totals().await?;
            let missing = found.missing();
            // An order is lost when every check misses it.
            let named = match lost {
                None => missing,
                Some(earlier) => earlier.intersection(&missing).cloned().collect(),
            };
            balance = found.balance(before, &named);
            if balance.balanced && quiet {
                break;
            }
            lost = Some(named);
        }
        Ok(balance)
    }

    pub(super) async fn totals(&self) -> Result<Totals> {
        let read = async |key| match self.0.kv.get(key).await? {
            Some(value) => Ok(u64::try_from(number(key, &value)?).unwrap_or_default()),
            None => Ok(0),
        };
        Ok(Totals {
            accepted: read(ACCEPTED_COUNT).await?,
            processed: read(PROCESSED_COUNT).await?,
            rejected: read(REJECTED_COUNT).await?,
            notified: read(NOTIFIED_COUNT).await?,
        })
    }

    async fn audit(&self) -> Result<Audit> {
        let name = QueueName::new(ORDERS)?;
        let open = self.open().await?;
        let (dead, dead_letters) = self.dead(&name).await?;
        let depth = match self.0.queue.stats(&name).await {
            Ok(stats) => stats.ready + stats.delayed + stats.leased,
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let waiting = match self.0.queue.peek(&name, MAX_BATCH).await {
            Ok(peeked) if peeked.len() < MAX_BATCH => Some(
                peeked
                    .iter()
                    .filter_map(|one| Order::parse(&one.message.payload).ok())
                    .map(|order| order.id)
                    .collect(),
            ),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::Unsupported => None,
            Err(error) => return Err(error),
        };
        let stranded = self.0.queue.stranded(&name).await?;
        Ok(Audit {
            stranded: stranded.iter().map(|one| one.messages).sum(),
            open,
            dead,
            dead_letters,
            waiting,
            depth,
        })
    }

    /// Accepted orders that are not finished.
    async fn open(&self) -> Result<BTreeSet<String>> {
        let (mut open, mut after) = (BTreeSet::new(), None::<String>);
        loop {
            let keys = self.0.kv.keys(ORDER, after.as_deref(), PAGE).await?;
            let Some(last) = keys.last() else {
                return Ok(open);
            };
            after = Some(last.clone());
            let ids = keys
                .iter()
                .filter_map(|key| key.strip_prefix(ORDER).map(str::to_owned));
            let reads: Vec<_> = ids
                .map(|id| async move { self.0.find(&id).await.map(|stored| (id, stored)) })
                .collect();
            let mut found = stream::iter(reads).buffered(CONCURRENCY);
            while let Some(read) = found.next().await {
                let (id, stored) = read?;
                if stored.is_some_and(|stored| stored.record.state == State::Accepted) {
                    open.insert(id);
                }
            }
        }
    }

    /// The orders among the dead letters, and how many dead letters there are.
    async fn dead(&self, name: &QueueName) -> Result<(BTreeSet<String>, u64)> {
        let (mut ids, mut count, mut after) = (BTreeSet::new(), 0, None);
        loop {
            let letters = self.0.queue.dead_letters(name, after, PAGE).await?;
            let Some(last) = letters.last() else {
                return Ok((ids, count));
            };
            after = Some(last.message.id);
            count += letters.len() as u64;
            let orders = letters
                .iter()
                .filter_map(|letter| Order::parse(&letter.message.payload).ok());
            ids.extend(orders.map(|order| order.id));
        }
    }
}

impl Audit {
    fn missing(&self) -> BTreeSet<String> {
        let elsewhere = self.open.difference(&self.dead);
        match &self.waiting {
            // Which ones these are is not known here.
            _ if self.stranded > 0 => BTreeSet::new(),
            Some(waiting) => elsewhere
                .filter(|id| !waiting.contains(*id))
                .cloned()
                .collect(),
            // An empty queue needs no looking into.
            None if self.depth == 0 => elsewhere.cloned().collect(),
            None => BTreeSet::new(),
        }
    }

    fn balance(&self, totals: Totals, lost: &BTreeSet<String>) -> Balance {
        let dead = self.open.intersection(&self.dead).count() as u64;
        let in_flight = self.open.len() as u64 - dead;
        let sum = totals.processed + totals.rejected + in_flight + dead;
        Balance {
            stranded: self.stranded,
            by_others: sum.saturating_sub(totals.accepted),
            balanced: totals.accepted == sum && lost.is_empty(),
            accepted: totals.accepted,
            processed: totals.processed,
            rejected: totals.rejected,
            in_flight,
            dead,
            notified: totals.notified,
            poison: self.dead_letters.saturating_sub(dead),
            lost: lost.iter().cloned().collect(),
        }
    }
}
