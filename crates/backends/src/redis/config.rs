//! The URL of a Redis: `redis://[user[:password]@]host[:port][/database]`, and its variants for TLS, sentinels and clusters.

use std::path::PathBuf;
use std::time::Duration;

use towpath_core::address::{self, shown};
use towpath_core::{Error, Result};

use crate::percent::decode;

/// The schemes, the preferred one first.
pub(super) const SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
];

/// The parameters of the URL: name, default, meaning.
pub(super) const PARAMETERS: &[(&str, &str, &str)] = &[
    (
        "prefix",
        "",
        "prefix of every key; with a hash tag, `{app}:`, all keys of a cluster are in one slot and steps over several of them work",
    ),
    ("timeout", "5s", "longest wait for an answer, 100ms to 5m"),
    (
        "consumer_timeout",
        "10s",
        "time without a heartbeat after which a consumer's deliveries go to others, 1s to 1h",
    ),
    (
        "field",
        "line",
        "field of a stream entry that holds the payload",
    ),
    (
        "tls_ca",
        "",
        "file with trusted certificates, in PEM; the system's when empty (rediss only)",
    ),
    (
        "sentinel_password",
        "",
        "password of the sentinels themselves (sentinel only)",
    ),
];

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How the server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topology {
    /// One server.
    Server(Address),
    /// The master of this name, found through sentinels.
    Sentinels {
        /// Asked one after the other.
        sentinels: Vec<Address>,
        /// The master's name.
        master: String,
    },
    /// The nodes of a cluster; some of them.
    Cluster(Vec<Address>),
}

/// The parsed URL.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) topology: Topology,
    pub(super) tls: bool,
    pub(super) tls_ca: Option<PathBuf>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) sentinel_password: Option<String>,
    pub(super) database: u32,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) consumer_timeout: Duration,
    pub(super) field: String,
    /// The URL with its secrets replaced.
    pub(super) shown: String,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        if !url.contains("://") {
            return Err(Error::invalid(format!(
                "`{}` is not the address of a Redis; expected e.g. `redis://localhost:6379`",
                shown(url)
            )));
        }
        let parts = address::Address::split(url)?;
        let (scheme, account, hosts) = (parts.scheme, parts.account, parts.hosts);
        let path = parts.path.unwrap_or_default();
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").unwrap_or_default()),
        };
        let (username, password) = match account.map(|account| account.split_once(':')) {
            None => (None, None),
            Some(Some((user, password))) => (non_empty(decode(user)?), Some(decode(password)?)),
            Some(None) => (non_empty(decode(account.unwrap_or_default())?), None),
        };
        let default_port = if kind == "+sentinel" { 26379 } else { 6379 };
        let addresses: Vec<Address> = hosts
            .split(',')
            .map(|host| address(host, default_port))
            .collect::<Result<_>>()?;
        let mut path = path.split('/');
        let topology = match kind {
            "+sentinel" => Topology::Sentinels {
                sentinels: addresses,
                master: path
                    .next()
                    .filter(|name| !name.is_empty())
                    .ok_or_else(|| {
                        Error::invalid("a sentinel URL names its master: `redis+sentinel://host:26379/mymaster`")
                    })?
                    .to_owned(),
            },
            "+cluster" => Topology::Cluster(addresses),
            _ => match <[Address; 1]>::try_from(addresses) {
                Ok([one]) => Topology::Server(one),
                Err(_) => {
                    return Err(Error::invalid(
                        "several hosts need `redis+sentinel://` or `redis+cluster://`",
                    ));
                }
            },
        };
        let database = match path.next().filter(|text| !text.is_empty()) {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                Error::invalid(format!(
                    "invalid database number `{text}`; expected e.g. `/0`"
                ))
            })?,
        };
        if path.next().is_some() {
            return Err(Error::invalid("the path of a Redis URL has too many parts"));
        }
        if database != 0 && matches!(topology, Topology::Cluster(_)) {
            return Err(Error::invalid("a cluster has database 0 only"));
        }
        let mut config = Self {
            topology,
            tls,
            tls_ca: None,
            username,
            password,
            sentinel_password: None,
            database,
            prefix: String::new(),
            timeout: Duration::from_secs(5),
            consumer_timeout: Duration::from_secs(10),
            field: "line".to_owned(),
            shown: shown(url),
        };
        for (name, value) in parts.parameters() {
            config.set(name, decode(value)?)?;
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        match name {
            "prefix" => self.prefix = value,
            "timeout" => {
                self.timeout = crate::duration::parse(
                    name,
                    &value,
                    Duration::from_millis(100),
                    Duration::from_secs(300),
                )?;
            }
            "consumer_timeout" => {
                self.consumer_timeout = crate::duration::parse(name, &value, second, hour)?
            }
            "field" => {
                self.field = non_empty(value).ok_or_else(|| {
                    Error::invalid(
                        "`field` must not be empty; it names the field of a stream entry",
                    )
                })?;
            }
            "tls_ca" => self.tls_ca = non_empty(value).map(PathBuf::from),
            "sentinel_password" => self.sentinel_password = non_empty(value),
            _ => {
                let known: Vec<&str> = PARAMETERS.iter().map(|(name, ..)| *name).collect();
                return Err(Error::invalid(format!(
                    "unknown parameter `{name}` of a Redis; available: {}",
                    known.join(", ")
                )));
            }
        }
        Ok(())
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `host`, `host:port`, `[::1]:port`.
fn address(text: &str, default_port: u16) -> Result<Address> {
    let wrong = || {
        Error::invalid(format!(
            "invalid host and port `{text}`; expected e.g. `localhost:{default_port}`"
        ))
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => default_port,
        Some(port) => port.parse().map_err(|_| wrong())?,
    };
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(Address {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn a_url_has_servers_and_credentials() {
        let config = Config::parse("redis://localhost").unwrap();
        assert_eq!(config.topology, Topology::Server(at("localhost", 6379)));
        let config =
            Config::parse("rediss://ann:p%40ss@[::1]:7000/3?prefix=%7Bapp%7D:&timeout=500ms")
                .unwrap();
        assert_eq!(config.topology, Topology::Server(at("::1", 7000)));
        assert_eq!(
            (config.username.as_deref(), config.password.as_deref()),
            (Some("ann"), Some("p@ss"))
        );
        assert_eq!(
            (config.tls, config.database, config.prefix.as_str()),
            (true, 3, "{app}:")
        );
        assert_eq!(config.timeout, Duration::from_millis(500));
        let config = Config::parse("redis+sentinel://:x@a,b:2/main/1?sentinel_password=y").unwrap();
        assert_eq!(
            config.topology,
            Topology::Sentinels {
                sentinels: vec![at("a", 26379), at("b", 2)],
                master: "main".to_owned()
            }
        );
        assert_eq!(
            config.shown,
            "redis+sentinel://:***@a,b:2/main/1?sentinel_password=***"
        );
        let config = Config::parse("redis+cluster://a,b").unwrap();
        assert_eq!(
            config.topology,
            Topology::Cluster(vec![at("a", 6379), at("b", 6379)])
        );
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_reason() {
        for (url, reason) in [
            (
                "redis:localhost",
                "`redis:localhost` is not the address of a Redis; expected e.g. `redis://localhost:6379`",
            ),
            (
                "redis://",
                "invalid host and port ``; expected e.g. `localhost:6379`",
            ),
            (
                "redis://a,b",
                "several hosts need `redis+sentinel://` or `redis+cluster://`",
            ),
            (
                "redis://h/x",
                "invalid database number `x`; expected e.g. `/0`",
            ),
            (
                "redis+sentinel://h",
                "a sentinel URL names its master: `redis+sentinel://host:26379/mymaster`",
            ),
            ("redis+cluster://h/1", "a cluster has database 0 only"),
            (
                "redis://h?db=1",
                "unknown parameter `db` of a Redis; available: prefix, timeout, consumer_timeout, field, tls_ca, sentinel_password",
            ),
            (
                "redis://h?timeout=5",
                "invalid duration `5` for `timeout`; expected e.g. `timeout=5s`",
            ),
            (
                "redis://h?timeout=1ms",
                "`timeout=1ms` is out of range; expected 100ms to 300s",
            ),
        ] {
            let error = Config::parse(url).err().expect(url);
            assert_eq!(error.to_string(), reason, "{url}");
        }
    }
}
