//! Options of a log.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use towpath_core::{Error, Result};

/// When an answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Durability {
    /// After `fdatasync`: survives a power cut.
    #[default]
    Fsync,
    /// After the write; synced at this interval: survives the process, a power cut loses up to the interval.
    Interval(Duration),
    /// After the write; synced when the operating system likes: survives the process.
    Os,
    /// At once: a crash loses records that were not yet written, about a millisecond of them.
    None,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fsync => f.write_str("fsync"),
            Self::Interval(every) => write!(f, "interval:{}ms", every.as_millis()),
            Self::Os => f.write_str("os"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for Durability {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let interval = text
            .strip_prefix("interval:")
            .and_then(|rest| rest.strip_suffix("ms"));
        match (text, interval.map(str::parse::<u64>)) {
            ("fsync", _) => Ok(Self::Fsync),
            ("os", _) => Ok(Self::Os),
            ("none", _) => Ok(Self::None),
            (_, Some(Ok(millis @ 1..=60_000))) => Ok(Self::Interval(Duration::from_millis(millis))),
            _ => Err(Error::invalid(format!(
                "unknown durability `{text}`; one of fsync, interval:100ms (1 to 60000), os, none"
            ))),
        }
    }
}

/// Options of a log.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where segments are kept; the caller holds the lock of the folder above.
    pub(crate) folder: PathBuf,
    /// Where damaged ranges are saved.
    pub(crate) quarantine: PathBuf,
    /// When an answer is given.
    pub(crate) durability: Durability,
    /// Size of a segment file.
    pub(crate) segment_bytes: u32,
    /// The file that holds half of the reserve.
    pub(crate) reserve: PathBuf,
    /// With less free space than this, the reserve file included, records that grow the log are rejected.
    pub(crate) reserve_bytes: u64,
    /// A disk that does not answer for this long has stalled: writes are rejected until it does.
    pub(crate) timeout: Duration,
    /// Opens although segments are missing or cut short.
    pub(crate) accepts_loss: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_durability_parses_back() {
        for text in ["fsync", "interval:100ms", "os", "none"] {
            assert_eq!(text.parse::<Durability>().unwrap().to_string(), text);
        }
        for text in ["", "interval:", "interval:0ms", "interval:5", "Fsync"] {
            assert!(text.parse::<Durability>().is_err(), "{text}");
        }
    }
}
