//! Ends deliveries, or makes their leases last longer.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use towpath_core::attempt::ERROR_BYTES;
use towpath_core::port::queue::{Disposition, Settlement, check_lease};
use towpath_core::{Error, ErrorKind, Receipt, Result, retry};
use utoipa::ToSchema;

use super::super::Admin;
use super::super::failure::Failure;
use super::super::routes::QueuePath;
use super::lease::LEASE;
use super::receipt::{self, LeasedAttempt, Unusable};
use super::send::MAX_DELAY;
use crate::http::Segment;
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::http::json::Object;
use crate::queue_settings::Span;

/// Most receipts of a request.
const MAX: usize = 1_000;

/// The end of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DispositionKind {
    /// Done: the message is removed.
    Ack,
    /// Failed: delivered again later, the attempt counted; a dead letter when it was the last attempt.
    Retry,
    /// Failed for good: a dead letter now.
    DeadLetter,
    /// Returned to ready, the attempt not counted.
    Release,
}

/// A settlement.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settling {
    /// Receipt of the delivery.
    pub receipt: String,
    /// The end of the delivery.
    pub disposition: DispositionKind,
    /// Delay of `retry` and `release`, at most `87600h`. A retry without it follows the settings of the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) after: Option<Span>,
    /// Cause of `retry` and `dead_letter`, for the dead letter; cut after 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Settlements of one request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Settlements {
    /// 1 to 1,000 settlements.
    #[schema(value_type = Vec<Settling>, min_items = 1, max_items = 1000)]
    settlements: Vec<Object<Settling>>,
}

/// Leases to extend.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Extending {
    /// 1 to 1,000 receipts.
    #[schema(min_items = 1, max_items = 1000)]
    receipts: Vec<String>,
    /// Duration of the lease from now on, `10ms` to `12h`.
    #[serde(default = "default_lease")]
    #[schema(value_type = String, default = "30s")]
    lease: Span,
}

const fn default_lease() -> Span {
    LEASE
}

/// Outcomes in the order of the request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Settled {
    /// One for each receipt.
    pub results: Vec<SettledOne>,
}

/// The outcome for one receipt.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SettledOne {
    /// The receipt.
    pub receipt: String,
    /// `ok`; `lease_lost` when the lease ended before, with this receipt or without it: nothing changed; `invalid` for a
    /// text that is not a receipt of this queue; `unavailable` when the outcome is unknown: repeat it.
    pub outcome: String,
    /// The cause, unless the outcome is `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The outcomes of a request under construction: those of unusable receipts are known before the queue is called.
struct Outcomes(Vec<SettledOne>);

impl Outcomes {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, receipt: String, outcome: &str, detail: Option<String>) {
        self.0.push(SettledOne {
            receipt,
            outcome: outcome.to_owned(),
            detail,
        });
    }

    /// Takes a receipt of the request. `None` when its outcome is known.
    fn take(
        &mut self,
        text: String,
        ticket: Result<LeasedAttempt, Unusable>,
    ) -> Option<LeasedAttempt> {
        match ticket {
            Ok(ticket) => {
                self.push(text, "ok", None);
                Some(ticket)
            }
            Err(Unusable::Invalid) => {
                let detail = "not a receipt of this queue";
                self.push(text, "invalid", Some(detail.to_owned()));
                None
            }
            Err(Unusable::OtherProcess) => {
                let detail = "leased at another server process, or before this one restarted; on this backend a lease ends with its process, and is settled there only";
                self.push(text, "lease_lost", Some(detail.to_owned()));
                None
            }
        }
    }

    /// Enters the outcomes of the queue at the places of their receipts.
    fn enter(&mut self, places: &[usize], outcomes: Vec<Result<()>>) {
        for (place, outcome) in places.iter().zip(outcomes) {
            let Err(error) = outcome else { continue };
            let one = &mut self.0[*place];
            one.outcome = name_of(&error).to_owned();
            one.detail = Some(error.chain());
        }
    }
}

const fn name_of(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Conflict | ErrorKind::NotFound => "lease_lost",
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Corrupt => "invalid",
        ErrorKind::Unavailable => "unavailable",
    }
}

impl IntoResponse for Outcomes {
    /// 207 when an outcome is not `ok`.
    fn into_response(self) -> Response {
        let is_ok = self.0.iter().all(|one| one.outcome == "ok");
        let status = match is_ok {
            true => StatusCode::OK,
            false => StatusCode::MULTI_STATUS,
        };
        (status, Json(Settled { results: self.0 })).into_response()
    }
}

fn check_count(what: &str, count: usize) -> std::result::Result<(), Problem> {
    match (1..=MAX).contains(&count) {
        true => Ok(()),
        false => Err(Problem::invalid(format!(
            "`{what}` has {count} members; it must have 1 to {MAX}"
        ))),
    }
}

/// Settle deliveries; durable when answered.
///
/// A repeated settlement changes nothing: its outcome is `lease_lost`. On backends that do not keep leases (RabbitMQ,
/// Kafka) a delivery is settled at the process that leased it.
#[utoipa::path(post, operation_id = "settle_deliveries", path = "/v1/queues/{queue}/settle", params(QueuePath), request_body = Settlements, responses((status = 200, description = "Every outcome is `ok`", body = Settled), (status = 207, description = "An outcome is not `ok`", body = Settled)))]
pub(in super::super) async fn settle(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Json(Object(request)): Json<Object<Settlements>>,
) -> std::result::Result<Response, Failure> {
    check_count("settlements", request.settlements.len())?;
    for (at, Object(one)) in request.settlements.iter().enumerate() {
        check(at, one)?;
    }
    let (backend, queue, name) = admin.find_on(&name).await?;
    let session = admin.jobs.session_on(backend);
    let needs_policy = |one: &Object<Settling>| {
        one.0.disposition == DispositionKind::Retry && one.0.after.is_none()
    };
    let policy = match request.settlements.iter().any(needs_policy) {
        true => queue.settings(&name).await?.retry,
        false => retry::Policy::default(),
    };
    let mut outcomes = Outcomes::new();
    let (mut places, mut settlements) = (Vec::new(), Vec::new());
    for (at, Object(one)) in request.settlements.into_iter().enumerate() {
        let ticket = receipt::decode(&one.receipt, &name, session);
        let (kind, after) = (one.disposition, one.after);
        let reason = one.reason.unwrap_or_default();
        if let Some(ticket) = outcomes.take(one.receipt, ticket) {
            let attempt = ticket.attempt;
            places.push(at);
            settlements.push(Settlement {
                receipt: ticket.receipt,
                disposition: disposition(kind, after, &reason, || {
                    policy.next_delay(attempt, &mut rand::rng())
                }),
            });
        }
    }
    outcomes.enter(&places, queue.settle(settlements).await?);
    Ok(outcomes.into_response())
}

/// Refuses members that a disposition does not have: they would be ignored.
fn check(at: usize, one: &Settling) -> std::result::Result<(), Problem> {
    let (has_delay, has_reason, name) = match one.disposition {
        DispositionKind::Ack => (false, false, "ack"),
        DispositionKind::Retry => (true, true, "retry"),
        DispositionKind::DeadLetter => (false, true, "dead_letter"),
        DispositionKind::Release => (true, false, "release"),
    };
    let unknown = match (has_delay, has_reason) {
        (false, _) if one.after.is_some() => "after",
        (_, false) if one.reason.is_some() => "reason",
        _ if one.after.is_some_and(|Span(after)| after > MAX_DELAY) => {
            let reason = format!("`settlements[{at}].after` is over the limit of `87600h`");
            return Err(Problem::invalid(reason));
        }
        _ => return Ok(()),
    };
    Err(Problem::invalid(format!(
        "`settlements[{at}]`: `{name}` has no `{unknown}`"
    )))
}

fn disposition(
    kind: DispositionKind,
    after: Option<Span>,
    reason: &str,
    next_delay: impl FnOnce() -> Duration,
) -> Disposition {
    let reason = cut(reason);
    match kind {
        DispositionKind::Ack => Disposition::Ack,
        DispositionKind::Retry => Disposition::Retry {
            after: after.map_or_else(next_delay, |Span(after)| after),
            error: reason,
        },
        DispositionKind::DeadLetter => Disposition::DeadLetter { reason },
        DispositionKind::Release => Disposition::Release {
            after: after.map_or(Duration::ZERO, |Span(after)| after),
        },
    }
}

/// The reason as it is kept: separators of attempt records and other control characters become spaces.
fn cut(reason: &str) -> String {
    if reason.is_empty() {
        return "no reason given".to_owned();
    }
    let end = reason.floor_char_boundary(ERROR_BYTES);
    let plain = |one: char| match one {
        '\n' | '\t' => one,
        one if one.is_control() => ' ',
        one => one,
    };
    reason[..end].chars().map(plain).collect()
}

/// Extend leases.
///
/// An expired lease begins again, unless the message was leased since.
#[utoipa::path(post, operation_id = "extend_leases", path = "/v1/queues/{queue}/extend", params(QueuePath), request_body = Extending, responses((status = 200, description = "Every outcome is `ok`", body = Settled), (status = 207, description = "An outcome is not `ok`", body = Settled)))]
pub(in super::super) async fn extend(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Json(Object(request)): Json<Object<Extending>>,
) -> std::result::Result<Response, Failure> {
    check_count("receipts", request.receipts.len())?;
    check_lease(request.lease.0)?;
    let (backend, queue, name) = admin.find_on(&name).await?;
    let session = admin.jobs.session_on(backend);
    let mut outcomes = Outcomes::new();
    let (mut places, mut receipts): (Vec<usize>, Vec<Receipt>) = (Vec::new(), Vec::new());
    for (at, text) in request.receipts.into_iter().enumerate() {
        let ticket = receipt::decode(&text, &name, session);
        if let Some(ticket) = outcomes.take(text, ticket) {
            places.push(at);
            receipts.push(ticket.receipt);
        }
    }
    outcomes.enter(&places, queue.extend(&receipts, request.lease.0).await?);
    Ok(outcomes.into_response())
}
