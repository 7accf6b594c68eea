//! Users: the repository of the accounts app. Each change is one transaction with its outbox event.

use async_trait::async_trait;
use uuid::Uuid;

use super::outbox::NewEvent;
use crate::Result;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Never used again.
    pub id: Uuid,
    /// Lower case; no two users have the same.
    pub email: String,
    /// 1 to 255 characters.
    pub name: String,
    /// Whole microseconds.
    pub created_at: jiff::Timestamp,
    /// Whole microseconds.
    pub updated_at: jiff::Timestamp,
    /// 1 at first, one more with each change.
    pub version: u64,
}

/// The key of a request that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The client's key of the request.
    pub key: String,
    /// Digest of the request body.
    pub digest: String,
}

/// The outcome of creating a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The user is there, and so is the event.
    New,
    /// Repeat of an earlier request: the user that one created.
    Before(User),
    /// Another request has this key.
    KeyTaken,
    /// Another user has this address.
    EmailTaken,
}

/// The new fields of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which user.
    pub id: Uuid,
    /// Lower case.
    pub email: String,
    /// 1 to 255 characters.
    pub name: String,
    /// When.
    pub updated_at: jiff::Timestamp,
    /// The version that the user must have, if any.
    pub version: Option<u64>,
}

/// The outcome of a change or a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It happened, with its event; the user as it is now, or was last.
    Done(User),
    /// The user does not exist.
    Absent,
    /// The user has another version, this one.
    Version(u64),
    /// Another user has this address.
    EmailTaken,
}

/// The users of a database.
#[async_trait]
pub trait Users: Send + Sync {
    /// Creates a user and the event of it. A key is remembered in the same transaction.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer; whether it happened is then unknown.
    async fn create(
        &self,
        user: User,
        event: NewEvent,
        request: Option<RequestKey>,
    ) -> Result<Created>;

    /// A user.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn find(&self, id: Uuid) -> Result<Option<User>>;

    /// Users in the order of their ids behind `after`, at most `max`.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn list(&self, after: Option<Uuid>, max: usize) -> Result<Vec<User>>;

    /// Changes a user.
    ///
    /// # Errors
    /// As [`Users::create`].
    async fn update(&self, change: Change, event: NewEvent) -> Result<Changed>;

    /// Deletes a user, who must have `version` if one is given.
    ///
    /// # Errors
    /// As [`Users::create`].
    async fn delete(&self, id: Uuid, version: Option<u64>, event: NewEvent) -> Result<Changed>;

    /// Forgets request keys from before `time`, at most `max`. Their number.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn forget_requests(&self, time: jiff::Timestamp, max: usize) -> Result<u64>;
}
