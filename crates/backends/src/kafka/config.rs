//! The URL of a Kafka: `kafka://host[:port]`, several of them to find the cluster by.

use std::time::Duration;

use rdkafka::ClientConfig;
use towpath_core::{Error, Result};

use crate::duration;

/// The schemes.
pub(super) const SCHEMES: &[&str] = &["kafka"];

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "prefix",
        "",
        "before every topic and group; letters, digits, `.`, `_` and `-`",
    ),
    (
        "partitions",
        "1",
        "partitions of the topics that are made here, 1 to 1000; one keeps all entries of a stream in order",
    ),
    (
        "replication",
        "",
        "replicas of the topics that are made here; the broker's default when not set",
    ),
    (
        "timeout",
        "10s",
        "how long an answer is waited for, 1s to 5m",
    ),
];

/// The port of a broker that names none.
const PORT: u16 = 9092;

/// Largest record in bytes, 17 MiB: a payload, its headers, and what the format adds.
pub(super) const LARGEST: &str = "17825792";

/// What the URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Brokers to ask first, with commas in between.
    pub(super) brokers: String,
    pub(super) prefix: String,
    pub(super) partitions: i32,
    pub(super) replication: Option<i32>,
    pub(super) timeout: Duration,
    /// The URL without its parameters.
    pub(super) shown: String,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let mut config = Self {
            brokers: String::new(),
            prefix: String::new(),
            partitions: 1,
            replication: None,
            timeout: Duration::from_secs(10),
            shown: String::new(),
        };
        let mut brokers = Vec::new();
        for one in url.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (address, query) = one.split_once('?').unwrap_or((one, ""));
            for parameter in query.split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                config.set(name, value)?;
            }
            let address = address.strip_prefix("kafka://").unwrap_or(address);
            brokers.push(broker(address.trim_end_matches('/'))?);
        }
        if brokers.is_empty() {
            return Err(Error::invalid(
                "a Kafka URL names at least one broker: `kafka://localhost:9092`",
            ));
        }
        config.brokers = brokers.join(",");
        config.shown = format!("kafka://{}", config.brokers);
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |rule: &str| {
            Error::invalid(format!(
                "parameter `{name}` is `{value}`; it must be {rule}"
            ))
        };
        let number = |most: i32, rule| {
            let number = value.parse().ok();
            let found = number.filter(|number| (1..=most).contains(number));
            found.ok_or_else(|| wrong(rule))
        };
        match name {
            "prefix" if value.len() <= 64 && value.chars().all(is_plain) => {
                self.prefix = value.to_owned();
            }
            "prefix" => return Err(wrong("at most 64 letters, digits, `.`, `_` or `-`")),
            "partitions" => self.partitions = number(1_000, "1 to 1000")?,
            "replication" => self.replication = Some(number(100, "1 to 100")?),
            "timeout" => {
                let (least, most) = (Duration::from_secs(1), Duration::from_secs(300));
                self.timeout = duration::parse(name, value, least, most)?;
            }
            _ => {
                let known: Vec<&str> = PARAMETERS.iter().map(|(name, ..)| *name).collect();
                return Err(Error::invalid(format!(
                    "unknown parameter `{name}` in a Kafka URL; known: {}",
                    known.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// What every client of ours has in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "towpath")
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "2000")
            // A topic that was made or grew a moment ago is seen soon.
            .set("topic.metadata.refresh.interval.ms", "30000");
        client
    }
}

/// Whether Kafka takes it in the name of a topic.
pub(super) const fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

fn broker(address: &str) -> Result<String> {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, port.parse().ok()),
        _ => (address, Some(PORT)),
    };
    match port {
        Some(port) if !host.is_empty() && !host.contains(['/', '@', ' ']) => {
            Ok(format!("{host}:{port}"))
        }
        _ => Err(Error::invalid(format!(
            "`{address}` is no address of a broker; write `kafka://host:{PORT}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_brokers_and_how() {
        let config = Config::parse("kafka://one,kafka://two:9093?prefix=app.&partitions=3");
        let config = config.unwrap();
        assert_eq!(config.brokers, "one:9092,two:9093");
        assert_eq!((config.prefix.as_str(), config.partitions), ("app.", 3));
        assert_eq!(config.shown, "kafka://one:9092,two:9093");
        let config = Config::parse("kafka://[::1]:9092,[::1]:9093/?replication=3&timeout=2s");
        let config = config.unwrap();
        assert_eq!(config.brokers, "[::1]:9092,[::1]:9093");
        assert_eq!(
            (config.replication, config.timeout),
            (Some(3), Duration::from_secs(2))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, reason) in [
            ("kafka://", "no address"),
            ("kafka://host:port", "no address"),
            ("kafka://user@host", "no address"),
            ("kafka://host?prefix=a:b", "`prefix` is `a:b`"),
            ("kafka://host?partitions=0", "`partitions` is `0`"),
            ("kafka://host?timeout=1ms", "`timeout=1ms` is out of range"),
            ("kafka://host?acks=1", "unknown parameter `acks`"),
        ] {
            let error = Config::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
