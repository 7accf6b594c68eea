//! Wrong effects: right in all but one way.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::Result;
use towpath_core::port::Effects;
use towpath_core::port::effects::{Outcome, Transaction};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Half,
    NoEnqueue,
}

pub(super) fn wrong(inner: Arc<dyn Effects>, way: Way) -> Arc<dyn Effects> {
    Arc::new(Wrong { inner, way })
}

struct Wrong {
    inner: Arc<dyn Effects>,
    way: Way,
}

#[async_trait]
impl Effects for Wrong {
    async fn apply(&self, mut transaction: Transaction) -> Result<Outcome> {
        match self.way {
            Way::NoEnqueue => {
                transaction.enqueue.clear();
                self.inner.apply(transaction).await
            }
            Way::Half => {
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
