//! Callers: an operator with a key of the fleet or of the key file, or an agent with its own.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hmac, rand};
use axum::extract::FromRequestParts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use towpath_core::port::Fleet;
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::controller::Controller;
use super::envelope::Failure;
use crate::auth::Actor;
use crate::token::{Token, bearer};

/// The header of the reference system.
pub(super) const API_KEY: &str = "x-api-key";

/// The key that is publicly known. Source: the reference system.
pub const DEFAULT_KEY: &str = "default-api-key";

/// The file in the data folder with the generated key.
pub const KEY_FILE: &str = "fleet.key";

/// The key of this data folder, made when there is none, and whether it was made now.
///
/// # Errors
/// `Unavailable` when the file cannot be read or made.
pub fn kept_key(folder: &Path) -> Result<(Token, bool)> {
    let is_new = !folder.join(KEY_FILE).exists();
    Ok((Token::kept_in(folder, KEY_FILE)?, is_new))
}

/// Purpose of the key that is derived from a key of operators for the agents.
const WORKER_KEY: &[u8] = b"towpath fleet worker key 1";

/// The keys of operators: one, or two while one takes the place of the other.
#[derive(Clone)]
pub struct Keys {
    operators: Arc<[Token]>,
    /// The key that agents send to workers, for each of them.
    workers: Arc<[Token]>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    /// A client with a key of the fleet, named by a prefix of the key's digest, or of the key file, named by its id.
    Operator(String),
    /// An agent with the key that it got.
    Agent(Uuid),
}

impl Keys {
    /// These keys.
    pub fn new(keys: Vec<Token>) -> Self {
        Self {
            workers: keys.iter().map(worker_key).collect(),
            operators: keys.into(),
        }
    }

    /// The first one, which this process itself uses.
    pub fn first(&self) -> Option<&Token> {
        self.operators.first()
    }

    /// The key that agents send to workers. A worker that reads it can configure other workers, and cannot publish.
    pub fn for_workers(&self) -> Option<&Token> {
        self.workers.first()
    }

    /// Whether the request has the key that agents send to workers.
    pub(super) fn is_of_agent(&self, head: &Parts) -> bool {
        let Ok(given) = given(&head.headers) else {
            return false;
        };
        self.workers.iter().filter(|key| key.matches(given)).count() > 0
    }

    /// Whether the request has one of them, or a key of the key file whose scope permits the route.
    pub(super) fn check(&self, head: &Parts) -> Result<String, Failure> {
        // The listener compared it with the scope of the route.
        match head.extensions.get::<Actor>() {
            None | Some(Actor::Anonymous) => {}
            Some(actor) => return Ok(actor.to_string()),
        }
        let given = given(&head.headers)?;
        // Every key is compared, so that the time says nothing about which one it is.
        let matching = self
            .operators
            .iter()
            .filter(|key| key.matches(given))
            .count();
        if matching == 0 {
            return Err(refused());
        }
        Ok(format!("key:{}", &fingerprint(given)[..8]))
    }

    /// Who asks.
    pub(super) async fn caller(&self, head: &Parts, store: &dyn Fleet) -> Result<Caller, Failure> {
        match self.check(head) {
            Ok(operator) => Ok(Caller::Operator(operator)),
            Err(refusal) => {
                let given = given(&head.headers)?;
                match store.agent_of(&fingerprint(given)).await? {
                    Some(agent) => Ok(Caller::Agent(agent)),
                    None => Err(refusal),
                }
            }
        }
    }
}

impl Caller {
    /// The operator's name; agents may not do this.
    pub(super) fn operator(self) -> Result<String, Failure> {
        match self {
            Self::Operator(name) => Ok(name),
            Self::Agent(_) => Err(Failure::new(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                "the key of an agent only reads configuration and reports on it",
            )),
        }
    }
}

// Handlers take the caller as an argument before the body, so a request without a key is refused by its head.
impl FromRequestParts<Controller> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        controller: &Controller,
    ) -> std::result::Result<Self, Failure> {
        controller.caller(parts).await
    }
}

/// The name of the operator that sent a request; the keys of agents are refused.
pub(super) struct Operator(pub(super) String);

impl FromRequestParts<Controller> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        controller: &Controller,
    ) -> std::result::Result<Self, Failure> {
        let caller = controller.caller(parts).await?;
        caller.operator().map(Self)
    }
}

/// Shows that a request has a key of the fleet.
pub(super) struct FleetKey;

impl FromRequestParts<Controller> for FleetKey {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        controller: &Controller,
    ) -> std::result::Result<Self, Failure> {
        controller.keys().check(parts).map(|_| Self)
    }
}

/// The key for workers that belongs to a key of operators; nothing leads back.
fn worker_key(operator: &Token) -> Token {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, operator.expose().as_bytes());
    let derived = hmac::sign(&secret, WORKER_KEY);
    Token::new(&format!("tpw_{}", URL_SAFE_NO_PAD.encode(derived.as_ref())))
}

/// A new key for an agent.
pub(super) fn new_agent_key() -> Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| Error::unavailable("the system has no random numbers"))?;
    Ok(format!("tpa_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// The stored digest of a key.
pub(super) fn fingerprint(key: &str) -> String {
    hex::encode(digest(&SHA256, key.as_bytes()))
}

fn given(headers: &HeaderMap) -> Result<&str, Failure> {
    let own = headers.get(API_KEY).and_then(|value| value.to_str().ok());
    own.or_else(|| bearer(headers))
        .filter(|key| !key.is_empty())
        .ok_or_else(|| Failure::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "missing API key"))
}

fn refused() -> Failure {
    Failure::new(StatusCode::FORBIDDEN, "FORBIDDEN", "invalid API key")
}
