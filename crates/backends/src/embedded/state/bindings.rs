//! Routes, by exchange.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use towpath_core::{ExchangeName, QueueName};

type Binding = (ExchangeName, String, QueueName);

/// Every route; a checkpoint has them in one list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Binding>", into = "Vec<Binding>")]
pub(in super::super) struct Bindings(BTreeMap<ExchangeName, BTreeSet<(String, QueueName)>>);

impl Bindings {
    pub(super) fn insert(&mut self, exchange: &ExchangeName, pattern: &str, queue: &QueueName) {
        let known = self.0.entry(exchange.clone()).or_default();
        known.insert((pattern.to_owned(), queue.clone()));
    }

    pub(super) fn remove(&mut self, exchange: &ExchangeName, pattern: &str, queue: &QueueName) {
        if let Some(known) = self.0.get_mut(exchange) {
            known.remove(&(pattern.to_owned(), queue.clone()));
            if known.is_empty() {
                self.0.remove(exchange);
            }
        }
    }

    /// Patterns of an exchange and the queues that they lead to.
    pub(in super::super) fn of(
        &self,
        exchange: &ExchangeName,
    ) -> impl Iterator<Item = &(String, QueueName)> {
        self.0.get(exchange).into_iter().flatten()
    }

    /// The exchange and pattern of a route into the queue.
    pub(in super::super) fn leading_to(
        &self,
        queue: &QueueName,
    ) -> Option<(&ExchangeName, &String)> {
        self.0.iter().find_map(|(exchange, known)| {
            let (pattern, _) = known.iter().find(|(_, to)| to == queue)?;
            Some((exchange, pattern))
        })
    }
}

impl From<Vec<Binding>> for Bindings {
    fn from(list: Vec<Binding>) -> Self {
        let mut bindings = Self::default();
        for (exchange, pattern, queue) in list {
            bindings.insert(&exchange, &pattern, &queue);
        }
        bindings
    }
}

impl From<Bindings> for Vec<Binding> {
    fn from(bindings: Bindings) -> Self {
        let exchanges = bindings.0.into_iter();
        exchanges
            .flat_map(|(exchange, known)| {
                let known = known.into_iter();
                known.map(move |(pattern, queue)| (exchange.clone(), pattern, queue))
            })
            .collect()
    }
}
