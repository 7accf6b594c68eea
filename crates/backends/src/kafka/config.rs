//! The URL of a Kafka: `kafka[s]://[user:password@]host[:port]`, several of them to find the cluster by.

use std::time::Duration;

use rdkafka::ClientConfig;
use towpath_core::address::Address;
use towpath_core::{Error, Result};

use crate::duration;
use crate::percent::decode;

use super::partitioner::Partitioner;

/// The schemes.
pub(super) const SCHEMES: &[&str] = &["kafka", "kafkas"];

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "prefix",
        "",
        "prefix of every topic and group; letters, digits, `.`, `_` and `-`",
    ),
    (
        "partitions",
        "1",
        "partitions of created topics, 1 to 1000; one keeps all entries of a stream in order",
    ),
    (
        "partitioner",
        "",
        "how the keys of a stream's entries are hashed: `crc32` (librdkafka's default) or `fnv1a` (the reference system's); without it `crc32` for topics that are made here and `fnv1a` for topics of other programs",
    ),
    (
        "compression",
        "snappy",
        "compression of records: `none`, `gzip`, `snappy` or `lz4`",
    ),
    (
        "replication",
        "",
        "replicas of created topics; the broker's default when not set",
    ),
    (
        "sasl",
        "plain",
        "SASL mechanism: `plain`, `scram-sha-256` or `scram-sha-512`",
    ),
    (
        "tls_ca",
        "",
        "with `kafkas`: file with trusted certificate authorities, in PEM; the system's when not set",
    ),
    (
        "tls_cert",
        "",
        "with `kafkas`: file with the client certificate, in PEM, where the brokers require one",
    ),
    (
        "tls_key",
        "",
        "with `kafkas`: file with the key of `tls_cert`, in PEM",
    ),
    ("timeout", "10s", "longest wait for an answer, 1s to 5m"),
];

/// The port of a broker that names none.
const PORT: u16 = 9092;

/// Largest record in bytes, 17 MiB: a payload, its headers, and the overhead of the format.
pub(super) const LARGEST: &str = "17825792";

/// The parsed URL.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Brokers to ask first, with commas in between.
    pub(super) brokers: String,
    is_encrypted: bool,
    /// User and password.
    account: Option<(String, String)>,
    sasl: &'static str,
    /// Settings of the client's TLS, with the files that they name.
    tls: Vec<(&'static str, String)>,
    pub(super) prefix: String,
    pub(super) partitions: i32,
    /// `None` without a choice.
    pub(super) partitioner: Option<Partitioner>,
    pub(super) compression: &'static str,
    pub(super) replication: Option<i32>,
    pub(super) timeout: Duration,
    /// The URL without its parameters.
    pub(super) shown: String,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let mut config = Self {
            brokers: String::new(),
            is_encrypted: false,
            account: None,
            sasl: "PLAIN",
            tls: Vec::new(),
            prefix: String::new(),
            partitions: 1,
            partitioner: None,
            compression: "snappy",
            replication: None,
            timeout: Duration::from_secs(10),
            shown: String::new(),
        };
        let mut brokers = Vec::new();
        for one in Address::split_list(url)? {
            for (name, value) in one.parameters() {
                config.set(name, value)?;
            }
            config.is_encrypted |= one.scheme == "kafkas";
            if let Some(account) = one.account {
                config.account = Some(credentials(account)?);
            }
            if one.path.is_some_and(|path| !path.is_empty()) {
                return Err(Error::invalid(
                    "a Kafka URL has no path behind its brokers; expected e.g. `kafka://host:9092`",
                ));
            }
            brokers.push(broker(one.hosts)?);
        }
        if brokers.is_empty() {
            return Err(Error::invalid(
                "a Kafka URL names at least one broker: `kafka://localhost:9092`",
            ));
        }
        config.brokers = brokers.join(",");
        let scheme = if config.is_encrypted {
            "kafkas"
        } else {
            "kafka"
        };
        config.shown = format!("{scheme}://{}", config.brokers);
        config.check_build()?;
        if !config.is_encrypted && !config.tls.is_empty() {
            return Err(Error::invalid(
                "the URL names files for TLS and begins with `kafka://`; write `kafkas://`",
            ));
        }
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
            "partitioner" => {
                self.partitioner = Some(match value {
                    "crc32" => Partitioner::Crc32,
                    "fnv1a" => Partitioner::Fnv1a,
                    _ => return Err(wrong("`crc32` or `fnv1a`")),
                });
            }
            "compression" => {
                let known = ["none", "gzip", "snappy", "lz4"];
                let found = known.into_iter().find(|one| *one == value);
                self.compression =
                    found.ok_or_else(|| wrong("`none`, `gzip`, `snappy` or `lz4`"))?;
            }
            "replication" => self.replication = Some(number(100, "1 to 100")?),
            "sasl" => {
                self.sasl = match value {
                    "plain" => "PLAIN",
                    "scram-sha-256" => "SCRAM-SHA-256",
                    "scram-sha-512" => "SCRAM-SHA-512",
                    _ => return Err(wrong("`plain`, `scram-sha-256` or `scram-sha-512`")),
                }
            }
            "tls_ca" => self.file("ssl.ca.location", name, value)?,
            "tls_cert" => self.file("ssl.certificate.location", name, value)?,
            "tls_key" => self.file("ssl.key.location", name, value)?,
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

    /// Notes a file that the client reads, once it can be read.
    fn file(&mut self, setting: &'static str, name: &str, value: &str) -> Result<()> {
        let path = decode(value)?;
        std::fs::read(&path).map_err(|error| {
            Error::invalid(format!("`{name}={path}` cannot be read")).with_source(error)
        })?;
        self.tls.push((setting, path));
        Ok(())
    }

    /// Refuses features that this build lacks.
    fn check_build(&self) -> Result<()> {
        let asks = match () {
            () if self.is_encrypted => "TLS",
            () if self.account.is_some() && self.sasl != "PLAIN" => "SCRAM",
            () => return Ok(()),
        };
        if cfg!(feature = "kafka-tls") {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "this Towpath was built without {asks} for Kafka; build it with `--features kafka-tls`, which needs OpenSSL (libssl-dev)"
        )))
    }

    /// Settings of all our clients.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "towpath")
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "2000")
            // New and grown topics become visible soon.
            .set("topic.metadata.refresh.interval.ms", "30000")
            // Time that a new topic may be unknown to a broker; a deleted one is detected after it.
            .set("topic.metadata.propagation.max.ms", "2000");
        let protocol = match (self.is_encrypted, &self.account) {
            (false, None) => "plaintext",
            (false, Some(_)) => "sasl_plaintext",
            (true, None) => "ssl",
            (true, Some(_)) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some((user, password)) = &self.account {
            client
                .set("sasl.mechanism", self.sasl)
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        for (setting, path) in &self.tls {
            client.set(*setting, path);
        }
        client
    }
}

/// Whether Kafka takes it in the name of a topic.
pub(super) const fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

fn credentials(account: &str) -> Result<(String, String)> {
    match account.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok((decode(user)?, decode(password)?)),
        _ => Err(Error::invalid(
            "invalid credentials in a Kafka URL; expected a user and a password: `user:password@`",
        )),
    }
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
            "invalid broker address `{address}`; expected e.g. `kafka://host:{PORT}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_lists_brokers_and_parameters() {
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
    fn credentials_are_parsed_and_hidden() {
        let config = Config::parse("kafka://us%40er:p%2Ca:ss@one:1,kafka://two").unwrap();
        let account = ("us@er".to_owned(), "p,a:ss".to_owned());
        assert_eq!(config.account, Some(account));
        assert_eq!(config.brokers, "one:1,two:9092");
        assert_eq!(config.shown, "kafka://one:1,two:9092");
        let client = config.client();
        assert_eq!(client.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!(client.get("sasl.mechanism"), Some("PLAIN"));
    }

    #[test]
    fn tls_needs_the_build_feature() {
        let parsed = Config::parse("kafkas://u:p@host?sasl=scram-sha-512");
        if cfg!(feature = "kafka-tls") {
            let client = parsed.unwrap().client();
            assert_eq!(client.get("security.protocol"), Some("sasl_ssl"));
            assert_eq!(client.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        } else {
            let refused = parsed.err().unwrap().to_string();
            assert!(refused.contains("`--features kafka-tls`"), "{refused}");
        }
    }

    #[test]
    fn an_invalid_url_names_the_fault() {
        for (url, reason) in [
            ("kafka://", "invalid broker address"),
            ("kafka://host:port", "not a number"),
            ("kafka://host/topic", "no path"),
            ("kafka://user@host", "a user and a password"),
            ("kafka://u:p%@host", "not followed by two"),
            ("kafka://u:p@host?sasl=gssapi", "`sasl` is `gssapi`"),
            (
                "kafka://host?tls_ca=/nowhere",
                "`tls_ca=/nowhere` cannot be read",
            ),
            ("kafka://host?tls_ca=/dev/null", "write `kafkas://`"),
            ("kafka://host?prefix=a:b", "`prefix` is `a:b`"),
            ("kafka://host?partitions=0", "`partitions` is `0`"),
            (
                "kafka://host?partitioner=murmur2",
                "`partitioner` is `murmur2`",
            ),
            ("kafka://host?compression=zip", "`compression` is `zip`"),
            ("kafka://host?timeout=1ms", "`timeout=1ms` is out of range"),
            ("kafka://host?acks=1", "unknown parameter `acks`"),
        ] {
            let error = Config::parse(url).err().unwrap().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
