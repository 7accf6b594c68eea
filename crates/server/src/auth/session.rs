//! Sign-ins of browsers: a cookie that stands for the credential of the sign-in.
//!
//! ```text
//! token, key or one-time code -> POST /v1/session -> cookie: identity, expiry, MAC -> the scopes of that credential
//! ```
//!
//! The process keeps no session: the MAC proves the cookie, also after a restart. A new token of the data folder, or a
//! key that was rotated or revoked, ends the sign-ins that began with it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use http::{HeaderValue, header};
use towpath_core::{Error, Result, Timestamp};

use crate::token::Token;

/// Duration of a sign-in.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 60 * 60);

/// Duration of a one-time code.
pub const CODE_LASTS: Duration = Duration::from_secs(10 * 60);

/// Open codes; the oldest gives way.
const MAX_CODES: usize = 100;

/// Failed sign-ins of an address within [`WINDOW`] before further ones are refused.
const MAX_FAILURES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// Addresses whose failures are counted.
const MAX_ADDRESSES: usize = 1_024;

/// The credential that a browser signed in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// The token of the data folder.
    Token,
    /// A key: its id, and the beginning of its secret's digest.
    Key(String, String),
}

/// The sign-ins of a process.
pub(super) struct Sessions {
    key: hmac::Key,
    codes: Mutex<Vec<Code>>,
    failures: Mutex<BTreeMap<IpAddr, (Instant, u32)>>,
}

struct Code {
    text: String,
    identity: Identity,
    until: Instant,
}

impl Sessions {
    /// Cookies are valid for as long as this token is.
    pub(super) fn new(token: &Token) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
        let derived = hmac::sign(&root, b"towpath session cookie v1");
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
            codes: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// A code that signs in once.
    ///
    /// # Errors
    /// `Unavailable` when the system has no random numbers.
    pub(super) fn code(&self, identity: Identity) -> Result<String> {
        let text = random()?;
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        codes.retain(|code| now < code.until);
        if codes.len() >= MAX_CODES {
            codes.remove(0);
        }
        codes.push(Code {
            text: text.clone(),
            identity,
            until: now + CODE_LASTS,
        });
        Ok(text)
    }

    /// The identity behind a code, which is used up.
    pub(super) fn redeem(&self, text: &str) -> Option<Identity> {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = codes
            .iter()
            .position(|code| Token::new(&code.text).matches(text))?;
        let code = codes.remove(index);
        (Instant::now() < code.until).then_some(code.identity)
    }

    /// The value of a cookie.
    ///
    /// # Errors
    /// `Unavailable` when the system has no random numbers.
    pub(super) fn seal(&self, identity: &Identity, now: Timestamp) -> Result<String> {
        let identity = match identity {
            Identity::Token => "token".to_owned(),
            Identity::Key(id, digest) => format!("key:{id}:{digest}"),
        };
        let lasts = i64::try_from(LASTS.as_millis()).unwrap_or(i64::MAX);
        let expires = now.as_millis().saturating_add(lasts as u64);
        let body = URL_SAFE_NO_PAD.encode(format!("{identity}|{expires}|{}", random()?));
        let mac = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, body.as_bytes()));
        Ok(format!("{body}.{mac}"))
    }

    /// The identity in a cookie of ours that has not expired.
    pub(super) fn open(&self, cookie: &str, now: Timestamp) -> Option<Identity> {
        let (body, mac) = cookie.split_once('.')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        hmac::verify(&self.key, body.as_bytes(), &mac).ok()?;
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
        let mut parts = text.split('|');
        let (identity, expires) = (parts.next()?, parts.next()?.parse::<u64>().ok()?);
        if now.as_millis() >= expires {
            return None;
        }
        match identity.split(':').collect::<Vec<_>>()[..] {
            ["token"] => Some(Identity::Token),
            ["key", id, digest] => Some(Identity::Key(id.to_owned(), digest.to_owned())),
            _ => None,
        }
    }

    /// Whether this address may try to sign in.
    pub(super) fn may_try(&self, address: IpAddr) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(&address)
            .is_none_or(|(since, count)| since.elapsed() >= WINDOW || *count < MAX_FAILURES)
    }

    /// Counts a failed sign-in.
    pub(super) fn failed(&self, address: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (since, _)| since.elapsed() < WINDOW);
        if failures.len() < MAX_ADDRESSES || failures.contains_key(&address) {
            failures.entry(address).or_insert((Instant::now(), 0)).1 += 1;
        }
    }
}

fn random() -> Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::unavailable("the system has no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The name of the cookie: one of `localhost` reaches every port of `localhost`, so the port is part of it.
fn name(head: &Parts) -> String {
    let host = head.headers.get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    let host = host.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
    let port = host
        .and_then(|host| host.rsplit_once(':'))
        .map(|(_, port)| port)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    format!("towpath_{}", port.unwrap_or("80"))
}

/// The value of our cookie in a request.
pub(super) fn cookie(head: &Parts) -> Option<&str> {
    let name = name(head);
    let headers = head.headers.get_all(header::COOKIE).into_iter();
    let texts = headers.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(&name)?.strip_prefix('='))
}

/// The header that sets the cookie, or removes it.
pub(super) fn set_cookie(head: &Parts, value: Option<&str>) -> Option<HeaderValue> {
    let origin = head.headers.get(header::ORIGIN);
    let is_secure = origin.is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let secure = if is_secure { "; Secure" } else { "" };
    let (value, age) = match value {
        Some(value) => (value, LASTS.as_secs()),
        None => ("", 0),
    };
    let name = name(head);
    let text = format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_cookie_is_valid_until_it_expires_or_the_token_changes() {
        let sessions = Sessions::new(&Token::new("first"));
        let key = Identity::Key("0a1b".to_owned(), "d1".to_owned());
        for identity in [Identity::Token, key] {
            let cookie = sessions.seal(&identity, at(1_000)).unwrap();
            let lasts = LASTS.as_millis() as u64;
            assert_eq!(
                sessions.open(&cookie, at(1_000 + lasts - 1)),
                Some(identity)
            );
            assert_eq!(sessions.open(&cookie, at(1_000 + lasts)), None);
            let restarted = Sessions::new(&Token::new("first"));
            assert!(restarted.open(&cookie, at(2_000)).is_some());
            let changed = Sessions::new(&Token::new("second"));
            assert_eq!(changed.open(&cookie, at(2_000)), None);
        }
    }

    #[test]
    fn a_cookie_that_was_changed_is_refused() {
        let sessions = Sessions::new(&Token::new("token"));
        let cookie = sessions.seal(&Identity::Token, at(0)).unwrap();
        let (_, mac) = cookie.split_once('.').unwrap();
        let forged = URL_SAFE_NO_PAD.encode("token|99999999999999|x");
        for text in [
            "",
            ".",
            "x",
            &format!("{forged}.{mac}"),
            &format!("{cookie}A"),
            &format!("{cookie}."),
        ] {
            assert_eq!(sessions.open(text, at(0)), None, "{text}");
        }
    }

    #[test]
    fn a_code_signs_in_once() {
        let sessions = Sessions::new(&Token::new("token"));
        let code = sessions.code(Identity::Token).unwrap();
        assert_eq!(sessions.redeem("another"), None);
        assert_eq!(sessions.redeem(&code), Some(Identity::Token));
        assert_eq!(sessions.redeem(&code), None);
    }

    #[test]
    fn open_codes_are_bounded() {
        let sessions = Sessions::new(&Token::new("token"));
        let first = sessions.code(Identity::Token).unwrap();
        for _ in 0..MAX_CODES {
            sessions.code(Identity::Token).unwrap();
        }
        assert_eq!(sessions.redeem(&first), None);
    }

    #[test]
    fn an_address_that_fails_too_often_waits() {
        let sessions = Sessions::new(&Token::new("token"));
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..MAX_FAILURES {
            assert!(sessions.may_try(address));
            sessions.failed(address);
        }
        assert!(!sessions.may_try(address));
        assert!(sessions.may_try("192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn the_cookie_has_the_port_in_its_name() {
        let head = |cookie: &str| {
            let request = Request::builder()
                .header("host", "localhost:7070")
                .header("cookie", cookie);
            request.body(()).unwrap().into_parts().0
        };
        assert_eq!(cookie(&head("a=1; towpath_7070=x.y")), Some("x.y"));
        assert_eq!(cookie(&head("towpath_70=x.y")), None);
        let set = set_cookie(&head(""), Some("x")).unwrap();
        let expected = "towpath_7070=x; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict";
        assert_eq!(set, expected);
    }
}
