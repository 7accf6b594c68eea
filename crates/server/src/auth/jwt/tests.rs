//! Tokens with every kind of signature, and every way in which one is not acceptable.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Keys of a provider, and tokens signed with them.
pub(in crate::auth) struct Provider {
    ed: Ed25519KeyPair,
    ec: EcdsaKeyPair,
    rsa: RsaKeyPair,
}

impl Provider {
    pub(in crate::auth) fn new() -> Self {
        Self {
            ed: Ed25519KeyPair::generate().unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        }
    }

    /// A token for this audience with this scope, for a minute from this moment.
    pub(in crate::auth) fn issue(&self, audience: &str, scope: &str, at: Timestamp) -> String {
        let end = at.as_millis() / 1000 + 60;
        let changes = json!({ "aud": audience, "scope": scope, "exp": end });
        self.token(json!({ "alg": "EdDSA", "kid": "ed" }), &claims(changes))
    }

    fn jwks(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        // RFC 8017, section A.1.1, of a key of 2,048 bits: two integers behind their lengths.
        let rsa = self.rsa.public_key().as_ref();
        let (n, e) = (text(&rsa[9..265]), text(&rsa[267..]));
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig",
              "x": text(self.ed.public_key().as_ref()) },
            { "kty": "EC", "crv": "P-256", "kid": "ec", "x": text(&point[1..33]), "y": text(&point[33..]) },
            { "kty": "RSA", "kid": "rsa", "n": n, "e": e, "x5c": ["ignored"] },
            { "kty": "RSA", "kid": "enc", "use": "enc", "n": n, "e": e },
            { "kty": "oct", "kid": "oct", "k": "c2VjcmV0" },
            { "kty": "new" },
        ] })
    }

    fn token(&self, header: Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            text(header.to_string().as_bytes()),
            text(claims.to_string().as_bytes())
        );
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        let signature = match header["alg"].as_str().unwrap() {
            "EdDSA" => self.ed.sign(message).as_ref().to_vec(),
            "ES256" => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            alg @ ("RS256" | "PS256") => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                let signed = match alg {
                    "RS256" => self
                        .rsa
                        .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature),
                    _ => self
                        .rsa
                        .sign(&RSA_PSS_SHA256, &random, message, &mut signature),
                };
                signed.unwrap();
                signature
            }
            // Forged with the public key as a secret.
            "HS256" => {
                let secret = self.ed.public_key().as_ref();
                let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
                aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{signed}.{}", text(&signature))
    }
}

pub(in crate::auth) fn verifier(provider: &Provider) -> Jwt {
    let jwt = Jwt::new(Settings {
        issuer: "https://id.example/".to_owned(),
        audience: "towpath".to_owned(),
        scope_claim: "scope".to_owned(),
    });
    assert_eq!(jwt.take(provider.jwks().to_string().as_bytes()).unwrap(), 3);
    jwt
}

fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://id.example/", "aud": "towpath", "sub": "shop", "exp": NOW + 60,
        "scope": "openid ingest:write queue:mail:read",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn now() -> Timestamp {
    Timestamp::from_millis(u64::try_from(NOW * 1000).unwrap())
}

#[test]
fn tokens_of_the_issuer_name_their_subject_and_scopes() {
    let provider = Provider::new();
    let jwt = verifier(&provider);
    for (alg, kid) in [
        ("EdDSA", "ed"),
        ("ES256", "ec"),
        ("RS256", "rsa"),
        ("PS256", "rsa"),
    ] {
        let token = provider.token(
            json!({ "alg": alg, "kid": kid, "typ": "at+jwt" }),
            &claims(json!({})),
        );
        let subject = jwt.check(&token, now()).unwrap();
        assert_eq!(subject.name, "shop", "{alg}");
        let scopes: Vec<_> = subject.scopes.iter().map(ToString::to_string).collect();
        assert_eq!(scopes, ["ingest:write", "queue:mail:read"], "{alg}");
    }
    let lists = json!({ "aud": ["other", "towpath"], "scope": ["users:read", 7], "sub": null, "client_id": "c" });
    let token = provider.token(json!({ "alg": "EdDSA", "kid": "ed" }), &claims(lists));
    let subject = jwt.check(&token, now()).unwrap();
    assert_eq!((subject.name.as_str(), subject.scopes.len()), ("c", 1));
}

#[test]
fn other_tokens_are_refused() {
    use Refused::{Expired, Foreign, Invalid};
    let provider = Provider::new();
    let jwt = verifier(&provider);
    let ed = || json!({ "alg": "EdDSA", "kid": "ed" });
    for (header, changes, expected) in [
        (ed(), json!({ "iss": "https://evil.example/" }), Foreign),
        (ed(), json!({ "iss": null }), Foreign),
        (ed(), json!({ "aud": "shop" }), Foreign),
        (ed(), json!({ "aud": null }), Foreign),
        (ed(), json!({ "aud": ["shop"] }), Foreign),
        (ed(), json!({ "exp": NOW - 31 }), Expired),
        (ed(), json!({ "exp": null }), Expired),
        (ed(), json!({ "exp": "soon" }), Expired),
        (ed(), json!({ "nbf": NOW + 31 }), Expired),
        (ed(), json!({ "nbf": "now" }), Expired),
        (json!({ "alg": "none" }), json!({}), Invalid),
        (json!({ "alg": "none", "kid": "ed" }), json!({}), Invalid),
        (json!({ "alg": "HS256", "kid": "ed" }), json!({}), Invalid),
        (json!({ "alg": "HS256", "kid": "oct" }), json!({}), Invalid),
        (json!({ "alg": "RS256", "kid": "enc" }), json!({}), Invalid),
        (json!({ "alg": "ES256", "kid": "ed" }), json!({}), Invalid),
        (json!({ "alg": "EdDSA", "kid": "ec" }), json!({}), Invalid),
        (
            json!({ "alg": "EdDSA", "kid": "absent" }),
            json!({}),
            Invalid,
        ),
        (json!({ "alg": "EdDSA" }), json!({}), Invalid),
        (
            json!({ "alg": "EdDSA", "kid": "ed", "crit": ["exp"] }),
            json!({}),
            Invalid,
        ),
    ] {
        let token = provider.token(header.clone(), &claims(changes.clone()));
        assert_eq!(
            jwt.check(&token, now()),
            Err(expected),
            "{header} {changes}"
        );
    }
    // Clocks differ a little.
    for changes in [json!({ "exp": NOW - 29 }), json!({ "nbf": NOW + 29 })] {
        let token = provider.token(ed(), &claims(changes));
        assert!(jwt.check(&token, now()).is_ok());
    }
}

#[test]
fn changed_tokens_are_refused() {
    let provider = Provider::new();
    let jwt = verifier(&provider);
    let token = provider.token(json!({ "alg": "EdDSA", "kid": "ed" }), &claims(json!({})));
    let parts: Vec<&str> = token.split('.').collect();
    let admin = text(claims(json!({ "scope": "admin" })).to_string().as_bytes());
    for changed in [
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], text(&[0; 64])),
        format!("{token}.{}", parts[2]),
        format!("{token}="),
        parts[..2].join("."),
        "..".to_owned(),
        String::new(),
    ] {
        assert!(jwt.check(&changed, now()).is_err(), "{changed}");
    }
    let other = verifier(&Provider::new());
    assert_eq!(other.check(&token, now()), Err(Refused::Invalid));
    assert!(jwt.take(b"{}").is_err() && jwt.take(b"[]").is_err());
    // Keys that the provider took back are not accepted any more.
    jwt.take(br#"{"keys":[]}"#).unwrap();
    assert_eq!(jwt.check(&token, now()), Err(Refused::Invalid));
}
