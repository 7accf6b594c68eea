//! `/v1/outbox`: events, what became of them, and sending them again.
//!
//! What is sent again is written to the outbox, so the relay sends it in order and under the same guarantees.

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

/// How far the relay is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OutboxStats {
    /// Events that were not sent yet.
    pub new: u64,
    /// Events that were sent and are still kept.
    pub sent: u64,
    /// Events that the broker refused too often.
    pub failed: u64,
    /// Age of the oldest event that was not sent yet.
    pub oldest_age_seconds: Option<i64>,
    /// The relay's position, when the outbox never gave out that place: its sequence was reset.
    pub position_ahead: Option<u64>,
    /// Open transactions that events may wait for.
    pub waits_for: Vec<OpenTransactionView>,
}

/// A transaction that wrote an event and is still open.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OpenTransactionView {
    /// How the database names it.
    pub transaction: String,
    /// How long it has been open.
    pub age_seconds: Option<u64>,
    /// The name that its client gave.
    pub application_name: String,
}

/// An event.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Its place in the order.
    pub seq: u64,
    /// Its id, the same however often it is sent.
    pub id: String,
    /// NEW, PROCESSING, SENT or FAILED.
    pub status: String,
    /// What happened.
    pub event_type: String,
    /// The kind of thing it is about.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// The topic that it goes to.
    pub topic: String,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When it happened, RFC 3339.
    pub created_at: String,
    /// How often the broker refused it.
    pub attempts: u32,
    /// Why, the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why no broker can take it; its payload is not shown then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaw: Option<String>,
    /// The payload.
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

/// Which events are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Only these: NEW, PROCESSING, SENT or FAILED.
    status: Option<String>,
    /// Only those about this kind of thing.
    aggregate_type: Option<String>,
    /// Only those about this one.
    aggregate_id: Option<String>,
    /// Only this one.
    #[param(value_type = Option<Uuid>)]
    id: Option<String>,
    /// Those behind this place.
    #[serde(default)]
    after: u64,
    /// Most events, 1 to 1,000; fewer when they are large.
    #[serde(default)]
    #[param(value_type = u16, minimum = 1, maximum = 1000, default = 20)]
    max: Max,
}

/// Failed events to make new: one, or all.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryWanted {
    /// The event.
    #[schema(value_type = Option<Uuid>)]
    pub id: Option<String>,
    /// Every one that failed.
    #[serde(default)]
    pub all: bool,
}

/// Sent events to send again.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayWanted {
    /// The events.
    #[schema(value_type = Vec<Uuid>)]
    pub ids: Vec<String>,
    /// To this topic instead of their own.
    pub topic: Option<String>,
}

/// A stretch of the events that were sent, to send again.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackfillWanted {
    /// Those behind this place.
    #[serde(default)]
    pub after: u64,
    /// Those up to this place; without it, up to how far the relay is now.
    pub until: Option<u64>,
    /// Only what happened at this time or later, RFC 3339.
    pub start: Option<String>,
    /// Only what happened before this time.
    pub end: Option<String>,
    /// Only events about this kind of thing.
    pub aggregate_type: Option<String>,
    /// To this topic instead of their own.
    pub topic: Option<String>,
    /// Count them, and send none.
    #[serde(default)]
    pub dry_run: bool,
    /// Most events, 1 to 1,000, in one transaction.
    #[schema(minimum = 1, maximum = 1000)]
    pub max: u16,
}

/// What became of a stretch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Backfilled {
    /// How many were sent again, or would be.
    pub count: u64,
    /// The end of the stretch, for `after` of the next; none when there are no more.
    pub after: Option<u64>,
    /// Up to where events are looked at, for `until` of the next.
    pub until: u64,
}

/// How many events there are of each status, and how far behind the relay is.
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

/// Events in their order.
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

/// Makes failed events new again, behind every other.
#[utoipa::path(post, path = "/v1/outbox/retry", request_body = RetryWanted, responses((status = 200, description = "How many", body = Count), (status = 404, description = "No outbox here")))]
pub(super) async fn retry(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<RetryWanted>>,
) -> Answer<Count> {
    let which = match (wanted.id, wanted.all) {
        (Some(text), false) => Some(id(&text)?),
        (None, true) => None,
        _ => return Err(Error::invalid("say either `all` or an `id`").into()),
    };
    let count = admin.outbox()?.retry(which).await?;
    Ok(Json(Count { count }))
}

/// Sends events again that were sent before, with the same ids: all, or none when one is not there.
#[utoipa::path(post, path = "/v1/outbox/replay", request_body = ReplayWanted, responses((status = 200, description = "How many", body = Count), (status = 404, description = "No outbox here, or an event that was not sent")))]
pub(super) async fn replay(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<ReplayWanted>>,
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

/// Sends a stretch of what was sent before again, with the same ids.
#[utoipa::path(post, path = "/v1/outbox/backfill", request_body = BackfillWanted, responses((status = 200, description = "How many, and where the next stretch begins", body = Backfilled), (status = 404, description = "No outbox here")))]
pub(super) async fn backfill(
    State(admin): State<Admin>,
    Json(Object(wanted)): Json<Object<BackfillWanted>>,
) -> Answer<Backfilled> {
    let outbox = admin.outbox()?;
    // What is sent from here on is not looked at: neither new events nor those that this writes.
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
    Ok(Json(Backfilled {
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
