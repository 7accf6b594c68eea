//! The URL of an embedded store: `embedded:PATH?durability=fsync&segment=16MiB&reserve=64MiB`.

use std::path::PathBuf;
use std::time::Duration;

use towpath_core::{Error, Result};

use super::log::Durability;
use super::memory::Share;

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "durability",
        "fsync",
        "when an answer is given: fsync, interval:100ms, os, none",
    ),
    (
        "segment",
        "16MiB",
        "size of a segment of the log, 64KiB to 1GiB",
    ),
    (
        "timeout",
        "5s",
        "time without an answer of the disk after which the store refuses writes and is not ready, 100ms to 10m",
    ),
    (
        "reserve",
        "64MiB",
        "free disk space below which new writes are rejected",
    ),
    (
        "memory",
        "50%",
        "use of memory above which new writes are rejected: a share of the control group's limit (without one: of the machine's memory), a size, or unbounded",
    ),
];

/// The parsed URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) folder: PathBuf,
    pub(super) durability: Durability,
    pub(super) segment_bytes: u32,
    pub(super) reserve_bytes: u64,
    pub(super) memory: Share,
    pub(super) timeout: Duration,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("embedded:").unwrap_or(url);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err(Error::invalid(format!(
                "no folder in `{url}`; expected e.g. `embedded:./towpath-data`"
            )));
        }
        let mut config = Self {
            folder: PathBuf::from(path),
            durability: Durability::Fsync,
            segment_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
            memory: Share::Percent(50),
            timeout: Duration::from_secs(5),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "durability" => config.durability = value.parse()?,
                "segment" => {
                    let bytes = byte_size(name, value)?;
                    if !(64 << 10..=1 << 30).contains(&bytes) {
                        return Err(Error::invalid(format!(
                            "`segment={value}` is out of range; it must be 64KiB to 1GiB"
                        )));
                    }
                    config.segment_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                }
                "memory" => config.memory = value.parse()?,
                "reserve" => config.reserve_bytes = byte_size(name, value)?,
                "timeout" => config.timeout = timeout(value)?,
                _ => {
                    let known: Vec<&str> = PARAMETERS.iter().map(|(name, ..)| *name).collect();
                    return Err(Error::invalid(format!(
                        "unknown parameter `{name}` of an embedded store; available: {}",
                        known.join(", ")
                    )));
                }
            }
        }
        Ok(config)
    }
}

/// `5s`, `500ms`.
fn timeout(text: &str) -> Result<Duration> {
    let number = |unit| {
        text.strip_suffix(unit)
            .and_then(|number| number.parse().ok())
    };
    let millis =
        number("ms").or_else(|| number("s").and_then(|seconds: u64| seconds.checked_mul(1_000)));
    match millis {
        Some(millis @ 100..=600_000) => Ok(Duration::from_millis(millis)),
        _ => Err(Error::invalid(format!(
            "invalid duration `timeout={text}`; expected e.g. `timeout=5s`, 100ms to 600s"
        ))),
    }
}

/// `16MiB`, `64KiB`, `1GiB`, or a plain number of bytes.
pub(super) fn byte_size(name: &str, text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|_| unit > 0)
        .ok_or_else(|| {
            Error::invalid(format!(
                "invalid size `{text}` for `{name}`; expected e.g. `{name}=16MiB`"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_strictly() {
        let config = Config::parse("embedded:./data?durability=os&segment=1MiB&reserve=0").unwrap();
        assert_eq!(config.folder, PathBuf::from("./data"));
        assert_eq!(
            (
                config.durability,
                config.segment_bytes,
                config.reserve_bytes
            ),
            (Durability::Os, 1 << 20, 0)
        );
        for (url, reason) in [
            (
                "embedded:",
                "no folder in `embedded:`; expected e.g. `embedded:./towpath-data`",
            ),
            (
                "embedded:x?sync=1",
                "unknown parameter `sync` of an embedded store; available: durability, segment, timeout, reserve, memory",
            ),
            (
                "embedded:x?timeout=5",
                "invalid duration `timeout=5`; expected e.g. `timeout=5s`, 100ms to 600s",
            ),
            (
                "embedded:x?segment=16MB",
                "invalid size `16MB` for `segment`; expected e.g. `segment=16MiB`",
            ),
            (
                "embedded:x?segment=1KiB",
                "`segment=1KiB` is out of range; it must be 64KiB to 1GiB",
            ),
        ] {
            assert_eq!(Config::parse(url).unwrap_err().to_string(), reason);
        }
    }
}
