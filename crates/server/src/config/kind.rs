//! Kinds of values, and their parsers.

use std::net::Ipv6Addr;
use std::time::Duration;

use reqwest::Url;
use towpath_core::QueueName;
use towpath_core::address::Address;
use towpath_core::{backend, database};

use super::suggest;
use crate::apps::{accounts, orders};
use towpath::sink;

use crate::telemetry;

/// The type and range of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or folder.
    Path,
    /// The name of a queue.
    Queue,
    /// A whole number in a range.
    Integer(u64, u64),
    /// `100ms`, `30s`, `5m`, `24h`, in a range of milliseconds.
    Duration(u64, u64),
    /// `1MiB`, `64KiB` or plain bytes, in a range.
    Size(u64, u64),
    /// `host:port`; without a host all interfaces.
    Address,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Strings,
    /// A list of named limits.
    Limits,
    /// The URL of a backend of this build.
    Backend,
    /// The URL of a database of this build.
    Database,
    /// When the embedded store answers.
    Durability,
    /// The mode of a file, in octal.
    FileMode,
    /// Memory that the embedded store may fill.
    Memory,
    /// A log level, or a filter by target.
    LogFilter,
    /// `http://` or `https://`.
    WebUrl,
    /// `smtp://` or `smtps://`.
    MailUrl,
    /// `name@host`, or `Name <name@host>`.
    MailAddress,
    /// Secrets that sign webhooks.
    SigningSecrets,
    /// One or two API keys.
    ApiKeys,
    /// Any text on one line.
    Text,
    /// The same, never shown.
    SecretText,
}

/// The stores of a build, whose URLs are valid.
#[derive(Clone, Copy)]
pub struct Stores {
    /// The table of backends.
    pub backends: &'static [backend::Descriptor],
    /// The table of databases.
    pub databases: &'static [database::Descriptor],
}

/// Why a value is refused.
pub(super) struct InvalidValue {
    /// Only that it is not the expected value.
    pub(super) reason: Option<String>,
    /// A suggestion.
    pub(super) suggestion: Option<String>,
}

impl Kind {
    /// The expected value, for people.
    pub fn expected(self) -> String {
        match self {
            Self::Path => "a path".to_owned(),
            Self::Queue => "the name of a queue".to_owned(),
            Self::Integer(least, u64::MAX) => format!("a whole number from {least}"),
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
            Self::Address => "an address like \":8080\" or \"127.0.0.1:7070\"".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Strings => "a list of texts".to_owned(),
            Self::Limits => "a list of limits like \"login=token_bucket:5:1/1m\"".to_owned(),
            Self::Backend => "the URL of a backend".to_owned(),
            Self::Database => "the URL of a database, like \"sqlite:PATH\"".to_owned(),
            Self::Memory => "1% to 95%, a size like 512MiB, or `unbounded`".to_owned(),
            Self::Durability => "one of fsync, interval:100ms (1 to 60000), os, none".to_owned(),
            Self::FileMode => "a file mode like \"0640\", from 0600 to 0666".to_owned(),
            Self::LogFilter => "a level (off, error, warn, info, debug, trace) or a filter like \"info,towpath=debug\"".to_owned(),
            Self::WebUrl => "a URL like \"https://host/path\"".to_owned(),
            Self::MailUrl => "a URL like \"smtp://host:25\"".to_owned(),
            Self::MailAddress => "a mail address".to_owned(),
            Self::ApiKeys => "one or two keys of at least 8 characters, separated by white space".to_owned(),
            Self::Text | Self::SecretText => "a text of one line".to_owned(),
            Self::SigningSecrets => "secrets of `whsec_` and base64, separated by white space".to_owned(),
        }
    }

    /// Whether a value may hold a secret: it may then come from a file of its own.
    pub const fn may_be_secret(self) -> bool {
        matches!(
            self,
            Self::Backend
                | Self::Database
                | Self::WebUrl
                | Self::MailUrl
                | Self::SigningSecrets
                | Self::ApiKeys
                | Self::SecretText
        )
    }

    /// Whether all of a value is a secret, so that none of it is shown.
    pub(super) const fn is_secret(self) -> bool {
        matches!(
            self,
            Self::SigningSecrets | Self::ApiKeys | Self::SecretText
        )
    }

    /// Whether the text is such a value; `stores` are those of this build.
    pub(super) fn check(self, text: &str, stores: Stores) -> Result<(), InvalidValue> {
        let reason = match self.accepts(text, stores) {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(reason) => Some(reason),
        };
        let valid = |candidate: &String| self.accepts(candidate, stores) == Ok(true);
        Err(InvalidValue {
            reason,
            suggestion: suggest::value(self, text, stores).filter(valid),
        })
    }

    /// Whether it is one, or the reason why not.
    fn accepts(self, text: &str, stores: Stores) -> Result<bool, String> {
        if text.is_empty()
            || text.chars().any(char::is_control)
                && !matches!(self, Self::SigningSecrets | Self::ApiKeys)
        {
            return Ok(false);
        }
        Ok(match self {
            Self::Path => true,
            Self::Queue => {
                QueueName::new(text).map_err(|error| error.to_string())?;
                true
            }
            Self::Integer(least, most) => text
                .parse()
                .is_ok_and(|number: u64| (least..=most).contains(&number)),
            Self::Duration(least, most) => duration(text).is_some_and(|duration| {
                (u128::from(least)..=u128::from(most)).contains(&duration.as_millis())
            }),
            Self::Size(least, most) => {
                size(text).is_some_and(|bytes| (least..=most).contains(&bytes))
            }
            Self::Address => is_address(text),
            Self::Choice(words) => words.contains(&text),
            Self::Strings => strings(text).is_some(),
            Self::Limits => match strings(text) {
                Some(limits) => accounts::Rules::parse(&limits)
                    .map(|_| true)
                    .map_err(|error| error.to_string())?,
                None => false,
            },
            Self::Backend => {
                let descriptor =
                    backend::find(stores.backends, text).map_err(|error| error.to_string())?;
                (descriptor.check)(text).map_err(|error| error.to_string())?;
                true
            }
            Self::Database => {
                let descriptor =
                    database::find(stores.databases, text).map_err(|error| error.to_string())?;
                (descriptor.check)(text).map_err(|error| error.to_string())?;
                true
            }
            Self::Durability => is_parameter(stores, "durability", text),
            Self::Memory => is_parameter(stores, "memory", text),
            Self::FileMode => file_mode(text).is_some(),
            Self::LogFilter => telemetry::is_log_filter(text),
            Self::WebUrl => match Url::parse(text) {
                Ok(url) => ["http", "https"].contains(&url.scheme()) && url.has_host(),
                // A password with a reserved character has moved the borders.
                Err(_) => text.contains("://") && split(text)?,
            },
            Self::MailUrl => {
                if text.contains("://") {
                    split(text)?;
                }
                Url::parse(text).is_ok_and(|url| url.has_host()) && orders::is_mail_url(text)
            }
            Self::MailAddress => orders::is_mail_address(text),
            Self::Text | Self::SecretText => true,
            Self::ApiKeys => {
                let keys: Vec<&str> = text.split_whitespace().collect();
                (1..=2).contains(&keys.len()) && keys.iter().all(|key| key.len() >= 8)
            }
            Self::SigningSecrets => text.split_whitespace().all(sink::is_signing_secret),
        })
    }
}

/// Not a URL, or the reason why it cannot be split.
fn split(text: &str) -> Result<bool, String> {
    let split = Address::split(text).map(|_| false);
    split.map_err(|error| error.to_string())
}

/// Whether the embedded store takes this value of a parameter of its URL.
fn is_parameter(stores: Stores, name: &str, value: &str) -> bool {
    let url = format!("embedded:.?{name}={value}");
    let embedded = backend::find(stores.backends, &url);
    !value.contains('&') && embedded.is_ok_and(|embedded| (embedded.check)(&url).is_ok())
}

/// `host:port`, `:port` or `[v6]:port`; a host is a name or an address.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host_is_valid = match bracketed {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    host_is_valid && !port.starts_with('+') && port.parse::<u16>().is_ok()
}

/// The duration that a text says.
pub(crate) fn duration(text: &str) -> Option<Duration> {
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

/// The mode that a text says: read and write for the owner, and no execute bits.
pub(super) fn file_mode(text: &str) -> Option<u32> {
    let mode = u32::from_str_radix(text, 8).ok()?;
    (text.len() <= 4 && mode & !0o066 == 0o600).then_some(mode)
}

/// The list that a text says: a JSON list, or words.
pub(super) fn strings(text: &str) -> Option<Vec<String>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).ok();
    }
    Some(text.split_whitespace().map(str::to_owned).collect())
}

/// `30s`: the text that [`duration`] reads as these milliseconds.
pub(crate) fn show_millis(millis: u64) -> String {
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
