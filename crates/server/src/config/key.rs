//! The table of keys. Adding one is a row here and a field in the model.

use towpath_core::address::{host_shown, shown};

use super::{Kind, access, accounts, fleet, kind, lines, orders, traces};

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
    /// The kind of its value.
    pub kind: Kind,
    /// The default as text; `None` for off.
    pub default: Option<&'static str>,
    /// The reference systems' variables that set it, the strongest first.
    pub variables: &'static [&'static str],
    /// Description, a noun phrase.
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

impl Key {
    /// A value as it may be shown.
    pub(super) fn shown(&self, text: &str) -> String {
        match self.kind {
            _ if self.kind.is_secret() => "***".to_owned(),
            Kind::WebUrl if self.path.contains("webhook") => host_shown(text),
            // Parameters of a scheme that is not valid here are hidden too.
            Kind::WebUrl => match shown(text).split_once('?') {
                Some((place, _)) if !text.starts_with("http") => format!("{place}?***"),
                _ => shown(text),
            },
            // Arguments of programs often are tokens.
            Kind::Strings if self.path.ends_with(".program") => match kind::strings(text) {
                Some(words) if words.len() > 1 => format!("[{:?}, ***]", shown(&words[0])),
                Some(_) => shown(text),
                None => "***".to_owned(),
            },
            _ => shown(text),
        }
    }
}

pub(super) const WEBHOOK_CA: &str = "PEM file of certificate authorities trusted for the receiver, in addition to those of the system.";
pub(super) const WEBHOOK_ALLOW: &str = "Restricts targets to public addresses plus these hosts, addresses and CIDR blocks, e.g. `hooks.internal:8443`, `10.1.2.0/24`; `public` alone allows public addresses only. Unset: no restriction.";

/// Every key, by section.
pub const KEYS: &[Key] = &joined::<{ count(TABLES) }>(TABLES);

/// The keys of the process, and those of each app.
const TABLES: &[&[Key]] = &[
    BASE,
    access::KEYS,
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
        "Listen address of the public HTTP interface; without a host, all interfaces. `towpath up` without this key listens on 127.0.0.1 only.",
    ),
    key(
        "server.admin",
        Kind::Address,
        Some("127.0.0.1:7070"),
        &[],
        "Listen address of the admin API, probes and metrics.",
    ),
    key(
        "server.drain",
        Kind::Duration(SECOND, 10 * MINUTE),
        Some("25s"),
        &[],
        "Graceful shutdown timeout. In-flight work is cut when it ends.",
    ),
    key(
        "server.disk_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("5s"),
        &[],
        "Timeout of a request that waits for the disk of the embedded store or SQLite; the request then gets 503 with an unknown outcome. After this time without a response from the disk the process is not ready and the embedded store rejects writes. The store's URL overrides it.",
    ),
    key(
        "server.max_connections",
        Kind::Integer(1, 100_000),
        Some("10000"),
        &[],
        "Maximum open connections of each listener of roles. A further connection closes the one that has been idle for longest; without an idle one it gets 503. Capped at the process's open-file limit minus 256.",
    ),
    key(
        "server.max_connections_per_client",
        Kind::Integer(1, 100_000),
        None,
        &[],
        "Maximum open connections of one client address (of one /64 with IPv6) to each listener; further connections get 503. `server.trusted_proxies` have no such limit [default: half of `server.max_connections`].",
    ),
    key(
        "server.max_in_flight",
        Kind::Integer(1, 100_000),
        Some("1024"),
        &[],
        "Maximum concurrent requests; further requests get 503.",
    ),
    key(
        "server.max_waiting",
        Kind::Integer(1, 100_000),
        Some("10000"),
        &[],
        "Maximum lease requests of the admin API that wait for a message; further ones get 503. They do not count as concurrent requests.",
    ),
    key(
        "server.max_body_memory",
        Kind::Size(MIB, 1024 * GIB),
        None,
        &[],
        "Memory limit for the bodies of all requests of the process together, not counting 16 KiB of each; further bodies get 503 [default: an eighth of the memory limit of the control group or of the machine's memory, at least twice `ingest.max_batch_body`, at most 256MiB].",
    ),
    key(
        "server.header_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("10s"),
        &[],
        "Timeout for receiving the head of a request.",
    ),
    key(
        "server.body_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("30s"),
        &[],
        "Timeout for receiving the body of a request; a body that delivers less than 1 KiB in 5 s times out sooner.",
    ),
    key(
        "server.write_timeout",
        Kind::Duration(SECOND / 10, 10 * MINUTE),
        Some("30s"),
        &[],
        "Timeout for a client that stops reading the response.",
    ),
    key(
        "server.idle_timeout",
        Kind::Duration(SECOND / 10, HOUR),
        Some("75s"),
        &[],
        "Timeout of an idle keep-alive connection.",
    ),
    key(
        "server.hosts",
        Kind::Strings,
        None,
        &[],
        "Host names of the listeners of roles, beside `localhost`, the machine's name, names without a dot and IP addresses; requests for other names get 421. Unset: clients of other machines may use any name.",
    ),
    key(
        "server.admin_hosts",
        Kind::Strings,
        None,
        &[],
        "Additional host names that the admin listener accepts; `localhost`, the listener's own host and IP addresses are always accepted.",
    ),
    key(
        "server.limits",
        Kind::Strings,
        None,
        &[],
        "Rate limits per client of the routes of roles: a list like `*=token_bucket:10:0.1/1s` or `/enqueue=sliding_window:1000/1m:fail_open`. `*` applies to every route of the public listener without an entry of its own, except probes. A batch counts as its messages. Their state is in `backends.limits`.",
    ),
    key(
        "server.trusted_proxies",
        Kind::Strings,
        None,
        &[],
        "Addresses and CIDR blocks of proxies whose `X-Forwarded-For` is trusted, e.g. `10.0.0.0/8`.",
    ),
    key(
        "server.auth",
        Kind::Choice(&["auto", "on", "off"]),
        Some("auto"),
        &[],
        "Routes that need an API key. `auto`: Towpath's own routes, except for clients of this machine; routes of the reference systems stay open. `on`: every route except health probes. `off`: only the admin API and the fleet.",
    ),
    key(
        "server.keys",
        Kind::Path,
        None,
        &[],
        "File of API keys, written by `towpath key` and reloaded when it changes [default: `keys.json` in the data folder].",
    ),
    key(
        "server.cors.origins",
        Kind::Strings,
        None,
        &[],
        "Allowed CORS origins of the listeners of roles, e.g. `https://shop.example`, or `*` for any. Unset: pages of other origins cannot read responses. The admin listener allows no origin.",
    ),
    key(
        "server.cors.max_age",
        Kind::Duration(0, 24 * HOUR),
        Some("10m"),
        &[],
        "Lifetime of a CORS preflight response in the browser's cache.",
    ),
    key(
        "server.tls.certificate",
        Kind::Path,
        None,
        &[],
        "PEM file of the TLS certificate chain for the listeners of roles, reloaded when it changes. Unset: plain HTTP.",
    ),
    key(
        "server.tls.key",
        Kind::Path,
        None,
        &[],
        "PEM file of the certificate's private key.",
    ),
    key(
        "server.tls.client_ca",
        Kind::Path,
        None,
        &[],
        "PEM file of the authorities of client certificates, reloaded when it changes. A client may then show a certificate in place of a key; `towpath key new --certificate NAME` gives it scopes. Clients without one are still served.",
    ),
    key(
        "server.tls.admin",
        Kind::Choice(&["off", "on"]),
        Some("off"),
        &[],
        "TLS on the admin listener. Clients of the same machine (commands, local probes) may still use plain HTTP; remote ones (Kubernetes probes, Prometheus) then need `scheme: HTTPS`.",
    ),
    key(
        "data.dir",
        Kind::Path,
        Some("./towpath-data"),
        &[],
        "Folder of the embedded store, the admin token and the output file.",
    ),
    key(
        "backends.default",
        Kind::Backend,
        None,
        &[],
        "URL of the default backend. Unset: the embedded store in `data.dir`.",
    ),
    key(
        "backends.ingest",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the ingest app's backend [default: `backends.default`]. The variable is the `host:port` of a Redis server.",
    ),
    key(
        "backends.orders",
        Kind::Backend,
        None,
        &["RABBITMQ_URLS"],
        "URL of the orders app's broker [default: `backends.default`, then `backends.orders_kv`].",
    ),
    key(
        "backends.orders_kv",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the orders app's key-value store for stock, records and counters [default: its broker]. The variable is the `host:port` of a Redis server.",
    ),
    key(
        "backends.lines",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the backend of the lines app's stream [default: `backends.default`]. The variable is the `host:port` of a Redis server.",
    ),
    key(
        "backends.limits",
        Kind::Backend,
        None,
        &["REDIS_ADDR"],
        "URL of the backend that stores rate limits [default: `backends.default`]. The variable is the `host:port` of a Redis server.",
    ),
    key(
        "backends.relay",
        Kind::Backend,
        None,
        &["KAFKA_BROKERS"],
        "URL of the broker that the outbox relay publishes to [default: `backends.default`]. The variable is the `host:port` of one or more Kafka brokers, separated by commas.",
    ),
    key(
        "backends.fleet",
        Kind::Backend,
        None,
        &fleet::REDIS_VARIABLES,
        "URL of the backend that stores the tasks of `fleet.worker` and their results [default: `backends.default`]. The variables set the address or the parts of a Redis URL. Queue and results share one database, so that they change in one step: `ASYNQ_DB` has no effect.",
    ),
    key(
        "embedded.durability",
        Kind::Durability,
        Some("fsync"),
        &[],
        "Durability of an acknowledged write in the embedded store. The store's URL overrides it.",
    ),
    key(
        "embedded.segment_size",
        Kind::Size(64 * KIB, GIB),
        Some("16MiB"),
        &[],
        "Segment size of the embedded store's log. The store's URL overrides it.",
    ),
    key(
        "embedded.disk_reserve",
        Kind::Size(0, 1024 * GIB),
        Some("64MiB"),
        &[],
        "Free disk space below which the embedded store rejects writes. The store's URL overrides it.",
    ),
    key(
        "embedded.memory",
        Kind::Memory,
        Some("50%"),
        &[],
        "Memory use above which the embedded store rejects writes: a share of the control group's limit (of the machine's memory without one), a size, or `unbounded`. The store's URL overrides it.",
    ),
    key(
        "ingest.queue",
        Kind::Queue,
        Some("messages"),
        &["QUEUE_NAME"],
        "Name of the ingest queue.",
    ),
    key(
        "ingest.max_body",
        Kind::Size(KIB, 16 * MIB),
        Some("1MiB"),
        &[],
        "Maximum size of a message.",
    ),
    key(
        "ingest.max_batch_body",
        Kind::Size(KIB, 256 * MIB),
        Some("16MiB"),
        &[],
        "Maximum size of a batch body.",
    ),
    key(
        "ingest.max_depth",
        Kind::Integer(1, u64::MAX),
        None,
        &[],
        "Maximum waiting messages; further messages get 429. Unset: limited by disk and memory only.",
    ),
    key(
        "ingest.idempotency_window",
        Kind::Duration(SECOND, 8760 * HOUR),
        Some("24h"),
        &[],
        "Retention of an idempotency key.",
    ),
    key(
        "ingest.worker.sink",
        Kind::Choice(&["file", "webhook", "command", "stdout"]),
        Some("file"),
        &[],
        "Delivery target of the worker.",
    ),
    key(
        "ingest.worker.output",
        Kind::Path,
        None,
        &["OUTPUT_PATH"],
        "Output file [default: `processed.log` in `data.dir`].",
    ),
    key(
        "ingest.worker.output_mode",
        Kind::FileMode,
        Some("0640"),
        &[],
        "Mode of new output files, whatever the umask is. The journal beside an output is always `0600`.",
    ),
    key(
        "ingest.worker.format",
        Kind::Choice(&["line", "reference", "raw"]),
        Some("line"),
        &[],
        "Output format of the file and stdout sinks. `line`: time, a vertical bar and the message, escaped. `reference`: the format of the reference system, with local time and only line breaks escaped. `raw`: the message unchanged.",
    ),
    key(
        "ingest.worker.rotate_size",
        Kind::Size(KIB, 1024 * GIB),
        None,
        &[],
        "Maximum size of the output file; a full file is renamed to `<output>.<time>`. Unset: no rotation by size.",
    ),
    key(
        "ingest.worker.rotate_every",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        None,
        &[],
        "Time span of one output file, aligned to midnight UTC: `24h` is one file a day. Unset: no rotation by time.",
    ),
    key(
        "ingest.worker.batch",
        Kind::Integer(1, 10_000),
        Some("100"),
        &[],
        "Messages per batch. With a backlog, batches of the file and stdout sinks grow to at most 10,000 messages or 4 MiB of payloads. The webhook and command sinks handle single messages, at most this many concurrently.",
    ),
    key(
        "ingest.worker.max_in_flight",
        Kind::Integer(1, 10_000),
        Some("16"),
        &[],
        "Maximum in-flight messages per consumer of the webhook and command sinks. A consumer leases no more messages than it can start.",
    ),
    key(
        "ingest.worker.concurrency",
        Kind::Integer(1, 256),
        Some("1"),
        &[],
        "Number of consumers; the file and stdout sinks require 1.",
    ),
    key(
        "ingest.worker.lease",
        Kind::Duration(SECOND, 12 * HOUR),
        Some("30s"),
        &[],
        "Lease duration of a delivery; renewed while the sink works on it.",
    ),
    key(
        "ingest.worker.processing_delay",
        Kind::Duration(0, HOUR),
        Some("0s"),
        &["PROCESSING_DELAY_MS"],
        "Delay before each message; a value above 0 handles messages one by one. The variable is in milliseconds.",
    ),
    key(
        "ingest.worker.retry.attempts",
        Kind::Integer(1, 1_000_000),
        Some("25"),
        &[],
        "Attempts before a message becomes a dead letter. An unavailable destination is not charged as an attempt.",
    ),
    key(
        "ingest.worker.retry.first",
        Kind::Duration(0, 24 * HOUR),
        Some("1s"),
        &[],
        "Maximum delay after the first attempt; doubles with each attempt. The actual delay is random between half of it and all of it.",
    ),
    key(
        "ingest.worker.retry.max",
        Kind::Duration(0, 24 * HOUR),
        Some("6h"),
        &[],
        "Maximum delay after any attempt.",
    ),
    key(
        "ingest.worker.webhook.url",
        Kind::WebUrl,
        None,
        &[],
        "Target URL of the webhook sink.",
    ),
    key(
        "ingest.worker.webhook.secret",
        Kind::SigningSecrets,
        None,
        &[],
        "Signing secrets (`whsec_` and base64); several, separated by white space, for rotation.",
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
        "Timeout of one webhook request.",
    ),
    key(
        "ingest.worker.command.program",
        Kind::Strings,
        None,
        &[],
        "Program and arguments of the command sink.",
    ),
    key(
        "ingest.worker.command.environment",
        Kind::Strings,
        None,
        &[],
        "Variables of the process that the command gets beside `PATH`, `HOME`, the locale, the time zone and `TOWPATH_MESSAGE_…`; `*` for all.",
    ),
    key(
        "ingest.worker.command.timeout",
        Kind::Duration(SECOND / 10, 24 * HOUR),
        Some("60s"),
        &[],
        "Timeout of one run of the command.",
    ),
    key(
        "log.format",
        Kind::Choice(&["auto", "pretty", "json"]),
        Some("auto"),
        &[],
        "Log format; `auto` is `pretty` on a terminal.",
    ),
    key(
        "log.level",
        Kind::LogFilter,
        Some("info"),
        &["RUST_LOG"],
        "Log level, or a filter like `info,towpath=debug`.",
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
