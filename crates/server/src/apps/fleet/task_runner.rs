//! Sends the HTTP requests of tasks.
//!
//! A result is written before its message is acked: after a crash in between the message is delivered again, and finds the
//! result. A request that was under way at a crash is made again.

#![expect(
    clippy::disallowed_methods,
    reason = "tasks are stored with wall-clock times"
)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, ErrorKind, Result, retry};
use tracing::info;
use uuid::Uuid;

use super::destinations::{Destinations, HOSTS, deferred};
use super::task::{Header, Status, Stored, Task, Tasks};
use towpath::net::answer::{retry_after, unavailable};
use towpath::net::egress::EgressPolicy;
use towpath::pump::{Destination, Handler};
use towpath::sink::unanswered;

/// The queue of tasks.
pub const TASK_QUEUE: &str = "fleet.hits";

/// Delay of a task whose record another worker changed.
const CHANGED: Duration = Duration::from_millis(200);

/// Most redirects that are followed. Source: defaults of HTTP clients.
const REDIRECTS: usize = 10;

/// Headers of an answer that are kept, of at most this many characters in all.
const HEADER_CHARACTERS: usize = 8 * 1024;

/// The longest `Retry-After` that is obeyed, well below the time that an open task is known for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Crashes after which a task counts as their cause.
const CRASHES: u32 = 20;

/// Bounds of a task's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum concurrent requests.
    pub concurrency: usize,
    /// Maximum concurrent requests to one host.
    pub per_host: usize,
    /// Tries of one task.
    pub attempts: u32,
    /// Most bytes of a body that are kept.
    pub body: usize,
    /// Timeout of a task's request, redirects and body included.
    pub timeout: Duration,
    /// Time that a task waits for an unavailable destination before failures are charged.
    pub patience: Duration,
}

/// Works on tasks.
pub struct TaskRunner {
    tasks: Tasks,
    egress: Arc<EgressPolicy>,
    limits: Limits,
    retry: retry::Policy,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    destinations: Arc<Destinations>,
}

/// A server's answer.
struct Reply {
    status: StatusCode,
    headers: BTreeMap<String, Header>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    is_truncated: bool,
}

impl TaskRunner {
    /// Works on the tasks within these limits.
    pub fn new(
        tasks: Tasks,
        egress: Arc<EgressPolicy>,
        limits: Limits,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            tasks,
            egress,
            limits,
            retry: retry::Policy {
                attempts: limits.attempts,
                ..retry::Policy::default()
            },
            hosts: Mutex::default(),
            destinations,
        }
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
        let to = self.destinations.of(&stored.task.url);
        let call = match to.begin() {
            Ok(call) => call,
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
        // It may have been cancelled since it was noted as running.
        if stored.task.status.is_final() {
            return Ok(Outcome::Done);
        }
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
        match call.end(delivery, outcome_of(&replied)) {
            said @ Outcome::Unavailable { .. } => self.wait(stored, said).await,
            _ => self.finish(stored, replied, began.elapsed()).await,
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

    /// A slot among the requests to the URL's host.
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

    /// Stores the result.
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
        let asked_pause = match &replied {
            Ok(reply) => reply.retry_after.unwrap_or_default().min(LONGEST_PAUSE),
            Err(_) => Duration::ZERO,
        };
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
                    after: Some(after.max(asked_pause)),
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
        match self.tasks.change(&stored, &task).await? {
            true => Ok(outcome),
            // It was cancelled meanwhile.
            false => Ok(Outcome::Done),
        }
    }

    /// Asks, follows redirects, and reads as much of the body as is kept.
    async fn hit(&self, url: &str) -> Result<Reply> {
        let mut url = self.egress.check(url)?;
        for _ in 0..=REDIRECTS {
            let mut response = self.egress.get(&url).await?;
            let status = response.status();
            let location = response.headers().get(header::LOCATION);
            if [301, 302, 303, 307, 308].contains(&status.as_u16())
                && let Some(location) = location.and_then(|location| location.to_str().ok())
            {
                let next = url.join(location).map_err(|error| {
                    Error::invalid("the server redirects to an invalid URL").with_source(error)
                })?;
                url = self.egress.check(next.as_str())?;
                continue;
            }
            let after = retry_after(response.headers(), self.destinations.clock());
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
}

#[async_trait]
impl Handler for TaskRunner {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.work(delivery).await.unwrap_or_else(Outcome::from)
    }

    fn destination(&self) -> Option<&Destination> {
        None
    }
}

/// The meaning of a reply for the destination.
fn outcome_of(replied: &Result<Reply>) -> Outcome {
    match replied {
        Ok(reply) => match unavailable(reply.status) {
            Some(cause) => Outcome::Unavailable {
                cause,
                after: reply.retry_after,
                error: format!("the server answered {}", reply.status),
            },
            None => Outcome::Done,
        },
        Err(error) if error.kind() == ErrorKind::Unavailable => unanswered(error),
        Err(_) => Outcome::Done,
    }
}

/// The headers of an answer, every line of each.
fn headers(all: &http::HeaderMap) -> BTreeMap<String, Header> {
    let mut room = HEADER_CHARACTERS;
    let mut kept = BTreeMap::new();
    for (name, value) in all {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let Some(left) = room.checked_sub(name.as_str().len() + value.len()) else {
            break;
        };
        room = left;
        match kept.entry(name.to_string()) {
            Entry::Vacant(vacant) => drop(vacant.insert(Header::One(value))),
            Entry::Occupied(mut known) => known.get_mut().add(value),
        }
    }
    kept
}

/// Keeps an answer: a body that is not text in base64, and of one that was cut off no half character.
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
