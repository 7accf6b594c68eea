//! What a value may be, and how it reads.

use std::time::Duration;

/// The type and range of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text without control characters.
    Text,
    /// As text, never shown.
    Secret,
    /// A whole number in a range.
    Integer(u64, u64),
    /// `100ms`, `30s`, `5m`, `24h`, in a range of milliseconds.
    Duration(u64, u64),
    /// `1MiB`, `64KiB` or plain bytes, in a range.
    Size(u64, u64),
    /// An address of the web: `http://` or `https://` and a host.
    Url,
    /// `host:port`; without a host all interfaces.
    Address,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Strings,
}

impl Kind {
    /// What is expected, for people.
    pub fn expected(self) -> String {
        match self {
            Self::Text | Self::Secret => "a text".to_owned(),
            Self::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Self::Duration(least, most) => {
                format!(
                    "a duration like \"30s\", from {} to {}",
                    show_millis(least),
                    show_millis(most)
                )
            }
            Self::Size(least, most) => format!(
                "a size like \"1MiB\", from {} to {}",
                show_bytes(least),
                show_bytes(most)
            ),
            Self::Url => "a URL like \"https://host/path\"".to_owned(),
            Self::Address => "an address like \":8080\" or \"127.0.0.1:7070\"".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Strings => "a list of texts".to_owned(),
        }
    }

    /// Whether the text is such a value.
    pub fn accepts(self, text: &str) -> bool {
        match self {
            Self::Text | Self::Secret => !text.chars().any(char::is_control),
            Self::Integer(least, most) => text
                .parse()
                .is_ok_and(|number: u64| (least..=most).contains(&number)),
            Self::Duration(least, most) => duration(text).is_some_and(|duration| {
                (u128::from(least)..=u128::from(most)).contains(&duration.as_millis())
            }),
            Self::Size(least, most) => {
                size(text).is_some_and(|bytes| (least..=most).contains(&bytes))
            }
            Self::Url => reqwest::Url::parse(text)
                .is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()),
            Self::Address => text.rsplit_once(':').is_some_and(|(host, port)| {
                port.parse::<u16>().is_ok()
                    && !host.contains(char::is_whitespace)
                    && !host.contains('/')
            }),
            Self::Choice(words) => words.contains(&text),
            Self::Strings => strings(text).is_some(),
        }
    }
}

/// The duration that a text says.
pub(super) fn duration(text: &str) -> Option<Duration> {
    // A bare number has no unit, and guessing one has cost others an outage.
    if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) && text != "0" {
        return None;
    }
    let text = if text == "0" { "0s" } else { text };
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|signed| Duration::try_from(signed).ok())
}

/// The bytes that a text says.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The list that a text says: a JSON list, or words.
pub(super) fn strings(text: &str) -> Option<Vec<String>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    Some(text.split_whitespace().map(str::to_owned).collect())
}

fn show_millis(millis: u64) -> String {
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

fn show_bytes(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}
