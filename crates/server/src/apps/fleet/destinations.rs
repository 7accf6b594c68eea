//! Destinations of hits and callbacks: servers, and URLs of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Clock, Delivery, retry};

use towpath::net::answer::shown;
use towpath::pump::{Call, Destination, Observer};

/// Most hosts and URLs whose bounds and states are remembered.
pub(super) const HOSTS: usize = 10_000;

/// The state of everything that tasks and their results go to.
pub struct Destinations {
    patience: Duration,
    clock: Arc<dyn Clock>,
    observer: Observer,
    known: Mutex<HashMap<String, Arc<Destination>>>,
}

impl Destinations {
    /// Messages wait for an unavailable destination for `patience` before its failures count.
    pub fn new(patience: Duration, clock: Arc<dyn Clock>, observer: Observer) -> Arc<Self> {
        Arc::new(Self {
            patience,
            clock,
            observer,
            known: Mutex::default(),
        })
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Where a URL leads.
    pub(super) fn of(&self, url: &str) -> Target {
        let (origin, url) = match Url::parse(url) {
            Ok(url) => (url.origin().ascii_serialization(), shown(&url)),
            Err(_) => (String::new(), url.to_owned()),
        };
        Target {
            origin: self.find(origin),
            url: self.find(url),
        }
    }

    fn find(&self, name: String) -> Arc<Destination> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= HOSTS {
            known.retain(|_, one| Arc::strong_count(one) > 1);
        }
        let new = || {
            let (clock, observer) = (Arc::clone(&self.clock), Arc::clone(&self.observer));
            let retry = retry::Policy::default();
            let destination = Destination::new(name.clone(), retry, self.patience, clock, observer);
            Arc::new(destination)
        };
        Arc::clone(known.entry(name.clone()).or_insert_with(new))
    }
}

/// A server, called by its origin, and one of its URLs.
pub(super) struct Target {
    origin: Arc<Destination>,
    url: Arc<Destination>,
}

impl Target {
    /// A request to it, or how long to wait before one.
    pub(super) fn begin(&self) -> Result<Request<'_>, Duration> {
        let origin = self.origin.begin()?;
        let url = self.url.begin()?;
        Ok(Request { origin, url })
    }
}

/// A request that is under way.
pub(super) struct Request<'a> {
    origin: Call<'a>,
    url: Call<'a>,
}

impl Request<'_> {
    /// Records the answer's meaning for the destination, and returns the outcome of the message.
    pub(super) fn end(self, delivery: &Delivery, outcome: Outcome) -> Outcome {
        match &outcome {
            // Nothing at this origin can be reached.
            Outcome::Unavailable {
                cause: Cause::Unreachable,
                ..
            } => self.origin.end(delivery, outcome),
            _ => {
                self.origin.end(delivery, Outcome::Done);
                self.url.end(delivery, outcome)
            }
        }
    }
}

/// Not now, and not the message's fault.
pub(super) const fn deferred(after: Duration) -> Outcome {
    Outcome::Unavailable {
        cause: Cause::Deferred,
        after: Some(after),
        error: String::new(),
    }
}
