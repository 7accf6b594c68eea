//! Batches enqueues, leases, acks and KV steps: callers that arrive while a script is in flight share the next one.
//!
//! A script has a fixed cost, and with `appendfsync always` a sync of its own;
//! 64 callers with one message each would pay both 64 times.
//!
//! ```text
//! idle --first caller--> in flight (others wait) --answer--> waiting callers in one batch --> ... --none--> idle
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Value;
use tokio::sync::oneshot;
use towpath_core::port::queue::{Disposition, LeaseRequest};
use towpath_core::{ConsumerId, Delivery, Error, NewMessage, Receipt, Result};
use tracing::debug;

use super::queue::{LeaseReply, STEP, add_message, add_settlement, lease};
use super::reply;
use super::script::{self, Call};
use super::servers::Servers;
use super::store::{KvScope, ResourceHandle, lock};

/// What one caller asks for.
pub(super) trait Request: Send + Sync + Sized + 'static {
    /// The answer of one request.
    type Answer: Send;

    /// Where its callers meet: a queue, or the keys of a server.
    type Scope: Send + Sync + 'static;

    /// What requests that share a script have in common.
    type BatchKey: Ord + Clone + Send + Sync;

    /// Where callers of the scope wait.
    fn batcher(scope: &Self::Scope) -> &Batcher<Self>;

    /// How many messages or ops it concerns, at most one step, and the bytes of their payloads.
    fn size(&self) -> (usize, usize);

    /// Requests with the same key share scripts.
    fn batch_key(&self) -> Self::BatchKey;

    /// Runs the script for all. One answer each.
    fn run(
        servers: &Servers,
        scope: &Self::Scope,
        requests: &[&Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>>> + Send;

    /// Undoes a request whose caller is gone.
    fn undo(
        _servers: &Servers,
        _scope: &Self::Scope,
        _answer: Self::Answer,
    ) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Messages to store. The answer has one value each.
pub(super) struct Enqueue(pub(super) Vec<NewMessage>);

impl Request for Enqueue {
    type Answer = Vec<Value>;
    type Scope = ResourceHandle;
    type BatchKey = ();

    fn batcher(handle: &ResourceHandle) -> &Batcher<Self> {
        &handle.enqueues
    }

    fn batch_key(&self) {}

    fn size(&self) -> (usize, usize) {
        let bytes = self.0.iter().map(|message| message.payload.len()).sum();
        (self.0.len(), bytes)
    }

    async fn run(
        servers: &Servers,
        handle: &ResourceHandle,
        requests: &[&Self],
    ) -> Result<Vec<Vec<Value>>> {
        let mut call = handle.call(&script::ENQUEUE);
        for message in requests.iter().flat_map(|request| &request.0) {
            add_message(&mut call, message)?;
        }
        one_value_each(
            servers,
            call,
            requests.iter().map(|request| request.0.len()),
        )
        .await
    }
}

/// Deliveries to ack. The answer has one value each.
///
/// Other settlements go alone, so that one that the server refuses, such as a dead letter without the right to write
/// it, fails no other caller.
pub(super) struct Acks(pub(super) Vec<Receipt>);

impl Request for Acks {
    type Answer = Vec<Value>;
    type Scope = ResourceHandle;
    type BatchKey = ();

    fn batcher(handle: &ResourceHandle) -> &Batcher<Self> {
        &handle.acks
    }

    fn batch_key(&self) {}

    fn size(&self) -> (usize, usize) {
        (self.0.len(), 0)
    }

    async fn run(
        servers: &Servers,
        handle: &ResourceHandle,
        requests: &[&Self],
    ) -> Result<Vec<Vec<Value>>> {
        let mut call = handle.call(&script::SETTLE);
        for receipt in requests.iter().flat_map(|request| &request.0) {
            add_settlement(&mut call, receipt, &Disposition::Ack);
        }
        one_value_each(
            servers,
            call,
            requests.iter().map(|request| request.0.len()),
        )
        .await
    }
}

/// Runs a script that answers each message with a value.
async fn one_value_each(
    servers: &Servers,
    call: Call,
    lengths: impl Iterator<Item = usize> + Clone,
) -> Result<Vec<Vec<Value>>> {
    let values = reply::list(servers.run(call).await?)?;
    if values.len() != lengths.clone().sum::<usize>() {
        return Err(Error::corrupt(
            "redis answered another number of messages than sent",
        ));
    }
    let mut values = values.into_iter();
    Ok(lengths
        .map(|length| values.by_ref().take(length).collect())
        .collect())
}

/// A lease of one consumer. Its callers share the leased messages, the first ones first.
pub(super) struct Lease {
    pub(super) request: LeaseRequest,
    /// Of the opening that the consumer belongs to.
    pub(super) session: String,
    /// Time without a heartbeat after which the consumer is gone.
    pub(super) consumer_timeout: Duration,
}

impl Request for Lease {
    type Answer = LeaseReply;
    type Scope = ResourceHandle;
    type BatchKey = (ConsumerId, Duration);

    fn batcher(handle: &ResourceHandle) -> &Batcher<Self> {
        &handle.leases
    }

    fn size(&self) -> (usize, usize) {
        (self.request.max.min(STEP), 0)
    }

    fn batch_key(&self) -> (ConsumerId, Duration) {
        (self.request.consumer.clone(), self.request.lease)
    }

    async fn run(
        servers: &Servers,
        handle: &ResourceHandle,
        requests: &[&Self],
    ) -> Result<Vec<LeaseReply>> {
        let sizes = requests.iter().map(|request| request.size().0);
        let max = sizes.clone().sum();
        let LeaseReply {
            deliveries,
            paused,
            look_again,
        } = lease(servers, handle, requests[0], max).await?;
        let mut deliveries = deliveries.into_iter();
        Ok(sizes
            .map(|size| LeaseReply {
                deliveries: deliveries.by_ref().take(size).collect(),
                paused,
                look_again,
            })
            .collect())
    }

    async fn undo(servers: &Servers, handle: &ResourceHandle, answer: LeaseReply) {
        if answer.deliveries.is_empty() {
            return;
        }
        let mut call = handle.call(&script::SETTLE);
        for Delivery { receipt, .. } in &answer.deliveries {
            add_settlement(&mut call, receipt, &Disposition::RELEASE);
        }
        match servers.run(call).await {
            Ok(_) => handle.wakeup.changed.notify_waiters(),
            // They come back when their lease expires.
            Err(error) => debug!(error = error.chain(), "release of an unused lease failed"),
        }
    }
}

/// Ops that are applied or refused as a whole, as `kv_lib.lua` reads them. The answer is that of `kv.lua`, or the error
/// of this step alone.
pub(super) struct KvStep {
    pub(super) keys: BTreeSet<String>,
    pub(super) ops: Vec<[Vec<u8>; 6]>,
}

impl KvStep {
    fn add_to(&self, call: &mut Call) {
        for arg in self.ops.iter().flatten() {
            call.arg(arg);
        }
    }

    /// Runs it in a script of its own.
    pub(super) async fn run_alone(&self, servers: &Servers) -> Result<Value> {
        let mut call = script::KV.on(&self.keys);
        self.add_to(&mut call);
        servers.run(call).await
    }
}

impl Request for KvStep {
    type Answer = Result<Value>;
    type Scope = KvScope;
    type BatchKey = ();

    fn batcher(scope: &KvScope) -> &Batcher<Self> {
        &scope.0
    }

    fn batch_key(&self) {}

    fn size(&self) -> (usize, usize) {
        let bytes = self.ops.iter().flatten().map(Vec::len).sum();
        (self.ops.len().min(STEP), bytes)
    }

    async fn run(servers: &Servers, _: &KvScope, requests: &[&Self]) -> Result<Vec<Result<Value>>> {
        if let [request] = requests {
            return Ok(vec![request.run_alone(servers).await]);
        }
        let keys: BTreeSet<&String> = requests.iter().flat_map(|request| &request.keys).collect();
        let mut call = script::KV_STEPS.on(keys);
        for request in requests {
            call.arg(request.ops.len());
            request.add_to(&mut call);
        }
        let mut answers = match servers.try_run(call).await? {
            Ok(answers) => reply::list(answers)?.into_iter(),
            // Refused before the first change, such as for a key of one of them.
            Err(_) => Vec::new().into_iter(),
        };
        let mut all = Vec::with_capacity(requests.len());
        for request in requests {
            all.push(match answers.next().unwrap_or_default() {
                // Not applied. Alone it gets its own error.
                Value::Nil => request.run_alone(servers).await,
                answer => Ok(answer),
            });
        }
        Ok(all)
    }
}

/// Calls of one scope that wait while a script of their key is in flight; a key without one has no entry.
///
/// Each caller waits for its answer, so callers bound their number.
pub(super) struct Batcher<R: Request>(Mutex<BTreeMap<R::BatchKey, Vec<Caller<R>>>>);

struct Caller<R: Request> {
    request: R,
    answer: oneshot::Sender<Result<R::Answer>>,
}

impl<R: Request> Default for Batcher<R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<R: Request> Batcher<R> {
    /// Adds a caller to the next batch; the key when the caller has to start the sending.
    fn join(&self, caller: Caller<R>) -> Option<R::BatchKey> {
        let batch_key = caller.request.batch_key();
        match lock(&self.0).entry(batch_key.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(caller);
                None
            }
            Entry::Vacant(idle) => {
                idle.insert(vec![caller]);
                Some(batch_key)
            }
        }
    }

    /// The next batch; an empty one ends the sending.
    fn next(&self, batch_key: &R::BatchKey) -> Vec<Caller<R>> {
        let mut by_key = lock(&self.0);
        let Some(waiting) = by_key
            .get_mut(batch_key)
            .filter(|waiting| !waiting.is_empty())
        else {
            by_key.remove(batch_key);
            return Vec::new();
        };
        let (mut messages, mut bytes) = (0, 0);
        let fitting = waiting.iter().take_while(|caller| {
            let size = caller.request.size();
            messages += size.0;
            bytes += size.1;
            messages <= STEP && bytes <= GROUP_BYTES
        });
        // One caller brings at most one step.
        let count = fitting.count().max(1);
        waiting.drain(..count).collect()
    }
}

/// Payload bytes after which a batch is closed.
const GROUP_BYTES: usize = 1 << 20;

/// Runs the script for the request of one caller, together with those of others.
///
/// A dropped call may have run.
pub(super) async fn run_batched<R: Request>(
    servers: &Arc<Servers>,
    scope: &Arc<R::Scope>,
    request: R,
) -> Result<R::Answer> {
    debug_assert!(request.size().0 <= STEP);
    let (answer, mine) = oneshot::channel();
    if let Some(batch_key) = R::batcher(scope).join(Caller { request, answer }) {
        let (servers, scope) = (Arc::clone(servers), Arc::clone(scope));
        // Ends when no caller waits. A task, because the caller that started it may be dropped while others wait.
        crate::task::spawn(async move { send_batches::<R>(&servers, &scope, &batch_key).await });
    }
    mine.await
        .map_err(|_| Error::unavailable("the batch was not sent"))?
}

async fn send_batches<R: Request>(servers: &Servers, scope: &R::Scope, batch_key: &R::BatchKey) {
    loop {
        let callers = R::batcher(scope).next(batch_key);
        if callers.is_empty() {
            return;
        }
        let requests: Vec<&R> = callers.iter().map(|caller| &caller.request).collect();
        match R::run(servers, scope, &requests).await {
            Ok(answers) => {
                for (caller, answer) in callers.into_iter().zip(answers) {
                    // Comes back when the call was dropped.
                    if let Err(Ok(unused)) = caller.answer.send(Ok(answer)) {
                        R::undo(servers, scope, unused).await;
                    }
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for caller in callers {
                    drop(caller.answer.send(Err(same(&error))));
                }
            }
        }
        // Lets answered callers join with their next request before the next batch.
        tokio::task::yield_now().await;
    }
}

/// A copy of the error for another caller.
fn same(error: &Arc<Error>) -> Error {
    let text = "the shared batch failed";
    let copy = match error.retry_after() {
        Some(retry_after) => Error::overloaded(text, retry_after),
        None => Error::new(error.kind(), text),
    };
    copy.with_source(Arc::clone(error))
}
