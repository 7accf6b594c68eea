//! Limits that count messages: a request with many of them is charged once they are known.

use std::sync::Arc;

use axum::Extension;
use futures_util::future::BoxFuture;

use super::error::Problem;

type Take = dyn Fn(u64) -> BoxFuture<'static, Result<(), Problem>> + Send + Sync;

/// Charges a request, which was charged as one message, for more of them. An extension of requests on limited routes.
#[derive(Clone)]
pub struct BatchCost(Arc<Take>);

impl BatchCost {
    /// Takes this many units of the limit, or says why not.
    pub fn new(
        take: impl Fn(u64) -> BoxFuture<'static, Result<(), Problem>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(take))
    }

    /// Charges a request that brings `count` messages. Without a limit on its route this is free.
    ///
    /// # Errors
    /// The refusal: 429 over the limit, 413 when the limit never has room for as many, 503 without its store.
    pub async fn charge(cost: Option<Extension<Self>>, count: usize) -> Result<(), Problem> {
        let more = (count as u64).saturating_sub(1);
        match cost {
            Some(Extension(Self(take))) if more > 0 => take(more).await,
            _ => Ok(()),
        }
    }
}
