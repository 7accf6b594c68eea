//! Keys of the identity provider and of the audit trail.

use super::Kind;
use super::key::{Key, key};

pub(super) const KEYS: &[Key] = &[
    key(
        "server.jwt.jwks",
        Kind::WebUrl,
        None,
        &[],
        "URL of the identity provider's public keys (JWKS), read every five minutes. JWTs of `server.jwt.issuer` are then accepted like API keys. `http://` only for this machine.",
    ),
    key(
        "server.jwt.issuer",
        Kind::Text,
        None,
        &[],
        "Issuer of accepted JWTs: their `iss`.",
    ),
    key(
        "server.jwt.audience",
        Kind::Text,
        None,
        &[],
        "Audience of accepted JWTs: one of their `aud`.",
    ),
    key(
        "server.jwt.scope_claim",
        Kind::Text,
        Some("scope"),
        &[],
        "Claim with the scopes of a JWT: a text with spaces between them, or a list.",
    ),
    key(
        "server.audit.keep",
        Kind::Integer(100, 100_000_000),
        Some("100000"),
        &[],
        "Records that the stream `towpath.audit` keeps; older ones are deleted.",
    ),
];
