//! Leases messages to a client: at once, or when a message becomes ready.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use towpath_core::Delivery;
use towpath_core::port::queue::{LeaseRequest, check_lease};
use utoipa::ToSchema;

use super::super::Admin;
use super::super::routes::{Answer, QueuePath};
use super::super::wire::shown;
use super::{OptionalJson, receipt};
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::http::{Hangup, InFlight, Segment};
use crate::queue_settings::Span;

/// Most messages of a request.
const MAX: usize = 1_000;

/// Longest wait of a request; proxies close idle responses soon after.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Messages that a broker may send ahead to this process.
const AHEAD: usize = 1_000;

/// The lease of a request that names none.
pub(super) const LEASE: Span = Span(Duration::from_secs(30));

/// A lease request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in super::super) struct LeaseOptions {
    /// Maximum messages.
    #[schema(minimum = 1, maximum = 1000, default = 1)]
    max: usize,
    /// Longest wait for the first message, at most `60s`.
    #[schema(value_type = String, default = "20s")]
    wait: Span,
    /// Duration of the lease, `10ms` to `12h`.
    #[schema(value_type = String, default = "30s")]
    lease: Span,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self {
            max: 1,
            wait: Span(Duration::from_secs(20)),
            lease: LEASE,
        }
    }
}

/// Leased messages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Leased {
    /// Oldest first; none when none became ready in time.
    pub deliveries: Vec<DeliveryView>,
}

/// A leased message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// Message id, the same in every attempt.
    pub id: String,
    /// The queue.
    pub queue: String,
    /// Token that settles this delivery.
    pub receipt: String,
    /// Attempt, 1 for the first.
    pub attempt: u32,
    /// Whether the delivery before this one ended without an outcome: its worker died or let the lease expire.
    pub interrupted: bool,
    /// Duration of the lease, from this response on.
    pub lease: String,
    /// Enqueue time, RFC 3339.
    pub enqueued_at: String,
    /// Key of the message, if any.
    pub key: Option<String>,
    /// Headers of the message.
    pub headers: BTreeMap<String, String>,
    /// The whole payload, as text or as base64.
    pub payload: String,
    /// `utf-8` or `base64`.
    pub encoding: String,
}

impl DeliveryView {
    fn of(delivery: &Delivery, session: Option<u32>) -> Self {
        let message = &delivery.message;
        let (payload, encoding) = match std::str::from_utf8(&message.payload) {
            Ok(text) => (text.to_owned(), "utf-8"),
            Err(_) => (STANDARD.encode(&message.payload), "base64"),
        };
        Self {
            id: message.id.to_string(),
            queue: delivery.receipt.queue.to_string(),
            receipt: receipt::encode(delivery, session),
            attempt: delivery.attempt,
            interrupted: delivery.interrupted,
            lease: Span(delivery.lease).to_string(),
            enqueued_at: message.enqueued_at.to_string(),
            key: message.key.clone(),
            headers: shown(&message.headers),
            payload,
            encoding: encoding.to_owned(),
        }
    }
}

/// Resolves when the client ended its connection, where that can be known. HTTP/2 drops the request then.
async fn left(hangup: Option<Extension<Hangup>>) {
    match hangup {
        Some(Extension(hangup)) => hangup.seen().await,
        None => std::future::pending().await,
    }
}

/// Lease ready messages, oldest first; wait for the first one.
///
/// Each delivery is settled by its receipt before its lease expires; an expired lease makes the message ready again. The
/// wait ends early when the process drains.
#[utoipa::path(post, operation_id = "lease_messages", path = "/v1/queues/{queue}/lease", params(QueuePath), request_body(content = inline(Option<LeaseOptions>), description = "All members are optional, and so is the body"), responses((status = 200, description = "The deliveries", body = Leased)))]
pub(in super::super) async fn lease(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Extension(in_flight): Extension<InFlight>,
    hangup: Option<Extension<Hangup>>,
    OptionalJson(options): OptionalJson<LeaseOptions>,
) -> Answer<Leased> {
    let (max, wait, lease) = (options.max, options.wait, options.lease);
    if !(1..=MAX).contains(&max) {
        let reason = format!("`max` is {max}; it must be 1 to {MAX}");
        return Err(Problem::invalid(reason).into());
    }
    if wait.0 > MAX_WAIT {
        let reason = format!("`wait` is `{wait}`; it must be at most `60s`");
        return Err(Problem::invalid(reason).into());
    }
    check_lease(lease.0)?;
    if admin.health.is_draining() {
        let reason = "the process is draining; lease from another one, or retry after its restart";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason);
        return Err(problem.retry_after(1).into());
    }
    let (backend, queue, name) = admin.find_on(&name).await?;
    let session = admin.jobs.session_on(backend);
    let request = LeaseRequest {
        queue: name,
        consumer: admin.jobs.consumer.clone(),
        max,
        in_flight: AHEAD.max(max),
        lease: lease.0,
        wait: wait.0,
    };
    let _waiting = match wait.0.is_zero() {
        true => None,
        false => Some(admin.jobs.wait()?),
    };
    in_flight.park();
    let deliveries = tokio::select! {
        biased;
        leased = queue.lease(request) => leased?,
        () = admin.health.drain_begins() => Vec::new(),
        () = left(hangup) => Vec::new(),
    };
    let deliveries = deliveries.iter();
    Ok(Json(Leased {
        deliveries: deliveries
            .map(|delivery| DeliveryView::of(delivery, session))
            .collect(),
    }))
}
