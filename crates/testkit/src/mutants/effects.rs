//! Mutants of the effects port.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::port::Effects;
use towpath_core::port::effects::{Outcome, Transaction};
use towpath_core::{ErrorKind, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    Half,
    NoEnqueue,
    IgnoresRefusals,
    DropsUnroutable,
    NoDedup,
    SendsFirst,
}

pub(super) fn mutate(inner: Arc<dyn Effects>, mutation: Mutation) -> Arc<dyn Effects> {
    Arc::new(Mutated { inner, mutation })
}

struct Mutated {
    inner: Arc<dyn Effects>,
    mutation: Mutation,
}

#[async_trait]
impl Effects for Mutated {
    async fn apply(&self, mut transaction: Transaction) -> Result<Outcome> {
        match self.mutation {
            Mutation::NoEnqueue => {
                transaction.enqueue.clear();
                self.inner.apply(transaction).await
            }
            Mutation::NoDedup => {
                for (_, message) in &mut transaction.enqueue {
                    message.dedup_id = None;
                }
                self.inner.apply(transaction).await
            }
            Mutation::IgnoresRefusals => {
                let outcome = self.inner.apply(transaction.clone()).await?;
                if matches!(outcome, Outcome::Refused { .. }) {
                    transaction.kv.clear();
                    self.inner.apply(transaction).await?;
                }
                Ok(outcome)
            }
            Mutation::DropsUnroutable => match self.inner.apply(transaction.clone()).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    transaction.publish.clear();
                    self.inner.apply(transaction).await
                }
                other => other,
            },
            Mutation::SendsFirst => {
                for message in transaction.enqueue.drain(..) {
                    let enqueue = vec![message];
                    let alone = Transaction {
                        enqueue,
                        ..Transaction::default()
                    };
                    self.inner.apply(alone).await?;
                }
                let append = std::mem::take(&mut transaction.append);
                let alone = Transaction {
                    append,
                    ..Transaction::default()
                };
                self.inner.apply(alone).await?;
                self.inner.apply(transaction).await
            }
            Mutation::Half => {
                let first = Transaction {
                    kv: std::mem::take(&mut transaction.kv),
                    ..Transaction::default()
                };
                let outcome = self.inner.apply(first).await?;
                if matches!(outcome, Outcome::Applied(_)) {
                    self.inner.apply(transaction).await?;
                }
                Ok(outcome)
            }
        }
    }
}
