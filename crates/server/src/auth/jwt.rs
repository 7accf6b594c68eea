//! Access tokens of an identity provider: JWTs, signed with a key that the provider publishes.
//!
//! ```text
//! issuer's JWKS -> public keys, read again -> signature -> issuer, audience, time -> scopes
//! ```
//!
//! Only asymmetric signatures are accepted, each by the kind of key that it needs, so that no token chooses how it is
//! verified. Source: RFC 7515, 7517 and 7519; RFC 8725, "JSON Web Token Best Current Practices"; RFC 9068.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Notify;
use towpath_core::{Error, Result, ResultExt, Timestamp};
use tracing::{debug, info, warn};

use super::scope::Scope;
use towpath::net;
use towpath::supervisor::Stop;

/// How far the clocks of issuer and verifier may differ.
const LEEWAY_SECONDS: f64 = 30.0;

/// How often the keys are read again.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// Between two reads that fail, or that unknown keys cause.
const PAUSE: Duration = Duration::from_secs(10);

/// Timeout of a read.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of the list of keys.
const MAX_BYTES: usize = 1 << 20;

/// Requirements of a token.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `iss`.
    pub issuer: String,
    /// One of `aud`.
    pub audience: String,
    /// The claim with the scopes: a text with spaces, or a list.
    pub scope_claim: String,
}

/// Verifies tokens; cheap to clone.
#[derive(Clone)]
pub struct Jwt(Arc<Inner>);

struct Inner {
    settings: Settings,
    keys: RwLock<Arc<[PublicKey]>>,
    /// A token names a key that is not known.
    unknown: Notify,
}

/// The client that a valid token names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// `sub`, or `client_id` without one.
    pub(super) name: String,
    pub(super) scopes: Vec<Scope>,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is not a token of this issuer for this audience.
    Foreign,
    /// It is not valid any more, or not yet.
    Expired,
    /// Its signature is not that of the issuer.
    Invalid,
}

struct PublicKey {
    id: Option<String>,
    algorithm: Option<String>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// A key as the provider publishes it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwt {
    /// Accepts no token before the keys were read.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            settings,
            keys: RwLock::new(Arc::new([])),
            unknown: Notify::new(),
        }))
    }

    /// Reads the keys, and again every five minutes and when a token names an unknown one, until the stop.
    ///
    /// # Errors
    /// `Invalid` when the client cannot be made.
    pub async fn refresh(self, url: Url, stop: Stop) -> Result<()> {
        let client = net::client().timeout(TIMEOUT).build();
        let client = client.map_err(|error| {
            Error::invalid("the client for the keys of the identity provider cannot be made")
                .with_source(error)
        })?;
        let mut failures = 0_u64;
        loop {
            let began = Instant::now();
            let pause = match self.read(&client, &url).await {
                Ok(count) => {
                    if failures > 0 {
                        info!(keys = count, "keys of the identity provider read");
                    }
                    failures = 0;
                    REFRESH
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(
                            error = error.chain(),
                            "keys of the identity provider not read; retrying"
                        );
                    }
                    failures += 1;
                    PAUSE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.unknown.notified() => {
                    // A client that invents keys must not make the provider busy.
                    tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
                }
                () = stop.requested() => return Ok(()),
            }
        }
    }

    async fn read(&self, client: &Client, url: &Url) -> Result<usize> {
        let failed = |error: reqwest::Error| {
            Error::unavailable("the server did not answer").with_source(error.without_url())
        };
        let mut answer = client.get(url.clone()).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(Error::unavailable(format!(
                "the server answered {}",
                answer.status()
            )));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_BYTES {
                return Err(Error::invalid("the list of keys is over 1 MiB"));
            }
        }
        self.take(&bytes)
    }

    /// Uses the keys of this list. Their number.
    pub(super) fn take(&self, jwks: &[u8]) -> Result<usize> {
        let keys = keys_of(jwks).context(|| "the list of keys is not a JWKS".to_owned())?;
        let count = keys.len();
        let mut current = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        *current = keys.into();
        Ok(count)
    }

    /// Whom a token names.
    pub(super) fn check(
        &self,
        token: &str,
        now: Timestamp,
    ) -> std::result::Result<Subject, Refused> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Foreign)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Foreign)?;
        let header: Header = decoded(header).ok_or(Refused::Foreign)?;
        let claims: Map<String, Value> = decoded(claims).ok_or(Refused::Foreign)?;
        let signature = URL_SAFE_NO_PAD.decode(signature);
        let signature = signature.map_err(|_| Refused::Foreign)?;
        // Nothing is trusted yet: a token of another issuer counts as no credential.
        if !self.is_for_us(&claims) {
            return Err(Refused::Foreign);
        }
        if header.crit.is_some() {
            return Err(Refused::Invalid);
        }
        let keys = Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner));
        let mut fitting = keys.iter().filter(|key| match &header.kid {
            Some(id) => key.id.as_ref() == Some(id),
            None => true,
        });
        let Some(key) = fitting.next() else {
            self.0.unknown.notify_one();
            return Err(Refused::Invalid);
        };
        // Without an id only a single key is unambiguous.
        if header.kid.is_none() && fitting.next().is_some() {
            return Err(Refused::Invalid);
        }
        if !key.verifies(&header.alg, signed.as_bytes(), &signature) {
            return Err(Refused::Invalid);
        }
        if !is_now(&claims, now) {
            return Err(Refused::Expired);
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let name = text("sub").or_else(|| text("client_id"));
        Ok(Subject {
            name: name.unwrap_or_default().chars().take(256).collect(),
            scopes: scopes(claims.get(&self.0.settings.scope_claim)),
        })
    }

    fn is_for_us(&self, claims: &Map<String, Value>) -> bool {
        let settings = &self.0.settings;
        let is_ours = |audience: &Value| audience.as_str() == Some(&settings.audience);
        claims.get("iss").and_then(Value::as_str) == Some(&settings.issuer)
            && match claims.get("aud") {
                Some(Value::Array(all)) => all.iter().any(is_ours),
                Some(one) => is_ours(one),
                None => false,
            }
    }
}

impl PublicKey {
    fn of(jwk: Jwk) -> Option<Self> {
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        // SEC 1, section 2.3.3: an uncompressed point.
        let point = |length: usize| {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            (x.len() == length && y.len() == length).then(|| [&[4], &x[..], &y[..]].concat())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            _ if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") => return None,
            ("RSA", None) => Material::Rsa(RsaPublicKeyComponents {
                n: bytes(&jwk.n)?,
                e: bytes(&jwk.e)?,
            }),
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&jwk.x)?),
            _ => return None,
        };
        Some(Self {
            id: jwk.kid,
            algorithm: jwk.alg,
            material,
        })
    }

    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        if self
            .algorithm
            .as_deref()
            .is_some_and(|own| own != algorithm)
        {
            return false;
        }
        let by = |by: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(by, key)
                .verify(signed, signature)
                .is_ok()
        };
        match (&self.material, algorithm) {
            (Material::P256(key), "ES256") => by(&ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), "ES384") => by(&ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), "EdDSA") => by(&ED25519, key),
            (Material::Rsa(key), _) => {
                let by = match algorithm {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &RSA_PSS_2048_8192_SHA256,
                    "PS384" => &RSA_PSS_2048_8192_SHA384,
                    "PS512" => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                key.verify(by, signed, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// The keys of a list that verify signatures; others are skipped, as providers publish keys for encryption beside them.
fn keys_of(jwks: &[u8]) -> Result<Vec<PublicKey>> {
    #[derive(Deserialize)]
    struct Jwks {
        keys: Vec<Value>,
    }
    let list: Jwks = serde_json::from_slice(jwks)
        .map_err(|error| Error::invalid("expected an object with `keys`").with_source(error))?;
    let keys = list.keys.into_iter().filter_map(|key| {
        let jwk = serde_json::from_value(key).ok()?;
        let key = PublicKey::of(jwk);
        if key.is_none() {
            debug!("key of the identity provider skipped; it signs nothing that is accepted");
        }
        key
    });
    Ok(keys.collect())
}

fn decoded<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a token is valid at this moment; one without `exp` never is.
fn is_now(claims: &Map<String, Value>, now: Timestamp) -> bool {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds of this millennium fit"
    )]
    let now = now.as_millis() as f64 / 1000.0;
    let time = |name: &str| claims.get(name).map(|value| value.as_f64());
    let is_live = matches!(time("exp"), Some(Some(end)) if now < end + LEEWAY_SECONDS);
    let has_begun = match time("nbf") {
        None => true,
        Some(begin) => begin.is_some_and(|begin| now >= begin - LEEWAY_SECONDS),
    };
    is_live && has_begun
}

/// The scopes of a claim that Towpath knows; a provider may list others beside them.
fn scopes(claim: Option<&Value>) -> Vec<Scope> {
    let words: Vec<&str> = match claim {
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    words
        .into_iter()
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[cfg(test)]
pub(super) mod tests;
