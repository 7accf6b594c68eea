//! The configuration, in types.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use towpath_core::port::queue::Settings;
use towpath_core::{QueueName, retry};

use super::lines::Lines;
use super::load::Setting;
use super::orders::Orders;
use super::{Accounts, Fleet, Origin, Secret, Traces, kind};
use crate::auth::{KEY_FILE, Mode};
use towpath::sink::{LineFormat, Rotation};

/// Where the ingest worker delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkKind {
    /// The output file.
    File,
    /// Signed posts.
    Webhook,
    /// A process per message.
    Command,
    /// Lines on standard output.
    Stdout,
}

impl SinkKind {
    /// Its name, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
            Self::Command => "command",
            Self::Stdout => "stdout",
        }
    }
}

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Config {
    pub listen: String,
    pub admin: String,
    /// Whether no source says where the admin interface listens.
    pub admin_is_default: bool,
    pub drain: Duration,
    pub disk_timeout: Duration,
    pub max_connections: usize,
    pub max_connections_per_client: Option<usize>,
    pub max_in_flight: usize,
    pub max_waiting: usize,
    /// Queues of `[queues.NAME]`.
    pub queues: BTreeMap<QueueName, Settings>,
    pub max_body_memory: Option<usize>,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
    pub hosts: Vec<String>,
    pub admin_hosts: Vec<String>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_client_ca: Option<PathBuf>,
    pub tls_admin: bool,
    pub route_limits: Vec<String>,
    pub trusted_proxies: Vec<String>,
    /// Which routes need a key.
    pub auth: Mode,
    /// The file of keys.
    pub key_file: PathBuf,
    /// Origins whose pages may use the interfaces of roles; `*` for any.
    pub jwks: Option<Secret>,
    pub jwt_issuer: Option<String>,
    pub jwt_audience: Option<String>,
    pub jwt_scope_claim: String,
    pub audit_keep: u64,
    pub cors_origins: Vec<String>,
    /// Lifetime of a preflight response in the browser's cache.
    pub cors_max_age: Duration,
    pub data_dir: PathBuf,
    pub ingest_backend: Secret,
    pub durability: String,
    pub segment_size: u64,
    pub disk_reserve: u64,
    pub queue: String,
    pub max_body: usize,
    pub max_batch_body: usize,
    pub max_depth: Option<u64>,
    pub idempotency_window: Duration,
    pub sink: SinkKind,
    pub output: Option<PathBuf>,
    pub output_mode: u32,
    pub format: LineFormat,
    pub rotation: Rotation,
    pub batch: usize,
    pub worker_in_flight: usize,
    pub concurrency: usize,
    pub lease: Duration,
    pub processing_delay: Duration,
    pub retry: retry::Policy,
    pub webhook_url: Option<Secret>,
    pub webhook_secrets: Vec<Secret>,
    pub webhook_allow: Option<Vec<String>>,
    pub webhook_ca: Option<PathBuf>,
    pub webhook_timeout: Duration,
    pub command: Vec<String>,
    pub command_environment: Vec<String>,
    pub command_timeout: Duration,
    pub orders: Orders,
    pub lines: Lines,
    pub limits_backend: Secret,
    pub accounts: Accounts,
    pub fleet: Fleet,
    pub traces: Traces,
    pub log_format: String,
    pub log_level: String,
}

/// Reads values that were accepted before.
pub(super) struct Values<'a>(&'a BTreeMap<&'static str, Setting>);

impl Values<'_> {
    pub(super) fn optional(&self, path: &str) -> Option<String> {
        self.0.get(path).and_then(|setting| setting.text.clone())
    }

    pub(super) fn is_default(&self, path: &str) -> bool {
        let setting = self.0.get(path);
        setting.is_none_or(|setting| setting.origin == Origin::Default)
    }

    pub(super) fn text(&self, path: &str) -> String {
        self.optional(path).unwrap_or_default()
    }

    pub(super) fn list(&self, path: &str) -> Option<Vec<String>> {
        self.optional(path).and_then(|text| kind::strings(&text))
    }

    pub(super) fn number(&self, path: &str) -> u64 {
        self.text(path).parse().unwrap_or_default()
    }

    pub(super) fn count(&self, path: &str) -> usize {
        usize::try_from(self.number(path)).unwrap_or(usize::MAX)
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        kind::duration(&self.text(path)).unwrap_or_default()
    }

    pub(super) fn file_mode(&self, path: &str) -> u32 {
        kind::file_mode(&self.text(path)).unwrap_or(0o600)
    }

    pub(super) fn size(&self, path: &str) -> u64 {
        kind::size(&self.text(path)).unwrap_or_default()
    }
}

/// When an output file gives way to a new one.
pub(super) fn rotation(values: &Values<'_>, section: &str) -> Rotation {
    let value = |name| values.optional(&format!("{section}.{name}"));
    Rotation {
        size: value("rotate_size").and_then(|text| kind::size(&text)),
        every: value("rotate_every").and_then(|text| kind::duration(&text)),
    }
}

/// The URL of an app's backend. The `[embedded]` keys are the defaults of every embedded store, whatever named it.
///
/// The first of `paths` that is set counts, or else the embedded store in the data folder.
pub(super) fn backend_url(values: &Values<'_>, paths: &[&str]) -> String {
    let url = paths
        .iter()
        .find_map(|path| values.optional(path))
        .unwrap_or_else(|| format!("embedded:{}", values.text("data.dir")));
    if !url.starts_with("embedded:") {
        return url;
    }
    let (folder, query) = url.split_once('?').unwrap_or((url.as_str(), ""));
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(str::to_owned)
        .collect();
    let disk_timeout = values.duration("server.disk_timeout").as_millis();
    let disk_timeout = format!("{disk_timeout}ms");
    for (name, value) in [
        ("durability", values.text("embedded.durability")),
        ("segment", values.size("embedded.segment_size").to_string()),
        ("reserve", values.size("embedded.disk_reserve").to_string()),
        ("memory", values.text("embedded.memory")),
        ("timeout", disk_timeout),
    ] {
        if !pairs
            .iter()
            .any(|pair| pair.split('=').next() == Some(name))
        {
            pairs.push(format!("{name}={value}"));
        }
    }
    format!("{folder}?{}", pairs.join("&"))
}

impl Config {
    pub(super) fn from_settings(settings: &BTreeMap<&'static str, Setting>) -> Self {
        let values = Values(settings);
        let bytes = |path: &str| usize::try_from(values.size(path)).unwrap_or(usize::MAX);
        Self {
            listen: values.text("server.listen"),
            admin: values.text("server.admin"),
            admin_is_default: values.is_default("server.admin"),
            drain: values.duration("server.drain"),
            disk_timeout: values.duration("server.disk_timeout"),
            max_connections: values.count("server.max_connections"),
            max_connections_per_client: values
                .optional("server.max_connections_per_client")
                .map(|_| values.count("server.max_connections_per_client")),
            max_in_flight: values.count("server.max_in_flight"),
            max_waiting: values.count("server.max_waiting"),
            // The file is their only source.
            queues: BTreeMap::new(),
            max_body_memory: values
                .optional("server.max_body_memory")
                .map(|_| bytes("server.max_body_memory")),
            header_timeout: values.duration("server.header_timeout"),
            body_timeout: values.duration("server.body_timeout"),
            write_timeout: values.duration("server.write_timeout"),
            idle_timeout: values.duration("server.idle_timeout"),
            hosts: values.list("server.hosts").unwrap_or_default(),
            admin_hosts: values.list("server.admin_hosts").unwrap_or_default(),
            tls_certificate: values.optional("server.tls.certificate").map(PathBuf::from),
            tls_key: values.optional("server.tls.key").map(PathBuf::from),
            tls_client_ca: values.optional("server.tls.client_ca").map(PathBuf::from),
            tls_admin: values.text("server.tls.admin") == "on",
            route_limits: values.list("server.limits").unwrap_or_default(),
            trusted_proxies: values.list("server.trusted_proxies").unwrap_or_default(),
            auth: match values.text("server.auth").as_str() {
                "on" => Mode::On,
                "off" => Mode::Off,
                _ => Mode::Auto,
            },
            key_file: match values.optional("server.keys") {
                Some(path) => PathBuf::from(path),
                None => PathBuf::from(values.text("data.dir")).join(KEY_FILE),
            },
            jwks: values.optional("server.jwt.jwks").map(Secret::new),
            jwt_issuer: values.optional("server.jwt.issuer"),
            jwt_audience: values.optional("server.jwt.audience"),
            jwt_scope_claim: values.text("server.jwt.scope_claim"),
            audit_keep: values.number("server.audit.keep"),
            cors_origins: values.list("server.cors.origins").unwrap_or_default(),
            cors_max_age: values.duration("server.cors.max_age"),
            data_dir: PathBuf::from(values.text("data.dir")),
            ingest_backend: Secret::new(backend_url(
                &values,
                &["backends.ingest", "backends.default"],
            )),
            durability: values.text("embedded.durability"),
            segment_size: values.size("embedded.segment_size"),
            disk_reserve: values.size("embedded.disk_reserve"),
            queue: values.text("ingest.queue"),
            max_body: bytes("ingest.max_body"),
            max_batch_body: bytes("ingest.max_batch_body"),
            max_depth: values
                .optional("ingest.max_depth")
                .and_then(|text| text.parse().ok()),
            idempotency_window: values.duration("ingest.idempotency_window"),
            sink: match values.text("ingest.worker.sink").as_str() {
                "webhook" => SinkKind::Webhook,
                "command" => SinkKind::Command,
                "stdout" => SinkKind::Stdout,
                _ => SinkKind::File,
            },
            output: values.optional("ingest.worker.output").map(PathBuf::from),
            output_mode: values.file_mode("ingest.worker.output_mode"),
            format: match values.text("ingest.worker.format").as_str() {
                "raw" => LineFormat::Raw,
                "reference" => LineFormat::Reference,
                _ => LineFormat::Stamped,
            },
            rotation: rotation(&values, "ingest.worker"),
            batch: values.count("ingest.worker.batch"),
            worker_in_flight: values.count("ingest.worker.max_in_flight"),
            concurrency: values.count("ingest.worker.concurrency"),
            lease: values.duration("ingest.worker.lease"),
            processing_delay: values.duration("ingest.worker.processing_delay"),
            retry: retry::Policy {
                attempts: u32::try_from(values.number("ingest.worker.retry.attempts"))
                    .unwrap_or(u32::MAX),
                first: values.duration("ingest.worker.retry.first"),
                max: values.duration("ingest.worker.retry.max"),
            },
            webhook_url: values
                .optional("ingest.worker.webhook.url")
                .map(Secret::new),
            webhook_secrets: values
                .text("ingest.worker.webhook.secret")
                .split_whitespace()
                .map(Secret::new)
                .collect(),
            webhook_allow: values.list("ingest.worker.webhook.allow"),
            webhook_ca: values
                .optional("ingest.worker.webhook.ca")
                .map(PathBuf::from),
            webhook_timeout: values.duration("ingest.worker.webhook.timeout"),
            command: values
                .list("ingest.worker.command.program")
                .unwrap_or_default(),
            command_environment: values
                .list("ingest.worker.command.environment")
                .unwrap_or_default(),
            command_timeout: values.duration("ingest.worker.command.timeout"),
            orders: Orders::read(&values),
            lines: Lines::read(&values),
            limits_backend: Secret::new(backend_url(
                &values,
                &["backends.limits", "backends.default"],
            )),
            accounts: Accounts::read(&values),
            fleet: Fleet::read(&values),
            traces: Traces::read(&values),
            log_format: values.text("log.format"),
            log_level: values.text("log.level"),
        }
    }

    /// The output file.
    pub fn output_path(&self) -> PathBuf {
        self.output
            .clone()
            .unwrap_or_else(|| self.data_dir.join("processed.log"))
    }

    /// The ingest queue's settings.
    pub fn queue_settings(&self) -> Settings {
        Settings {
            retry: self.retry,
            dedup_window: self.idempotency_window,
            max_depth: self.max_depth,
        }
    }
}
