//! Queues for programs: create a queue, send, lease, settle and extend over HTTP.
//!
//! ```text
//! PUT queue -> POST messages -> POST lease -> POST settle (ack | retry | dead_letter | release)
//!                                   |-> POST extend, until the work is done
//! ```
//!
//! The routes keep no state beside the permits of waiting requests: a receipt carries what settling its delivery needs.

mod batch;
mod lease;
mod queue;
mod receipt;
mod send;
mod settle;

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use towpath_core::backend::{Backend, Capability};
use towpath_core::{ConsumerId, Result};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Admin;
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::http::json::Object;
use crate::queue_settings::DeclaredQueues;

pub(super) use batch::BATCH;
pub use lease::{DeliveryView, Leased};
pub(super) use send::Binary;
pub use settle::{DispositionKind, Settled, SettledOne, Settling};

/// The state of the routes.
#[derive(Clone)]
pub struct Jobs {
    /// Holds the deliveries of every client of this process.
    consumer: ConsumerId,
    /// Tells receipts of this process from those of others, on backends whose leases belong to a process.
    session: u32,
    waiting: Arc<Semaphore>,
    declared: Arc<DeclaredQueues>,
}

impl Jobs {
    /// - `max_waiting`: maximum lease requests that wait for a message at once.
    ///
    /// # Errors
    /// Never with this crate's own names.
    pub(crate) fn new(max_waiting: usize, declared: DeclaredQueues) -> Result<Self> {
        Ok(Self {
            consumer: ConsumerId::unique("api")?,
            session: rand::random::<u32>().max(1),
            waiting: Arc::new(Semaphore::new(max_waiting)),
            declared: Arc::new(declared),
        })
    }

    /// The queues that the configuration declares.
    pub(super) fn declared(&self) -> &DeclaredQueues {
        &self.declared
    }

    /// A permit to wait.
    ///
    /// # Errors
    /// 503 when all are taken.
    fn wait(&self) -> std::result::Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.waiting).try_acquire_owned();
        permit.map_err(|_| {
            let reason = "too many waiting lease requests (`server.max_waiting`); retry later";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason).retry_after(1)
        })
    }

    /// The session of leases that only this process can settle; `None` where the backend keeps them.
    fn session_on(&self, backend: &Backend) -> Option<u32> {
        let is_kept = backend.descriptor.offers(Capability::Bookkeeping);
        (!is_kept).then_some(self.session)
    }
}

/// Adds the routes.
pub(super) fn routes(router: OpenApiRouter<Admin>) -> OpenApiRouter<Admin> {
    router
        .routes(routes!(send::send))
        .routes(routes!(queue::put))
        .routes(routes!(batch::send_batch))
        .routes(routes!(lease::lease))
        .routes(routes!(settle::settle))
        .routes(routes!(settle::extend))
}

/// A JSON object whose members are all optional: a request without a body has none of them.
struct OptionalJson<T>(T);

impl<T: DeserializeOwned + Default + Send, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> std::result::Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let body = Request::from_parts(head.clone(), body);
        let body = Bytes::from_request(body, state).await;
        let body = body.map_err(|_| Problem::invalid("failed to read body"))?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        let request = Request::from_parts(head, body.into());
        let Json(Object(value)) = Json::<Object<T>>::from_request(request, state).await?;
        Ok(Self(value))
    }
}
