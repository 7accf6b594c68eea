//! The events of users, as consumers of the topic read them.

use jiff::Timestamp;
use serde_json::{Value, json};
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::users::User;
use uuid::Uuid;

use towpath::traces;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    Created,
    Updated,
    Deleted,
}

impl Happened {
    const fn event_type(self) -> &'static str {
        match self {
            Self::Created => "user.created",
            Self::Updated => "user.updated",
            Self::Deleted => "user.deleted",
        }
    }
}

/// The event of a change of `user` at `at`, in the trace of the request that this task serves. That of a deletion names no person.
pub(super) fn event(topic: &str, happened: Happened, user: &User, at: Timestamp) -> NewEvent {
    let id = user.id.to_string();
    let data: Value = match happened {
        Happened::Created => json!({
            "user_id": id, "email": user.email, "name": user.name, "created_at": at,
        }),
        Happened::Updated => json!({
            "user_id": id, "email": user.email, "name": user.name, "updated_at": at,
        }),
        Happened::Deleted => json!({ "user_id": id, "deleted_at": at }),
    };
    NewEvent {
        id: Uuid::now_v7(),
        aggregate_type: "user".to_owned(),
        aggregate_id: id.clone(),
        event_type: happened.event_type().to_owned(),
        topic: topic.to_owned(),
        key: Some(id),
        data: data.to_string(),
        created_at: at,
        traceparent: traces::traceparent(),
    }
}
