//! The environment's variables.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use towpath_core::address::shown;

use super::Kind;
use super::accounts::DATABASE_VARIABLES;
use super::fleet::REDIS_VARIABLES;
use super::key::{KEYS, Key};
use super::platform::is_of_platform;
use super::suggest::{nearest, question};
use crate::http::encoded;
use towpath::sink::VARIABLE_PREFIX;

/// Variables of Towpath that are not keys.
const OTHER: [&str; 8] = [
    REFERENCE,
    "TOWPATH_COMMIT",
    "TOWPATH_CONFIG",
    "TOWPATH_URL",
    "TOWPATH_TOKEN",
    "TOWPATH_TOKEN_FILE",
    "TOWPATH_SEEDS",
    "TOWPATH_UPDATE_DOCS",
];

/// Set to `1`, it makes the defaults of the reference system ours.
pub(crate) const REFERENCE: &str = "TOWPATH_REFERENCE";

/// Addresses that the reference system's processes use without variables: the variable, its default, and the variables
/// of which each one overrides it.
const REFERENCE_DEFAULTS: [(&str, &str, &[&str]); 4] = [
    (
        "RABBITMQ_URLS",
        "amqp://guest:guest@localhost:5672/",
        &["RABBITMQ_URLS"],
    ),
    ("REDIS_ADDR", "localhost:6379", &["REDIS_ADDR"]),
    ("DB_HOST", "localhost", &DATABASE_VARIABLES),
    ("KAFKA_BROKERS", "localhost:9092", &["KAFKA_BROKERS"]),
];
/// Secrets that are parts of a key's value.
const PASSWORDS: [&str; 2] = ["DB_PASSWORD", "REDIS_PASSWORD"];

/// TLS modes of PostgreSQL.
const SSL_MODES: [&str; 4] = ["disable", "require", "verify-ca", "verify-full"];

/// A variable that sets a key.
pub(super) struct SetValue {
    pub(super) name: String,
    /// The value, in the form of the key.
    pub(super) text: String,
    /// The value in the form of the variable, where that is another one; secrets hidden.
    pub(super) written: Option<String>,
}

/// A variable that cannot be used.
#[derive(PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) variable: String,
    /// The key that it would set; `None` when it sets none.
    pub(super) key: Option<&'static str>,
    pub(super) message: String,
}

/// The environment without variables of the platform, and warnings about it.
pub(super) struct Variables<'a> {
    env: BTreeMap<&'a str, &'a str>,
    /// The key that is asked about.
    key: Option<&'static str>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<Unusable>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>) -> Self {
        let of_operator = env
            .iter()
            .filter(|(name, value)| !is_of_platform(env, name, value))
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let mut variables = Self {
            env: of_operator.collect(),
            key: None,
            warnings: Vec::new(),
            problems: Vec::new(),
        };
        variables.set_reference_defaults();
        variables
    }

    fn set_reference_defaults(&mut self) {
        match self.value(REFERENCE) {
            None | Some("0" | "false") => return,
            Some("1" | "true") => {}
            Some(other) => {
                let text = format!("`{other}` is not `1` or `0`");
                return self.problem(REFERENCE.to_owned(), text);
            }
        }
        for (name, value, others) in REFERENCE_DEFAULTS {
            if others.iter().all(|other| self.value(other).is_none()) {
                self.env.insert(name, value);
            }
        }
    }

    /// Values of a key, the weakest first.
    pub(super) fn about(&mut self, key: &'static Key) -> Vec<SetValue> {
        self.key = Some(key.path);
        let reference = self.reference(key);
        let own = self.set(key, &key.variable());
        self.key = None;
        reference.into_iter().chain(own).collect()
    }

    /// The value of a variable that is not blank, trimmed.
    fn value(&self, name: &str) -> Option<&'a str> {
        let value = self.env.get(name).copied()?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// The value of a variable that may be secret, from the file that `NAME_FILE` names where it is not set itself; and
    /// the name of the variable that is set.
    fn secret(&mut self, name: &str) -> Option<(String, String)> {
        let file = format!("{name}_FILE");
        if let Some(value) = self.value(name) {
            if self.value(&file).is_some() {
                self.problem(file, format!("`{name}` is set as well; unset one of them"));
            }
            return Some((name.to_owned(), value.to_owned()));
        }
        let path = self.value(&file)?;
        match std::fs::read_to_string(path) {
            Ok(text) => Some((file, text.trim_end().to_owned())),
            Err(error) => {
                self.problem(file, format!("`{path}` cannot be read: {error}"));
                None
            }
        }
    }

    /// A part of a URL that must be a whole number of this range.
    fn number(&mut self, name: &str, range: RangeInclusive<u32>) -> Option<&'a str> {
        let text = self.value(name)?;
        if text.parse().is_ok_and(|number| range.contains(&number)) {
            return Some(text);
        }
        let (least, most) = range.into_inner();
        self.problem(
            name.to_owned(),
            format!("`{text}` is not a whole number from {least} to {most}"),
        );
        None
    }

    /// A part of a URL that must be a name or an address of a host, or several of these; IPv6 in brackets.
    fn host(&mut self, name: &str) -> Option<String> {
        let text = self.value(name)?;
        // A folder of sockets, as PostgreSQL's own tools take it.
        if name == "DB_HOST" && text.starts_with('/') {
            return Some(encoded(text));
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Some(format!("[{text}]"));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._,[]:%".contains(&byte);
        let has_port = !text.starts_with('[') && text.contains(':');
        if text.bytes().all(is_plain) && !has_port {
            return Some(text.to_owned());
        }
        let shown = shown(text);
        let message =
            format!("`{shown}` is not a host; expected e.g. `localhost`, without port and scheme");
        self.problem(name.to_owned(), message);
        None
    }

    /// Notes a problem once a key: several keys may take the same variable.
    fn problem(&mut self, variable: String, message: String) {
        let problem = Unusable {
            variable,
            key: self.key,
            message,
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// A variable, or for a possible secret the file that `NAME_FILE` names.
    fn set(&mut self, key: &Key, name: &str) -> Option<SetValue> {
        let (variable, text) = if key.kind.may_be_secret() {
            self.secret(name)?
        } else {
            (name.to_owned(), self.value(name)?.to_owned())
        };
        Some(SetValue {
            name: variable,
            text,
            written: None,
        })
    }

    /// The strongest reference variable that is set, in the words of the key.
    fn reference(&mut self, key: &Key) -> Option<SetValue> {
        if key.variables == DATABASE_VARIABLES {
            return self.database();
        }
        if key.variables == REDIS_VARIABLES {
            return self.redis();
        }
        let set: Vec<(&str, SetValue)> = key
            .variables
            .iter()
            .filter_map(|&name| Some((name, self.set(key, name)?)))
            .collect();
        let mut set = set.into_iter();
        let (variable, mut said) = set.next()?;
        // OpenTelemetry's variables of one signal are meant to win over those of all signals.
        for (_, other) in set.filter(|(name, _)| !name.starts_with("OTEL_")) {
            self.warnings.push(format!(
                "`{}` and `{}` both set `{}`; `{}` wins",
                said.name, other.name, key.path, said.name
            ));
        }
        let text = match variable {
            "PORT" | "CONTROLLER_PORT" | "WORKER_PORT" => {
                format!(":{}", self.number(variable, 0..=65535)?)
            }
            "CONTROLLER_DB_PATH" => format!("sqlite:{}", said.text),
            "WORKER_URL" => said.text.replace(',', " "),
            "REDIS_ADDR" => self.redis_url(&said.name, &said.text, "0")?,
            "KAFKA_BROKERS" => format!("kafka://{}", said.text),
            "RELAY_POLL_INTERVAL"
            | "RELAY_PROCESSING_TIMEOUT"
            | "POLL_INTERVAL_SECONDS"
            | "REQUEST_TIMEOUT_SECONDS" => {
                format!("{}s", self.number(variable, 0..=u32::MAX)?)
            }
            // An unreadable value means no delay, as existing deployments expect.
            "PROCESSING_DELAY_MS" => match said.text.parse::<u64>() {
                Ok(millis) => format!("{millis}ms"),
                Err(_) => {
                    self.warnings.push(format!(
                        "`PROCESSING_DELAY_MS={}` is not a number of milliseconds and counts as 0",
                        said.text
                    ));
                    "0s".to_owned()
                }
            },
            "OTEL_SDK_DISABLED" => match said.text.eq_ignore_ascii_case("true") {
                true => "on".to_owned(),
                false => "off".to_owned(),
            },
            name if name.starts_with("OTEL_") && matches!(key.kind, Kind::Duration(..)) => {
                format!("{}ms", self.number(&said.name, 0..=u32::MAX)?)
            }
            _ => return Some(said),
        };
        said.written = Some(shown(&said.text));
        said.text = text;
        Some(said)
    }

    /// The database that any of its parts being set asks for.
    fn database(&mut self) -> Option<SetValue> {
        let password = self.secret("DB_PASSWORD");
        let host = self.host("DB_HOST");
        let port = self.number("DB_PORT", 1..=65535);
        let [user, database, mode] =
            ["DB_USER", "DB_NAME", "DB_SSLMODE"].map(|name| self.value(name));
        if let Some(mode) = mode.filter(|mode| !SSL_MODES.contains(mode)) {
            let known = SSL_MODES.join(", ");
            self.problem(
                "DB_SSLMODE".to_owned(),
                format!("`{mode}` is not one of {known}"),
            );
            return None;
        }
        let first = DATABASE_VARIABLES
            .into_iter()
            .find(|name| self.value(name).is_some());
        let (password_name, password) = password.unzip();
        let name = first.map(str::to_owned).or(password_name)?;
        let text = format!(
            "postgres://{}:{}@{}:{}/{}?sslmode={}",
            encoded(user.unwrap_or("postgres")),
            encoded(password.as_deref().unwrap_or("postgres")),
            host.as_deref().unwrap_or("localhost"),
            port.unwrap_or("5432"),
            encoded(database.unwrap_or("outbox_db")),
            mode.unwrap_or("disable"),
        );
        Some(SetValue {
            name,
            text,
            written: None,
        })
    }

    /// The Redis that its host, its port or its address being set asks for.
    fn redis(&mut self) -> Option<SetValue> {
        let host = self.host("REDIS_HOST");
        let port = self.number("REDIS_PORT", 1..=65535);
        let database = self.number("REDIS_DB", 0..=u32::MAX);
        let (name, place) = match (host, port) {
            (Some(host), _) => {
                let place = format!("{host}:{}", port.unwrap_or("6379"));
                ("REDIS_HOST".to_owned(), place)
            }
            (None, Some(port)) => ("REDIS_PORT".to_owned(), format!("localhost:{port}")),
            (None, None) => self.secret("REDIS_ADDR")?,
        };
        let text = self.redis_url(&name, &place, database.unwrap_or("0"))?;
        Some(SetValue {
            name,
            text,
            written: Some(shown(&place)),
        })
    }

    /// The URL of a Redis at `host:port`, its password from a variable of its own.
    fn redis_url(&mut self, name: &str, place: &str, database: &str) -> Option<String> {
        let password = self.secret("REDIS_PASSWORD");
        if place.contains(['/', '@', '?', '#']) {
            let message = format!(
                "`{}` is not `host:port`; expected e.g. `localhost:6379`, and URLs in `TOWPATH_BACKENDS__…`",
                shown(place)
            );
            self.problem(name.to_owned(), message);
            return None;
        }
        let password = password.map_or_else(String::new, |(_, password)| {
            format!(":{}@", encoded(&password))
        });
        let host = if place.starts_with(':') {
            "localhost"
        } else {
            ""
        };
        Some(format!("redis://{password}{host}{place}/{database}"))
    }

    /// Finds variables that look like ours and set nothing.
    pub(super) fn find_unknown(&mut self) {
        let known: BTreeSet<String> = KEYS.iter().flat_map(own_names).collect();
        for &name in self.env.keys() {
            // A command of the command sink may well call us.
            let foreign = name.starts_with("TOWPATH_TEST_") || name.starts_with(VARIABLE_PREFIX);
            let ours = name.starts_with("TOWPATH_") && !foreign;
            if !ours || OTHER.contains(&name) || known.contains(name) {
                continue;
            }
            // A common prefix is not a similarity.
            let rest = |name: &str| name.trim_start_matches("TOWPATH_").to_owned();
            let rests: Vec<String> = known.iter().map(|name| rest(name)).collect();
            let meant = nearest(&rest(name), rests.iter().map(String::as_str));
            let hint = meant.map_or_else(String::new, |meant| question(format!("TOWPATH_{meant}")));
            // Sections are separated by two underscores: a name of this form was meant for us.
            if meant.is_some_and(|meant| name.contains("__") || is_near(&rest(name), meant)) {
                self.problems.push(Unusable {
                    variable: name.to_owned(),
                    key: None,
                    message: format!("no key is called so{hint}"),
                });
            } else {
                let warning = format!("`{name}` sets nothing: no key is called so{hint}");
                self.warnings.push(warning);
            }
        }
    }
}

/// Whether a name is that of a key but for a slip.
fn is_near(name: &str, meant: &str) -> bool {
    let plain = |name: &str| name.replace('_', "").to_uppercase();
    let (name, meant) = (plain(name), plain(meant));
    strsim::damerau_levenshtein(&name, &meant) <= 1 + meant.len() / 10
}

/// `TOWPATH_SECTION__KEY`, and for a possible secret the variable that names its file.
fn own_names(key: &Key) -> impl Iterator<Item = String> {
    let name = key.variable();
    let file = key.kind.may_be_secret().then(|| format!("{name}_FILE"));
    std::iter::once(name).chain(file)
}

/// The keys that a variable sets, alone or with others; `None` for a variable that is not ours.
pub(super) fn keys_of(name: &str) -> Option<Vec<&'static Key>> {
    let bare = name.strip_suffix("_FILE").unwrap_or(name);
    let is_set = |key: &&Key| {
        let set = key.variables;
        let of_part = PASSWORDS.contains(&bare)
            && (set.contains(&"DB_HOST") && bare == "DB_PASSWORD"
                || set.contains(&"REDIS_ADDR") && bare == "REDIS_PASSWORD");
        set.contains(&bare) || of_part || key.variable() == bare
    };
    let keys: Vec<&Key> = KEYS.iter().filter(is_set).collect();
    (!keys.is_empty() || OTHER.contains(&name)).then_some(keys)
}
