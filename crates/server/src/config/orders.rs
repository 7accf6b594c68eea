//! The configuration of the orders app, in types.

use std::path::PathBuf;
use std::time::Duration;

use towpath_core::port::queue::Settings;
use towpath_core::retry;

use super::key::{HOUR, Key, MINUTE, SECOND, WEBHOOK_ALLOW, WEBHOOK_CA, key};
use super::model::{Values, backend_url};
use super::{Kind, Secret};

/// The keys of the orders app.
pub(super) const KEYS: &[Key] = &[
    key(
        "orders.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("5m"),
        &[],
        "Lifetime of the key `idemp:<id>`.",
    ),
    key(
        "orders.retention",
        Kind::Duration(MINUTE, 87_600 * HOUR),
        Some("720h"),
        &[],
        "Retention of a finished order's record; its id cannot be reused before.",
    ),
    key(
        "orders.batch",
        Kind::Integer(1, 10_000),
        Some("100"),
        &[],
        "Maximum orders or events in flight, per role.",
    ),
    key(
        "orders.lease",
        Kind::Duration(SECOND, 12 * HOUR),
        Some("30s"),
        &[],
        "Lease duration of a delivery; renewed while the handler works on it.",
    ),
    key(
        "orders.retry.attempts",
        Kind::Integer(1, 1_000_000),
        Some("25"),
        &[],
        "Attempts before an order or event becomes a dead letter. An unavailable destination is not charged as an attempt.",
    ),
    key(
        "orders.retry.first",
        Kind::Duration(0, 24 * HOUR),
        Some("1s"),
        &[],
        "Maximum delay after the first attempt; doubles with each attempt. The actual delay is random between half of it and all of it.",
    ),
    key(
        "orders.retry.max",
        Kind::Duration(0, 24 * HOUR),
        Some("6h"),
        &[],
        "Maximum delay after any attempt.",
    ),
    key(
        "orders.dashboard.listen",
        Kind::Address,
        None,
        &[],
        "Listen address of the dashboard [default: `:8081`; `up` continues without the dashboard when that port is in use].",
    ),
    key(
        "orders.notify.channel",
        Kind::Choice(&["log", "smtp", "webhook"]),
        Some("log"),
        &[],
        "Notification channel: a log line, a mail or a signed webhook.",
    ),
    key(
        "orders.notify.timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("10s"),
        &[],
        "Timeout of one notification.",
    ),
    key(
        "orders.notify.max_in_flight",
        Kind::Integer(1, 10_000),
        Some("16"),
        &[],
        "Maximum concurrent notifications; capped at `orders.batch`.",
    ),
    key(
        "orders.notify.smtp.url",
        Kind::MailUrl,
        None,
        &[],
        "The mail server: `smtp://host:25`, `smtps://user:password@host:465`, or `smtp://…?tls=required` for STARTTLS.",
    ),
    key(
        "orders.notify.smtp.from",
        Kind::MailAddress,
        Some("orders@localhost"),
        &[],
        "Sender address of mails.",
    ),
    key(
        "orders.notify.smtp.to",
        Kind::MailAddress,
        None,
        &[],
        "Recipient for orders without `email`. Unset: such an event becomes a dead letter.",
    ),
    key(
        "orders.notify.webhook.url",
        Kind::WebUrl,
        None,
        &[],
        "Target URL of the notification webhook.",
    ),
    key(
        "orders.notify.webhook.secret",
        Kind::SigningSecrets,
        None,
        &[],
        "Signing secrets (`whsec_` and base64); several, separated by white space, for rotation.",
    ),
    key(
        "orders.notify.webhook.allow",
        Kind::Strings,
        None,
        &[],
        WEBHOOK_ALLOW,
    ),
    key(
        "orders.notify.webhook.ca",
        Kind::Path,
        None,
        &[],
        WEBHOOK_CA,
    ),
];

/// The notification channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// A line of the log.
    Log,
    /// A mail.
    Smtp,
    /// A signed post.
    Webhook,
}

/// The orders app's part of a valid configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Orders {
    pub broker: Secret,
    pub kv: Secret,
    pub idempotency_window: Duration,
    pub retention: Duration,
    pub batch: usize,
    pub lease: Duration,
    pub retry: retry::Policy,
    pub dashboard_listen: Option<String>,
    pub channel: ChannelKind,
    pub notify_timeout: Duration,
    pub notify_in_flight: usize,
    pub smtp_url: Option<Secret>,
    pub smtp_from: String,
    pub smtp_to: Option<String>,
    pub webhook_url: Option<Secret>,
    pub webhook_secrets: Vec<Secret>,
    pub webhook_allow: Option<Vec<String>>,
    pub webhook_ca: Option<PathBuf>,
}

impl Orders {
    pub(super) fn read(values: &Values<'_>) -> Self {
        let broker = ["backends.orders", "backends.default", "backends.orders_kv"];
        let keys = ["backends.orders_kv", "backends.orders", "backends.default"];
        Self {
            broker: Secret::new(backend_url(values, &broker)),
            kv: Secret::new(backend_url(values, &keys)),
            idempotency_window: values.duration("orders.idempotency_window"),
            retention: values.duration("orders.retention"),
            batch: values.count("orders.batch"),
            lease: values.duration("orders.lease"),
            retry: retry::Policy {
                attempts: u32::try_from(values.number("orders.retry.attempts")).unwrap_or(u32::MAX),
                first: values.duration("orders.retry.first"),
                max: values.duration("orders.retry.max"),
            },
            dashboard_listen: values.optional("orders.dashboard.listen"),
            channel: match values.text("orders.notify.channel").as_str() {
                "smtp" => ChannelKind::Smtp,
                "webhook" => ChannelKind::Webhook,
                _ => ChannelKind::Log,
            },
            notify_timeout: values.duration("orders.notify.timeout"),
            notify_in_flight: values.count("orders.notify.max_in_flight"),
            smtp_url: values.optional("orders.notify.smtp.url").map(Secret::new),
            smtp_from: values.text("orders.notify.smtp.from"),
            smtp_to: values.optional("orders.notify.smtp.to"),
            webhook_url: values
                .optional("orders.notify.webhook.url")
                .map(Secret::new),
            webhook_secrets: values
                .text("orders.notify.webhook.secret")
                .split_whitespace()
                .map(Secret::new)
                .collect(),
            webhook_allow: values.list("orders.notify.webhook.allow"),
            webhook_ca: values
                .optional("orders.notify.webhook.ca")
                .map(PathBuf::from),
        }
    }

    /// The settings of both queues.
    pub fn queue_settings(&self) -> Settings {
        Settings {
            retry: self.retry,
            ..Settings::default()
        }
    }
}
