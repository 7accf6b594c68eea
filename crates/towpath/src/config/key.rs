//! The table of keys. Adding one is a row here and a field in the model.

use super::{Kind, accounts, fleet, lines, orders, traces};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const SECOND: u64 = 1000;
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

pub(super) const WEBHOOK_CA: &str = "PEM file with certificates of authorities that the receiver's certificate may be signed by, beside those of the system.";
pub(super) const WEBHOOK_ALLOW: &str = "Without it posts go wherever the host of the URL leads; with it to public addresses and these places only: a list of hosts, addresses and nets, like `hooks.internal:8443`, `10.1.2.0/24`, or `public` for no further place.";

/// Every key, by section.
pub const KEYS: &[Key] = &joined::<{ count(TABLES) }>(TABLES);

/// The keys of the process, and those of each app.
const TABLES: &[&[Key]] = &[
    BASE,
    orders::KEYS,
    lines::KEYS,
    accounts::KEYS,
    fleet::KEYS,
    traces::KEYS,
];

const fn count(tables: &[&[Key]]) -> usize {
    let (mut table, mut sum) = (0, 0);
    while table < tables.len() {
        sum += tables[table].len();
        table += 1;
    }
    sum
}

const fn joined<const N: usize>(tables: &[&[Key]]) -> [Key; N] {
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

/// Those of the process and of the ingest app.
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
        "server.disk_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("5s"),
        &[],
        "How long a request waits for the disk of the embedded store or SQLite before it is answered 503, its outcome unknown. A disk that does not answer for this long makes the process not ready, and the embedded store takes nothing more, unless its URL says so.",
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
        "server.hosts",
        Kind::Strings,
        None,
        &[],
        "Names by which programs of this machine reach the listeners of roles, beside `localhost`, the machine's own name, names without a dot and every IP address; requests of this machine for other names are answered 421.",
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
        "server.auth",
        Kind::Choice(&["auto", "on", "off"]),
        Some("auto"),
        &[],
        "Which routes need an API key. `auto`: routes of Towpath's own, from anywhere but this machine; the routes of the reference systems stay open. `on`: every route but health probes. `off`: only the admin API and the fleet.",
    ),
    key(
        "server.keys",
        Kind::Path,
        None,
        &[],
        "File of API keys, written by `towpath key` and read again when it changes; `keys.json` in the data folder unless set.",
    ),
    key(
        "server.cors.origins",
        Kind::Strings,
        None,
        &[],
        "Origins whose pages may use the interfaces of roles from a browser, a list like `https://shop.example`, or `*` for any page, as some of the reference systems answered. Without it pages of other origins cannot read answers. The admin interface is for no page.",
    ),
    key(
        "server.cors.max_age",
        Kind::Duration(0, 24 * HOUR),
        Some("10m"),
        &[],
        "How long a browser remembers that a page may.",
    ),
    key(
        "server.tls.certificate",
        Kind::Path,
        None,
        &[],
        "PEM file of the certificate chain that the listeners of roles speak TLS with; read again when it changes. Without it they speak plain HTTP.",
    ),
    key(
        "server.tls.key",
        Kind::Path,
        None,
        &[],
        "PEM file of the certificate's private key.",
    ),
    key(
        "server.tls.admin",
        Kind::Choice(&["off", "on"]),
        Some("off"),
        &[],
        "Whether the admin listener speaks TLS too. Clients of the same machine, as the commands and local probes are, may still speak plain HTTP; others, as the probes of Kubernetes and a remote Prometheus, need `scheme: HTTPS` then.",
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
        "embedded.memory",
        Kind::Memory,
        Some("50%"),
        &[],
        "Use of memory above which the embedded store takes nothing more, unless its URL says so: a share of the control group's limit (without one: of the machine's memory), a size, or `unbounded`.",
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
        Kind::Choice(&["line", "reference", "raw"]),
        Some("line"),
        &[],
        "What the file and stdout sinks write: `<time> | <message>`, escaped; the same as the reference system writes it, with line breaks escaped and local time; or the message as it is.",
    ),
    key(
        "ingest.worker.rotate_size",
        Kind::Size(KIB, 1024 * GIB),
        None,
        &[],
        "Size that the output file does not grow over: it is renamed to `<output>.<time>` and a new one begun; without it any size.",
    ),
    key(
        "ingest.worker.rotate_every",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        None,
        &[],
        "Span of time that one output file holds, counted from midnight UTC of 1970: `24h` is one a day; without it any time.",
    ),
    key(
        "ingest.worker.batch",
        Kind::Integer(1, 10_000),
        Some("100"),
        &[],
        "Messages of one batch. While more wait, batches of the file and stdout sinks grow: up to 10,000 messages or 4 MiB of payloads. The webhook and command sinks take messages one by one, never more than this at once.",
    ),
    key(
        "ingest.worker.max_in_flight",
        Kind::Integer(1, 10_000),
        Some("16"),
        &[],
        "Maximum posts or commands at once, per consumer. A consumer leases no more messages than it can begin.",
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
        Some("25"),
        &[],
        "Attempts before a message becomes a dead letter. An unavailable destination costs none.",
    ),
    key(
        "ingest.worker.retry.first",
        Kind::Duration(0, 24 * HOUR),
        Some("1s"),
        &[],
        "Longest delay after the first attempt; doubles with each. The delay is drawn between half of it and all of it.",
    ),
    key(
        "ingest.worker.retry.max",
        Kind::Duration(0, 24 * HOUR),
        Some("6h"),
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
        "ingest.worker.webhook.allow",
        Kind::Strings,
        None,
        &[],
        WEBHOOK_ALLOW,
    ),
    key(
        "ingest.worker.webhook.ca",
        Kind::Path,
        None,
        &[],
        WEBHOOK_CA,
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
    /// The app that it belongs to; `None` when it concerns the process, or several apps.
    pub(super) fn app(&self) -> Option<&'static str> {
        const APPS: [&str; 5] = ["ingest", "orders", "lines", "accounts", "fleet"];
        let name = match self.path {
            "backends.orders_kv" => "orders",
            "backends.relay" => "accounts",
            path => path.strip_prefix("backends.").unwrap_or(path),
        };
        let section = name.split('.').next().unwrap_or_default();
        APPS.into_iter().find(|app| *app == section)
    }

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
