//! What the configuration of the orders app means, in types.

use std::time::Duration;

use towpath_core::port::queue::Settings;
use towpath_core::retry;

use super::Secret;
use super::model::{Values, backend_url};

/// How customers are told.
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
    pub smtp_url: Option<Secret>,
    pub smtp_from: String,
    pub smtp_to: Option<String>,
    pub webhook_url: Option<Secret>,
    pub webhook_secrets: Vec<Secret>,
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
