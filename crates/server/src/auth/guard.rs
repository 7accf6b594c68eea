//! Authenticates and authorises requests by their heads.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use towpath_core::Clock;
use tracing::{info, warn};

use super::file::KeyFile;
use super::jwt::{Jwt, Refused};
use super::key::{self, Denied};
use super::routes::{Access, Table};
use super::scope::{Needed, Scope};
use super::session::{self, Identity, Sessions};
use super::trail::{Record, Trail};
use crate::http::error::Problem;
use crate::http::{ClientCertificate, Peer, Sites, decoded};
use crate::token::{Token, bearer};

/// The header that the reference systems' clients send a key in.
const API_KEY: &str = "x-api-key";

/// Duration of the answer to a wrong credential at a sign-in.
const WRONG: Duration = Duration::from_secs(1);

/// Refusals are logged at most this often; the next line says how many there were.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// `server.auth`: which routes need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Routes of the reference systems are open, those of Towpath need a key from anywhere but this machine.
    Auto,
    /// Every route but probes needs a key.
    On,
    /// Only the admin API and the fleet need one.
    Off,
}

/// The sender of a request; an extension of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A client without a key.
    Anonymous,
    /// A client with the key that has this id.
    Key(String),
    /// A client with the token of the data folder.
    Token,
    /// A client with a token of the identity provider, by its subject.
    Subject(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Token => f.write_str("token"),
            Self::Subject(name) => write!(f, "jwt:{name}"),
        }
    }
}

/// Checks keys for every listener of a process; cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    mode: Mode,
    keys: KeyFile,
    token: Token,
    jwt: Option<Jwt>,
    sites: Sites,
    clock: Arc<dyn Clock>,
    trail: Trail,
    refusals: Mutex<Refusals>,
    sessions: Sessions,
}

#[derive(Default)]
struct Refusals {
    logged: Option<Instant>,
    unlogged: u64,
}

/// A request that changes something, for the audit log and trail.
pub struct Change {
    trail: Trail,
    actor: Actor,
    client: Option<String>,
    action: String,
    object: String,
    parameters: Option<String>,
    request_id: String,
}

impl Change {
    /// The action of a request in the audit log; `None` for those that it does not record.
    pub fn of(
        guard: &Guard,
        table: &Table,
        route: &str,
        head: &Parts,
        (actor, request_id): (&Actor, &str),
    ) -> Option<Self> {
        let access = table.find(&head.method, route)?;
        access.is_audited(&head.method).then(|| Self {
            trail: guard.0.trail.clone(),
            request_id: request_id.to_owned(),
            actor: actor.clone(),
            client: client(head),
            action: format!("{} {route}", head.method),
            object: head.uri.path().to_owned(),
            parameters: head.uri.query().map(str::to_owned),
        })
    }

    /// Records it with the status of its answer.
    pub fn record(self, status: StatusCode) {
        info!(
            target: "audit",
            actor = %self.actor,
            client = self.client,
            action = self.action,
            object = self.object,
            parameters = self.parameters,
            status = status.as_u16(),
            "change"
        );
        self.trail.take(Record {
            actor: Some(self.actor.to_string()),
            client: self.client,
            action: Some(self.action),
            object: Some(self.object),
            parameters: self.parameters,
            status: Some(status.as_u16()),
            request_id: Some(self.request_id),
            ..Record::now("change")
        });
    }
}

/// A credential of a sign-in.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A code, valid once.
    Code(&'a str),
    /// A key, or the token of the data folder.
    Key(&'a str),
}

/// A browser that signed in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// As the audit log has it.
    pub actor: String,
    /// The name of its key.
    pub name: Option<String>,
    /// Its scopes.
    pub scopes: Vec<String>,
}

/// Why a credential is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// None was sent.
    Missing,
    /// It is not one of ours.
    Unknown,
    Denied(Denied),
}

impl Guard {
    /// Accepts the keys of this file, and the token of the data folder for everything.
    pub fn new(
        mode: Mode,
        (keys, token, jwt): (KeyFile, Token, Option<Jwt>),
        sites: Sites,
        clock: Arc<dyn Clock>,
        trail: Trail,
    ) -> Self {
        let refusals = Mutex::default();
        let sessions = Sessions::new(&token);
        Self(Arc::new(Inner {
            sessions,
            mode,
            keys,
            token,
            jwt,
            sites,
            clock,
            trail,
            refusals,
        }))
    }

    /// The sender of the request, if it may use the route.
    ///
    /// # Errors
    /// The problem is 401 without a valid credential, 403 without the scope, and 405 for a method that
    /// the table does not list.
    pub fn check(&self, table: &Table, route: &str, head: &Parts) -> Result<Actor, Problem> {
        let Some(access) = table.find(&head.method, route) else {
            // Apps whose contract has a text of its own for this answer it themselves.
            let reason = "method not allowed";
            return match table.is_contract(route) {
                true => Ok(Actor::Anonymous),
                false => Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, reason)),
            };
        };
        let Some(needed) = access.needed() else {
            return Ok(Actor::Anonymous);
        };
        let name = name_of(route, head.uri.path());
        let refusal = match self.caller(head, needed, name.as_deref()) {
            Ok(actor) => return Ok(actor),
            Err(refusal) => refusal,
        };
        // A wrong key is refused; a credential of another system counts as none.
        let is_ours = matches!(refusal, Refusal::Denied(_));
        let is_open = match (access, self.0.mode) {
            (Access::App(_), _) => true,
            (Access::Contract(_), Mode::Auto | Mode::Off) | (Access::Own(_), Mode::Off) => true,
            (Access::Own(_), Mode::Auto) => self.0.sites.is_local(head),
            _ => false,
        };
        if is_open && !is_ours {
            return Ok(Actor::Anonymous);
        }
        self.log(refusal, route, head);
        Err(problem(refusal, needed))
    }

    /// Why clients of other machines use a listener at this address without a key; `None` when they need one.
    pub fn exposure(&self, table: &Table, address: &str) -> Option<String> {
        let (mode, open) = match self.0.mode {
            Mode::On => return None,
            Mode::Auto => (
                "auto",
                table.count(|access| matches!(access, Access::Contract(_))),
            ),
            Mode::Off => {
                let is_open =
                    |access: Access| matches!(access, Access::Contract(_) | Access::Own(_));
                ("off", table.count(is_open))
            }
        };
        let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        let is_local = address.starts_with("localhost:") || address.parse().is_ok_and(is_loopback);
        (!is_local && open > 0).then(|| {
            format!("`server.auth` is `{mode}`: {open} routes need no key from clients of other machines")
        })
    }

    fn caller(&self, head: &Parts, needed: Needed, name: Option<&str>) -> Result<Actor, Refusal> {
        let headers = &head.headers;
        let own = headers.get(API_KEY).and_then(|value| value.to_str().ok());
        let mut refusal = Refusal::Missing;
        for text in bearer(headers).into_iter().chain(own) {
            let Some((id, secret)) = key::parse(text) else {
                if self.0.token.matches(text) {
                    return Ok(Actor::Token);
                }
                match self.subject(text, needed, name) {
                    Ok(None) => {
                        refusal = Refusal::Unknown;
                        continue;
                    }
                    Ok(Some(actor)) => return Ok(actor),
                    Err(denied) => return Err(Refusal::Denied(denied)),
                }
            };
            let now = self.0.clock.now();
            let checked = self.0.keys.with(id, |key| match key {
                Some(key) => key.check(secret, needed, name, now),
                None => Err(Denied::Wrong),
            });
            return match checked {
                Ok(()) => Ok(Actor::Key(id.to_owned())),
                Err(denied) => Err(Refusal::Denied(denied)),
            };
        }
        let checked = match (self.signed_in(head), refusal) {
            (Some(identity), Refusal::Missing) => Some(self.permits(&identity, needed, name)),
            _ => self.certified(head, needed, name),
        };
        match checked {
            None => Err(refusal),
            Some(checked) => checked.map_err(Refusal::Denied),
        }
    }

    /// The key of the client's certificate; `None` without one.
    fn certified(
        &self,
        head: &Parts,
        needed: Needed,
        name: Option<&str>,
    ) -> Option<Result<Actor, Denied>> {
        let certificate = head.extensions.get::<ClientCertificate>()?;
        // Browsers show it without asking, whichever page causes the request.
        self.0.sites.check_page(head).ok()?;
        let now = self.0.clock.now();
        self.0.keys.with_certificate(certificate.names(), |key| {
            let key = key?;
            let actor = || Actor::Key(key.id.clone());
            Some(key.permits(needed, name, now).map(|()| actor()))
        })
    }

    /// Whether a browser that signed in may do this.
    fn permits(
        &self,
        identity: &Identity,
        needed: Needed,
        name: Option<&str>,
    ) -> Result<Actor, Denied> {
        let Identity::Key(id, digest) = identity else {
            return Ok(Actor::Token);
        };
        let now = self.0.clock.now();
        self.0.keys.with(id, |key| {
            let key = key.filter(|key| key.accepts(digest, now));
            let key = key.ok_or(Denied::Wrong)?;
            key.permits(needed, name, now)?;
            Ok(Actor::Key(id.clone()))
        })
    }

    /// The sign-in of the browser whose own page sends this.
    fn signed_in(&self, head: &Parts) -> Option<Identity> {
        let cookie = session::cookie(head)?;
        let identity = self.0.sessions.open(cookie, self.0.clock.now())?;
        self.0.sites.is_of_own_page(head).then_some(identity)
    }

    /// The user of this browser, with the scopes.
    pub fn session(&self, head: &Parts) -> Option<SignedIn> {
        let identity = self.signed_in(head)?;
        self.describe(&identity)
    }

    fn describe(&self, identity: &Identity) -> Option<SignedIn> {
        let now = self.0.clock.now();
        match identity {
            Identity::Token => Some(SignedIn {
                actor: Actor::Token.to_string(),
                name: None,
                scopes: vec![Scope::admin().to_string()],
            }),
            Identity::Key(id, digest) => self.0.keys.with(id, |key| {
                let key = key?;
                let is_valid = key.accepts(digest, now);
                is_valid.then(|| SignedIn {
                    actor: Actor::Key(id.clone()).to_string(),
                    name: Some(key.name.clone()),
                    scopes: key.scopes.iter().map(ToString::to_string).collect(),
                })
            }),
        }
    }

    /// Whether pages of this listener may send the request: no credential but the cookie, and the page's own origin.
    pub fn is_of_own_page(&self, head: &Parts) -> bool {
        let others = [header::AUTHORIZATION.as_str(), API_KEY];
        let has_other = others.iter().any(|name| head.headers.contains_key(*name));
        !has_other && self.0.sites.is_of_own_page(head)
    }

    /// A code that signs a browser in once, with the credential of this client.
    ///
    /// # Errors
    /// The problem is 400 for a client with another credential than the token or a key.
    pub fn code(&self, actor: &Actor) -> Result<String, Problem> {
        let refused = || {
            let reason = "a code needs the token of the data folder or the secret of a key";
            Problem::new(StatusCode::BAD_REQUEST, reason)
        };
        let identity = match actor {
            Actor::Token => Identity::Token,
            Actor::Key(id) => {
                let digest = self.0.keys.with(id, |key| {
                    let digest = key?.newest_digest()?;
                    Some(digest.to_owned())
                });
                Identity::Key(id.clone(), digest.ok_or_else(refused)?)
            }
            Actor::Anonymous | Actor::Subject(_) => return Err(refused()),
        };
        self.0.sessions.code(identity).map_err(Problem::by_kind)
    }

    /// Signs a browser in with a code, a key or the token: the cookie to set.
    ///
    /// # Errors
    /// The problem is 401 for a credential that is not accepted, after a second, and 429 after ten of them in a minute.
    pub async fn sign_in(
        &self,
        head: &Parts,
        credential: Credential<'_>,
    ) -> Result<(Option<HeaderValue>, SignedIn), Problem> {
        let address = head.extensions.get::<Peer>();
        let address = address.map(|Peer(peer)| peer.ip().to_canonical());
        let sessions = &self.0.sessions;
        if address.is_some_and(|address| !sessions.may_try(address)) {
            let reason = "too many failed sign-ins; try again in a minute";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, reason).retry_after(60));
        }
        let now = self.0.clock.now();
        let identity = match credential {
            Credential::Code(code) => sessions.redeem(code),
            Credential::Key(text) => match key::parse(text) {
                None => self.0.token.matches(text).then_some(Identity::Token),
                Some((id, secret)) => self.0.keys.with(id, |key| {
                    let digest = key?.digest(secret, now).ok()?;
                    Some(Identity::Key(id.to_owned(), digest.to_owned()))
                }),
            },
        };
        let found = identity.and_then(|identity| Some((self.describe(&identity)?, identity)));
        let Some((signed_in, identity)) = found else {
            if let Some(address) = address {
                sessions.failed(address);
            }
            let refusal = Refusal::Denied(Denied::Wrong);
            self.log(refusal, "/v1/session", head);
            tokio::time::sleep(WRONG).await;
            let reason = match credential {
                Credential::Code(_) => {
                    "the link was used or is too old; `towpath dashboard` makes a new one"
                }
                Credential::Key(_) => {
                    "unknown key; enter the token of the data folder, or a key of `towpath key new`"
                }
            };
            return Err(Problem::new(StatusCode::UNAUTHORIZED, reason));
        };
        let cookie = sessions.seal(&identity, now).map_err(Problem::by_kind)?;
        self.0.trail.take(Record {
            actor: Some(signed_in.actor.clone()),
            client: client(head),
            action: Some("POST /v1/session".to_owned()),
            ..Record::now("sign-in")
        });
        info!(target: "audit", actor = signed_in.actor, client = client(head), "sign-in");
        Ok((session::set_cookie(head, Some(&cookie)), signed_in))
    }

    /// The header that ends the sign-in of a browser.
    pub fn sign_out(head: &Parts) -> Option<HeaderValue> {
        session::set_cookie(head, None)
    }

    /// The client that a token of the identity provider names; `None` for a text that is not such a token.
    fn subject(
        &self,
        text: &str,
        needed: Needed,
        name: Option<&str>,
    ) -> Result<Option<Actor>, Denied> {
        let Some(jwt) = &self.0.jwt else {
            return Ok(None);
        };
        match jwt.check(text, self.0.clock.now()) {
            Ok(subject)
                if subject
                    .scopes
                    .iter()
                    .any(|scope| scope.covers(needed, name)) =>
            {
                Ok(Some(Actor::Subject(subject.name)))
            }
            Ok(_) => Err(Denied::Scope),
            Err(Refused::Foreign) => Ok(None),
            Err(Refused::Expired) => Err(Denied::Expired),
            Err(Refused::Invalid) => Err(Denied::Wrong),
        }
    }

    /// One line a second at most, so that a client that guesses keys does not fill the log.
    fn log(&self, refusal: Refusal, route: &str, head: &Parts) {
        let mut refusals = self
            .0
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_due = refusals
            .logged
            .is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if !is_due {
            refusals.unlogged += 1;
            return;
        }
        let unlogged = std::mem::take(&mut refusals.unlogged);
        refusals.logged = Some(Instant::now());
        drop(refusals);
        let client = client(head);
        let reason = match refusal {
            Refusal::Missing => "no credential",
            Refusal::Unknown | Refusal::Denied(Denied::Wrong) => "unknown credential",
            Refusal::Denied(Denied::Expired) => "expired key",
            Refusal::Denied(Denied::Scope) => "missing scope",
        };
        warn!(
            target: "audit",
            client,
            method = %head.method,
            route,
            reason,
            unlogged,
            "authentication failed"
        );
        self.0.trail.take(Record {
            client,
            action: Some(format!("{} {route}", head.method)),
            object: Some(head.uri.path().to_owned()),
            reason: Some(reason.to_owned()),
            unlogged: (unlogged > 0).then_some(unlogged),
            ..Record::now("authentication failed")
        });
    }
}

fn client(head: &Parts) -> Option<String> {
    let Peer(peer) = head.extensions.get::<Peer>()?;
    Some(peer.ip().to_canonical().to_string())
}

fn problem(refusal: Refusal, needed: Needed) -> Problem {
    let how = "send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
    match refusal {
        Refusal::Denied(Denied::Scope) => Problem::new(
            StatusCode::FORBIDDEN,
            format!("the key or token lacks the scope `{needed}`"),
        ),
        Refusal::Denied(Denied::Expired) => Problem::new(
            StatusCode::UNAUTHORIZED,
            "the key or token expired; rotate the key with `towpath key rotate`, or request a new token",
        ),
        Refusal::Missing => Problem::new(
            StatusCode::UNAUTHORIZED,
            format!("this route needs a key with the scope `{needed}`; {how}"),
        ),
        Refusal::Unknown | Refusal::Denied(Denied::Wrong) => {
            Problem::new(StatusCode::UNAUTHORIZED, format!("unknown key; {how}"))
        }
    }
}

/// The name of the request's resource, when scopes of that resource have names: `{queue}` of the route.
fn name_of(route: &str, path: &str) -> Option<String> {
    let at = route.split('/').position(|segment| segment == "{queue}")?;
    decoded(path.split('/').nth(at)?)
}

#[cfg(test)]
mod tests;
