//! The table of keys. Adding one is a row here and a field in the model.

use super::{Kind, fleet};

const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.key`.
    pub path: &'static str,
    /// What a value may be.
    pub kind: Kind,
    /// The default as text; `None` for off.
    pub default: Option<&'static str>,
    /// The reference systems' variables that set it, the strongest first.
    pub variables: &'static [&'static str],
    /// What it does, one sentence.
    pub doc: &'static str,
}

pub(super) const fn key(
    path: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    variables: &'static [&'static str],
    doc: &'static str,
) -> Key {
    Key {
        path,
        kind,
        default,
        variables,
        doc,
    }
}

/// The parts of a PostgreSQL URL, as existing deployments set them.
pub(super) const DATABASE_VARIABLES: [&str; 6] = [
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "DB_PASSWORD",
    "DB_NAME",
    "DB_SSLMODE",
];

/// Every key, by section.
pub const KEYS: &[Key] = &joined::<{ BASE.len() + fleet::KEYS.len() }>([BASE, fleet::KEYS]);

const fn joined<const N: usize>(tables: [&[Key]; 2]) -> [Key; N] {
    let mut all = [tables[0][0]; N];
    let (mut table, mut row, mut at) = (0, 0, 0);
    while at < N {
        if row == tables[table].len() {
            (table, row) = (table + 1, 0);
        }
        all[at] = tables[table][row];
        (row, at) = (row + 1, at + 1);
    }
    all
}

/// Those of the process and the other apps.
const BASE: &[Key] = &[
    key(
        "server.listen",
        Kind::Address,
        Some(":8080"),
        &["HTTP_ADDR", "PORT"],
        "Where the public HTTP interface listens; without a host on all interfaces.",
    ),
    key(
        "server.admin",
        Kind::Address,
        Some("127.0.0.1:7070"),
        &[],
        "Where the admin API, probes and metrics listen.",
    ),
    key(
        "server.drain",
        Kind::Duration(SECOND, 10 * MINUTE),
        Some("25s"),
        &[],
        "How long a stop may take before what is in hand is cut short.",
    ),
    key(
        "server.max_connections",
        Kind::Integer(1, 100_000),
        Some("10000"),
        &[],
        "Open connections of the public interface; more are closed. Never more than the open files that the system allows less 256.",
    ),
    key(
        "server.max_in_flight",
        Kind::Integer(1, 100_000),
        Some("1024"),
        &[],
        "Complete requests in hand; more are answered 503.",
    ),
    key(
        "server.max_body_memory",
        Kind::Size(MIB, 1024 * GIB),
        Some("256MiB"),
        &[],
        "What the bodies of all requests hold together, beside 16 KiB each; more are answered 503.",
    ),
    key(
        "server.header_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("10s"),
        &[],
        "How long the head of a request may take.",
    ),
    key(
        "server.body_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("30s"),
        &[],
        "How long the body of a request may take; one that brings less than 1 KiB in 5 s is given up sooner.",
    ),
    key(
        "server.write_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("30s"),
        &[],
        "How long a client may take nothing of its answer.",
    ),
    key(
        "server.idle_timeout",
        Kind::Duration(SECOND / 10, HOUR),
        Some("75s"),
        &[],
        "How long a connection is kept between two requests.",
    ),
    key(
        "server.admin_hosts",
        Kind::Strings,
        None,
        &[],
        "Names that the admin interface answers to, beside `localhost`, its own and every IP address.",
    ),
    key(
        "server.limits",
        Kind::Strings,
        None,
        &[],
        "Limits for each client of the public routes, a list like `*=token_bucket:10:0.1/1s` or `/enqueue=sliding_window:1000/1m:fail_open`; `*` is every route not named itself, `/health` aside. They are kept in `backends.limits`.",
    ),
    key(
        "server.trusted_proxies",
        Kind::Strings,
        None,
        &[],
        "Addresses and nets of proxies whose `X-Forwarded-For` says who the client is, a list like `10.0.0.0/8`.",
    ),
    key(
        "data.dir",
        Kind::Path,
        Some("./towpath-data"),
        &[],
        "Where the embedded store, the token and the output file are kept.",
    ),
    key(
        "backends.default",
        Kind::Backend,
        None,
        &[],
        "URL of the backend; without it the embedded store in `data.dir`.",
    ),
    key(
        "backends.ingest",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the ingest app's backend; without it the default one. The variable is `host:port` of a Redis.",
    ),
    key(
        "backends.orders",
        Kind::Backend,
        None,
        &["RABBITMQ_URLS"],
        "URL of the orders app's broker; without it the default one, or else that of its keys.",
    ),
    key(
        "backends.orders_kv",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the orders app's keys: stock, records, counters; without it its broker's. The variable is `host:port` of a Redis.",
    ),
    key(
        "backends.lines",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the lines app's stream; without it the default one. The variable is `host:port` of a Redis.",
    ),
    key(
        "backends.limits",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the backend that keeps the limits; without it the default one. The variable is `host:port` of a Redis.",
    ),
    key(
        "backends.relay",
        Kind::Backend,
        None,
        &["KAFKA_BROKERS"],
        "URL of the broker that the relay hands the events of the accounts app to; without it the default one. The variable is `host:port` of a Kafka, or several of these separated by commas.",
    ),
    key(
        "backends.fleet",
        Kind::Backend,
        None,
        &fleet::REDIS_VARIABLES,
        "URL of the backend that keeps the tasks of `fleet.worker` and their results; without it the default one. The variables say the parts of a Redis URL, or its address. Queue and results are in one database, so that they change in one step: `ASYNQ_DB` has no effect.",
    ),
    key(
        "embedded.durability",
        Kind::Durability,
        Some("fsync"),
        &[],
        "When the embedded store answers, unless its URL says so.",
    ),
    key(
        "embedded.segment_size",
        Kind::Size(64 * KIB, GIB),
        Some("16MiB"),
        &[],
        "Size of one segment of the embedded store's log, unless its URL says so.",
    ),
    key(
        "embedded.disk_reserve",
        Kind::Size(0, 1024 * GIB),
        Some("64MiB"),
        &[],
        "Free disk space below which the embedded store takes nothing more, unless its URL says so.",
    ),
    key(
        "ingest.queue",
        Kind::Queue,
        Some("messages"),
        &["QUEUE_NAME"],
        "The queue that messages go to and come from.",
    ),
    key(
        "ingest.max_body",
        Kind::Size(KIB, 16 * MIB),
        Some("1MiB"),
        &[],
        "Largest message.",
    ),
    key(
        "ingest.max_batch_body",
        Kind::Size(KIB, 256 * MIB),
        Some("16MiB"),
        &[],
        "Largest body of a batch.",
    ),
    key(
        "ingest.max_depth",
        Kind::Integer(1, u64::MAX),
        None,
        &[],
        "Most messages that may wait; more are answered 429. Without it only the disk limits.",
    ),
    key(
        "ingest.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("24h"),
        &[],
        "How long an idempotency key is remembered.",
    ),
    key(
        "ingest.worker.sink",
        Kind::Choice(&["file", "webhook", "command", "stdout"]),
        Some("file"),
        &[],
        "Where the worker delivers.",
    ),
    key(
        "ingest.worker.output",
        Kind::Path,
        None,
        &["OUTPUT_PATH"],
        "The output file; without it `processed.log` in `data.dir`.",
    ),
    key(
        "ingest.worker.format",
        Kind::Choice(&["line", "raw"]),
        Some("line"),
        &[],
        "What the file and stdout sinks write: `<time> | <message>`, escaped, or the message as it is.",
    ),
    key(
        "ingest.worker.batch",
        Kind::Integer(1, 10_000),
        Some("100"),
        &[],
        "Most messages in hand at once, per consumer.",
    ),
    key(
        "ingest.worker.concurrency",
        Kind::Integer(1, 256),
        Some("1"),
        &[],
        "Consumers side by side; the file and stdout sinks take 1.",
    ),
    key(
        "ingest.worker.lease",
        Kind::Duration(SECOND, 12 * HOUR),
        Some("30s"),
        &[],
        "How long a delivery is hidden from others; renewed while it is worked on.",
    ),
    key(
        "ingest.worker.processing_delay",
        Kind::Duration(0, HOUR),
        Some("0s"),
        &["PROCESSING_DELAY_MS"],
        "A pause before each message; over zero messages are taken one by one. The variable is in milliseconds.",
    ),
    key(
        "ingest.worker.retry.attempts",
        Kind::Integer(1, 1_000_000),
        Some("10"),
        &[],
        "Attempts before a message becomes a dead letter.",
    ),
    key(
        "ingest.worker.retry.first",
        Kind::Duration(0, 24 * HOUR),
        Some("1s"),
        &[],
        "Longest delay after the first attempt; doubles with each.",
    ),
    key(
        "ingest.worker.retry.max",
        Kind::Duration(0, 24 * HOUR),
        Some("5m"),
        &[],
        "Longest delay after any attempt.",
    ),
    key(
        "ingest.worker.webhook.url",
        Kind::WebUrl,
        None,
        &[],
        "Where the webhook sink posts.",
    ),
    key(
        "ingest.worker.webhook.secret",
        Kind::SigningSecrets,
        None,
        &[],
        "Signing secrets, `whsec_` and base64, separated by white space for rotation.",
    ),
    key(
        "ingest.worker.webhook.timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("10s"),
        &[],
        "How long one post may take.",
    ),
    key(
        "ingest.worker.command.program",
        Kind::Strings,
        None,
        &[],
        "The program of the command sink and its arguments.",
    ),
    key(
        "ingest.worker.command.timeout",
        Kind::Duration(SECOND / 10, 24 * HOUR),
        Some("60s"),
        &[],
        "How long one run may take.",
    ),
    key(
        "orders.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("5m"),
        &[],
        "How long the key `idemp:<id>` stays.",
    ),
    key(
        "orders.retention",
        Kind::Duration(MINUTE, 87_600 * HOUR),
        Some("720h"),
        &[],
        "How long the record of a finished order stays; until then its id is taken.",
    ),
    key(
        "orders.batch",
        Kind::Integer(1, 10_000),
        Some("100"),
        &[],
        "Most orders or events in hand at once, per role.",
    ),
    key(
        "orders.lease",
        Kind::Duration(SECOND, 12 * HOUR),
        Some("30s"),
        &[],
        "How long a delivery is hidden from others; renewed while it is worked on.",
    ),
    key(
        "orders.retry.attempts",
        Kind::Integer(1, 1_000_000),
        Some("10"),
        &[],
        "Attempts before an order or event becomes a dead letter.",
    ),
    key(
        "orders.retry.first",
        Kind::Duration(0, 24 * HOUR),
        Some("1s"),
        &[],
        "Longest delay after the first attempt; doubles with each.",
    ),
    key(
        "orders.retry.max",
        Kind::Duration(0, 24 * HOUR),
        Some("5m"),
        &[],
        "Longest delay after any attempt.",
    ),
    key(
        "orders.dashboard.listen",
        Kind::Address,
        None,
        &[],
        "Where the dashboard listens. Without it on `:8081`, and `up` goes on without the dashboard when that is taken.",
    ),
    key(
        "orders.notify.channel",
        Kind::Choice(&["log", "smtp", "webhook"]),
        Some("log"),
        &[],
        "How customers are told: a line of the log, a mail, or a signed post.",
    ),
    key(
        "orders.notify.timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("10s"),
        &[],
        "How long one notification may take.",
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
        "Who mails are from.",
    ),
    key(
        "orders.notify.smtp.to",
        Kind::MailAddress,
        None,
        &[],
        "Who gets the mail of an order without `email`; without it such an event is a dead letter.",
    ),
    key(
        "orders.notify.webhook.url",
        Kind::WebUrl,
        None,
        &[],
        "Where notifications are posted.",
    ),
    key(
        "orders.notify.webhook.secret",
        Kind::SigningSecrets,
        None,
        &[],
        "Signing secrets, `whsec_` and base64, separated by white space for rotation.",
    ),
    key(
        "lines.input",
        Kind::Path,
        None,
        &["INPUT_PATH"],
        "File whose lines are sent, or a pattern with `*` and `?`. Without it `run reader` follows `/data/input.txt`, and `up` runs no lines roles.",
    ),
    key(
        "lines.inputs",
        Kind::Strings,
        None,
        &[],
        "More files and patterns, as `lines.input`.",
    ),
    key(
        "lines.stream",
        Kind::Queue,
        Some("line_stream"),
        &["STREAM_NAME"],
        "The stream that lines go through.",
    ),
    key(
        "lines.output",
        Kind::Path,
        None,
        &[],
        "File that the writer appends to; without it `output.txt` beside the input.",
    ),
    key(
        "lines.start",
        Kind::Choice(&["beginning", "end"]),
        Some("beginning"),
        &[],
        "Where a file begins that was never read before.",
    ),
    key(
        "lines.max_line",
        Kind::Size(KIB, 16 * MIB),
        Some("1MiB"),
        &[],
        "Longest line; the beginning of a longer one goes to the queue `<stream>.dead`, with the reason.",
    ),
    key(
        "lines.quiet",
        Kind::Duration(SECOND, 24 * HOUR),
        None,
        &[],
        "After how long without a change a last line is sent although it has no newline; without it when its newline comes.",
    ),
    key(
        "lines.batch",
        Kind::Integer(1, 10_000),
        Some("1000"),
        &[],
        "Most lines in one step, of the reader and of the writer.",
    ),
    key(
        "lines.poll",
        Kind::Duration(10, MINUTE),
        Some("500ms"),
        &[],
        "How often the reader looks at a file that has nothing new and of which the system tells nothing.",
    ),
    key(
        "lines.group",
        Kind::Queue,
        Some("cg1"),
        &[],
        "The consumer group of the writers.",
    ),
    key(
        "lines.consumer",
        Kind::Queue,
        None,
        &[],
        "The writer's name in its group, one for each output; without it the host's name and a checksum of the output's path.",
    ),
    key(
        "lines.claim_after",
        Kind::Duration(SECOND, HOUR),
        Some("30s"),
        &[],
        "After how long another writer's entries are taken over when it may still be alive.",
    ),
    key(
        "lines.trim",
        Kind::Choice(&["on", "off"]),
        Some("on"),
        &[],
        "Whether the writer gives up entries that every group has finished.",
    ),
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
        "Most events of one step.",
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
        "accounts.relay.lease",
        Kind::Duration(SECOND, HOUR),
        Some("5s"),
        &["RELAY_PROCESSING_TIMEOUT"],
        "After how long another relay takes over from one that is gone. The variable is in seconds.",
    ),
    key(
        "traces.endpoint",
        Kind::WebUrl,
        None,
        &["OTEL_EXPORTER_OTLP_ENDPOINT"],
        "Collector that traces are sent to by OTLP over HTTP, `/v1/traces` added; without it there are none.",
    ),
    key(
        "log.format",
        Kind::Choice(&["auto", "pretty", "json"]),
        Some("auto"),
        &[],
        "How log lines look; auto is pretty on a terminal.",
    ),
    key(
        "log.level",
        Kind::LogFilter,
        Some("info"),
        &["RUST_LOG"],
        "Level, or a filter like `info,towpath=debug`.",
    ),
];

impl Key {
    /// Whether it may be off: it has no default.
    pub(super) const fn is_optional(&self) -> bool {
        self.default.is_none()
    }

    /// `TOWPATH_SECTION__KEY`.
    pub fn variable(&self) -> String {
        format!(
            "TOWPATH_{}",
            self.path.to_ascii_uppercase().replace('.', "__")
        )
    }

    /// The key with this path.
    pub fn find(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// Whether some key lies below this section.
    pub(super) fn is_section(path: &str) -> bool {
        KEYS.iter().any(|key| {
            key.path
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        })
    }
}
