//! The URL of a RabbitMQ: `amqp[s]://[user:password@]host[:port][/vhost]`, several of them for the nodes of a cluster.

use std::str::FromStr;
use std::time::Duration;

use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use towpath_core::{Error, Result};

use crate::duration;

/// The schemes, the preferred one first.
pub(super) const SCHEMES: &[&str] = &["amqp", "amqps"];

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "prefix",
        "",
        "what the name of every queue and exchange starts with",
    ),
    (
        "queue_type",
        "",
        "of queues that are made: `quorum`, or `classic` where a policy replicates those; without it `quorum`, and `orders.queue` and `notifier.queue` as the reference system declares them. Queues that are there stay as they are",
    ),
    (
        "timeout",
        "5s",
        "how long an answer is waited for, 100ms to 5m",
    ),
    (
        "tls_ca",
        "",
        "file with certificates to trust beside the system's, in PEM (amqps only)",
    ),
];

/// What the URL says.
#[derive(Clone)]
pub(super) struct Config {
    /// Tried in this order, each with its name for messages.
    pub(super) nodes: Vec<(String, AMQPUri)>,
    pub(super) prefix: String,
    /// Whether queues are made as quorum queues; `None` without a choice.
    pub(super) quorum: Option<bool>,
    pub(super) timeout: Duration,
    /// Certificates in PEM that are trusted beside the system's.
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
        for one in url.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (address, query) = one.split_once('?').unwrap_or((one, ""));
            for parameter in query.split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                config.set(name, value)?;
            }
            let node = node(address)?;
            let scheme = address
                .split_once("://")
                .map_or("amqp", |(scheme, _)| scheme);
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

    /// How the server of an `amqps` address is trusted.
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
                            "`queue_type` is `{value}`; it must be `quorum` or `classic`"
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
fn node(address: &str) -> Result<(String, AMQPUri)> {
    let bare = address.rsplit_once('@').map_or_else(
        || address.split_once("://").map_or(address, |(_, rest)| rest),
        |(_, rest)| rest,
    );
    let wrong = |why: String| {
        Error::invalid(format!(
            "`{bare}` is no address of a RabbitMQ ({why}); say for instance `amqp://guest:guest@localhost:5672/`"
        ))
    };
    if bare.split(['/', ':']).next().is_none_or(str::is_empty) {
        return Err(wrong("it has no host".to_owned()));
    }
    // A path of one slash means the default virtual host, as most clients have it, and not one with an empty name.
    let address = address.strip_suffix('/').unwrap_or(address);
    let uri = AMQPUri::from_str(address).map_err(wrong)?;
    Ok((bare.trim_end_matches('/').to_owned(), uri))
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
    fn what_is_wrong_is_named() {
        for (url, reason) in [
            ("amqp://", "no address"),
            ("amqp://host:port", "no address"),
            ("amqps://host?tls_ca=/none", "`tls_ca=/none` cannot be read"),
            ("amqp://host?queue_type=lazy", "`queue_type` is `lazy`"),
            ("amqp://host?timeout=1", "`timeout=1` is no duration"),
            ("amqp://host?confirm=no", "unknown parameter `confirm`"),
        ] {
            let error = Config::parse(url)
                .err()
                .unwrap_or_else(|| panic!("{url} is taken"));
            assert!(error.to_string().contains(reason), "{url}: {error}");
        }
    }
}
