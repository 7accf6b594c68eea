//! The configuration of the accounts app, in types.

use std::path::Path;
use std::time::Duration;

use super::key::{HOUR, Key, MINUTE, SECOND, key};
use super::model::{Values, backend_url};
use super::{Kind, Secret};

/// The parts of a PostgreSQL URL, as existing deployments set them.
pub(super) const DATABASE_VARIABLES: [&str; 6] = [
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "DB_PASSWORD",
    "DB_NAME",
    "DB_SSLMODE",
];

/// The keys of the accounts app.
pub(super) const KEYS: &[Key] = &[
    key(
        "accounts.limits",
        Kind::Limits,
        None,
        &[],
        "Named rate limits. `login=token_bucket:5:1/1m` has a capacity of five tokens and refills one a minute; `search=sliding_window:100/1h:fail_open` allows a hundred in any hour, and every request while its store is unavailable (`fail_closed` by default, or `local`). `default` is `token_bucket:100:10/1s` unless set.",
    ),
    key(
        "accounts.database",
        Kind::Database,
        None,
        &DATABASE_VARIABLES,
        "Database of users and outbox: `sqlite:PATH` or `postgres://…` [default: `accounts.db` in `data.dir`]. The variables set the parts of a PostgreSQL URL; their defaults are `localhost`, `5432`, `postgres`, `postgres`, `outbox_db` and `disable`.",
    ),
    key(
        "accounts.topic",
        Kind::Queue,
        Some("user-events"),
        &["KAFKA_TOPIC"],
        "Topic of the user events.",
    ),
    key(
        "accounts.retention",
        Kind::Duration(MINUTE, 87_600 * HOUR),
        Some("168h"),
        &[],
        "Retention of sent events in the outbox, from the time of the event.",
    ),
    key(
        "accounts.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("24h"),
        &[],
        "Retention of an idempotency key.",
    ),
    key(
        "accounts.crash_test",
        Kind::Choice(&["on", "off"]),
        Some("off"),
        &[],
        "Enables `POST /api/test/crash`, which stops the process between a commit and its response.",
    ),
    key(
        "accounts.relay.poll",
        Kind::Duration(10, HOUR),
        Some("500ms"),
        &["RELAY_POLL_INTERVAL"],
        "Polling interval for events written by other processes; events of the same process are relayed at once. The variable is in seconds.",
    ),
    key(
        "accounts.relay.batch",
        Kind::Integer(1, 10_000),
        Some("1000"),
        &["RELAY_BATCH_SIZE"],
        "Maximum events per relay batch. With a backlog, a batch into a stream grows to 2,000 events (32,000 on Kafka); batches into queues do not grow.",
    ),
    key(
        "accounts.relay.attempts",
        Kind::Integer(1, 1_000_000),
        Some("3"),
        &["RELAY_MAX_RETRIES"],
        "Attempts before an event that the broker rejects is `FAILED`. An unavailable broker is not charged as an attempt.",
    ),
    key(
        "accounts.relay.format",
        Kind::Choice(&["plain", "cloudevents"]),
        Some("plain"),
        &[],
        "Event headers; `cloudevents` adds those of CloudEvents 1.0 (`ce_id`, `ce_type` and others).",
    ),
    key(
        "accounts.relay.keep",
        Kind::Integer(1, 1_000_000_000_000),
        None,
        &[],
        "Number of newest events kept in each stream that the relay fills, regardless of its readers [default: 1000000; on Kafka the topic's retention].",
    ),
    key(
        "accounts.relay.lease",
        Kind::Duration(SECOND, HOUR),
        Some("5s"),
        &["RELAY_PROCESSING_TIMEOUT"],
        "Lease duration of the active relay; another relay takes its place when the lease expires. The variable is in seconds.",
    ),
];

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
    pub keep: Option<u64>,
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
            limits: values.list("accounts.limits").unwrap_or_default(),
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
            keep: values
                .optional("accounts.relay.keep")
                .and_then(|keep| keep.parse().ok()),
        }
    }
}
