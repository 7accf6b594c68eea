//! Which names a listener answers to.
//!
//! A web page can point a name of its own at our address (DNS rebinding) and talk to
//! us as if we were its own server. Its requests carry that name, so names are checked.

use std::net::{IpAddr, Ipv6Addr};

use http::request::Parts;
use http::{StatusCode, header};

use super::error::Problem;

/// The names that are answered to, without port, in lower case.
#[derive(Debug, Clone)]
pub struct Hosts {
    names: Vec<String>,
    /// The configuration key that adds names.
    key: &'static str,
    /// Names without a dot are served, too.
    has_labels: bool,
}

impl Hosts {
    /// `localhost`, every IP address, the name of this machine, the host in `listen`, and the names that the
    /// configuration has at `key`.
    pub fn new(listen: &str, key: &'static str, configured: &[String]) -> Self {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let own = [name(listen), machine.trim()].into_iter();
        let configured = configured.iter().map(|host| name(host));
        Self {
            names: own
                .chain(configured)
                .filter(|name| !name.is_empty())
                .map(str::to_ascii_lowercase)
                .collect(),
            key,
            has_labels: false,
        }
    }

    /// The same, and every name without a dot: it is of this machine or network, and web pages of others are under
    /// a domain.
    #[must_use]
    pub fn or_labels(self) -> Self {
        Self {
            has_labels: true,
            ..self
        }
    }

    /// Refuses a request for another name.
    ///
    /// # Errors
    /// The problem is 421.
    pub fn check(&self, head: &Parts) -> Result<(), Problem> {
        // A target that names a host goes before the header (RFC 9112, section 3.2.2).
        let header = head.headers.get(header::HOST);
        let host = match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => header.map(|value| value.to_str().unwrap_or("?")),
        };
        // Browsers always send one; HTTP/1.0 clients may not.
        let Some(host) = host else { return Ok(()) };
        if self.allows(host) {
            return Ok(());
        }
        let reason = format!(
            "host name not served; use an IP address or `localhost`, or add the name to `{}`",
            self.key
        );
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, reason))
    }

    fn allows(&self, host: &str) -> bool {
        let name = name(host).to_ascii_lowercase();
        // A page cannot be served under an address that is not its server's, so addresses need no list.
        let address = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .map_or_else(
                || name.parse::<IpAddr>().is_ok(),
                |inner| inner.parse::<Ipv6Addr>().is_ok(),
            );
        let local = name == "localhost" || name.ends_with(".localhost");
        let label = self.has_labels && !name.contains(['.', '@']);
        address || local || label || self.names.contains(&name)
    }
}

/// A host without its port and a final dot.
fn name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        let hosts = Hosts::new("Admin.internal:7070", "key", &["towpath".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:7070",
            "a.localhost",
            "127.0.0.1:7070",
            "10.1.2.3",
            "[::1]:7070",
            "[::1]",
            "admin.internal",
            "towpath:7070",
            "towpath.:80",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
        for host in [
            "",
            ":7070",
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "[::1].evil.example",
            "towpath@evil.example",
        ] {
            assert!(!hosts.allows(host), "{host}");
        }
        assert!(!Hosts::new(":7070", "key", &[]).allows(""));
        let hosts = Hosts::new(":7070", "key", &[]).or_labels();
        assert!(hosts.allows("towpath:7070") && hosts.allows(""));
        assert!(!hosts.allows("evil.example") && !hosts.allows("user@x"));
    }
}
