//! What the configuration of the accounts app means, in types.

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
        "Named limits: `login=token_bucket:5:1/1m` holds five tokens and gains one a minute, `search=sliding_window:100/1h:fail_open` allows a hundred in any hour, and all while its store is away (`fail_closed` unless said, or `local`). `default` is `token_bucket:100:10/1s` unless said.",
    ),
    key(
        "accounts.database",
        Kind::Database,
        None,
        &DATABASE_VARIABLES,
        "Database of the users and their events: `sqlite:PATH` or `postgres://…`; without it `accounts.db` in `data.dir`. The variables say the parts of a PostgreSQL URL, and what they leave out is `localhost`, `5432`, `postgres`, `postgres`, `outbox_db` and `disable`.",
    ),
    key(
        "accounts.topic",
        Kind::Queue,
        Some("user-events"),
        &["KAFKA_TOPIC"],
        "The topic that the events of users go to.",
    ),
    key(
        "accounts.retention",
        Kind::Duration(MINUTE, 87_600 * HOUR),
        Some("168h"),
        &[],
        "How long an event stays in the outbox after it happened, once it was sent.",
    ),
    key(
        "accounts.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("24h"),
        &[],
        "How long an idempotency key is remembered.",
    ),
    key(
        "accounts.crash_test",
        Kind::Choice(&["on", "off"]),
        Some("off"),
        &[],
        "Whether `POST /api/test/crash` is there: it stops the process between a commit and its answer.",
    ),
    key(
        "accounts.relay.poll",
        Kind::Duration(10, HOUR),
        Some("500ms"),
        &["RELAY_POLL_INTERVAL"],
        "How often the relay looks for events of other processes; it sees those of its own at once. The variable is in seconds.",
    ),
    key(
        "accounts.relay.batch",
        Kind::Integer(1, 10_000),
        Some("1000"),
        &["RELAY_BATCH_SIZE"],
        "Most events that the relay reads and sends at once. While it is behind, one step into a stream takes more: up to 2,000, on Kafka 32,000; one into queues does not.",
    ),
    key(
        "accounts.relay.attempts",
        Kind::Integer(1, 1_000_000),
        Some("3"),
        &["RELAY_MAX_RETRIES"],
        "How often a broker may refuse an event before it is `FAILED`. A broker that is away refuses nothing.",
    ),
    key(
        "accounts.relay.format",
        Kind::Choice(&["plain", "cloudevents"]),
        Some("plain"),
        &[],
        "Whether events carry the headers of CloudEvents (`ce_id`, `ce_type` and so on) besides those that they always have.",
    ),
    key(
        "accounts.relay.keep",
        Kind::Integer(1, 1_000_000_000_000),
        None,
        &[],
        "How many of the newest events stay in each stream that the relay fills, whatever its readers have finished. Without it 1000000, and on Kafka what the topic's own retention says.",
    ),
    key(
        "accounts.relay.lease",
        Kind::Duration(SECOND, HOUR),
        Some("5s"),
        &["RELAY_PROCESSING_TIMEOUT"],
        "After how long another relay takes over from one that is gone. The variable is in seconds.",
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
