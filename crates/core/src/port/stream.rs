//! Streams: append-only logs that several consumer groups read, each at its own position.
//!
//! Inside a group every entry goes to one consumer. The group's position is
//! the longest finished prefix: an unfinished entry holds it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ConsumerId, Error, GroupName, Message, NewMessage, Result, StreamName};

/// Retention of a dedup id, from the append of its entry.
pub const DEDUP_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// The place of an entry: within its partition offsets only grow, and there may be gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offset {
    /// Which partition; 0 where there is one.
    pub partition: u32,
    /// The backend's own numbering.
    pub value: u128,
}

/// Where a new group starts to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest entry that is still kept.
    Beginning,
    /// Behind the newest entry.
    End,
    /// Right behind this entry.
    After(Offset),
}

/// A request for entries on behalf of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// The stream.
    pub stream: StreamName,
    /// The group.
    pub group: GroupName,
    /// The consumer that will hold the entries.
    pub consumer: ConsumerId,
    /// 1 to `queue::MAX_BATCH` entries.
    pub max: usize,
    /// Longest wait for the first one.
    pub wait: Duration,
}

/// An entry handed to a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub offset: Offset,
    /// The message.
    pub message: Message,
    /// 1 for the first handing-out in this group; 0 when read without a group.
    pub attempt: u32,
}

/// A group's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStats {
    /// The group.
    pub group: GroupName,
    /// Entries appended but not finished in this group.
    pub lag: u64,
    /// Delivered entries that are not finished.
    pub pending: u64,
    /// Age of the oldest unfinished entry.
    pub oldest_age: Option<Duration>,
    /// Behind which entry the finished prefix ends; `None` before the first.
    pub committed: Option<Offset>,
}

/// A stream's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The stream.
    pub stream: StreamName,
    /// Entries kept.
    pub entries: u64,
    /// Entries ever appended.
    pub appended: u64,
    /// The oldest entry kept.
    pub first: Option<Offset>,
    /// The newest entry.
    pub last: Option<Offset>,
    /// Its groups, by name.
    pub groups: Vec<GroupStats>,
}

/// Extent of a trim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trim {
    /// Everything up to the end of the shortest finished prefix; nothing while the stream has no groups.
    Finished,
    /// All but the newest N entries, finished or not.
    KeepLast(u64),
}

/// Checks an entry on its way in.
///
/// # Errors
/// `Invalid` when it is over a limit, or has a delay or an expiry.
pub fn check_entry(entry: &NewMessage) -> Result<()> {
    entry.check()?;
    if entry.not_before.is_some() || entry.expires.is_some() {
        return Err(Error::invalid(
            "an entry of a stream can have no delay and no expiry; use a queue",
        ));
    }
    Ok(())
}

/// Append-only logs with consumer groups.
#[async_trait]
pub trait Stream: Send + Sync {
    /// Appends in order; durable when it returns. One outcome per entry; those of one call stay in order.
    ///
    /// A missing stream is made. With `dedup_id`, a repeat within [`DEDUP_WINDOW`] returns the first entry's offset.
    ///
    /// # Errors
    /// As `Queue::enqueue`; `Invalid` for an entry with a delay or an expiry, which streams do not have.
    async fn append(
        &self,
        stream: &StreamName,
        entries: Vec<NewMessage>,
    ) -> Result<Vec<Result<Offset>>>;

    /// Makes sure the stream and the group exist; an existing group keeps its position. Durable.
    async fn create_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        start: Start,
    ) -> Result<()>;

    /// Moves the group's position; pending entries are forgotten. Durable. This is replay.
    ///
    /// # Errors
    /// `NotFound` when the group does not exist.
    async fn seek(&self, stream: &StreamName, group: &GroupName, to: Start) -> Result<()>;

    /// Removes the group and its position; a missing group is not an error.
    async fn delete_group(&self, stream: &StreamName, group: &GroupName) -> Result<()>;

    /// Delivers the next entries of the group, in order, each to one consumer.
    ///
    /// # Errors
    /// `NotFound` when the group does not exist; `Invalid` for `max` out of range.
    async fn read(&self, request: ReadRequest) -> Result<Vec<Entry>>;

    /// Marks entries as finished by the group and moves its position over the
    /// longest finished prefix; durable. Entries already finished or no longer kept are skipped.
    ///
    /// # Errors
    /// `NotFound` when the group does not exist.
    async fn commit(
        &self,
        stream: &StreamName,
        group: &GroupName,
        finished: &[Offset],
    ) -> Result<()>;

    /// Claims up to `max` unfinished entries that other consumers have
    /// held for at least `min_idle`, or whose consumer is disconnected, oldest first; attempts counted.
    ///
    /// # Errors
    /// `NotFound` when the group does not exist; `Invalid` for `max` out of range.
    async fn claim(
        &self,
        stream: &StreamName,
        group: &GroupName,
        consumer: &ConsumerId,
        min_idle: Duration,
        max: usize,
    ) -> Result<Vec<Entry>>;

    /// Disconnects the consumer: its pending entries can be claimed at once. Returns their number.
    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64>;

    /// Up to `max` entries behind `after` (from the oldest when `None`), without a group.
    /// An unreadable entry is skipped.
    ///
    /// # Errors
    /// `NotFound` when the stream does not exist; `Invalid` for `max` out of range.
    async fn range(
        &self,
        stream: &StreamName,
        after: Option<Offset>,
        max: usize,
    ) -> Result<Vec<Entry>>;

    /// Payloads of the newest entries, the oldest first, as long as another program appended them: none when the newest
    /// is ours, when the stream does not exist, and on backends that no other program appends to.
    ///
    /// # Errors
    /// `Unavailable` when the backend did not answer; `Invalid` for `max` out of range.
    async fn newest_of_others(&self, _: &StreamName, _max: usize) -> Result<Vec<Bytes>> {
        Ok(Vec::new())
    }

    /// Deletes old entries, also where a group has not finished them. Returns their number.
    ///
    /// # Errors
    /// `NotFound` when the stream does not exist.
    async fn trim(&self, stream: &StreamName, trim: Trim) -> Result<u64>;

    /// The numbers of every stream, by name.
    async fn list(&self) -> Result<Vec<Stats>>;

    /// One stream's numbers.
    ///
    /// # Errors
    /// `NotFound` when the stream does not exist.
    async fn stats(&self, stream: &StreamName) -> Result<Stats>;
}
