//! `/v1/streams`: streams, their groups, their entries.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use towpath_core::port::Stream;
use towpath_core::port::stream::{Entry, Offset, Stats, Trim};
use towpath_core::{Error, Result, StreamName};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::failure::Failure;
use super::routes::{Answer, Max, Partial, is_absent, partial};
use super::wire::{Count, Payload};
use crate::http::Segment;
use crate::http::extract::{Json, Query};

/// Statistics of a stream.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StreamView {
    /// The stream.
    pub stream: String,
    /// Stored entries.
    pub entries: u64,
    /// Appended entries in total.
    pub appended: u64,
    /// Offset of the oldest stored entry.
    pub first: Option<String>,
    /// Offset of the newest entry.
    pub last: Option<String>,
    /// Its consumer groups, by name.
    pub groups: Vec<GroupView>,
}

/// Statistics of a consumer group.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// The group.
    pub group: String,
    /// Lag: entries that the group has not finished.
    pub lag: u64,
    /// Pending: entries delivered and not finished.
    pub pending: u64,
    /// Age of its oldest unfinished entry.
    pub oldest_age_seconds: Option<u64>,
    /// Offset of the last entry of the finished prefix.
    pub committed: Option<String>,
}

/// An entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryView {
    /// Offset of the entry.
    pub offset: String,
    /// Message id.
    pub id: String,
    /// Append time, RFC 3339.
    pub appended_at: String,
    /// Key of the entry, if any.
    pub key: Option<String>,
    /// Headers of the entry.
    pub headers: BTreeMap<String, String>,
    /// Payload of the entry.
    #[serde(flatten)]
    pub payload: Payload,
}

impl From<Stats> for StreamView {
    fn from(stats: Stats) -> Self {
        let groups = stats.groups.into_iter().map(|group| GroupView {
            group: group.group.to_string(),
            lag: group.lag,
            pending: group.pending,
            oldest_age_seconds: group.oldest_age.map(|age| age.as_secs()),
            committed: group.committed.map(show_offset),
        });
        Self {
            groups: groups.collect(),
            stream: stats.stream.to_string(),
            entries: stats.entries,
            appended: stats.appended,
            first: stats.first.map(show_offset),
            last: stats.last.map(show_offset),
        }
    }
}

impl From<Entry> for EntryView {
    fn from(entry: Entry) -> Self {
        let message = entry.message;
        let headers = message.headers.iter();
        Self {
            offset: show_offset(entry.offset),
            id: message.id.to_string(),
            appended_at: message.enqueued_at.to_string(),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            payload: Payload::of(&message.payload),
            key: message.key,
        }
    }
}

/// An offset as text: the partition and the backend's own number.
fn show_offset(offset: Offset) -> String {
    format!("{}:{}", offset.partition, offset.value)
}

fn read_offset(text: &str) -> Result<Offset> {
    let parts = text.split_once(':').and_then(|(partition, value)| {
        Some(Offset {
            partition: u32::from_str(partition).ok()?,
            value: u128::from_str(value).ok()?,
        })
    });
    parts.ok_or_else(|| {
        Error::invalid(format!(
            "invalid offset `{text}`; expected partition and number, e.g. `0:17`"
        ))
    })
}

/// A page of a stream.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    /// Maximum entries, 1 to 1,000.
    #[serde(default)]
    #[param(value_type = u16, minimum = 1, maximum = 1000, default = 20)]
    max: Max,
    /// Start after this offset [default: the oldest entry].
    after: Option<String>,
}

/// List streams.
///
/// Streams of an unavailable backend are left out, and the header `Towpath-Unavailable` names the backend with the reason.
/// 503 when every backend is unavailable.
#[utoipa::path(get, operation_id = "list_streams", path = "/v1/streams", responses((status = 200, description = "Their numbers, by name", body = [StreamView], headers(("Towpath-Unavailable" = String, description = "Backends whose streams are missing, with the reasons")))))]
pub(super) async fn list(
    State(admin): State<Admin>,
) -> std::result::Result<Partial<Vec<StreamView>>, Failure> {
    admin.streams()?;
    let listed = admin.listed(|backend| async move {
        let stream = backend.stream?;
        Some(stream.list().await)
    });
    let (streams, missing) = listed.await?;
    let streams = streams.into_iter().map(StreamView::from).collect();
    Ok(partial(streams, &missing))
}

/// Show a stream.
#[utoipa::path(get, operation_id = "show_stream", path = "/v1/streams/{stream}", params(("stream" = String, Path, description = "The stream")), responses((status = 200, description = "Its numbers", body = StreamView)))]
pub(super) async fn show(State(admin): State<Admin>, Segment(name): Segment) -> Answer<StreamView> {
    let (stream, name) = admin.find_stream(&name).await?;
    Ok(Json(stream.stats(&name).await?.into()))
}

/// List entries of a stream, independent of consumer groups.
#[utoipa::path(get, path = "/v1/streams/{stream}/entries", params(("stream" = String, Path, description = "The stream"), Stretch), responses((status = 200, description = "Oldest first", body = [EntryView])))]
pub(super) async fn entries(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Query(asked): Query<Stretch>,
) -> Answer<Vec<EntryView>> {
    let after = asked.after.as_deref().map(read_offset).transpose()?;
    let (stream, name) = admin.find_stream(&name).await?;
    let found = stream.range(&name, after, asked.max.0).await?;
    Ok(Json(found.into_iter().map(EntryView::from).collect()))
}

/// Entries to delete: exactly one of the two fields.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrimRequest {
    /// Keep this many of the newest entries; delete older ones even when unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u64>,
    /// Delete entries that every group has finished.
    #[serde(default)]
    pub finished: bool,
}

/// Delete old entries of a stream.
#[utoipa::path(post, operation_id = "trim_stream", path = "/v1/streams/{stream}/trim", params(("stream" = String, Path, description = "The stream")), request_body = TrimRequest, responses((status = 200, description = "Number of dropped entries", body = Count)))]
pub(super) async fn trim(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Json(wanted): Json<TrimRequest>,
) -> Answer<Count> {
    let trim = match (wanted.keep, wanted.finished) {
        (Some(keep), false) => Trim::KeepLast(keep),
        (None, true) => Trim::Finished,
        _ => return Err(Error::invalid("pass either `keep` or `finished`").into()),
    };
    let (stream, name) = admin.find_stream(&name).await?;
    let count = stream.trim(&name, trim).await?;
    Ok(Json(Count { count }))
}

impl Admin {
    /// Of every backend that has streams.
    fn streams(&self) -> Result<Vec<Arc<dyn Stream>>> {
        let backends = self.backends.iter();
        let streams: Vec<_> = backends
            .filter_map(|backend| backend.stream.clone())
            .collect();
        if streams.is_empty() {
            return Err(Error::unsupported("no backend of this process has streams"));
        }
        Ok(streams)
    }

    /// The backend of a stream that exists.
    async fn find_stream(&self, name: &str) -> Result<(Arc<dyn Stream>, StreamName)> {
        let name = StreamName::new(name)?;
        let mut unavailable = None;
        for stream in self.streams()? {
            match stream.stats(&name).await {
                Ok(_) => return Ok((stream, name)),
                Err(error) if is_absent(&error) => {}
                // Another backend may have it.
                Err(error) => _ = unavailable.get_or_insert(error),
            }
        }
        let absent = || {
            Error::not_found(format!(
                "there is no stream `{name}`; `towpath stream ls` lists those that exist"
            ))
        };
        Err(unavailable.unwrap_or_else(absent))
    }
}
