//! Names and ids, valid by construction.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

/// The id of a message: a UUIDv7, so ids sort roughly by creation time.
///
/// One that carries a digest is a UUIDv8: a UUIDv7 with the digest in the place of its last random bits.
/// The ids that a process makes within a millisecond count up from a random number (RFC 9562, 6.2, method 2), so a batch
/// of them is stored in few bytes. Do not take one for a secret.
///
/// Two hosts' clocks differ, so the order of ids is never an ordering guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(Uuid);

impl MessageId {
    /// A fresh id.
    #[expect(
        clippy::new_without_default,
        reason = "a default id would hide that each call differs"
    )]
    pub fn new() -> Self {
        static LAST: Mutex<u128> = Mutex::new(0);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        *last = after(*last, now.as_millis());
        from_counted(*last)
    }

    /// A fresh id that carries the last 62 bits of a digest.
    pub fn with_digest(digest: [u8; 8]) -> Self {
        let mut bytes = *Self::new().as_bytes();
        bytes[6] = 0x80 | bytes[6] & 0x0f;
        bytes[8..].copy_from_slice(&in_variant(digest));
        Self(Uuid::from_bytes(bytes))
    }

    /// Whether the digest that the id carries is this one; `None` when it carries none.
    pub fn carries(&self, digest: [u8; 8]) -> Option<bool> {
        let bytes = self.0.as_bytes();
        (bytes[6] >> 4 == 8).then(|| bytes[8..] == in_variant(digest))
    }

    /// The id with these sixteen bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The sixteen bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

/// Bits below the milliseconds.
const COUNTER_BITS: u32 = 74;

/// The number behind `last`: a random one of a new millisecond, or one more.
fn after(last: u128, now_ms: u128) -> u128 {
    if now_ms <= last >> COUNTER_BITS {
        return last + 1;
    }
    // The highest bit is left for counting.
    let random = rand::random::<u128>() >> (u128::BITS - COUNTER_BITS + 1);
    now_ms << COUNTER_BITS | random
}

/// The UUIDv7 of 48 bits of milliseconds and 74 bits of counter.
const fn from_counted(number: u128) -> MessageId {
    let (high, low) = (number >> 62, number & ((1 << 62) - 1));
    let (moment, counter) = (high >> 12, high & 0xfff);
    let version_and_variant = 7 << 76 | 0b10 << 62;
    MessageId(Uuid::from_u128(
        moment << 80 | version_and_variant | counter << 64 | low,
    ))
}

/// The digest with the two bits of RFC 9562's variant at its start.
const fn in_variant(mut digest: [u8; 8]) -> [u8; 8] {
    digest[0] = 0x80 | digest[0] & 0x3f;
    digest
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(Self).map_err(|error| {
            Error::invalid(format!("message id `{text}` is not a UUID")).with_source(error)
        })
    }
}

/// Longest name in bytes. Source: AMQP 0-9-1 short strings hold 255 bytes, the tightest of our backends.
pub const MAX_NAME_BYTES: usize = 255;

fn check_name(what: &str, name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 255 bytes"
    } else if name
        .chars()
        .any(|character| character.is_control() || character.is_whitespace())
    {
        "contains white space or control characters"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "{what} `{}` {problem}",
        name.escape_debug()
    )))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// 1 to 255 bytes of UTF-8 without white space or control characters; cheap to clone.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The checked name.
            ///
            /// # Errors
            /// `Invalid` when it is empty, too long, or has white space or control characters.
            pub fn new(name: impl AsRef<str>) -> Result<Self> {
                check_name($what, name.as_ref())?;
                Ok(Self(name.as_ref().into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// The name of a queue.
    QueueName, "queue name";
    /// The name of a stream.
    StreamName, "stream name";
    /// The name of a consumer group.
    GroupName, "group name";
    /// The holder of deliveries: one per consuming task, unique among those alive.
    ConsumerId, "consumer id";
    /// The name of an exchange, to which routes are bound.
    ExchangeName, "exchange name";
}

impl ConsumerId {
    /// A fresh id that starts with `role`, for instance `ingest.worker-0190…`.
    ///
    /// # Errors
    /// `Invalid` when `role` is not usable in a name.
    pub fn unique(role: &str) -> Result<Self> {
        Self::new(format!("{role}-{}", Uuid::now_v7().simple()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_7_that_count_up_within_a_millisecond() {
        let ids: Vec<MessageId> = (0..10_000).map(|_| MessageId::new()).collect();
        let number = |id: &MessageId| u128::from_be_bytes(*id.as_bytes());
        let mut follows = 0;
        for pair in ids.windows(2) {
            assert!(pair[0] < pair[1]);
            follows += usize::from(number(&pair[1]) - number(&pair[0]) == 1);
        }
        assert!(follows > 5_000, "{follows}");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
        for id in &ids {
            assert_eq!(id.0.get_version_num(), 7);
            assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122);
            let moment = number(id) >> 80;
            assert!(moment <= now + 1 && moment + 60_000 > now);
        }
    }

    #[test]
    fn the_counter_of_an_id_starts_at_random_and_never_goes_back() {
        let first = after(0, 5);
        assert_eq!(first >> COUNTER_BITS, 5);
        assert_ne!(first, after(0, 5));
        // The clock was set back.
        assert_eq!(after(first, 4), first + 1);
        let last = (6 << COUNTER_BITS) - 1;
        assert_eq!(after(last, 5) >> COUNTER_BITS, 6);
        assert!(from_counted(last) < from_counted(last + 1));
    }

    #[test]
    fn a_name_is_refused_with_the_reason() {
        for (name, reason) in [
            ("", "queue name `` is empty"),
            (
                "a b",
                "queue name `a b` contains white space or control characters",
            ),
            (
                "a\nb",
                "queue name `a\\nb` contains white space or control characters",
            ),
        ] {
            assert_eq!(QueueName::new(name).unwrap_err().to_string(), reason);
        }
        assert!(QueueName::new("x".repeat(256)).is_err());
        assert!(QueueName::new("x".repeat(255)).is_ok());
    }
}
