//! Which places on the network a request may go to: public ones, and those that were allowed by name.
//!
//! ```text
//! URL -> scheme, user, port -> name looked up -> each address against the table -> connected to those that are left
//! ```
//!
//! The addresses that are connected to are the ones that were checked: there is no second look-up in between, whatever
//! a name server says next. Redirects are not followed by the client; code that follows one checks its URL again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};
use rustls::ClientConfig;
use towpath_core::{Error, Result};

use super::answer::no_answer;
use super::cidr;
use crate::traces;

/// Allowed ports below 1024.
const OPEN_PORTS: [u16; 2] = [80, 443];

/// One message for every rejected destination, so that the response reveals nothing about it.
const REFUSED: &str = "the URL is refused: it leads to an address or port that is not allowed";

/// IPv4 blocks that are not public, with their prefix lengths.
/// Source: IANA IPv4 Special-Purpose Address Registry.
const RESERVED_4: [([u8; 4], u8); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([233, 252, 0, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Within 2000::/3, which alone is public, these are not: they are reserved, or carry an address of version 4.
/// Source: IANA IPv6 Special-Purpose Address Registry.
const RESERVED_6: [([u16; 2], u8); 4] = [
    ([0x2001, 0x0000], 23),
    ([0x2001, 0x0db8], 32),
    ([0x2002, 0x0000], 16),
    ([0x3fff, 0x0000], 20),
];

/// A destination that is allowed although the table refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    destination: Destination,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Destination {
    /// A host by its name, wherever that leads.
    Name(String),
    /// Addresses.
    Net(IpNet),
}

impl Destination {
    fn holds(&self, host: &str, address: IpAddr) -> bool {
        match self {
            Self::Name(name) => name == host,
            Self::Net(net) => net.contains(&address),
        }
    }
}

/// Looks names up.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The addresses of a name, as they are now.
    ///
    /// # Errors
    /// When there is none.
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// Looks names up as the system does.
struct System;

#[async_trait]
impl Lookup for System {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// The rule, and the clients that keep to it: one for each port, as a client looks up names without one.
pub struct EgressPolicy {
    rule: Arc<Rule>,
    timeout: Duration,
    /// Certificates that its clients trust, when they differ from the system's.
    tls: Option<ClientConfig>,
    clients: Mutex<HashMap<u16, Client>>,
}

struct Rule {
    exceptions: Vec<Exception>,
    lookup: Arc<dyn Lookup>,
}

/// Most ports that clients are kept for.
const CLIENTS: usize = 64;

impl EgressPolicy {
    /// A policy with these exceptions, each a host, an address or a net, with or without a port: `localhost`,
    /// `127.0.0.1:8080`, `10.1.2.0/24`, `[::1]:80`. A request takes at most `timeout`.
    ///
    /// # Errors
    /// `Invalid` for an exception that cannot be read.
    pub fn new(exceptions: &[String], timeout: Duration) -> Result<Self> {
        Self::with(exceptions, timeout, Arc::new(System))
    }

    /// The same, looking names up in another way.
    ///
    /// # Errors
    /// As [`EgressPolicy::new`].
    pub fn with(exceptions: &[String], timeout: Duration, lookup: Arc<dyn Lookup>) -> Result<Self> {
        let exceptions = exceptions.iter().map(|text| exception(text));
        Ok(Self::of(
            exceptions.collect::<Result<_>>()?,
            timeout,
            lookup,
        ))
    }

    /// A policy for one URL that the operator chose: its host, wherever that leads, and public addresses.
    ///
    /// # Errors
    /// `Invalid` for a URL without a host or a port.
    pub fn of_own(url: &Url, timeout: Duration) -> Result<Self> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(Error::invalid("the URL names no host"));
        };
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let name = || Destination::Name(host.to_ascii_lowercase());
        let own = Exception {
            destination: cidr::parse(host).map_or_else(name, Destination::Net),
            port: Some(port),
        };
        Ok(Self::of(vec![own], timeout, Arc::new(System)))
    }

    fn of(exceptions: Vec<Exception>, timeout: Duration, lookup: Arc<dyn Lookup>) -> Self {
        Self {
            rule: Arc::new(Rule { exceptions, lookup }),
            timeout,
            tls: None,
            clients: Mutex::default(),
        }
    }

    /// The same, with clients that trust these certificates.
    #[must_use]
    pub fn trusting(self, tls: Option<ClientConfig>) -> Self {
        Self { tls, ..self }
    }

    /// Whether a text is an exception.
    pub fn is_exception(text: &str) -> bool {
        exception(text).is_ok()
    }

    /// A URL of another party that is allowed as far as the URL shows its destination; a name is looked at when it
    /// is connected to.
    ///
    /// # Errors
    /// `Invalid` for another scheme, a URL with a user, and a refused port or address.
    pub fn check(&self, url: &str) -> Result<Url> {
        let url = Url::parse(url).map_err(|error| {
            Error::invalid("invalid URL; expected e.g. `https://host/path`").with_source(error)
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::invalid("the URL has a user; remove it"));
        }
        self.check_place(&url)?;
        Ok(url)
    }

    /// The same of one's own URL, which may name a user.
    ///
    /// # Errors
    /// As [`EgressPolicy::check`], a user aside.
    pub fn check_place(&self, url: &Url) -> Result<()> {
        if !["http", "https"].contains(&url.scheme()) {
            let text = format!("the URL is `{}:…`; it must be http or https", url.scheme());
            return Err(Error::invalid(text));
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(Error::invalid("the URL names no host"));
        };
        let literal = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        let is_open = match literal {
            Ok(address) => self.rule.admits(host, address, port),
            // Where it leads is checked as it is connected to; the port is known now.
            Err(_) => is_open_port(port) || self.rule.may_except(host, port),
        };
        match is_open {
            true => Ok(()),
            false => Err(Error::invalid(REFUSED)),
        }
    }

    /// Asks for a URL, without following redirects.
    ///
    /// # Errors
    /// `Invalid` for a URL that is refused, or that leads to refused addresses only; `Unavailable` when there is no
    /// answer.
    pub async fn get(&self, url: &Url) -> Result<reqwest::Response> {
        self.send(url, Client::get).await
    }

    /// Sends what `request` makes of the client and the URL.
    ///
    /// # Errors
    /// As [`EgressPolicy::get`].
    pub async fn send<F>(&self, url: &Url, request: F) -> Result<reqwest::Response>
    where
        F: FnOnce(&Client, Url) -> reqwest::RequestBuilder + Send,
    {
        self.check_place(url)?;
        let client = self.client(url.port_or_known_default().unwrap_or(0))?;
        let mut request = request(&client, url.clone()).build().map_err(|error| {
            Error::invalid("the request cannot be made").with_source(error.without_url())
        })?;
        let method = request.method().clone();
        let span = traces::client(&method, url, request.headers_mut());
        let outcome = match client.execute(request).await {
            Ok(response) => Ok(response),
            Err(error) if is_refusal(&error) => Err(Error::invalid(REFUSED)),
            Err(error) => Err(no_answer(error)),
        };
        traces::answered(span, outcome.as_ref().map(reqwest::Response::status));
        outcome
    }

    fn client(&self, port: u16) -> Result<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&port) {
            return Ok(client.clone());
        }
        let checked = Checked {
            rule: Arc::clone(&self.rule),
            port,
        };
        // A proxy would look names up itself; no client of ours has one.
        let client = match &self.tls {
            Some(tls) => super::client_of(tls.clone()),
            None => super::client(),
        };
        let client = client
            .timeout(self.timeout)
            .user_agent(concat!("towpath/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(checked))
            .build()
            .map_err(|error| Error::unavailable("a client cannot be made").with_source(error))?;
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(port, client.clone());
        Ok(client)
    }
}

impl Rule {
    fn admits(&self, host: &str, address: IpAddr, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is_excepted = self.exceptions.iter().any(|one| {
            one.destination.holds(&host, address) && one.port.is_none_or(|allowed| allowed == port)
        });
        is_excepted || is_open_port(port) && is_public(address)
    }

    /// Whether some exception may let a port of a host through, wherever its name leads.
    fn may_except(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.exceptions.iter().any(|one| {
            let may_hold = !matches!(&one.destination, Destination::Name(name) if *name != host);
            may_hold && one.port.is_none_or(|allowed| allowed == port)
        })
    }
}

/// Ports of services other than web servers are not allowed.
fn is_open_port(port: u16) -> bool {
    OPEN_PORTS.contains(&port) || port >= 1024
}

/// Gives a client of one port those addresses of a name that it may connect to.
struct Checked {
    rule: Arc<Rule>,
    port: u16,
}

/// Distinguished from a name that does not exist.
#[derive(Debug)]
struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(REFUSED)
    }
}

impl std::error::Error for Refusal {}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (rule, port) = (Arc::clone(&self.rule), self.port);
        Box::pin(async move {
            let found = rule.lookup.lookup(name.as_str()).await?;
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| rule.admits(name.as_str(), *address, port))
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if allowed.is_empty() {
                return Err(Refusal.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn is_refusal(error: &reqwest::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<Refusal>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether an address is public.
fn is_public(address: IpAddr) -> bool {
    let is_in = |net: IpAddr, bits: u8| {
        IpNet::new(net, bits)
            .expect("the tables have valid prefix lengths")
            .contains(&address)
    };
    if address.is_ipv4() {
        return !RESERVED_4
            .iter()
            .any(|(net, bits)| is_in((*net).into(), *bits));
    }
    let of = |first, second| IpAddr::from([first, second, 0, 0, 0, 0, 0, 0]);
    let is_reserved = RESERVED_6
        .iter()
        .any(|([first, second], bits)| is_in(of(*first, *second), *bits));
    is_in(of(0x2000, 0), 3) && !is_reserved
}

fn exception(text: &str) -> Result<Exception> {
    let wrong = || {
        Error::invalid(format!(
            "invalid host or CIDR block `{text}`; expected e.g. `localhost`, `127.0.0.1:8080`, `10.1.2.0/24` or `[::1]:80`"
        ))
    };
    let (destination, port) = match text.rsplit_once(':') {
        // An address of version 6 without brackets has no port.
        _ if text.parse::<Ipv6Addr>().is_ok() || text.contains("::") && !text.contains(']') => {
            (text, None)
        }
        Some((destination, port)) if !port.ends_with(']') => {
            (destination, Some(port.parse().map_err(|_| wrong())?))
        }
        _ => (text, None),
    };
    let destination = destination.trim_start_matches('[').trim_end_matches(']');
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let destination = match cidr::parse(destination) {
        Some(net) => Destination::Net(net),
        None if !destination.is_empty() && destination.bytes().all(is_name) => {
            Destination::Name(destination.to_ascii_lowercase())
        }
        None => return Err(wrong()),
    };
    Ok(Exception { destination, port })
}

#[cfg(test)]
mod tests;
