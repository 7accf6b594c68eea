//! Publishing of concurrent callers, combined.
//!
//! A call on a channel of its own costs the broker a confirm and the client a wake-up for each message. Calls that
//! arrive while `AT_ONCE` others are underway wait for one of these, and then go together on one channel, whose
//! confirms the broker combines. A caller that is alone waits for nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use towpath_core::Error;

use super::publisher::{Publish, PublishError, PublishResult, Publisher};
use super::store::lock;

/// Calls to the broker underway for one exchange.
const AT_ONCE: usize = 4;

/// Messages and bytes after which a call is not combined with more.
const MESSAGES: usize = 256;
const BYTES: usize = 4 << 20;

/// Combines small calls.
pub(super) struct Combined {
    publisher: Arc<Publisher>,
    /// By exchange: one that is missing ends the channel, and fails all that is on it.
    pending: Arc<Pending>,
}

type Pending = Mutex<HashMap<String, PendingPublishes>>;

#[derive(Default)]
struct PendingPublishes {
    waiting: VecDeque<Call>,
    underway: usize,
}

/// What one caller sends.
struct Call {
    publishes: Vec<Publish>,
    answer: oneshot::Sender<Vec<PublishResult>>,
}

impl Combined {
    pub(super) fn new(publisher: Arc<Publisher>) -> Self {
        Self {
            publisher,
            pending: Arc::default(),
        }
    }

    /// Sends all, and says of each whether the broker has it.
    ///
    /// Dropped before its publishes are on the way, none of them is sent.
    pub(super) async fn send(&self, publishes: &[Publish]) -> Vec<PublishResult> {
        let Some(first) = publishes.first() else {
            return Vec::new();
        };
        let exchange = first.exchange.clone();
        let is_small = publishes.len() < MESSAGES && bytes(publishes) < BYTES;
        if !is_small || publishes.iter().any(|publish| publish.exchange != exchange) {
            return self.publisher.send(publishes).await;
        }
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut pending = lock(&self.pending);
            let ours = pending.entry(exchange.clone()).or_default();
            ours.waiting.push_back(Call {
                publishes: publishes.to_vec(),
                answer,
            });
            let begins = ours.underway < AT_ONCE;
            ours.underway += usize::from(begins);
            begins
        };
        if begins {
            let turn = Turn {
                pending: Arc::clone(&self.pending),
                exchange,
                is_over: false,
            };
            // Not by the caller: one that goes away would fail the others. Ends when no call waits.
            tokio::spawn(work(Arc::clone(&self.publisher), turn));
        }
        answered.await.unwrap_or_else(|_| {
            let lost = || PublishError::Failed(Error::unavailable("the message was not confirmed"));
            publishes.iter().map(|_| Err(lost())).collect()
        })
    }
}

/// One of the calls underway.
struct Turn {
    pending: Arc<Pending>,
    exchange: String,
    is_over: bool,
}

impl Drop for Turn {
    /// A panic ends it too.
    fn drop(&mut self) {
        if !self.is_over {
            end(&mut lock(&self.pending), &self.exchange);
        }
    }
}

impl Turn {
    /// Takes what goes together; nothing is left when it is empty, and the turn is over.
    fn take(&mut self) -> Vec<Call> {
        let mut pending = lock(&self.pending);
        let Some(ours) = pending.get_mut(&self.exchange) else {
            return Vec::new();
        };
        let (mut calls, mut count, mut size) = (Vec::new(), 0, 0);
        while let Some(next) = ours.waiting.front() {
            if !calls.is_empty() && (count + next.publishes.len() > MESSAGES || size > BYTES) {
                break;
            }
            let Some(call) = ours.waiting.pop_front() else {
                break;
            };
            if call.answer.is_closed() {
                continue;
            }
            count += call.publishes.len();
            size += bytes(&call.publishes);
            calls.push(call);
        }
        if calls.is_empty() {
            // Under the same lock: a call that comes now begins a turn of its own.
            end(&mut pending, &self.exchange);
            self.is_over = true;
        }
        calls
    }
}

fn end(pending: &mut HashMap<String, PendingPublishes>, exchange: &str) {
    if let Some(ours) = pending.get_mut(exchange) {
        ours.underway = ours.underway.saturating_sub(1);
        if ours.underway == 0 && ours.waiting.is_empty() {
            pending.remove(exchange);
        }
    }
}

fn bytes(publishes: &[Publish]) -> usize {
    publishes.iter().map(|publish| publish.payload.len()).sum()
}

async fn work(publisher: Arc<Publisher>, mut turn: Turn) {
    loop {
        let calls = turn.take();
        if calls.is_empty() {
            return;
        }
        let publishes: Vec<Publish> = calls
            .iter()
            .flat_map(|call| call.publishes.iter().cloned())
            .collect();
        let mut outcomes = publisher.send(&publishes).await.into_iter();
        for call in calls {
            let own = outcomes.by_ref().take(call.publishes.len()).collect();
            // A caller that is gone does not listen.
            drop(call.answer.send(own));
        }
    }
}
