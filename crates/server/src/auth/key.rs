//! Named API keys: `tp_ID_SECRET`, of which only a digest of the secret is kept.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result, Timestamp};

use super::scope::{Needed, Scope};

/// Prefix of every key, so that secret scanners find one that leaked.
pub(super) const PREFIX: &str = "tp_";

const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// The stored digest and metadata of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Names the key in logs and commands; not a secret.
    pub id: String,
    /// Purpose, in the operator's words.
    pub name: String,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Name in the client certificate that takes the place of a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// SHA-256 of the secret, and of the secret before while that one is still accepted.
    secrets: Vec<Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Why a key does not permit something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The secret is another one, or no longer accepted.
    Wrong,
    /// The key expired.
    Expired,
    /// The key lacks the scope.
    Scope,
}

impl Key {
    /// A new key and its text, which is shown once.
    ///
    /// # Errors
    /// `Unavailable` when the system has no random numbers.
    pub fn make(
        name: String,
        scopes: Vec<Scope>,
        created: Timestamp,
        expires: Option<Timestamp>,
    ) -> Result<(Self, String)> {
        let mut key = Self::without_secret(name, scopes, created, expires)?;
        let text = key.add_secret()?;
        Ok((key, text))
    }

    /// A new key for clients with a certificate that has this name.
    ///
    /// # Errors
    /// `Unavailable` when the system has no random numbers.
    pub fn of_certificate(
        certificate: String,
        name: String,
        scopes: Vec<Scope>,
        created: Timestamp,
        expires: Option<Timestamp>,
    ) -> Result<Self> {
        Ok(Self {
            certificate: Some(certificate),
            ..Self::without_secret(name, scopes, created, expires)?
        })
    }

    fn without_secret(
        name: String,
        scopes: Vec<Scope>,
        created: Timestamp,
        expires: Option<Timestamp>,
    ) -> Result<Self> {
        let mut id = [0; ID_BYTES];
        fill(&mut id)?;
        Ok(Self {
            id: hex::encode(id),
            name,
            scopes,
            created,
            expires,
            certificate: None,
            secrets: Vec::new(),
        })
    }

    /// A new secret for the key; the one before is accepted until then.
    ///
    /// # Errors
    /// `Invalid` for a key without a secret, `Unavailable` when the system has no random numbers.
    pub fn rotate(&mut self, until: Timestamp) -> Result<String> {
        if let Some(certificate) = &self.certificate {
            return Err(Error::invalid(format!(
                "the key `{}` has no secret; renew the client certificate `{certificate}` instead",
                self.id
            )));
        }
        self.secrets.truncate(1);
        for secret in &mut self.secrets {
            secret.until = Some(secret.until.unwrap_or(until).min(until));
        }
        self.add_secret()
    }

    /// Puts a new secret in front. The text of the key.
    fn add_secret(&mut self) -> Result<String> {
        let mut bytes = [0; SECRET_BYTES];
        fill(&mut bytes)?;
        let secret = URL_SAFE_NO_PAD.encode(bytes);
        let digest = digest_of(&secret);
        self.secrets.insert(
            0,
            Secret {
                digest,
                until: None,
            },
        );
        Ok(format!("{PREFIX}{}_{secret}", self.id))
    }

    /// Whether a caller with this secret has this scope.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        secret: &str,
        needed: Needed,
        name: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Denied> {
        self.digest(secret, now)?;
        self.permits(needed, name, now)
    }

    /// The stored digest of a secret that is accepted.
    ///
    /// # Errors
    /// `Wrong` for another secret.
    pub fn digest(&self, secret: &str, now: Timestamp) -> Result<&str, Denied> {
        let given = digest_of(secret);
        let mut accepted = self.accepted(now);
        let found = accepted.find(|known| {
            verify_slices_are_equal(known.digest.as_bytes(), given.as_bytes()).is_ok()
        });
        found.map(|known| &*known.digest).ok_or(Denied::Wrong)
    }

    /// Whether the secret with this digest is still accepted.
    pub fn accepts(&self, digest: &str, now: Timestamp) -> bool {
        !self.is_expired(now) && self.accepted(now).any(|known| known.digest == digest)
    }

    /// The digest of the newest secret.
    pub fn newest_digest(&self) -> Option<&str> {
        self.secrets.first().map(|secret| &*secret.digest)
    }

    /// Whether a caller that was identified has this scope.
    ///
    /// # Errors
    /// Why not.
    pub fn permits(
        &self,
        needed: Needed,
        name: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Denied> {
        match () {
            () if self.is_expired(now) => Err(Denied::Expired),
            () if self.scopes.iter().any(|scope| scope.covers(needed, name)) => Ok(()),
            () => Err(Denied::Scope),
        }
    }

    fn accepted(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        let secrets = self.secrets.iter();
        secrets.filter(move |secret| secret.until.is_none_or(|until| now < until))
    }

    /// Whether it is refused because of its age.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// The id and the secret of a key's text; `None` when it is not the text of a key.
pub(super) fn parse(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(PREFIX)?.split_once('_')
}

fn digest_of(secret: &str) -> String {
    let digest = digest(&SHA256, secret.as_bytes());
    URL_SAFE_NO_PAD.encode(digest)
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    rand::fill(bytes).map_err(|_| Error::unavailable("the system has no random numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const LATER: Timestamp = Timestamp::from_millis(2_000_000);

    fn key(expires: Option<Timestamp>) -> (Key, String) {
        let scopes = vec!["users:read".parse().expect("a scope")];
        Key::make("reports".to_owned(), scopes, NOW, expires).expect("a key")
    }

    fn check(key: &Key, text: &str, verb: &'static str, now: Timestamp) -> Result<(), Denied> {
        let (id, secret) = parse(text).expect("the text of a key");
        assert_eq!(id, key.id);
        key.check(secret, Needed::new("users", verb), None, now)
    }

    #[test]
    fn keys_permit_their_scopes_until_they_expire() {
        let (key, text) = key(Some(LATER));
        assert_eq!(check(&key, &text, "read", NOW), Ok(()));
        assert_eq!(check(&key, &text, "write", NOW), Err(Denied::Scope));
        assert_eq!(check(&key, &text, "read", LATER), Err(Denied::Expired));
        assert_eq!(
            check(&key, &format!("{text}x"), "read", NOW),
            Err(Denied::Wrong)
        );
        let kept = serde_json::to_string(&key).expect("JSON");
        assert!(!kept.contains(parse(&text).expect("a key").1), "{kept}");
    }

    #[test]
    fn rotated_secrets_overlap() {
        let (mut key, first) = key(None);
        let second = key.rotate(LATER).expect("a secret");
        let before = Timestamp::from_millis(LATER.as_millis() - 1);
        assert_eq!(check(&key, &first, "read", before), Ok(()));
        assert_eq!(check(&key, &first, "read", LATER), Err(Denied::Wrong));
        assert_eq!(check(&key, &second, "read", LATER), Ok(()));
        let third = key.rotate(NOW).expect("a secret");
        assert_eq!(check(&key, &first, "read", NOW), Err(Denied::Wrong));
        assert_eq!(check(&key, &second, "read", NOW), Err(Denied::Wrong));
        assert_eq!(check(&key, &third, "read", NOW), Ok(()));
    }
}
