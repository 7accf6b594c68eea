//! The URL of a RabbitMQ: `amqp[s]://[user:password@]host[:port][/vhost]`, several of them for the nodes of a cluster.

use std::str::FromStr;
use std::time::Duration;

use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use towpath_core::address::Address;
use towpath_core::{Error, Result};

use crate::duration;

/// The schemes, the preferred one first.
pub(super) const SCHEMES: &[&str] = &["amqp", "amqps"];

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    ("prefix", "", "prefix of every queue and exchange"),
    (
        "queue_type",
        "",
        "of queues that are made: `quorum`, or `classic` where a policy replicates those; without it `quorum`, and `orders.queue` and `notifier.queue` as the reference system declares them. Queues that are there stay as they are",
    ),
    ("timeout", "5s", "longest wait for an answer, 100ms to 5m"),
    (
        "tls_ca",
        "",
        "file with trusted certificates besides the system's, in PEM (amqps only)",
    ),
];

/// The parsed URL.
#[derive(Clone)]
pub(super) struct Config {
    /// Tried in this order, each with its name for messages.
    pub(super) nodes: Vec<(String, AMQPUri)>,
    pub(super) prefix: String,
    /// Whether queues are made as quorum queues; `None` without a choice.
    pub(super) quorum: Option<bool>,
    pub(super) timeout: Duration,
    /// Trusted certificates besides the system's, in PEM.
    trusted: Option<String>,
    /// The URL with its secrets replaced.
    pub(super) shown: String,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let mut config = Self {
            nodes: Vec::new(),
            prefix: String::new(),
            quorum: None,
            timeout: Duration::from_secs(5),
            trusted: None,
            shown: String::new(),
        };
        let mut shown = Vec::new();
        for one in Address::split_list(url)? {
            for (name, value) in one.parameters() {
                config.set(name, value)?;
            }
            let node = node(one)?;
            let scheme = if one.scheme.is_empty() {
                "amqp"
            } else {
                one.scheme
            };
            shown.push(format!("{scheme}://{}", node.0));
            config.nodes.push(node);
        }
        if config.nodes.is_empty() {
            return Err(Error::invalid(
                "a RabbitMQ URL names at least one node: `amqp://guest:guest@localhost:5672/`",
            ));
        }
        config.shown = shown.join(",");
        Ok(config)
    }

    /// TLS settings of `amqps`.
    pub(super) fn tls(&self) -> OwnedTLSConfig {
        OwnedTLSConfig {
            identity: None,
            cert_chain: self.trusted.clone(),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "prefix" if value.len() <= 64 && !value.contains(char::is_whitespace) => {
                self.prefix = value.to_owned();
            }
            "prefix" => {
                return Err(Error::invalid(
                    "`prefix` has at most 64 bytes and no white space",
                ));
            }
            "queue_type" => {
                self.quorum = match value {
                    "quorum" => Some(true),
                    "classic" => Some(false),
                    _ => {
                        return Err(Error::invalid(format!(
                            "invalid `queue_type={value}`; expected `quorum` or `classic`"
                        )));
                    }
                }
            }
            "timeout" => {
                let (least, most) = (Duration::from_millis(100), Duration::from_secs(300));
                self.timeout = duration::parse(name, value, least, most)?;
            }
            "tls_ca" => {
                self.trusted = Some(std::fs::read_to_string(value).map_err(|error| {
                    Error::invalid(format!("`tls_ca={value}` cannot be read")).with_source(error)
                })?);
            }
            _ => {
                let known: Vec<&str> = PARAMETERS.iter().map(|(name, ..)| *name).collect();
                return Err(Error::invalid(format!(
                    "unknown parameter `{name}` of a RabbitMQ URL; available: {}",
                    known.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// One node, and its name without user and password.
fn node(address: Address<'_>) -> Result<(String, AMQPUri)> {
    // An empty path is the default virtual host, as in most clients, not one with an empty name.
    let path = address.path.filter(|path| !path.is_empty());
    let path = path.map_or_else(String::new, |path| format!("/{path}"));
    let bare = format!("{}{path}", address.hosts);
    let wrong = |why: String| {
        Error::invalid(format!(
            "`{bare}` is not the address of a RabbitMQ ({why}); expected e.g. `amqp://guest:guest@localhost:5672/`"
        ))
    };
    if address.hosts.split(':').next().is_none_or(str::is_empty) {
        return Err(wrong("it has no host".to_owned()));
    }
    if address.scheme.is_empty() {
        return Err(wrong("it has no scheme".to_owned()));
    }
    let account = match address.account {
        // The client parses the first `@` as the end of the account.
        Some(account) => format!("{}@", account.replace('@', "%40")),
        None => String::new(),
    };
    let uri = AMQPUri::from_str(&format!("{}://{account}{bare}", address.scheme));
    Ok((bare.clone(), uri.map_err(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_keeps_its_order_and_hides_its_secrets() {
        let config = Config::parse(
            "amqp://guest:secret@one:5672/, amqp://two/app?queue_type=classic&timeout=2s",
        )
        .unwrap();
        assert_eq!(config.shown, "amqp://one:5672,amqp://two/app");
        assert_eq!(config.nodes[0].1.vhost, "/");
        assert_eq!(config.nodes[0].1.authority.userinfo.password, "secret");
        assert_eq!(config.nodes[1].1.vhost, "app");
        assert_eq!(config.quorum, Some(false));
        assert_eq!(
            Config::parse("amqps://u:p@one").unwrap().shown,
            "amqps://one"
        );
        assert_eq!(config.timeout, Duration::from_secs(2));
    }

    #[test]
    fn errors_name_the_invalid_part() {
        for (url, reason) in [
            ("amqp://", "not the address"),
            ("amqp://host:port", "not a number"),
            ("amqp://one,two", "no scheme"),
            ("amqps://host?tls_ca=/none", "`tls_ca=/none` cannot be read"),
            ("amqp://host?queue_type=lazy", "`queue_type=lazy`"),
            (
                "amqp://host?timeout=1",
                "invalid duration `1` for `timeout`",
            ),
            ("amqp://host?confirm=no", "unknown parameter `confirm`"),
        ] {
            let error = Config::parse(url)
                .err()
                .unwrap_or_else(|| panic!("{url} is taken"));
            assert!(error.to_string().contains(reason), "{url}: {error}");
        }
    }
}
