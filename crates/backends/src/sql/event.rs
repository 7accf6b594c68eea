//! Events from rows of any content: an unreadable row becomes the flaw of one event and stops no other.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::fmt::Display;

use jiff::Timestamp;
use towpath_core::Error;
use towpath_core::port::outbox::{
    Event, ListedEvent, MAX_DATA_BYTES, MAX_TEXT_BYTES, NewEvent, Status,
};
use uuid::Uuid;

use super::unsigned;

/// The columns of a new event.
pub(crate) const NEW: &str = "id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at, traceparent";

/// The texts of an event besides its payload, in the order of [`columns`].
const TEXTS: [&str; 5] = [
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "topic",
    "partition_key",
];

/// Largest `traceparent` in bytes that is read: more than the standard's versions need.
const TRACEPARENT: usize = 256;

/// Characters of a text that is too large.
const SHOWN: usize = 200;

/// Which rows are events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Those of `outbox`.
    Table,
    /// Those of `outbox_events`.
    View,
}

/// The columns of an event for [`Read::event`]: `seq`, `id`, the texts, the payload, `created_at`, the payload's bytes,
/// the name of a column that is too large, `traceparent`.
/// Data over the message limit stays in the database.
///
/// The view `outbox_events` has no `traceparent`: an event that an operator sends again is in no request's trace.
pub(crate) fn columns(of: Rows) -> String {
    let text = |name: &&str| {
        format!(
            "CASE WHEN octet_length({name}) > {MAX_TEXT_BYTES} THEN substr({name}, 1, {SHOWN}) ELSE {name} END"
        )
    };
    let texts: Vec<String> = TEXTS.iter().map(text).collect();
    let (texts, large) = (texts.join(", "), MAX_DATA_BYTES);
    let trace = match of {
        Rows::Table => {
            format!("CASE WHEN octet_length(traceparent) <= {TRACEPARENT} THEN traceparent END")
        }
        Rows::View => "CAST(NULL AS text)".to_owned(),
    };
    let is_large: Vec<String> = TEXTS
        .iter()
        .map(|name| format!("WHEN octet_length({name}) > {MAX_TEXT_BYTES} THEN '{name}'"))
        .collect();
    format!(
        "seq, id, {texts}, CASE WHEN octet_length(event_data) > {large} THEN '' ELSE event_data END, created_at,
        CAST(octet_length(event_data) AS bigint), CASE {} END,
        {trace}",
        is_large.join(" ")
    )
}

/// Number of columns of [`columns`].
pub(crate) const COLUMNS: usize = 12;

/// Bytes of an event's texts, as SQL.
pub(crate) fn size() -> String {
    let texts = TEXTS.iter().chain(&["event_data"]);
    let sizes: Vec<String> = texts
        .map(|name| format!("coalesce(octet_length({name}), 0)"))
        .collect();
    format!("CAST({} AS bigint)", sizes.join(" + CAST(0 AS bigint) + "))
}

/// The row of one event.
#[derive(Default)]
pub(crate) struct Read {
    flaw: Option<String>,
}

impl Read {
    /// A column, or the flaw that it cannot be read.
    pub(crate) fn take<T: Default, E: Display>(&mut self, name: &str, read: Result<T, E>) -> T {
        read.unwrap_or_else(|error| {
            self.flaw
                .get_or_insert_with(|| format!("column `{name}` cannot be read: {error}"));
            T::default()
        })
    }

    /// The event.
    pub(crate) fn event(
        mut self,
        seq: i64,
        event: NewEvent,
        data_bytes: i64,
        large: Option<&str>,
    ) -> Event {
        if unsigned(data_bytes) > MAX_DATA_BYTES as u64 {
            self.flaw = Some(format!(
                "`event_data` has {data_bytes} bytes, a message takes {MAX_DATA_BYTES}"
            ));
        } else if let Some(name) = large {
            self.flaw = Some(format!(
                "`{name}` has more than the {MAX_TEXT_BYTES} bytes of a header"
            ));
        }
        Event {
            seq: unsigned(seq),
            event,
            flaw: self.flaw,
        }
    }
}

/// An event with its status, as the view `outbox_events` has it.
pub(crate) fn listed(event: Event, row: (&str, i64, Option<String>)) -> ListedEvent {
    let (status, attempts, error) = row;
    ListedEvent {
        event,
        status: Status::parse(status).unwrap_or(Status::New),
        attempts: u32::try_from(attempts).unwrap_or(0),
        error,
    }
}

/// The error of an outbox whose sequence was set back while it may have sent its kept events.
pub(crate) fn undecided(position: i64, highest: i64) -> Error {
    Error::conflict(format!(
        "events up to {position} were sent, and the sequence of the outbox is at {highest}: it was set back or restored, \
         and kept events may have been sent. To send all kept events: UPDATE outbox_relay SET name = '{}', position = 0; \
         to send only new events: the same with position = {highest}",
        Uuid::now_v7()
    ))
}

/// The time of the oldest event, or of now where that cannot be read.
pub(crate) fn oldest<E>(read: Result<Option<Timestamp>, E>) -> Option<Timestamp> {
    read.unwrap_or_else(|_| Some(Timestamp::now()))
}
