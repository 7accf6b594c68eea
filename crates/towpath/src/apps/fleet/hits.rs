//! Hits: the requests that tasks ask for.
//!
//! A result is written before its message is acked: after a crash in between the message comes again, and finds the
//! result. A request that was under way at a crash is made again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{StatusCode, header};
use jiff::Timestamp;
use reqwest::Url;
use tokio::sync::Semaphore;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Clock, ConsumerId, Delivery, Error, ErrorKind, Result, retry};
use tracing::{info, warn};
use uuid::Uuid;

use super::task::{Status, Stored, Task, Tasks};
use crate::http::answer::{cause_of, retry_after, shown, unavailable};
use crate::http::guard::Guard;
use crate::inlet::QueueInlet;
use crate::pump::{Destination, Handler, Observer};
use crate::sink::sign;

/// The queue of tasks.
pub const HIT_QUEUE: &str = "fleet.hits";

/// How long a task is hidden from other workers after this one died.
const LEASE: Duration = Duration::from_secs(30);

/// How soon a task is looked at again whose record another worker changed.
const CHANGED: Duration = Duration::from_millis(200);

/// Most redirects that are followed. Source: what HTTP clients do.
const REDIRECTS: usize = 10;

/// Most hosts and URLs whose bounds and states are remembered.
const HOSTS: usize = 10_000;

/// Headers of an answer that are kept, of at most so many characters in all.
const HEADER_CHARACTERS: usize = 8 * 1024;

/// Crashes after which a task counts as their cause.
const CRASHES: u32 = 20;

/// Tries of a callback.
const CALLBACKS: u32 = 5;

/// What a hit may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Hits at once.
    pub concurrency: usize,
    /// Hits at once of one host.
    pub per_host: usize,
    /// Tries of one task.
    pub attempts: u32,
    /// Most bytes of a body that are kept.
    pub body: usize,
    /// How long a hit may take, redirects and body included.
    pub timeout: Duration,
    /// How long a task waits for an unavailable destination before its failures count.
    pub patience: Duration,
}

/// Works on tasks; cheap to clone.
#[derive(Clone)]
pub struct Hits {
    tasks: Tasks,
    guard: Arc<Guard>,
    limits: Limits,
    retry: retry::Policy,
    secrets: Arc<[hmac::Key]>,
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    destinations: Arc<Destinations>,
}

/// The state of everything that tasks go to: of a whole server, called by its origin, and of single URLs.
struct Destinations {
    retry: retry::Policy,
    patience: Duration,
    clock: Arc<dyn Clock>,
    observer: Observer,
    known: Mutex<HashMap<String, Arc<Destination>>>,
}

impl Destinations {
    fn find(&self, name: String) -> Arc<Destination> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= HOSTS {
            known.retain(|_, one| Arc::strong_count(one) > 1);
        }
        let new = || {
            let clock = Arc::clone(&self.clock);
            let (retry, patience) = (self.retry, self.patience);
            let observer = Arc::clone(&self.observer);
            Arc::new(Destination::new(
                name.clone(),
                retry,
                patience,
                clock,
                observer,
            ))
        };
        Arc::clone(known.entry(name.clone()).or_insert_with(new))
    }
}

/// What a server said.
struct Reply {
    status: StatusCode,
    headers: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    is_truncated: bool,
}

impl Hits {
    /// Works on the tasks within these limits; callbacks are signed with each key.
    pub fn new(
        tasks: Tasks,
        guard: Arc<Guard>,
        limits: Limits,
        secrets: Vec<hmac::Key>,
        clock: Arc<dyn Clock>,
        observer: Observer,
    ) -> Self {
        let retry = retry::Policy {
            attempts: limits.attempts,
            ..retry::Policy::default()
        };
        Self {
            tasks,
            guard,
            limits,
            retry,
            secrets: secrets.into(),
            hosts: Arc::default(),
            destinations: Arc::new(Destinations {
                retry,
                patience: limits.patience,
                clock,
                observer,
                known: Mutex::default(),
            }),
        }
    }

    /// Makes the queue, and a consumer's view of it.
    ///
    /// # Errors
    /// `Unavailable` when the store did not answer.
    pub async fn inlet(&self) -> Result<QueueInlet> {
        self.tasks.declare().await?;
        let consumer = ConsumerId::unique("fleet.worker")?;
        let (queue, name) = (
            Arc::clone(&self.tasks.queue),
            self.tasks.queue_name().clone(),
        );
        Ok(QueueInlet::new(queue, name, consumer, LEASE))
    }

    async fn work(&self, delivery: &Delivery) -> Result<Outcome> {
        let id = std::str::from_utf8(&delivery.message.payload).ok();
        let Some(id) = id.and_then(|text| Uuid::parse_str(text).ok()) else {
            let reason = "the message is not a task".to_owned();
            return Ok(Outcome::Reject { reason });
        };
        let Some(stored) = self.tasks.find(id).await? else {
            info!(task = %id, "task record expired; message dropped");
            return Ok(Outcome::Done);
        };
        if stored.task.status.is_final() {
            return Ok(Outcome::Done);
        }
        let parsed = Url::parse(&stored.task.url);
        let (origin, url) = match &parsed {
            Ok(url) => (url.origin().ascii_serialization(), shown(url)),
            Err(_) => (String::new(), stored.task.url.clone()),
        };
        let (origin, url) = (self.destinations.find(origin), self.destinations.find(url));
        let calls = origin.begin().and_then(|origin| Ok((origin, url.begin()?)));
        let calls = match calls {
            Ok(calls) => calls,
            Err(after) => return Ok(deferred(after)),
        };
        // An attempt that a crash cut off does not count.
        let is_cut_off = stored.task.status == Status::Running;
        let running = Task {
            status: Status::Running,
            attempts: stored.task.attempts + u32::from(!is_cut_off),
            ..stored.task.clone()
        };
        if !self.tasks.change(&stored, &running).await? {
            return Ok(deferred(CHANGED));
        }
        let Some(stored) = self.tasks.find(id).await? else {
            return Ok(Outcome::Done);
        };
        if delivery.attempt > self.limits.attempts + CRASHES {
            let error = Error::invalid("the worker stopped each time that it worked on this");
            return self.finish(stored, Err(error), Duration::ZERO).await;
        }
        let _host = self.host(&running.url).await;
        let began = Instant::now();
        let replied = tokio::time::timeout(self.limits.timeout, self.hit(&running.url)).await;
        let replied = replied.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "no complete answer within {:?}",
                self.limits.timeout
            )))
        });
        let said = self.said(&replied);
        let said = match &said {
            // Nothing at this origin can be reached.
            Outcome::Unavailable {
                cause: Cause::Unreachable,
                ..
            } => calls.0.end(delivery, said),
            _ => {
                calls.0.end(delivery, Outcome::Done);
                calls.1.end(delivery, said)
            }
        };
        match said {
            Outcome::Unavailable { .. } => self.wait(stored, said).await,
            _ => self.finish(stored, replied, began.elapsed()).await,
        }
    }

    /// What a reply says of the destination.
    fn said(&self, replied: &Result<Reply>) -> Outcome {
        match replied {
            Ok(reply) => match unavailable(reply.status) {
                Some(cause) => Outcome::Unavailable {
                    cause,
                    after: reply.retry_after,
                    error: format!("the server answered {}", reply.status),
                },
                None => Outcome::Done,
            },
            Err(error) if error.kind() == ErrorKind::Unavailable => Outcome::Unavailable {
                cause: cause_of(error),
                after: None,
                error: error.chain(),
            },
            Err(_) => Outcome::Done,
        }
    }

    /// Has a task wait for its destination; the attempt does not count.
    async fn wait(&self, stored: Stored, outcome: Outcome) -> Result<Outcome> {
        let error = match &outcome {
            Outcome::Unavailable { error, .. } => error.clone(),
            _ => String::new(),
        };
        let task = Task {
            status: Status::Retrying,
            attempts: stored.task.attempts.saturating_sub(1),
            error: Some(error),
            ..stored.task.clone()
        };
        match self.tasks.change(&stored, &task).await? {
            true => Ok(outcome),
            // It was cancelled meanwhile.
            false => Ok(Outcome::Done),
        }
    }

    /// A place among the hits of the URL's host.
    async fn host(&self, url: &str) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let host = reqwest::Url::parse(url).ok()?.host_str()?.to_owned();
        let places = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            if hosts.len() >= HOSTS {
                hosts.retain(|_, places| Arc::strong_count(places) > 1);
            }
            let new = || Arc::new(Semaphore::new(self.limits.per_host));
            Arc::clone(hosts.entry(host).or_insert_with(new))
        };
        places.acquire_owned().await.ok()
    }

    /// Writes down what came of it.
    async fn finish(
        &self,
        stored: Stored,
        replied: Result<Reply>,
        took: Duration,
    ) -> Result<Outcome> {
        let mut task = Task {
            duration_ms: u64::try_from(took.as_millis()).ok(),
            ..stored.task.clone()
        };
        let is_last = task.attempts >= self.limits.attempts;
        let problem = match replied {
            Ok(reply) => {
                let is_busy = reply.status.is_server_error()
                    || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT]
                        .contains(&reply.status);
                let problem =
                    is_busy.then(|| (format!("the server answered {}", reply.status), true));
                keep(&mut task, reply);
                problem
            }
            Err(error) => Some((error.chain(), error.kind() == ErrorKind::Unavailable)),
        };
        let outcome = match problem {
            None => {
                (task.status, task.error) = (Status::Completed, None);
                Outcome::Done
            }
            Some((error, may_help)) if may_help && !is_last => {
                (task.status, task.error) = (Status::Retrying, Some(error.clone()));
                let after = self.retry.next_delay(task.attempts, &mut rand::rng());
                Outcome::Retry {
                    after: Some(after),
                    error,
                }
            }
            Some((error, _)) => {
                (task.status, task.error) = (Status::Failed, Some(error));
                Outcome::Done
            }
        };
        if task.status.is_final() {
            task.finished_at = Some(Timestamp::now());
        }
        if !self.tasks.change(&stored, &task).await? {
            // It was cancelled meanwhile.
            return Ok(Outcome::Done);
        }
        if task.status.is_final()
            && let Some(callback) = task.callback_url.clone()
        {
            self.call_back(&callback, &task).await;
        }
        Ok(outcome)
    }

    /// Asks, follows redirects, and reads as much of the body as is kept.
    async fn hit(&self, url: &str) -> Result<Reply> {
        let mut url = self.guard.check(url)?;
        for _ in 0..=REDIRECTS {
            let mut response = self.guard.get(&url).await?;
            let status = response.status();
            let location = response.headers().get(header::LOCATION);
            if [301, 302, 303, 307, 308].contains(&status.as_u16())
                && let Some(location) = location.and_then(|location| location.to_str().ok())
            {
                let next = url.join(location).map_err(|error| {
                    Error::invalid("the server redirects to what is no URL").with_source(error)
                })?;
                url = self.guard.check(next.as_str())?;
                continue;
            }
            let after = retry_after(response.headers(), &*self.destinations.clock);
            let headers = headers(response.headers());
            let (mut body, mut is_truncated) = (Vec::new(), false);
            let away = |error: reqwest::Error| {
                Error::unavailable("the answer broke off").with_source(error.without_url())
            };
            while let Some(chunk) = response.chunk().await.map_err(away)? {
                let room = self.limits.body - body.len();
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    is_truncated = true;
                    break;
                }
            }
            return Ok(Reply {
                status,
                headers,
                retry_after: after,
                body,
                is_truncated,
            });
        }
        Err(Error::invalid(format!(
            "the server redirects more than {REDIRECTS} times"
        )))
    }

    /// Posts the result, signed as Standard Webhooks says.
    async fn call_back(&self, url: &str, task: &Task) {
        let body = Bytes::from(serde_json::to_vec(task).unwrap_or_default());
        let id = task.task_id.to_string();
        for attempt in 1..=CALLBACKS {
            let outcome = self.post(url, &id, body.clone()).await;
            match outcome {
                Ok(status) if status.is_success() => return,
                Ok(status) => warn!(task = id, %status, attempt, "the callback was refused"),
                Err(error) => {
                    warn!(
                        task = id,
                        error = error.chain(),
                        attempt,
                        "the callback was not taken"
                    );
                    if error.kind() == ErrorKind::Invalid {
                        return;
                    }
                }
            }
            if attempt < CALLBACKS {
                let delay = self.retry.next_delay(attempt, &mut rand::rng());
                tokio::time::sleep(delay).await;
            }
        }
    }

    async fn post(&self, url: &str, id: &str, body: Bytes) -> Result<StatusCode> {
        let url = self.guard.check(url)?;
        let seconds = Timestamp::now().as_second().unsigned_abs();
        let signature = sign(&self.secrets, id, seconds, &body);
        let response = self
            .guard
            .send(&url, |client, url| {
                let mut request = client
                    .post(url)
                    .header("webhook-id", id)
                    .header("webhook-timestamp", seconds)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(body);
                if !self.secrets.is_empty() {
                    request = request.header("webhook-signature", signature);
                }
                request
            })
            .await?;
        Ok(response.status())
    }
}

#[async_trait]
impl Handler for Hits {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.work(delivery).await.unwrap_or_else(Outcome::from)
    }

    fn destination(&self) -> Option<&Destination> {
        None
    }
}

const fn deferred(after: Duration) -> Outcome {
    Outcome::Unavailable {
        cause: Cause::Deferred,
        after: Some(after),
        error: String::new(),
    }
}

fn headers(all: &http::HeaderMap) -> BTreeMap<String, String> {
    let mut room = HEADER_CHARACTERS;
    all.iter()
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .take_while(|(name, value)| {
            let size = name.len() + value.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .collect()
}

/// Keeps an answer: a body that is no text in base64, and of one that was cut off no half character.
fn keep(task: &mut Task, reply: Reply) {
    task.status_code = Some(reply.status.as_u16());
    task.headers = Some(reply.headers);
    task.truncated = reply.is_truncated;
    let (body, encoding) = match String::from_utf8(reply.body) {
        Ok(text) => (text, None),
        Err(error) => {
            let valid = error.utf8_error();
            let mut bytes = error.into_bytes();
            if reply.is_truncated && valid.error_len().is_none() {
                bytes.truncate(valid.valid_up_to());
                (String::from_utf8(bytes).unwrap_or_default(), None)
            } else {
                (STANDARD.encode(bytes), Some("base64".to_owned()))
            }
        }
    };
    (task.body, task.body_encoding) = (Some(body), encoding);
}
