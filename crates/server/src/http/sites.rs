//! Requests that their client did not mean to send.
//!
//! A browser sends any request that a web page makes it send, from this machine or from inside this network, so the address of a
//! connection does not say who asks. Such a request shows its origin: in `Origin` and `Sec-Fetch-Site`, or, when the
//! page has pointed its own name at our address, in `Host`. A reverse proxy on this machine shows itself in its headers.
//!
//! Source: Fetch standard, "`Origin` header"; W3C, "Fetch Metadata Request Headers"; Go, `http.CrossOriginProtection`.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use ipnet::IpNet;

use super::Peer;
use super::error::Problem;
use super::hosts::Hosts;

/// Headers that reverse proxies add, beside those that begin with [`FORWARDED`].
const PROXIED: [&str; 8] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "cf-connecting-ip",
    "true-client-ip",
];

/// Prefix of most of their names.
const FORWARDED: &str = "x-forwarded-";

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which requests of web pages and of this machine a listener serves; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sites {
    hosts: Arc<Hosts>,
    proxies: Arc<[IpNet]>,
    /// The names count for clients of other machines too.
    is_strict: bool,
    /// Origins whose pages may change something; `*` for any.
    allowed: Arc<[String]>,
}

impl Sites {
    /// Clients of this machine reach the listener by these names; requests of these proxies count as their clients'.
    pub fn new(hosts: Hosts, proxies: Vec<IpNet>) -> Self {
        Self {
            hosts: Arc::new(hosts),
            proxies: proxies.into(),
            is_strict: false,
            allowed: Arc::default(),
        }
    }

    /// The names count for every client, as the operator listed the names of other machines too.
    #[must_use]
    pub fn for_every_client(mut self, is_strict: bool) -> Self {
        self.is_strict = is_strict;
        self
    }

    /// Pages of these origins may change something, as `server.cors.origins` says.
    #[must_use]
    pub fn allowing(mut self, origins: &[String]) -> Self {
        self.allowed = origins.into();
        self
    }

    /// Refuses requests that may change something and come from a page of another site, and requests for a name that is not
    /// served, of a client of this machine or, where names are listed, of any client.
    ///
    /// # Errors
    /// The problem is 403 or 421.
    pub fn check(&self, head: &Parts) -> Result<(), Problem> {
        if (self.is_strict || is_loopback(head)) && !self.is_of_proxy(head) {
            self.hosts.check(head)?;
        }
        match head.method.is_safe() {
            true => Ok(()),
            false => self.check_page(head),
        }
    }

    /// Refuses a request of a page of another site, whatever its method.
    ///
    /// # Errors
    /// The problem is 403.
    pub fn check_page(&self, head: &Parts) -> Result<(), Problem> {
        if !self.is_of_foreign_page(head) || self.is_allowed(head) {
            return Ok(());
        }
        let reason = "requests of web pages of another site are refused";
        Err(Problem::new(StatusCode::FORBIDDEN, reason))
    }

    /// Whether a request with a cookie was meant by a page of this listener. A request that changes something has to
    /// show its origin; a read may be an address that the user entered.
    pub fn is_of_own_page(&self, head: &Parts) -> bool {
        let site = head.headers.get(FETCH_SITE).map(|value| value.as_bytes());
        let is_safe = head.method.is_safe();
        let is_near = match site {
            None | Some(b"same-origin") => true,
            Some(b"none") => is_safe,
            Some(_) => false,
        };
        let origin = head.headers.get(header::ORIGIN);
        is_near
            && match origin.map(|origin| origin.to_str()) {
                None => is_safe,
                Some(Ok(origin)) => self.is_own(origin, head),
                Some(Err(_)) => false,
            }
    }

    fn is_allowed(&self, head: &Parts) -> bool {
        let origin = head.headers.get(header::ORIGIN);
        let origin = origin.and_then(|origin| origin.to_str().ok());
        let is_it = |allowed: &String| allowed == "*" || Some(allowed.as_str()) == origin;
        origin.is_some() && self.allowed.iter().any(is_it)
    }

    /// Whether the client is a program of this machine: neither a web page nor a proxy stands between.
    pub fn is_local(&self, head: &Parts) -> bool {
        is_loopback(head) && !is_forwarded(&head.headers) && !self.is_of_foreign_page(head)
    }

    fn is_of_foreign_page(&self, head: &Parts) -> bool {
        let site = head.headers.get(FETCH_SITE).map(|value| value.as_bytes());
        let origin = head.headers.get(header::ORIGIN);
        match (site, origin) {
            // No page can set this header: its own page, or an address that the user entered.
            (Some(b"same-origin" | b"none"), _) => false,
            (Some(_), None) => true,
            (None, None) => false,
            (_, Some(origin)) => match origin.to_str() {
                Ok(origin) => !self.is_own(origin, head),
                Err(_) => true,
            },
        }
    }

    /// Whether an origin is the site that the request goes to. TLS may end at a proxy, so the scheme does not count.
    fn is_own(&self, origin: &str, head: &Parts) -> bool {
        let Some((_, origin)) = origin.split_once("://") else {
            return false;
        };
        let text = |name: &str| head.headers.get(name)?.to_str().ok();
        let own = head.uri.authority().map(|authority| authority.as_str());
        let forwarded = text("x-forwarded-host").filter(|_| self.is_of_proxy(head));
        [own.or_else(|| text("host")), forwarded]
            .into_iter()
            .flatten()
            .any(|host| host.eq_ignore_ascii_case(origin))
    }

    /// Whether a proxy that the operator named sends this for a client of its own.
    fn is_of_proxy(&self, head: &Parts) -> bool {
        let peer = head.extensions.get::<Peer>();
        is_forwarded(&head.headers)
            && peer.is_some_and(|Peer(peer)| {
                let address = peer.ip().to_canonical();
                self.proxies.iter().any(|net| net.contains(&address))
            })
    }
}

fn is_loopback(head: &Parts) -> bool {
    let peer = head.extensions.get::<Peer>();
    peer.is_some_and(|Peer(peer)| peer.ip().to_canonical().is_loopback())
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(HeaderName::as_str);
    names.any(|name| name.starts_with(FORWARDED) || PROXIED.contains(&name))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;

    fn head(method: Method, peer: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        let peer = format!("{peer}:5000").parse().expect("an address");
        head.extensions.insert(Peer(peer));
        head
    }

    fn sites() -> Sites {
        let hosts = Hosts::new(":8080", "server.hosts", &["api.internal".to_owned()]);
        Sites::new(
            hosts,
            vec![towpath::net::cidr::parse("127.0.0.2").expect("an address")],
        )
    }

    fn status(peer: &str, method: Method, headers: &[(&str, &str)]) -> u16 {
        let checked = sites().check(&head(method, peer, headers));
        checked.map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let here = ("host", "localhost:8080");
        for peer in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "192.0.2.7"] {
            for (headers, expected) in [
                (&[here][..], 200),
                (&[here, ("origin", "http://localhost:8080")], 200),
                (&[here, ("origin", "https://LOCALHOST:8080")], 200),
                (&[here, ("origin", "http://localhost:3000")], 403),
                (&[here, ("origin", "http://evil.example")], 403),
                (&[here, ("origin", "null")], 403),
                (&[here, ("origin", "")], 403),
                (&[here, ("sec-fetch-site", "cross-site")], 403),
                (&[here, ("sec-fetch-site", "same-site")], 403),
                (&[here, ("sec-fetch-site", "none")], 200),
                // A proxy may change `Host`; the browser knows.
                (
                    &[
                        here,
                        ("origin", "https://shop.example"),
                        ("sec-fetch-site", "same-origin"),
                    ],
                    200,
                ),
            ] {
                assert_eq!(
                    status(peer, Method::POST, headers),
                    expected,
                    "{peer} {headers:?}"
                );
                assert_eq!(
                    status(peer, Method::GET, headers),
                    200,
                    "{peer} {headers:?}"
                );
            }
        }
    }

    #[test]
    fn a_foreign_name_of_this_machine_is_not_served() {
        let foreign = ("host", "evil.example:8080");
        let origin = ("origin", "http://evil.example:8080");
        let forwarded = ("x-forwarded-for", "203.0.113.9");
        for (peer, headers, expected) in [
            ("127.0.0.1", &[foreign, origin][..], 421),
            ("127.0.0.1", &[foreign, origin, forwarded], 421),
            ("127.0.0.1", &[("host", "api.internal")], 200),
            // The operator named this proxy, and others reach the listener by whatever name it has there.
            ("127.0.0.2", &[foreign, origin, forwarded], 200),
            ("127.0.0.2", &[foreign], 421),
            ("192.0.2.7", &[foreign], 200),
        ] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(
                    status(peer, method, headers),
                    expected,
                    "{peer} {headers:?}"
                );
            }
        }
    }

    #[test]
    fn listed_names_are_the_only_ones_for_every_client() {
        let strict = sites().for_every_client(true);
        for (peer, host, expected) in [
            ("192.0.2.7", "api.internal", 200),
            ("192.0.2.7", "192.0.2.1:8080", 200),
            ("192.0.2.7", "evil.example:8080", 421),
            ("127.0.0.1", "evil.example:8080", 421),
        ] {
            let checked = strict.check(&head(Method::GET, peer, &[("host", host)]));
            let status = checked.map_or_else(|problem| problem.status().as_u16(), |()| 200);
            assert_eq!(status, expected, "{peer} {host}");
        }
    }

    #[test]
    fn only_programs_of_this_machine_are_local() {
        let local = |peer: &str, headers: &[(&str, &str)]| {
            sites().is_local(&head(Method::GET, peer, headers))
        };
        assert!(local("127.0.0.1", &[("host", "localhost")]));
        assert!(local("[::1]", &[]));
        assert!(!local("192.0.2.7", &[]));
        assert!(!local("127.0.0.1", &[("origin", "http://evil.example")]));
        assert!(!local("127.0.0.1", &[("sec-fetch-site", "cross-site")]));
        for name in PROXIED
            .into_iter()
            .chain(["x-forwarded-for", "x-forwarded-host"])
        {
            assert!(!local("127.0.0.1", &[(name, "x")]), "{name}");
            assert!(!local("127.0.0.2", &[(name, "x")]), "{name}");
        }
    }
}
