//! Routes, by exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use towpath_core::{ExchangeName, QueueName};

type Binding = (ExchangeName, String, QueueName);

/// Every route; a checkpoint up to version 4 has them in one list. A clone shares them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "Vec<Binding>")]
pub(in super::super) struct Bindings(Arc<BTreeMap<ExchangeName, BTreeSet<(String, QueueName)>>>);

impl Bindings {
    pub(super) fn insert(&mut self, exchange: &ExchangeName, pattern: &str, queue: &QueueName) {
        let bindings = Arc::make_mut(&mut self.0);
        let known = bindings.entry(exchange.clone()).or_default();
        known.insert((pattern.to_owned(), queue.clone()));
    }

    pub(super) fn remove(&mut self, exchange: &ExchangeName, pattern: &str, queue: &QueueName) {
        let bindings = Arc::make_mut(&mut self.0);
        if let Some(known) = bindings.get_mut(exchange) {
            known.remove(&(pattern.to_owned(), queue.clone()));
            if known.is_empty() {
                bindings.remove(exchange);
            }
        }
    }

    /// Every route.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ExchangeName, &String, &QueueName)> {
        self.0.iter().flat_map(|(exchange, known)| {
            known
                .iter()
                .map(move |(pattern, queue)| (exchange, pattern, queue))
        })
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
