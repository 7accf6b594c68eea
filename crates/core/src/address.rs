//! URLs of servers: split in one place, and shown without their secrets.
//!
//! A password with a reserved character moves the borders between the parts of a URL, so that a piece of the password
//! would be read as a host, a path or a parameter, and appear in a message. Such a URL is refused before its parts are
//! parsed, and no message quotes a part: messages show the URL as [`shown`] writes it.
//!
//! Source: RFC 3986, sections 2.2, 3.2 and 3.2.1.

use crate::{Error, Result};

/// The remedy for a URL with an unencoded reserved character.
const RESERVED: &str = "reserved characters in a URL must be percent-encoded in user, password, path and parameters: \
    `/` as `%2F`, `?` as `%3F`, `#` as `%23`, `@` as `%40`, `,` as `%2C`, `%` as `%25`";

/// Parameters whose values are secrets have one of these in their names.
const SECRET_PARAMETERS: [&str; 7] = [
    "pass",
    "pwd",
    "secret",
    "token",
    "key",
    "signature",
    "credential",
];

/// The parts of `scheme://user:password@hosts/path?query`, still encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address<'a> {
    /// Before `://`; empty when there is none.
    pub scheme: &'a str,
    /// User, and password behind a colon.
    pub account: Option<&'a str>,
    /// `host:port`, several separated by commas.
    pub hosts: &'a str,
    /// Behind the slash that ends the hosts; `None` without a slash.
    pub path: Option<&'a str>,
    /// Behind the question mark.
    pub query: &'a str,
}

impl<'a> Address<'a> {
    /// Splits a URL.
    ///
    /// # Errors
    /// `Invalid` when a reserved character of a password or name is not encoded, or a port is not a number.
    pub fn split(url: &'a str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if rest.contains(['@', '#']) {
            return Err(Error::invalid(RESERVED));
        }
        let (account, hosts) = match authority.rsplit_once('@') {
            Some((account, hosts)) => (Some(account), hosts),
            None => (None, authority),
        };
        if !hosts.split(',').all(has_valid_port) {
            let url = shown(url);
            return Err(Error::invalid(format!(
                "`{url}` has a port that is not a number from 0 to 65535; {RESERVED}"
            )));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self {
            scheme,
            account,
            hosts,
            path: path.strip_prefix('/'),
            query,
        })
    }

    /// Splits a list of URLs separated by commas; the second and later ones may lack the scheme.
    ///
    /// # Errors
    /// As `split`. A later one without a scheme, but with an account, is a piece of a password with a comma.
    pub fn split_list(urls: &'a str) -> Result<Vec<Self>> {
        let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let mut addresses: Vec<Self> = Vec::new();
        for url in urls {
            let address = Self::split(url)?;
            if address.scheme.is_empty() && address.account.is_some() && !addresses.is_empty() {
                return Err(Error::invalid(RESERVED));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// The parameters: name and encoded value.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }
}

/// Whether a text can be the scheme of a URL.
pub fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Whether the text after the colon of `host:port` is a port.
fn has_valid_port(place: &str) -> bool {
    let behind = place.rsplit_once(']').map_or(place, |(_, behind)| behind);
    match behind.rsplit_once(':') {
        Some((_, port)) => {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
        }
        None => true,
    }
}

/// A text with the secrets of every URL in it replaced by `***`: passwords, values of parameters that are called like
/// secrets, and every value in the query of an `http` URL.
///
/// Text that could belong to an unencoded password is hidden too.
pub fn shown(text: &str) -> String {
    let Some((before, behind)) = text.split_once("://") else {
        return without_scheme(text);
    };
    // The next URL of a list begins behind the last separator before its scheme.
    let next = behind
        .find("://")
        .and_then(|end| behind[..end].rfind([',', ' ', '"', '`']))
        .unwrap_or(behind.len());
    let (this, rest) = behind.split_at(next);
    let scheme =
        before.rsplit(|character: char| !character.is_ascii_alphanumeric() && character != '+');
    let is_web = scheme
        .take(1)
        .any(|scheme| ["http", "https"].contains(&scheme));
    format!("{before}://{}{}", one_shown(this, is_web), shown(rest))
}

/// As [`shown`], without path and query: those of a webhook are often the secret itself.
pub fn host_shown(text: &str) -> String {
    let shown = shown(text);
    let from = shown.find("://").map_or(0, |at| at + 3);
    match shown[from..].find(['/', '?', '#']) {
        Some(end) if from + end + 1 < shown.len() => format!("{}/***", &shown[..from + end]),
        _ => shown,
    }
}

/// The URL after `://`, with its secrets hidden.
fn one_shown(text: &str, is_web: bool) -> String {
    if let Some((account, place)) = text.rsplit_once('@') {
        let user = account.split_once(':').map_or("", |(user, _)| user);
        return format!("{user}:***@{}", query_shown(place, is_web));
    }
    // Without an account a port that is not a number may be the beginning of a password.
    let end = text
        .find(['/', '?', '#', '"', '`', ' '])
        .unwrap_or(text.len());
    let mut at = 0;
    for place in text[..end].split(',') {
        let is_variable = place.contains("${");
        if !has_valid_port(place) && !is_variable {
            let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
            return format!("{}{host}:***", &text[..at]);
        }
        at += place.len() + 1;
    }
    query_shown(text, is_web)
}

/// A place with the values of its parameters hidden.
fn query_shown(text: &str, is_web: bool) -> String {
    let Some((place, query)) = text.split_once('?') else {
        return text.to_owned();
    };
    let mut shown = format!("{place}?");
    for (number, pair) in query.split('&').enumerate() {
        if number > 0 {
            shown.push('&');
        }
        match pair.split_once('=') {
            Some((name, value)) if is_web || is_secret(name) => {
                let end = value.find(['"', '`', ' ', ',']).unwrap_or(value.len());
                shown.push_str(name);
                shown.push_str("=***");
                shown.push_str(&value[end..]);
            }
            _ => shown.push_str(pair),
        }
    }
    shown
}

/// Whether a parameter, key or variable of this name holds a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_PARAMETERS.iter().any(|word| name.contains(word))
}

/// `redis:user:password@host`, or `password@host:port`. Mail addresses are left as they are.
fn without_scheme(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((account, place)) if account.contains(':') => {
            let scheme = account.split_once(':').map_or("", |(scheme, _)| scheme);
            format!("{scheme}:***@{place}")
        }
        Some((_, place)) if place.contains([':', '/']) => format!("***@{place}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_with_reserved_characters_are_refused_without_a_piece_of_them() {
        for url in [
            "amqp://guest:ge?heim@h",
            "redis://:ge?heim@h:6379",
            "redis://:ge/heim@h",
            "postgres://u:ge#heim@h/d",
            "postgres://u:ge/heim@h/d",
            "redis://u:1/heim@h",
            "kafka://u:ge?heim",
            "kafka://u:geheim/topic",
            "redis://:geheim",
            "kafka://a:b@h,kafka://u:ge,heim@h",
        ] {
            let error = Address::split_list(url).err().expect(url).to_string();
            assert!(error.contains("percent-encoded"), "{url}: {error}");
            for piece in ["ge", "heim"] {
                let leaks = error.replace("percent", "").contains(piece);
                assert!(!leaks, "{url}: {error}");
            }
        }
    }

    #[test]
    fn a_url_is_split_at_its_borders() {
        let address = Address::split("rediss://ann:p%40ss@[::1]:7000/3?prefix=a&x").ok();
        let address = address.expect("the URL is valid");
        assert_eq!(
            (address.scheme, address.account, address.hosts, address.path),
            ("rediss", Some("ann:p%40ss"), "[::1]:7000", Some("3"))
        );
        let parameters: Vec<_> = address.parameters().collect();
        assert_eq!(parameters, [("prefix", "a"), ("x", "")]);
        let raw = Address::split("amqp://u:p@ss@h:5672").ok();
        assert_eq!(raw.map(|one| one.hosts), Some("h:5672"));
    }

    #[test]
    fn secrets_of_urls_are_hidden() {
        for (text, expected) in [
            ("redis://h:6379/0?prefix=a", "redis://h:6379/0?prefix=a"),
            ("redis://me:s:e@c@h/n", "redis://me:***@h/n"),
            ("redis://:se?cret@h:6379", "redis://:***@h:6379"),
            ("redis://:secret", "redis://:***"),
            ("kafka://a:1,b:secret/x", "kafka://a:1,b:***"),
            ("redis://${HOST}:${PORT}/0", "redis://${HOST}:${PORT}/0"),
            (
                "amqp://a:s@x,amqp://b:s,s@y",
                "amqp://a:***@x,amqp://b:***@y",
            ),
            ("http://x:1/a http://y:s@z/", "http://x:1/a http://y:***@z/"),
            (
                "url = \"https://h/p?token=s&x=s\" # why",
                "url = \"https://h/p?token=***&x=***\" # why",
            ),
            (
                "redis://h?sentinel_password=s",
                "redis://h?sentinel_password=***",
            ),
            ("redis:me:s@h", "redis:***@h"),
            ("s@h:5672", "***@h:5672"),
            ("Name <name@host>", "Name <name@host>"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn paths_of_webhooks_are_hidden() {
        for (text, expected) in [
            ("https://h:1/services/s?token=s", "https://h:1/***"),
            ("https://u:s@h/s", "https://u:***@h/***"),
            ("htps://h/s", "htps://h/***"),
            ("https://h?s", "https://h/***"),
            ("https://h/", "https://h/"),
            ("https://h", "https://h"),
        ] {
            assert_eq!(host_shown(text), expected, "{text}");
        }
    }
}
