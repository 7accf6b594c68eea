//! `/v1/outbox`: events, their status, and sending them again.
//!
//! Replayed events are written to the outbox, so the relay sends it in order and under the same guarantees.

#![expect(
    clippy::disallowed_methods,
    reason = "ages of events are counted from the database's wall-clock times"
)]

use std::sync::Arc;

use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{Filter, ListedEvent, NewEvent, Status};
use towpath_core::{Error, Result};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Admin;
use super::routes::{Answer, Max};
use super::wire::Count;
use crate::http::extract::{Json, Query};
use crate::http::json::Object;

/// Statistics of the outbox.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OutboxStats {
    /// Unsent events.
    pub new: u64,
    /// Sent events within their retention.
    pub sent: u64,
    /// Failed events: rejected by the broker on every attempt.
    pub failed: u64,
    /// Age of the oldest unsent event.
    pub oldest_age_seconds: Option<i64>,
    /// The relay's position when the outbox has not assigned it: the sequence was reset.
    pub position_ahead: Option<u64>,
    /// Open transactions that may hold back events.
    pub waits_for: Vec<OpenTransactionView>,
}

/// An open transaction that wrote an event.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OpenTransactionView {
    /// Name of the transaction in the database.
    pub transaction: String,
    /// Age of the transaction.
    pub age_seconds: Option<u64>,
    /// Application name of its client.
    pub application_name: String,
}

/// An event.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Position in the outbox.
    pub seq: u64,
    /// Event id, the same in every delivery.
    pub id: String,
    /// NEW, PROCESSING, SENT or FAILED.
    pub status: String,
    /// Event type.
    pub event_type: String,
    /// Aggregate type.
    pub aggregate_type: String,
    /// Aggregate id.
    pub aggregate_id: String,
    /// Topic of the event.
    pub topic: String,
    /// Partition key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Creation time, RFC 3339.
    pub created_at: String,
    /// Rejected attempts.
    pub attempts: u32,
    /// Reason of the last rejection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why the event cannot be sent to any broker; its payload is not shown then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaw: Option<String>,
    /// Payload of the event.
    pub data: String,
}

impl From<ListedEvent> for EventView {
    fn from(listed: ListedEvent) -> Self {
        let event = listed.event.event;
        Self {
            seq: listed.event.seq,
            id: event.id.to_string(),
            status: listed.status.as_str().to_owned(),
            event_type: event.event_type,
            aggregate_type: event.aggregate_type,
            aggregate_id: event.aggregate_id,
            topic: event.topic,
            key: event.key,
            created_at: event.created_at.to_string(),
            attempts: listed.attempts,
            error: listed.error,
            flaw: listed.event.flaw,
            data: event.data,
        }
    }
}

/// Filter and page of events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Status: NEW, PROCESSING, SENT or FAILED.
    status: Option<String>,
    /// Aggregate type.
    aggregate_type: Option<String>,
    /// Aggregate id.
    aggregate_id: Option<String>,
    /// Event id.
    #[param(value_type = Option<Uuid>)]
    id: Option<String>,
    /// Start after this position.
    #[serde(default)]
    after: u64,
    /// Maximum events, 1 to 1,000; fewer when they are large.
    #[serde(default)]
    #[param(value_type = u16, minimum = 1, maximum = 1000, default = 20)]
    max: Max,
}

/// Failed events to retry: one, or all.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    /// Id of the event.
    #[schema(value_type = Option<Uuid>)]
    pub id: Option<String>,
    /// Retry all failed events.
    #[serde(default)]
    pub all: bool,
}

/// Sent events to replay.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Ids of the events.
    #[schema(value_type = Vec<Uuid>)]
    pub ids: Vec<String>,
    /// Send to this topic instead of the events' own.
    pub topic: Option<String>,
}

/// A range of sent events to replay.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackfillRequest {
    /// Start after this position.
    #[serde(default)]
    pub after: u64,
    /// Stop at this position [default: the relay's position].
    pub until: Option<u64>,
    /// Start of the time range, inclusive, RFC 3339.
    pub start: Option<String>,
    /// End of the time range, exclusive, RFC 3339.
    pub end: Option<String>,
    /// Aggregate type.
    pub aggregate_type: Option<String>,
    /// Send to this topic instead of the events' own.
    pub topic: Option<String>,
    /// Count the events without sending them.
    #[serde(default)]
    pub dry_run: bool,
    /// Maximum events per transaction, 1 to 1,000.
    #[schema(minimum = 1, maximum = 1000)]
    pub max: u16,
}

/// Result of a backfill step.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackfillProgress {
    /// Number of replayed events, or of events that would be replayed.
    pub count: u64,
    /// `after` of the next step; absent at the end.
    pub after: Option<u64>,
    /// `until` of the next step.
    pub until: u64,
}

/// Show event counts by status and the lag of the relay.
#[utoipa::path(get, path = "/v1/outbox", responses((status = 200, description = "The numbers", body = OutboxStats), (status = 404, description = "No outbox here")))]
pub(super) async fn stats(State(admin): State<Admin>) -> Answer<OutboxStats> {
    let outbox = admin.outbox()?;
    let (backlog, kept) = (outbox.backlog().await?, outbox.kept().await?);
    let age = |oldest| Timestamp::now().duration_since(oldest).as_secs().max(0);
    let waits_for = backlog
        .waits_for
        .into_iter()
        .map(|one| OpenTransactionView {
            transaction: one.id,
            age_seconds: one.age_seconds,
            application_name: one.application,
        });
    Ok(Json(OutboxStats {
        new: backlog.new,
        sent: kept.saturating_sub(backlog.new + backlog.failed),
        failed: backlog.failed,
        oldest_age_seconds: backlog.oldest.map(age),
        position_ahead: backlog.ahead,
        waits_for: waits_for.collect(),
    }))
}

/// List events in order.
#[utoipa::path(get, path = "/v1/outbox/events", params(Which), responses((status = 200, description = "In their order", body = [EventView]), (status = 404, description = "No outbox here")))]
pub(super) async fn events(
    State(admin): State<Admin>,
    Query(which): Query<Which>,
) -> Answer<Vec<EventView>> {
    let status = which.status.map(|name| {
        let unknown = || Error::invalid(format!("`{name}` is not NEW, PROCESSING, SENT or FAILED"));
        Status::parse(&name).ok_or_else(unknown)
    });
    let filter = Filter {
        status: status.transpose()?,
        aggregate_type: which.aggregate_type,
        aggregate_id: which.aggregate_id,
        id: which.id.as_deref().map(id).transpose()?,
        after: which.after,
        ..Filter::default()
    };
    let listed = admin.outbox()?.list(&filter, which.max.0).await?;
    Ok(Json(listed.into_iter().map(EventView::from).collect()))
}

/// Retry failed events, after all other events.
#[utoipa::path(post, path = "/v1/outbox/retry", request_body = RetryRequest, responses((status = 200, description = "How many", body = Count), (status = 404, description = "No outbox here")))]
pub(super) async fn retry(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<RetryRequest>>,
) -> Answer<Count> {
    let which = match (wanted.id, wanted.all) {
        (Some(text), false) => Some(id(&text)?),
        (None, true) => None,
        _ => return Err(Error::invalid("pass either `all` or an `id`").into()),
    };
    let count = admin.outbox()?.retry(which).await?;
    Ok(Json(Count { count }))
}

/// Replay sent events with the same ids; all of them, or none when one does not exist.
#[utoipa::path(post, path = "/v1/outbox/replay", request_body = ReplayRequest, responses((status = 200, description = "How many", body = Count), (status = 404, description = "No outbox here, or an event that was not sent")))]
pub(super) async fn replay(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<ReplayRequest>>,
) -> Answer<Count> {
    let outbox = admin.outbox()?;
    let mut events = Vec::new();
    for text in &wanted.ids {
        let filter = Filter {
            id: Some(id(text)?),
            status: Some(Status::Sent),
            ..Filter::default()
        };
        let found = outbox.list(&filter, 1).await?.pop().ok_or_else(|| {
            Error::not_found(format!(
                "no event `{text}` was sent and is still kept; nothing was done"
            ))
        })?;
        events.push(redirected(found.event.event, wanted.topic.as_ref()));
    }
    let count = events.len() as u64;
    outbox.write(events).await?;
    Ok(Json(Count { count }))
}

/// Replay a range of sent events with the same ids.
#[utoipa::path(post, path = "/v1/outbox/backfill", request_body = BackfillRequest, responses((status = 200, description = "How many, and where the next stretch begins", body = BackfillProgress), (status = 404, description = "No outbox here")))]
pub(super) async fn backfill(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<BackfillRequest>>,
) -> Answer<BackfillProgress> {
    let outbox = admin.outbox()?;
    // Later events are not included: neither new events nor those that this writes.
    let until = match wanted.until {
        Some(until) => until,
        None => outbox.position().await?,
    };
    let filter = Filter {
        status: Some(Status::Sent),
        aggregate_type: wanted.aggregate_type,
        from: wanted.start.as_deref().map(time).transpose()?,
        to: wanted.end.as_deref().map(time).transpose()?,
        after: wanted.after,
        ..Filter::default()
    };
    let max = Max::try_from(u64::from(wanted.max)).map_err(Error::invalid)?;
    let mut found = outbox.list(&filter, max.0).await?;
    found.retain(|one| one.event.seq <= until);
    let (count, after) = (found.len() as u64, found.last().map(|one| one.event.seq));
    if !wanted.dry_run && count > 0 {
        let topic = wanted.topic.as_ref();
        let events = found
            .into_iter()
            .map(|one| redirected(one.event.event, topic));
        outbox.write(events.collect()).await?;
    }
    Ok(Json(BackfillProgress {
        count,
        after,
        until,
    }))
}

fn redirected(mut event: NewEvent, topic: Option<&String>) -> NewEvent {
    if let Some(topic) = topic {
        event.topic.clone_from(topic);
    }
    event
}

fn id(text: &str) -> Result<Uuid> {
    let wrong = |error| Error::invalid(format!("`{text}` is not a UUID")).with_source(error);
    text.parse().map_err(wrong)
}

fn time(text: &str) -> Result<Timestamp> {
    text.parse().map_err(|error: jiff::Error| {
        let wrong = format!("invalid time `{text}`; expected e.g. `2026-01-31T12:00:00Z`");
        Error::invalid(wrong).with_source(error)
    })
}

impl Admin {
    fn outbox(&self) -> Result<Arc<dyn Outbox>> {
        self.outbox.clone().ok_or_else(|| {
            Error::not_found(
                "no role of the accounts app runs in this process; ask one where it does",
            )
        })
    }
}
