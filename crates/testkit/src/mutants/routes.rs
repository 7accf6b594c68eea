//! Mutants of the routes port.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::port::Routes;
use towpath_core::port::routes::{Binding, Publication};
use towpath_core::{Error, ErrorKind, ExchangeName, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    SwallowsUnroutable,
    NoUnbind,
    PublishesTwice,
    AllOrNothing,
}

pub(super) fn mutate(inner: Arc<dyn Routes>, mutation: Mutation) -> Arc<dyn Routes> {
    Arc::new(Mutated { inner, mutation })
}

struct Mutated {
    inner: Arc<dyn Routes>,
    mutation: Mutation,
}

#[async_trait]
impl Routes for Mutated {
    async fn bind(&self, binding: &Binding) -> Result<()> {
        self.inner.bind(binding).await
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        match self.mutation {
            Mutation::NoUnbind => Ok(()),
            _ => self.inner.unbind(binding).await,
        }
    }

    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>> {
        self.inner.bindings(exchange).await
    }

    async fn publish(
        &self,
        exchange: &ExchangeName,
        publications: Vec<Publication>,
    ) -> Result<Vec<Result<usize>>> {
        if self.mutation == Mutation::PublishesTwice {
            self.inner.publish(exchange, publications.clone()).await?;
        }
        let mut outcomes = self.inner.publish(exchange, publications).await?;
        if self.mutation == Mutation::AllOrNothing && outcomes.iter().any(Result::is_err) {
            for outcome in &mut outcomes {
                *outcome = Err(Error::unavailable("one of the batch was refused"));
            }
        }
        if self.mutation == Mutation::SwallowsUnroutable {
            for outcome in &mut outcomes {
                if matches!(outcome, Err(error) if error.kind() == ErrorKind::NotFound) {
                    *outcome = Ok(0);
                }
            }
        }
        Ok(outcomes)
    }
}
