//! Places in the log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in the log; orders as the log does.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub(crate) struct Position {
    /// Which segment; the first is 1.
    pub(crate) segment: u32,
    /// Bytes from the start of the segment's file.
    pub(crate) offset: u32,
}

impl Position {
    /// As one integer that orders the same way.
    pub(super) const fn to_u64(self) -> u64 {
        (self.segment as u64) << 32 | self.offset as u64
    }

    /// From [`Position::to_u64`].
    #[expect(clippy::cast_possible_truncation, reason = "takes the integer apart")]
    pub(super) const fn from_u64(value: u64) -> Self {
        Self {
            segment: (value >> 32) as u32,
            offset: value as u32,
        }
    }

    /// The position `bytes` further in the same segment.
    pub(crate) const fn plus(self, bytes: u32) -> Self {
        Self {
            segment: self.segment,
            offset: self.offset + bytes,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}
