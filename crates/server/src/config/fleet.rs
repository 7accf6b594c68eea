//! The keys of the fleet app and their types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Secret;
use super::key::{HOUR, Key, MIB, MINUTE, key};
use super::kind::Kind;
use super::model::{Values, backend_url};
use crate::apps::fleet::{Entry, Limits};

/// The parts of a Redis URL, as existing workers set them, or else its address.
pub(super) const REDIS_VARIABLES: [&str; 4] =
    ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_ADDR"];

/// The keys of the fleet app.
pub(super) const KEYS: &[Key] = &[
    key(
        "fleet.api_keys",
        Kind::ApiKeys,
        None,
        &["API_KEY"],
        "API key of the fleet, or two during a rotation, separated by white space. Unset: `fleet.key` in `data.dir`, generated at the first start.",
    ),
    key(
        "fleet.development",
        Kind::Choice(&["on", "off"]),
        Some("off"),
        &[],
        "Allows the publicly known key `default-api-key`.",
    ),
    key(
        "fleet.public_key",
        Kind::Text,
        None,
        &[],
        "Public key of the controller: `proof.public_key` of its configurations. Agents and workers then refuse every other configuration. Unset: configurations are not verified, as reference controllers do not sign.",
    ),
    key(
        "fleet.controller.listen",
        Kind::Address,
        None,
        &["CONTROLLER_PORT"],
        "Listen address of `fleet.controller` [default: `:6001`]. The variable is a port.",
    ),
    key(
        "fleet.controller.database",
        Kind::Database,
        None,
        &["CONTROLLER_DB_PATH"],
        "Database of configurations and agents: `sqlite:PATH` or `postgres://…` [default: `controller.db` in `data.dir`]. The variable is a path.",
    ),
    key(
        "fleet.controller.forget_after",
        Kind::Duration(MINUTE, 87_600 * HOUR),
        Some("24h"),
        &[],
        "Retention of an agent after its last request.",
    ),
    key(
        "fleet.agent.controller",
        Kind::WebUrl,
        None,
        &["CONTROLLER_URL"],
        "URL of the agent's controller [default: the controller of the same process, or `http://localhost:6001`].",
    ),
    key(
        "fleet.agent.key",
        Kind::SecretText,
        None,
        &[],
        "Key that the agent registers with: a key of the controller's key file with the scope `fleet:enroll` [default: the key of `fleet.api_keys`, which may publish].",
    ),
    key(
        "fleet.agent.worker_key",
        Kind::SecretText,
        None,
        &[],
        "Key that the agent sends to workers: a key of their key file with the scopes `worker:read` and `worker:configure` [default: a key derived from that of `fleet.api_keys`, which may configure workers and nothing else].",
    ),
    key(
        "fleet.agent.workers",
        Kind::Strings,
        None,
        &["WORKER_URL"],
        "URLs of the agent's workers [default: the worker of the same process, or `http://localhost:6002`]. The variable separates several by commas.",
    ),
    key(
        "fleet.agent.hostname",
        Kind::Queue,
        None,
        &["AGENT_HOSTNAME"],
        "Host name that identifies the agent [default: the system's host name]. Two agents need different names, addresses or ports.",
    ),
    key(
        "fleet.agent.ip_address",
        Kind::Queue,
        None,
        &["AGENT_IP"],
        "IP address that identifies the agent [default: the local address of its connection to the controller].",
    ),
    key(
        "fleet.agent.port",
        Kind::Integer(1, 65_535),
        Some("8081"),
        &["AGENT_PORT"],
        "Port that identifies the agent; it does not listen on it.",
    ),
    key(
        "fleet.agent.labels",
        Kind::Strings,
        None,
        &[],
        "Labels that rollouts select the agent by, e.g. `env=canary`.",
    ),
    key(
        "fleet.agent.poll",
        Kind::Duration(100, 24 * HOUR),
        Some("30s"),
        &["POLL_INTERVAL_SECONDS"],
        "Polling interval of the agent until a configuration sets one. The variable is in seconds.",
    ),
    key(
        "fleet.agent.timeout",
        Kind::Duration(100, HOUR),
        Some("10s"),
        &["REQUEST_TIMEOUT_SECONDS"],
        "Timeout of the agent's requests. The variable is in seconds.",
    ),
    key(
        "fleet.worker.listen",
        Kind::Address,
        None,
        &["WORKER_PORT"],
        "Listen address of `fleet.worker` [default: `:6002`]. The variable is a port.",
    ),
    key(
        "fleet.worker.auth",
        Kind::Choice(&["auto", "on", "off"]),
        Some("auto"),
        &[],
        "Authentication of the worker's clients. `on`: a key of the fleet is required. `auto`: clients of the same machine need none. `off`: no client needs one, for existing agents on other machines.",
    ),
    key(
        "fleet.worker.retries",
        Kind::Integer(0, 1_000),
        Some("3"),
        &["WORKER_RETRY_MAX"],
        "Retries of a task whose response is 408 or 5xx. A missing response, 429, 502, 503 and 504 mean an unavailable destination and are not charged as attempts before `fleet.worker.unavailable_timeout`.",
    ),
    key(
        "fleet.worker.unavailable_timeout",
        Kind::Duration(0, 24 * HOUR),
        Some("1h"),
        &[],
        "Time that a task waits for an unavailable destination before failures are charged as attempts.",
    ),
    key(
        "fleet.worker.concurrency",
        Kind::Integer(1, 1_000),
        Some("10"),
        &[],
        "Maximum concurrent tasks.",
    ),
    key(
        "fleet.worker.per_host",
        Kind::Integer(1, 1_000),
        Some("10"),
        &[],
        "Maximum concurrent tasks per host.",
    ),
    key(
        "fleet.worker.timeout",
        Kind::Duration(100, 10 * MINUTE),
        Some("30s"),
        &[],
        "Timeout of a task's request, redirects and body included.",
    ),
    key(
        "fleet.worker.max_body",
        Kind::Size(0, 8 * MIB),
        Some("64KiB"),
        &[],
        "Maximum stored size of a response body.",
    ),
    key(
        "fleet.worker.allow",
        Kind::Strings,
        None,
        &[],
        "Hosts, addresses and CIDR blocks that tasks may reach although they are not public, or use another port than 80, 443 or 1024 and above, e.g. `localhost`, `127.0.0.1:8080`, `10.1.2.0/24`.",
    ),
    key(
        "fleet.worker.callback.secrets",
        Kind::SigningSecrets,
        None,
        &[],
        "Signing secrets of callbacks, as for webhooks. Unset: unsigned callbacks.",
    ),
];

/// The fleet app's part of a valid configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Fleet {
    pub backend: Secret,
    pub api_keys: Vec<Secret>,
    pub development: bool,
    pub public_key: Option<String>,
    pub agent_key: Option<Secret>,
    pub agent_worker_key: Option<Secret>,
    pub controller_listen: Option<String>,
    pub database: Secret,
    pub forget_after: Duration,
    pub controller: Option<String>,
    pub workers: Vec<String>,
    pub hostname: Option<String>,
    pub ip_address: Option<String>,
    pub port: u16,
    pub labels: BTreeMap<String, String>,
    pub poll: Duration,
    pub timeout: Duration,
    pub worker_listen: Option<String>,
    pub entry: Entry,
    pub limits: Limits,
    pub allow: Vec<String>,
    pub callback_secrets: Vec<Secret>,
}

impl Fleet {
    pub(super) fn read(values: &Values<'_>) -> Self {
        let list = |path: &str| values.list(path).unwrap_or_default();
        let words = |path: &str| {
            let text = values.text(path);
            text.split_whitespace()
                .map(|word| Secret::new(word.to_owned()))
                .collect()
        };
        let trimmed = |url: String| url.trim_end_matches('/').to_owned();
        let database = values
            .optional("fleet.controller.database")
            .unwrap_or_else(|| {
                let folder = PathBuf::from(values.text("data.dir"));
                format!(
                    "sqlite:{}",
                    Path::new(&folder).join("controller.db").display()
                )
            });
        let labels = list("fleet.agent.labels");
        let labels = labels.iter().filter_map(|label| label.split_once('='));
        Self {
            backend: Secret::new(backend_url(values, &["backends.fleet", "backends.default"])),
            api_keys: words("fleet.api_keys"),
            development: values.text("fleet.development") == "on",
            public_key: values.optional("fleet.public_key"),
            agent_key: values.optional("fleet.agent.key").map(Secret::new),
            agent_worker_key: values.optional("fleet.agent.worker_key").map(Secret::new),
            controller_listen: values.optional("fleet.controller.listen"),
            database: Secret::new(database),
            forget_after: values.duration("fleet.controller.forget_after"),
            controller: values.optional("fleet.agent.controller").map(trimmed),
            workers: list("fleet.agent.workers")
                .into_iter()
                .map(trimmed)
                .collect(),
            hostname: values.optional("fleet.agent.hostname"),
            ip_address: values.optional("fleet.agent.ip_address"),
            port: u16::try_from(values.number("fleet.agent.port")).unwrap_or(u16::MAX),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            poll: values.duration("fleet.agent.poll"),
            timeout: values.duration("fleet.agent.timeout"),
            worker_listen: values.optional("fleet.worker.listen"),
            entry: match values.text("fleet.worker.auth").as_str() {
                "on" => Entry::Key,
                "off" => Entry::Open,
                _ => Entry::KeyOrLoopback,
            },
            limits: Limits {
                concurrency: values.count("fleet.worker.concurrency"),
                per_host: values.count("fleet.worker.per_host"),
                attempts: u32::try_from(values.number("fleet.worker.retries"))
                    .unwrap_or(u32::MAX)
                    .saturating_add(1),
                body: usize::try_from(values.size("fleet.worker.max_body")).unwrap_or(usize::MAX),
                timeout: values.duration("fleet.worker.timeout"),
                patience: values.duration("fleet.worker.unavailable_timeout"),
            },
            allow: list("fleet.worker.allow"),
            callback_secrets: words("fleet.worker.callback.secrets"),
        }
    }
}
