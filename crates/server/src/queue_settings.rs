//! Settings of a queue in the same words in the admin API and in the configuration (`[queues.NAME]`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towpath_core::port::queue::Settings;
use towpath_core::{Error, QueueName, Result, retry};
use utoipa::ToSchema;

use crate::config::{duration, show_millis};
use crate::http::json::Object;

/// Longest delay between two attempts. Source: the range of `ingest.worker.retry.max`.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest idempotency window. Source: the range of `ingest.idempotency_window`.
const MAX_WINDOW: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Most attempts. Source: the range of `ingest.worker.retry.attempts`.
const MAX_ATTEMPTS: u32 = 1_000_000;

/// A duration as text: `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        f.write_str(&show_millis(millis))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let span = duration(&text).map(Self);
        span.ok_or_else(|| {
            let reason = format!("invalid duration `{text}`; expected e.g. `30s`");
            serde::de::Error::custom(reason)
        })
    }
}

/// Settings of a queue. A missing member has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QueueSettings {
    /// Retries of failed deliveries.
    #[serde(deserialize_with = "object")]
    pub(crate) retry: RetrySettings,
    /// Retention of an idempotency key, `1s` to `8760h`.
    #[schema(value_type = String, default = "24h")]
    pub(crate) idempotency_window: Span,
    /// Maximum waiting messages; further messages get 429. Absent: limited by disk and memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub(crate) max_depth: Option<u64>,
}

/// Retries of failed deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RetrySettings {
    /// Attempts before a message becomes a dead letter.
    #[schema(minimum = 1, maximum = 1_000_000, default = 25)]
    pub(crate) attempts: u32,
    /// Maximum delay after the first attempt, at most `24h`; doubles with each attempt. The actual delay is random between
    /// half of it and all of it.
    #[schema(value_type = String, default = "1s")]
    pub(crate) first: Span,
    /// Maximum delay after any attempt, at most `24h`.
    #[schema(value_type = String, default = "6h")]
    pub(crate) max: Span,
}

fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RetrySettings, D::Error> {
    Object::deserialize(deserializer).map(|Object(retry)| retry)
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self::from(Settings::default())
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        QueueSettings::default().retry
    }
}

impl From<Settings> for QueueSettings {
    fn from(settings: Settings) -> Self {
        Self {
            retry: RetrySettings {
                attempts: settings.retry.attempts,
                first: Span(settings.retry.first),
                max: Span(settings.retry.max),
            },
            idempotency_window: Span(settings.dedup_window),
            max_depth: settings.max_depth,
        }
    }
}

impl TryFrom<QueueSettings> for Settings {
    type Error = Error;

    fn try_from(settings: QueueSettings) -> Result<Self> {
        let refuse = |text: String| Err(Error::invalid(text));
        let retry = settings.retry;
        if !(1..=MAX_ATTEMPTS).contains(&retry.attempts) {
            let attempts = retry.attempts;
            return refuse(format!(
                "`retry.attempts` is {attempts}; it must be 1 to {MAX_ATTEMPTS}"
            ));
        }
        for (name, Span(delay)) in [("first", retry.first), ("max", retry.max)] {
            if delay > MAX_RETRY_DELAY {
                let delay = Span(delay);
                return refuse(format!(
                    "`retry.{name}` is `{delay}`; it must be at most `24h`"
                ));
            }
        }
        if retry.first.0 > retry.max.0 {
            let (first, max) = (retry.first, retry.max);
            return refuse(format!(
                "`retry.first` (`{first}`) is longer than `retry.max` (`{max}`)"
            ));
        }
        let window = settings.idempotency_window;
        if !(Duration::from_secs(1)..=MAX_WINDOW).contains(&window.0) {
            return refuse(format!(
                "`idempotency_window` is `{window}`; it must be `1s` to `8760h`"
            ));
        }
        if settings.max_depth == Some(0) {
            return refuse("`max_depth` is 0; it must be at least 1".to_owned());
        }
        Ok(Self {
            retry: retry::Policy {
                attempts: retry.attempts,
                first: retry.first.0,
                max: retry.max.0,
            },
            dedup_window: window.0,
            max_depth: settings.max_depth,
        })
    }
}

/// Queues whose settings come from the configuration, each with the section that says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeclaredQueues(BTreeMap<QueueName, String>);

impl DeclaredQueues {
    /// Adds the queue that this section of the configuration declares.
    pub(crate) fn add(&mut self, queue: QueueName, section: impl Into<String>) {
        self.0.insert(queue, section.into());
    }

    /// Refuses to delete a queue of `[queues.NAME]`, which the next start would create again.
    ///
    /// # Errors
    /// `Conflict` with the section.
    pub(crate) fn refuse_delete(&self, queue: &QueueName) -> Result<()> {
        match self.0.get(queue) {
            Some(section) if section.starts_with("queues.") => Err(Error::conflict(format!(
                "queue `{queue}` is declared by `[{section}]` of the configuration; remove it there first"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a change of a queue that the configuration declares.
    ///
    /// # Errors
    /// `Conflict` with the section.
    pub(crate) fn refuse_change(&self, queue: &QueueName) -> Result<()> {
        match self.0.get(queue) {
            None => Ok(()),
            Some(section) => Err(Error::conflict(format!(
                "queue `{queue}` is declared by `[{section}]` of the configuration; change it there"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json;

    fn read(text: &'static str) -> std::result::Result<Settings, String> {
        let settings = json::object::<QueueSettings>(text.as_bytes());
        let settings = settings.map_err(|refusal| refusal.reason)?;
        Settings::try_from(settings).map_err(|error| error.to_string())
    }

    #[test]
    fn missing_members_have_their_defaults() {
        assert_eq!(read("{}"), Ok(Settings::default()));
        let settings = read(r#"{"retry":{"attempts":3},"max_depth":10}"#).expect("settings");
        assert_eq!(settings.retry.attempts, 3);
        assert_eq!(settings.retry.first, Settings::default().retry.first);
        assert_eq!(settings.max_depth, Some(10));
        let shown = serde_json::to_string(&QueueSettings::default()).expect("JSON");
        assert_eq!(
            shown,
            r#"{"retry":{"attempts":25,"first":"1s","max":"6h"},"idempotency_window":"24h"}"#
        );
    }

    #[test]
    fn invalid_settings_are_refused_with_the_rule() {
        for (text, rule) in [
            (r#"{"retyr":{}}"#, "did you mean `retry`?"),
            (r#"{"retry":{"atempts":3}}"#, "did you mean `attempts`?"),
            (r#"{"retry":[3]}"#, "must be an object"),
            (r#"{"retry":{"first":5}}"#, "must be a string"),
            (r#"{"retry":{"first":"5"}}"#, "expected e.g. `30s`"),
            (r#"{"retry":{"attempts":0}}"#, "must be 1 to 1000000"),
            (r#"{"retry":{"max":"25h"}}"#, "at most `24h`"),
            (r#"{"retry":{"first":"2h","max":"1h"}}"#, "longer than"),
            (r#"{"idempotency_window":"0s"}"#, "`1s` to `8760h`"),
            (r#"{"max_depth":0}"#, "at least 1"),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(rule), "{text}: {refused}");
        }
    }
}
