//! What the configuration of the accounts app means, in types.

use std::path::Path;
use std::time::Duration;

use super::Secret;
use super::kind;
use super::model::{Values, backend_url};

/// The accounts app's part of a valid configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Accounts {
    pub limits: Vec<String>,
    pub database: Secret,
    pub broker: Secret,
    pub topic: String,
    pub retention: Duration,
    pub idempotency_window: Duration,
    pub crash_test: bool,
    pub poll: Duration,
    pub batch: usize,
    pub attempts: u32,
    pub lease: Duration,
    pub cloud_events: bool,
}

impl Accounts {
    pub(super) fn read(values: &Values<'_>) -> Self {
        let database = values.optional("accounts.database").unwrap_or_else(|| {
            let folder = values.text("data.dir");
            format!(
                "sqlite:{}",
                Path::new(&folder).join("accounts.db").display()
            )
        });
        Self {
            limits: kind::strings(&values.text("accounts.limits")).unwrap_or_default(),
            database: Secret::new(database),
            broker: Secret::new(backend_url(values, &["backends.relay", "backends.default"])),
            topic: values.text("accounts.topic"),
            retention: values.duration("accounts.retention"),
            idempotency_window: values.duration("accounts.idempotency_window"),
            crash_test: values.text("accounts.crash_test") == "on",
            poll: values.duration("accounts.relay.poll"),
            batch: values.count("accounts.relay.batch"),
            attempts: u32::try_from(values.number("accounts.relay.attempts")).unwrap_or(u32::MAX),
            lease: values.duration("accounts.relay.lease"),
            cloud_events: values.text("accounts.relay.format") == "cloudevents",
        }
    }
}
