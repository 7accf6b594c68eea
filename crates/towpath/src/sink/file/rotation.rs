//! When an output gives way to a new one, and the name that it keeps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

/// Size and age after which output rotated; without both, never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes that an output does not grow over, unless one line is longer.
    pub size: Option<u64>,
    /// The span that one output holds. Spans are counted from 1970 in UTC, so those of a day begin at midnight.
    pub every: Option<Duration>,
}

impl Rotation {
    /// Whether an output of this length, last written then, has no room for this many bytes more now.
    pub(super) fn is_due(
        self,
        length: u64,
        written: Timestamp,
        adding: u64,
        now: Timestamp,
    ) -> bool {
        let is_full = self.size.is_some_and(|size| length + adding > size);
        let is_over = self.every.is_some_and(|every| {
            let every = i128::try_from(every.as_nanos().max(1)).unwrap_or(i128::MAX);
            let span = |moment: Timestamp| moment.as_nanosecond().div_euclid(every);
            span(now) > span(written)
        });
        length > 0 && (is_full || is_over)
    }

    pub(super) fn is_never(self) -> bool {
        self == Self::default()
    }
}

/// The name that an output keeps: the moment is put behind it, so that they sort as they were written.
pub(super) fn kept_as(path: &Path, now: Timestamp) -> PathBuf {
    let moment = now.strftime("%Y%m%dT%H%M%S.%3fZ");
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(match number {
            0 => format!(".{moment}"),
            more => format!(".{moment}-{more:03}"),
        });
        PathBuf::from(name)
    };
    let free = (0..).map(name).find(|name| !name.exists());
    free.unwrap_or_else(|| name(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_output_and_one_of_an_earlier_span_are_due() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (evening, night) = (at("2026-11-28T23:59:59.9Z"), at("2026-11-29T00:00:00Z"));
        let size = Rotation {
            size: Some(100),
            every: None,
        };
        assert!(!size.is_due(90, evening, 10, night));
        assert!(size.is_due(90, evening, 11, evening));
        assert!(
            !size.is_due(0, evening, 101, night),
            "an empty one is begun"
        );
        let daily = Rotation {
            size: None,
            every: Some(Duration::from_secs(24 * 60 * 60)),
        };
        assert!(daily.is_due(1, evening, 1, night));
        assert!(!daily.is_due(1, night, u64::MAX - 1, at("2026-11-29T23:59:59Z")));
        assert!(
            !daily.is_due(1, night, 1, evening),
            "a clock that was set back"
        );
        assert!(!Rotation::default().is_due(1, evening, 1, night));
    }
}
