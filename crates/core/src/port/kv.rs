//! Keys and values, counters and fields, several changed in one atomic step.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// One change. A counter is a value that holds a decimal integer as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value; without a `ttl` it stays for ever.
    Put {
        /// Which key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// Time to live, kept to the millisecond.
        ttl: Option<Duration>,
    },
    /// Sets the value, on condition that the key is absent.
    PutIfAbsent {
        /// Which key.
        key: String,
        /// Its value.
        value: Bytes,
        /// Time to live.
        ttl: Option<Duration>,
    },
    /// Sets the value, on condition that the present one equals `expected` (`None`: absent).
    CompareAndSwap {
        /// Which key.
        key: String,
        /// The value it must have.
        expected: Option<Bytes>,
        /// The new value.
        value: Bytes,
        /// Time to live.
        ttl: Option<Duration>,
    },
    /// Adds to a counter (absent counts as 0), on condition that the sum stays within `min..=max`. Keeps the ttl.
    Add {
        /// Which key.
        key: String,
        /// The summand.
        delta: i64,
        /// Least allowed sum.
        min: i64,
        /// Greatest allowed sum.
        max: i64,
    },
    /// Removes the key, value or fields.
    Delete {
        /// Which key.
        key: String,
    },
    /// Sets one field of the hash at the key.
    SetField {
        /// Which key.
        key: String,
        /// Which field.
        field: String,
        /// Its value.
        value: Bytes,
    },
    /// Sets or removes the ttl of a key, on condition that the key exists.
    Expire {
        /// Which key.
        key: String,
        /// From now; `None` keeps it for ever.
        ttl: Option<Duration>,
    },
}

impl Op {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. }
            | Self::PutIfAbsent { key, .. }
            | Self::CompareAndSwap { key, .. }
            | Self::Add { key, .. }
            | Self::Delete { key }
            | Self::SetField { key, .. }
            | Self::Expire { key, .. } => key,
        }
    }
}

/// The outcome of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// Every change was made. One value per op: the key's value afterwards (the
    /// sum, for `Add`), `None` where there is none.
    Applied(Vec<Option<Bytes>>),
    /// No change was made: the condition of op number `index` did not hold.
    Refused {
        /// Which op.
        index: usize,
        /// The value that stood in the way, `None` when absent.
        current: Option<Bytes>,
    },
}

/// Keys and values.
#[async_trait]
pub trait Kv: Send + Sync {
    /// Makes all changes or none, in one atomic and durable step, as if one after the other.
    ///
    /// # Errors
    /// `Invalid` for an empty or over-long key, a counter that is not an integer,
    /// a hash used as a value or the other way round (nothing changed).
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed>;

    /// The value, `None` when absent or expired. A returned value is durable.
    ///
    /// # Errors
    /// `Invalid` when the key holds fields.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// Every field of the hash at the key, by name; empty when absent.
    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>>;

    /// Time to live of the key: `None` when absent, `Some(None)` without expiry.
    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>>;

    /// Up to `max` keys that start with `prefix`, in order, those behind `after` when given.
    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>>;

    /// Sets a value.
    async fn put(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<()> {
        self.commit(vec![Op::Put {
            key: key.into(),
            value,
            ttl,
        }])
        .await
        .map(drop)
    }

    /// Sets a value unless the key exists. Returns whether it was set.
    async fn put_if_absent(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<bool> {
        let op = Op::PutIfAbsent {
            key: key.into(),
            value,
            ttl,
        };
        Ok(matches!(
            self.commit(vec![op]).await?,
            Committed::Applied(_)
        ))
    }

    /// Removes a key.
    async fn delete(&self, key: &str) -> Result<()> {
        self.commit(vec![Op::Delete { key: key.into() }])
            .await
            .map(drop)
    }
}
