//! What the environment says.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Kind;
use super::accounts::DATABASE_VARIABLES;
use super::fleet::REDIS_VARIABLES;
use super::key::{KEYS, Key};
use super::platform::is_of_platform;
use super::suggest::{nearest, question};
use crate::http::encoded;
use crate::sink::VARIABLE_PREFIX;

/// Variables of ours that are no keys.
const OTHER: [&str; 7] = [
    REFERENCE,
    "TOWPATH_COMMIT",
    "TOWPATH_CONFIG",
    "TOWPATH_URL",
    "TOWPATH_TOKEN",
    "TOWPATH_SEEDS",
    "TOWPATH_UPDATE_DOCS",
];

/// Set to `1`, it makes the defaults of the reference system ours.
pub(crate) const REFERENCE: &str = "TOWPATH_REFERENCE";

/// Where the reference system's processes go without variables: the variable, what it stands for, and the variables of
/// which one is enough to say otherwise.
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

/// A variable that sets a key.
pub(super) struct Said {
    pub(super) name: String,
    /// The text, or the path of the file that holds it.
    pub(super) text: String,
    pub(super) is_path: bool,
}

/// The environment without what the platform set, and what is odd about it.
pub(super) struct Variables<'a> {
    env: BTreeMap<&'a str, &'a str>,
    pub(super) warnings: Vec<String>,
    /// Variable and what is wrong.
    pub(super) problems: Vec<(String, String)>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>) -> Self {
        let of_operator = env
            .iter()
            .filter(|(name, value)| !is_of_platform(env, name, value))
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let mut variables = Self {
            env: of_operator.collect(),
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

    /// What is said about a key, the weakest first.
    pub(super) fn about(&mut self, key: &Key) -> Vec<Said> {
        let reference = self.reference(key);
        let own = self.set(key, &key.variable());
        reference.into_iter().chain(own).collect()
    }

    /// The value of a variable that is not blank, trimmed.
    fn value(&self, name: &str) -> Option<&'a str> {
        let value = self.env.get(name).copied()?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// The same for a password: from the file that `NAME_FILE` names where the variable itself is not set.
    fn password(&mut self, name: &str) -> Option<String> {
        let file = format!("{name}_FILE");
        if let Some(value) = self.value(name) {
            if self.value(&file).is_some() {
                self.problem(file, format!("`{name}` is set as well; unset one of them"));
            }
            return Some(value.to_owned());
        }
        let path = self.value(&file)?;
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim_end().to_owned()),
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

    /// Notes a problem once: several keys may take the same variable.
    fn problem(&mut self, name: String, message: String) {
        let problem = (name, message);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// A variable, or for what may be secret the file that `NAME_FILE` names.
    fn set(&mut self, key: &Key, name: &str) -> Option<Said> {
        let file = format!("{name}_FILE");
        let path = self.value(&file).filter(|_| key.kind.may_be_secret());
        let said = |name: &str, text: &str, is_path| Said {
            name: name.to_owned(),
            text: text.to_owned(),
            is_path,
        };
        match (self.value(name), path) {
            (Some(text), path) => {
                if path.is_some() {
                    let message = format!("`{name}` is set as well; unset one of them");
                    self.problems.push((file, message));
                }
                Some(said(name, text, false))
            }
            (None, Some(path)) => Some(said(&file, path, true)),
            (None, None) => None,
        }
    }

    /// The strongest reference variable that is set, in the words of the key.
    fn reference(&mut self, key: &Key) -> Option<Said> {
        if key.variables == DATABASE_VARIABLES {
            return self.database();
        }
        if key.variables == REDIS_VARIABLES
            && let Some(said) = self.redis()
        {
            return Some(said);
        }
        let set: Vec<Said> = key
            .variables
            .iter()
            .filter_map(|name| self.set(key, name))
            .collect();
        let mut set = set.into_iter();
        let mut said = set.next()?;
        // OpenTelemetry's variables of one signal are meant to win over those of all signals.
        for other in set.filter(|other| !other.name.starts_with("OTEL_")) {
            self.warnings.push(format!(
                "`{}` and `{}` both set `{}`; `{}` wins",
                said.name, other.name, key.path, said.name
            ));
        }
        let password = match said.name.as_str() {
            "REDIS_ADDR" => self.password("REDIS_PASSWORD"),
            _ => None,
        };
        said.text = match said.name.as_str() {
            "PORT" | "CONTROLLER_PORT" | "WORKER_PORT" => {
                format!(":{}", self.number(&said.name, 0..=65535)?)
            }
            "CONTROLLER_DB_PATH" => format!("sqlite:{}", said.text),
            "WORKER_URL" => said.text.replace(',', " "),
            "REDIS_ADDR" => match password {
                Some(password) => {
                    format!(
                        "redis://:{}@{}/0",
                        encoded(&password),
                        with_host(&said.text)
                    )
                }
                None => format!("redis://{}/0", with_host(&said.text)),
            },
            "KAFKA_BROKERS" => format!("kafka://{}", said.text),
            "RELAY_POLL_INTERVAL"
            | "RELAY_PROCESSING_TIMEOUT"
            | "POLL_INTERVAL_SECONDS"
            | "REQUEST_TIMEOUT_SECONDS" => {
                format!("{}s", self.number(&said.name, 0..=u32::MAX)?)
            }
            // What cannot be read is no delay, as existing deployments expect.
            "PROCESSING_DELAY_MS" => match said.text.parse::<u64>() {
                Ok(millis) => format!("{millis}ms"),
                Err(_) => {
                    self.warnings.push(format!(
                        "`PROCESSING_DELAY_MS={}` is no number of milliseconds and counts as 0",
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
            _ => said.text,
        };
        Some(said)
    }

    /// The database that any of its parts being set asks for.
    fn database(&mut self) -> Option<Said> {
        let password = self.password("DB_PASSWORD");
        let port = self.number("DB_PORT", 1..=65535);
        let values = DATABASE_VARIABLES.map(|name| self.value(name));
        let first = DATABASE_VARIABLES
            .into_iter()
            .zip(values)
            .find(|(_, value)| value.is_some());
        let name = match first {
            Some((name, _)) => name,
            None => password.as_ref().map(|_| "DB_PASSWORD_FILE")?,
        };
        let [host, _, user, _, database, mode] = values;
        let text = format!(
            "postgres://{}:{}@{}:{}/{}?sslmode={}",
            encoded(user.unwrap_or("postgres")),
            encoded(password.as_deref().unwrap_or("postgres")),
            host.unwrap_or("localhost"),
            port.unwrap_or("5432"),
            encoded(database.unwrap_or("outbox_db")),
            mode.unwrap_or("disable"),
        );
        Some(Said {
            name: name.to_owned(),
            text,
            is_path: false,
        })
    }

    /// The Redis that its host or its port being set asks for, or its address together with a database.
    fn redis(&mut self) -> Option<Said> {
        let port = self.number("REDIS_PORT", 1..=65535);
        let database = self.number("REDIS_DB", 0..=u32::MAX);
        let [host, _, _, address] = REDIS_VARIABLES.map(|name| self.value(name));
        let place = format!("{}:{}", host.unwrap_or("localhost"), port.unwrap_or("6379"));
        let (name, place) = match (host, port, address, database) {
            (Some(_), ..) => ("REDIS_HOST", place),
            (None, Some(_), ..) => ("REDIS_PORT", place),
            (None, None, Some(address), Some(_)) => ("REDIS_ADDR", with_host(address)),
            _ => return None,
        };
        let password = self.password("REDIS_PASSWORD");
        let password =
            password.map_or_else(String::new, |password| format!(":{}@", encoded(&password)));
        Some(Said {
            name: name.to_owned(),
            text: format!("redis://{password}{place}/{}", database.unwrap_or("0")),
            is_path: false,
        })
    }

    /// Finds variables that look like ours and set nothing.
    pub(super) fn find_unknown(&mut self) {
        let known: Vec<String> = KEYS
            .iter()
            .flat_map(|key| {
                let name = key.variable();
                let file = key.kind.may_be_secret().then(|| format!("{name}_FILE"));
                std::iter::once(name).chain(file)
            })
            .collect();
        for &name in self.env.keys() {
            // A command of the command sink may well call us.
            let foreign = name.starts_with("TOWPATH_TEST_") || name.starts_with(VARIABLE_PREFIX);
            let ours = name.starts_with("TOWPATH_") && !foreign;
            if ours && !OTHER.contains(&name) && !known.iter().any(|one| one == name) {
                // What all begin with makes none alike.
                let rest = |name: &'_ str| name.trim_start_matches("TOWPATH_").to_owned();
                let rests: Vec<String> = known.iter().map(|name| rest(name)).collect();
                let hint = nearest(&rest(name), rests.iter().map(String::as_str))
                    .map_or_else(String::new, |meant| question(format!("TOWPATH_{meant}")));
                // Sections are separated by two underscores: nothing else of this form sets a key.
                if hint.is_empty() && !name.contains("__") {
                    self.warnings
                        .push(format!("`{name}` sets nothing: no key is called so"));
                } else {
                    let message = format!("no key is called so{hint}");
                    self.problems.push((name.to_owned(), message));
                }
            }
        }
    }
}

/// An address that names a port alone is on this machine, as the reference system's client has it.
fn with_host(address: &str) -> String {
    match address.starts_with(':') {
        true => format!("localhost{address}"),
        false => address.to_owned(),
    }
}
