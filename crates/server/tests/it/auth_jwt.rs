//! Tokens of an identity provider whose keys change.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::process::{World, wait_until};
use crate::web::{Reply, serve};

/// A token with an unknown key makes a process read the keys again within ten seconds.
const ROTATED: Duration = Duration::from_secs(20);

const ISSUER: &str = "https://id.example/";

/// A key of the provider.
struct Signer {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        Self { id, pair }
    }

    fn public(&self) -> Value {
        let point = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.id, "x": point })
    }

    fn issue(&self, changed: &Value) -> String {
        self.issue_as(&json!({ "alg": "EdDSA", "kid": self.id }), changed)
    }

    /// A token with this header, and with these claims instead of valid ones.
    fn issue_as(&self, header: &Value, changed: &Value) -> String {
        let signed = unsigned(header, changed);
        let signature = self.pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// Header and claims of a token.
fn unsigned(header: &Value, changed: &Value) -> String {
    let mut claims = json!({
        "iss": ISSUER, "aud": ["other", "towpath"], "sub": "shop",
        "roles": ["openid", "ingest:write"],
        "exp": jiff::Timestamp::now().as_second() + 600,
    });
    for (name, value) in changed.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    let parts = [header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    parts.join(".")
}

#[test]
fn rotated_keys_of_the_provider_are_read_again() {
    let (first, second) = (Signer::new("first"), Signer::new("second"));
    let published = Arc::new(Mutex::new(json!({ "keys": [first.public()] })));
    let reads = Arc::new(Mutex::new(0_u32));
    let (shown, counted) = (Arc::clone(&published), Arc::clone(&reads));
    let provider = serve(move |_| {
        *counted.lock().unwrap() += 1;
        let shown = shown.lock().unwrap();
        match shown.is_null() {
            true => Reply::text(503, "unavailable"),
            false => Reply::text(200, &shown.to_string()),
        }
    });
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__AUTH", "on")
        .set("TOWPATH_SERVER__JWT__JWKS", format!("http://{provider}/"))
        .set("TOWPATH_SERVER__JWT__ISSUER", ISSUER)
        .set("TOWPATH_SERVER__JWT__AUDIENCE", "towpath")
        .set("TOWPATH_SERVER__JWT__SCOPE_CLAIM", "roles");
    let _running = world.up();
    let enqueue = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        world.client().post("/enqueue", &headers, b"hello").status
    };
    let valid = first.issue(&json!({}));
    wait_until("the keys", ROTATED, || enqueue(&valid) == 200);
    let now = jiff::Timestamp::now().as_second();
    for (changed, expected) in [
        (json!({ "iss": "https://other.example/" }), 401),
        (json!({ "iss": null }), 401),
        (json!({ "aud": "other" }), 401),
        (json!({ "aud": [] }), 401),
        (json!({ "exp": now - 60 }), 401),
        (json!({ "exp": null }), 401),
        (json!({ "nbf": now + 600 }), 401),
        (json!({ "roles": "ingest:write orders:write" }), 200),
        (json!({ "roles": ["orders:write"] }), 403),
        (json!({ "roles": null, "scope": "ingest:write" }), 403),
    ] {
        assert_eq!(enqueue(&first.issue(&changed)), expected, "{changed}");
    }
    let none = unsigned(&json!({ "alg": "none" }), &json!({}));
    let symmetric = unsigned(&json!({ "alg": "HS256", "kid": "first" }), &json!({}));
    let public = hmac::Key::new(hmac::HMAC_SHA256, first.pair.public_key().as_ref());
    let tag = hmac::sign(&public, symmetric.as_bytes());
    for forged in [
        format!("{none}."),
        format!("{symmetric}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref())),
        first.issue_as(&json!({ "alg": "ES256", "kid": "first" }), &json!({})),
        second.issue_as(&json!({ "alg": "EdDSA", "kid": "first" }), &json!({})),
        valid.replacen('.', "A.", 1),
    ] {
        assert_eq!(enqueue(&forged), 401, "{forged}");
    }

    // The provider is unavailable: its keys stay in use, and unknown ones cause few reads.
    *published.lock().unwrap() = Value::Null;
    let before = *reads.lock().unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(enqueue(&second.issue(&json!({}))), 401);
    }
    assert_eq!(enqueue(&valid), 200);
    let caused = *reads.lock().unwrap() - before;
    assert!(caused <= 1, "{caused} reads in a second");

    // A new key is found by its first token, and the old one is refused.
    *published.lock().unwrap() = json!({ "keys": [second.public()] });
    let rotated = second.issue(&json!({}));
    wait_until("the new key", ROTATED, || enqueue(&rotated) == 200);
    assert_eq!(enqueue(&valid), 401);
}
