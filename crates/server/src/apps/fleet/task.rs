//! Tasks: the record of an HTTP task, from the request to the result.
//!
//! ```text
//! queued -> running -> completed | failed
//!    |        |  ^
//!    |        v  |
//!    |      retrying
//!    +--> cancelled
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "tasks are stored with wall-clock times"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use towpath_core::backend::Backend;
use towpath_core::port::effects::{self, Transaction};
use towpath_core::port::kv::Op;
use towpath_core::port::queue::Settings;
use towpath_core::port::{Effects, Kv, Queue};
use towpath_core::{ConsumerId, Error, NewMessage, QueueName, Result, retry};
use tracing::debug;
use uuid::Uuid;

use super::callbacks::CALLBACK_QUEUE;
use super::task_runner::TASK_QUEUE;
use towpath::consumer::QueueConsumer;
use towpath::traces;

/// Where records are, in front of the task's id. Source: the reference system.
const PREFIX: &str = "worker:hit:result:";

/// Retention of a result. Source: the reference system.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// Retention of a task without a result.
const OPEN: Duration = Duration::from_secs(24 * 60 * 60);

/// Lease duration of a task.
const LEASE: Duration = Duration::from_secs(30);

/// Interval of checks by a waiting request, should another process work on the task.
const LOOK: Duration = Duration::from_millis(200);

/// Status of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// No worker has begun it. The reference worker says `pending`.
    #[serde(alias = "pending")]
    Queued,
    /// Running.
    Running,
    /// It did not work, and is tried again.
    Retrying,
    /// There was an answer.
    Completed,
    /// There was none, or only errors, as often as it is tried.
    Failed,
    /// Cancelled by a client.
    Cancelled,
}

impl Status {
    /// Whether it stays.
    pub(super) const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// The value of a header in an answer: one text, or a list of several lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Header {
    One(String),
    Several(Vec<String>),
}

impl Header {
    /// Adds the value of another line.
    pub(super) fn add(&mut self, value: String) {
        match self {
            Self::One(first) => *self = Self::Several(vec![std::mem::take(first), value]),
            Self::Several(all) => all.push(value),
        }
    }
}

/// The record of a task: the fields of the reference system and more. A record of its worker has only its fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) task_id: Uuid,
    pub(super) status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status_code: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) headers: Option<BTreeMap<String, Header>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) body: Option<String>,
    /// `base64` when the body is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) body_encoding: Option<String>,
    /// There was more of the body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) truncated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) url: String,
    #[serde(default = "get")]
    pub(super) method: String,
    #[serde(default)]
    pub(super) attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) finished_at: Option<Timestamp>,
    /// Duration of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) duration_ms: Option<u64>,
    /// Where the result is posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) callback_url: Option<String>,
}

/// A record and its bytes, by which a change detects a concurrent one.
pub(super) struct Stored {
    pub(super) task: Task,
    bytes: Bytes,
}

/// The tasks of a store.
#[derive(Clone)]
pub struct Tasks {
    kv: Arc<dyn Kv>,
    queue: Arc<dyn Queue>,
    effects: Arc<dyn Effects>,
    hits: QueueName,
    callbacks: QueueName,
    /// A task of this process ended.
    ended: Arc<Notify>,
}

impl Tasks {
    /// The tasks of a backend that changes keys and queues in one step.
    ///
    /// # Errors
    /// `Unsupported` when it does not; `Invalid` never in fact.
    pub fn of(backend: &Backend, role: &str) -> Result<Self> {
        Ok(Self {
            kv: backend.require_kv(role)?,
            queue: backend.require_queue(role)?,
            effects: backend.effects.clone().ok_or_else(|| {
                let name = backend.descriptor.name;
                Error::unsupported(format!(
                    "{role} needs a backend that changes keys and queues in one step, and {name} does not"
                ))
            })?,
            hits: QueueName::new(TASK_QUEUE)?,
            callbacks: QueueName::new(CALLBACK_QUEUE)?,
            ended: Arc::default(),
        })
    }

    /// Makes the queues.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn declare(&self) -> Result<()> {
        // How often a task is tried is the worker's matter.
        let settings = Settings {
            retry: retry::Policy {
                attempts: u32::MAX,
                ..retry::Policy::default()
            },
            ..Settings::default()
        };
        self.queue.declare(&self.hits, &settings).await?;
        self.queue
            .declare(&self.callbacks, &Settings::default())
            .await
    }

    /// Makes the queues, and a consumer's view of the one of this name.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn consumer(&self, queue: &str) -> Result<QueueConsumer> {
        self.declare().await?;
        let (name, consumer) = (QueueName::new(queue)?, ConsumerId::unique("fleet.worker")?);
        let queue = Arc::clone(&self.queue);
        Ok(QueueConsumer::new(queue, name, consumer, LEASE))
    }

    /// Takes a task: its record and its message, in one step, and whether it is new: with a key that came
    /// before it is the task of that time.
    pub(super) async fn start(
        &self,
        url: String,
        callback_url: Option<String>,
        key: Option<&str>,
    ) -> Result<(Task, bool)> {
        let id = key.map_or_else(Uuid::now_v7, id_of);
        let task = new(id, url, callback_url);
        let record = Op::PutIfAbsent {
            key: place(id),
            value: bytes(&task),
            ttl: Some(OPEN),
        };
        match self.enqueue(id, record).await? {
            effects::Outcome::Applied(_) => {
                debug!(task = %task.task_id, "task queued");
                Ok((task, true))
            }
            effects::Outcome::Refused { current, .. } => {
                Ok((read(&current.unwrap_or_default())?, false))
            }
        }
    }

    /// Takes a task that another program accepted, and replaces its record of a failed attempt.
    ///
    /// # Errors
    /// `Unavailable` when the store does not answer.
    pub async fn adopt(&self, id: Uuid, url: String) -> Result<()> {
        let task = new(id, url, None);
        let record = Op::Put {
            key: place(id),
            value: bytes(&task),
            ttl: Some(OPEN),
        };
        self.enqueue(id, record).await.map(drop)
    }

    /// Writes a record and the message of its task, in one step.
    async fn enqueue(&self, id: Uuid, record: Op) -> Result<effects::Outcome> {
        let mut message = NewMessage::new(id.to_string());
        let span = traces::enqueue(&self.hits, &mut message);
        let transaction = Transaction {
            kv: vec![record],
            enqueue: vec![(self.hits.clone(), message)],
            ..Transaction::default()
        };
        let outcome = self.effects.apply(transaction).await;
        traces::settled(span, &outcome);
        outcome
    }

    /// A task.
    pub(super) async fn find(&self, id: Uuid) -> Result<Option<Stored>> {
        let Some(bytes) = self.kv.get(&place(id)).await? else {
            return Ok(None);
        };
        let task = read(&bytes)?;
        Ok(Some(Stored { task, bytes }))
    }

    /// A task once it has ended, or as it is after so long.
    pub(super) async fn wait(&self, id: Uuid, wait: Duration) -> Result<Option<Task>> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let ended = self.ended.notified();
            let found = self.find(id).await?.map(|stored| stored.task);
            let is_open = found.as_ref().is_some_and(|task| !task.status.is_final());
            if !is_open || tokio::time::Instant::now() >= until {
                return Ok(found);
            }
            let look = until.min(tokio::time::Instant::now() + LOOK);
            drop(tokio::time::timeout_at(look, ended).await);
        }
    }

    /// Changes a record, unless it changed since it was read. One that ends brings its callback along in the same step.
    pub(super) async fn change(&self, stored: &Stored, task: &Task) -> Result<bool> {
        let ttl = if task.status.is_final() { KEPT } else { OPEN };
        let swap = Op::CompareAndSwap {
            key: place(task.task_id),
            expected: Some(stored.bytes.clone()),
            value: bytes(task),
            ttl: Some(ttl),
        };
        let is_called_back = task.status.is_final() && task.callback_url.is_some();
        let mut callback = is_called_back.then(|| NewMessage::new(bytes(task)));
        let begin = |message| traces::enqueue(&self.callbacks, message);
        let span = callback.as_mut().and_then(begin);
        let enqueue = callback.map(|message| (self.callbacks.clone(), message));
        let transaction = Transaction {
            kv: vec![swap],
            enqueue: enqueue.into_iter().collect(),
            ..Transaction::default()
        };
        let outcome = self.effects.apply(transaction).await;
        traces::settled(span, &outcome);
        let is_done = matches!(outcome?, effects::Outcome::Applied(_));
        if is_done && task.status.is_final() {
            let (status, code, attempts) = (task.status, task.status_code, task.attempts);
            debug!(task = %task.task_id, ?status, code, attempts, "task ended");
            self.ended.notify_waiters();
        }
        Ok(is_done)
    }

    /// Tasks in the order of their ids behind `after`.
    pub(super) async fn list(&self, after: Option<Uuid>, max: usize) -> Result<Vec<Task>> {
        let after = after.map(place);
        let keys = self.kv.keys(PREFIX, after.as_deref(), max).await?;
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            // One may have ended its time meanwhile, and other programs may write other records.
            if let Some(task) = self.kv.get(&key).await?.and_then(|bytes| read(&bytes).ok()) {
                all.push(task);
            }
        }
        Ok(all)
    }
}

/// A task that nothing was done about yet.
fn new(task_id: Uuid, url: String, callback_url: Option<String>) -> Task {
    Task {
        task_id,
        status: Status::Queued,
        status_code: None,
        headers: None,
        body: None,
        body_encoding: None,
        truncated: false,
        error: None,
        url,
        method: get(),
        attempts: 0,
        created_at: Some(Timestamp::now()),
        finished_at: None,
        duration_ms: None,
        callback_url,
    }
}

fn place(id: Uuid) -> String {
    format!("{PREFIX}{id}")
}

/// The only method so far.
fn get() -> String {
    "GET".to_owned()
}

/// The same id for the same key.
fn id_of(key: &str) -> Uuid {
    let hash = digest(&SHA256, key.as_bytes());
    let start = hash
        .as_ref()
        .first_chunk::<16>()
        .copied()
        .unwrap_or_default();
    uuid::Builder::from_custom_bytes(start).into_uuid()
}

fn bytes(task: &Task) -> Bytes {
    serde_json::to_vec(task).unwrap_or_default().into()
}

fn read(bytes: &[u8]) -> Result<Task> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt("the record of a task cannot be read").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_reference_worker_are_read() {
        let id = "0d9f7dd4-5a3c-4b6b-9a39-5a1a3f1c7d10";
        let completed =
            format!(r#"{{"task_id":"{id}","status":"completed","status_code":500,"body":"oops"}}"#);
        let task = read(completed.as_bytes()).unwrap();
        let (status, code) = (task.status, task.status_code);
        assert_eq!((status, code), (Status::Completed, Some(500)));
        assert_eq!(task.body.as_deref(), Some("oops"));
        let failed = format!(r#"{{"task_id":"{id}","status":"failed","error":"refused"}}"#);
        assert_eq!(read(failed.as_bytes()).unwrap().status, Status::Failed);
        let pending = format!(r#"{{"task_id":"{id}","status":"pending"}}"#);
        assert_eq!(read(pending.as_bytes()).unwrap().status, Status::Queued);
        assert!(read(b"x").is_err());
    }
}
