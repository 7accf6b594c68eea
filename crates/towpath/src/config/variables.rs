//! What the environment says.

use std::collections::BTreeMap;

use super::accounts::DATABASE_VARIABLES;
use super::fleet::REDIS_VARIABLES;
use super::key::{KEYS, Key};
use super::suggest::did_you_mean;
use crate::http::encoded;
use crate::sink::VARIABLE_PREFIX;

/// Variables of ours that are no keys.
const OTHER: [&str; 6] = [
    "TOWPATH_COMMIT",
    "TOWPATH_CONFIG",
    "TOWPATH_URL",
    "TOWPATH_TOKEN",
    "TOWPATH_SEEDS",
    "TOWPATH_UPDATE_DOCS",
];

/// A variable that sets a key.
pub(super) struct Said {
    pub(super) name: String,
    /// The text, or the path of the file that holds it.
    pub(super) text: String,
    pub(super) is_path: bool,
}

/// The environment, and what is odd about it.
pub(super) struct Variables<'a> {
    env: &'a BTreeMap<String, String>,
    pub(super) warnings: Vec<String>,
    /// Variable and what is wrong.
    pub(super) problems: Vec<(String, String)>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>) -> Self {
        Self {
            env,
            warnings: Vec::new(),
            problems: Vec::new(),
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
        let value = self.env.get(name)?.trim();
        (!value.is_empty()).then_some(value)
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
        for other in set {
            self.warnings.push(format!(
                "`{}` and `{}` both set `{}`; `{}` wins",
                said.name, other.name, key.path, said.name
            ));
        }
        said.text = match said.name.as_str() {
            "PORT" | "CONTROLLER_PORT" | "WORKER_PORT" => format!(":{}", said.text),
            "CONTROLLER_DB_PATH" => format!("sqlite:{}", said.text),
            "WORKER_URL" => said.text.replace(',', " "),
            "REDIS_ADDR" => match self.value("REDIS_PASSWORD") {
                Some(password) => format!("redis://:{}@{}/0", encoded(password), said.text),
                None => format!("redis://{}/0", said.text),
            },
            "KAFKA_BROKERS" => format!("kafka://{}", said.text),
            "RELAY_POLL_INTERVAL"
            | "RELAY_PROCESSING_TIMEOUT"
            | "POLL_INTERVAL_SECONDS"
            | "REQUEST_TIMEOUT_SECONDS" => format!("{}s", said.text),
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
            _ => said.text,
        };
        Some(said)
    }

    /// The database that any of its parts being set asks for.
    fn database(&self) -> Option<Said> {
        let values = DATABASE_VARIABLES.map(|name| self.value(name));
        let first = DATABASE_VARIABLES
            .into_iter()
            .zip(values)
            .find(|one| one.1.is_some());
        let [host, port, user, password, name, mode] = values;
        let password = encoded(password.unwrap_or("postgres"));
        let text = format!(
            "postgres://{}:{password}@{}:{}/{}?sslmode={}",
            encoded(user.unwrap_or("postgres")),
            host.unwrap_or("localhost"),
            port.unwrap_or("5432"),
            encoded(name.unwrap_or("outbox_db")),
            mode.unwrap_or("disable"),
        );
        first.map(|(name, _)| Said {
            name: name.to_owned(),
            text,
            is_path: false,
        })
    }

    /// The Redis that any of its parts being set asks for.
    fn redis(&self) -> Option<Said> {
        let values = REDIS_VARIABLES.map(|name| self.value(name));
        let mut parts = REDIS_VARIABLES.into_iter().zip(values).take(3);
        let first = parts.find(|one| one.1.is_some());
        let [host, port, database, _] = values;
        let password = self.value("REDIS_PASSWORD");
        let text = format!(
            "redis://{}{}:{}/{}",
            password.map_or_else(String::new, |password| format!(":{}@", encoded(password))),
            host.unwrap_or("localhost"),
            port.unwrap_or("6379"),
            database.unwrap_or("0"),
        );
        first.map(|(name, _)| Said {
            name: name.to_owned(),
            text,
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
        for name in self.env.keys() {
            // A command of the command sink may well call us.
            let foreign = name.starts_with("TOWPATH_TEST_") || name.starts_with(VARIABLE_PREFIX);
            let ours = name.starts_with("TOWPATH_") && !foreign;
            if ours && !OTHER.contains(&name.as_str()) && !known.contains(name) {
                let hint = did_you_mean(name, known.iter().map(String::as_str));
                self.problems
                    .push((name.clone(), format!("no key is called so{hint}")));
            }
        }
    }
}
