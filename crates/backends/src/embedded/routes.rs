//! The routes port.

use std::collections::BTreeSet;

use async_trait::async_trait;
use towpath_core::port::routes::{self, Binding, Publication, Routes};
use towpath_core::{Error, ExchangeName, QueueName, Result, ResultExt};

use super::log::Class;
use super::queue::{Arriving, queue_is_full, refusal_like};
use super::record::Record;
use super::state::State;
use super::store::{Inner, Store};

#[async_trait]
impl Routes for Store {
    async fn bind(&self, binding: &Binding) -> Result<()> {
        if binding.pattern.len() > 255 {
            return Err(Error::invalid("a pattern must have at most 255 bytes"));
        }
        let record = Record::Bind {
            exchange: binding.exchange.clone(),
            pattern: binding.pattern.clone(),
            queue: binding.queue.clone(),
        };
        let end = self.write(&mut self.lock(), Class::Settle, &record)?;
        self.log.committed(end).await
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        let record = Record::Unbind {
            exchange: binding.exchange.clone(),
            pattern: binding.pattern.clone(),
            queue: binding.queue.clone(),
        };
        let end = self.write(&mut self.lock(), Class::Settle, &record)?;
        self.log.committed(end).await
    }

    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>> {
        let inner = self.lock();
        let of_exchange = inner.state.bindings.of(exchange);
        Ok(of_exchange
            .map(|(pattern, queue)| Binding {
                exchange: exchange.clone(),
                pattern: pattern.clone(),
                queue: queue.clone(),
            })
            .collect())
    }

    async fn publish(
        &self,
        exchange: &ExchangeName,
        publications: Vec<Publication>,
    ) -> Result<Vec<Result<usize>>> {
        let (outcomes, end) = {
            let mut guard = self.lock();
            let inner = &mut *guard;
            let mut outcomes = Vec::with_capacity(publications.len());
            let mut arriving = Arriving::default();
            for publication in publications {
                let queues = publication
                    .message
                    .check()
                    .and_then(|()| matching(&inner.state, exchange, &publication.routing_key))
                    .and_then(|queues| self.have_room(inner, &arriving, &publication, queues));
                match queues {
                    Ok(queues) => {
                        outcomes.push(Ok(queues.len()));
                        for queue in queues {
                            arriving
                                .queues
                                .entry(queue)
                                .or_default()
                                .push(publication.message.clone());
                        }
                    }
                    Err(error) => outcomes.push(Err(error)),
                }
            }
            match self.take_in_all(inner, &arriving, Vec::new(), Class::Grow) {
                Ok(end) => (outcomes, end),
                // As for a batch of one queue: the refusal is each message's own.
                Err(error) if error.retry_after().is_some() => {
                    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                        *outcome = Err(refusal_like(&error));
                    }
                    (outcomes, self.log.awaited_end())
                }
                Err(error) => return Err(error),
            }
        };
        self.log
            .committed(end)
            .await
            .context(|| format!("publish to `{exchange}`"))?;
        Ok(outcomes)
    }
}

impl Store {
    /// The queues, if each has room for one more message beside the planned ones.
    fn have_room(
        &self,
        inner: &mut Inner,
        planned: &Arriving,
        publication: &Publication,
        queues: BTreeSet<QueueName>,
    ) -> Result<BTreeSet<QueueName>> {
        let now = self.clock.now();
        for name in &queues {
            let state = inner.state.queue(name);
            let Some(limit) = state.settings.max_depth else {
                continue;
            };
            let coming = planned
                .queues
                .get(name)
                .map_or(0, |messages| messages.len() as u64);
            // One that is known already takes no room.
            let dedup_id = publication.message.dedup_id.as_deref();
            let known = dedup_id.is_some_and(|id| state.duplicate_of(id, now).is_some());
            if !known && state.depth() + coming >= limit {
                return Err(queue_is_full(limit)).context(|| format!("route into `{name}`"));
            }
        }
        Ok(queues)
    }
}

/// The queues that a routing key leads to, each once.
pub(super) fn matching(
    state: &State,
    exchange: &ExchangeName,
    routing_key: &str,
) -> Result<BTreeSet<QueueName>> {
    let queues: BTreeSet<QueueName> = state
        .bindings
        .of(exchange)
        .filter(|(pattern, _)| routes::matches(pattern, routing_key))
        .map(|(_, queue)| queue.clone())
        .collect();
    if queues.is_empty() {
        return Err(Error::not_found(format!(
            "no route of `{exchange}` matches `{routing_key}`"
        )));
    }
    Ok(queues)
}
