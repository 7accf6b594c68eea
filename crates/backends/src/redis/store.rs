//! Shared by the ports: the servers, the queues and streams in use, and their maintenance task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use towpath_core::{ConsumerId, Error, MessageId, QueueName, Result, StreamName};

use super::batcher::{Acks, Batcher, Enqueue, KvStep, Lease};
use super::config::Config;
use super::declared::Declared;
use super::keys::{Keys, ResourceKeys};
use super::notify::{Kind, Wakeup};
use super::servers::Servers;
use super::stream::End;
use super::{reply, script};

/// Bounds of the time between two rounds of maintenance.
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);

/// An opened Redis.
pub(super) struct Store {
    pub(super) config: Arc<Config>,
    pub(super) servers: Arc<Servers>,
    pub(super) keys: Keys,
    /// Distinguishes this opening from others with a consumer of the same name.
    pub(super) session: String,
    pub(super) declared: Declared,
    pub(super) kv_scope: Arc<KvScope>,
    handles: Mutex<BTreeMap<(Kind, String), Arc<ResourceHandle>>>,
    tasks: Mutex<Vec<AbortHandle>>,
    pub(super) closing: Notify,
}

/// The keys of the servers.
#[derive(Default)]
pub(super) struct KvScope(pub(super) Batcher<KvStep>);

/// A queue or a stream that this process uses.
pub(super) struct ResourceHandle {
    kind: Kind,
    pub(super) keys: ResourceKeys,
    pub(super) wakeup: Arc<Wakeup>,
    pub(super) enqueues: Batcher<Enqueue>,
    pub(super) leases: Batcher<Lease>,
    pub(super) acks: Batcher<Acks>,
    /// Whether it is in the set of all names.
    listed: AtomicBool,
    /// Whether the queue certainly exists.
    made: AtomicBool,
    /// Of a stream: its last known end.
    pub(super) end: Mutex<End>,
    /// Whether the last round of maintenance failed.
    unusable: AtomicBool,
    /// Consumers of this process, whose heartbeats it sends.
    consumers: Mutex<BTreeSet<ConsumerId>>,
}

impl Store {
    pub(super) fn open(config: Config) -> Result<Arc<Self>> {
        // TLS needs a provider; the first library to install one has chosen it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let config = Arc::new(config);
        let store = Arc::new(Self {
            servers: Arc::new(Servers::new(Arc::clone(&config))),
            keys: Keys::new(&config)?,
            session: MessageId::new().to_string(),
            declared: Declared::default(),
            kv_scope: Arc::default(),
            handles: Mutex::default(),
            tasks: Mutex::default(),
            closing: Notify::new(),
            config,
        });
        // Ends with the store: it holds a weak reference, and `close` aborts its handle.
        let maintenance = crate::task::spawn(maintain(Arc::downgrade(&store))).abort_handle();
        lock(&store.tasks).push(maintenance);
        Ok(store)
    }

    /// The queue, created when missing.
    pub(super) async fn queue(&self, name: &QueueName) -> Result<Arc<ResourceHandle>> {
        let handle = self.queue_to_lease(name).await?;
        if !handle.made.load(Ordering::Acquire) {
            self.mark_made(&handle.keys).await?;
            handle.made.store(true, Ordering::Release);
        }
        Ok(handle)
    }

    /// The queue; the lease script creates it, so that a queue is listed only once its consumer waits.
    pub(super) async fn queue_to_lease(&self, name: &QueueName) -> Result<Arc<ResourceHandle>> {
        self.handle(Kind::Queue, name.as_str()).await
    }

    /// The stream, added to the listing when missing.
    pub(super) async fn stream(&self, name: &StreamName) -> Result<Arc<ResourceHandle>> {
        self.handle(Kind::Stream, name.as_str()).await
    }

    async fn handle(&self, kind: Kind, name: &str) -> Result<Arc<ResourceHandle>> {
        self.servers.check_open()?;
        let handle = lock(&self.handles).get(&(kind, name.to_owned())).cloned();
        if let Some(handle) = handle.filter(|handle| handle.listed.load(Ordering::Acquire)) {
            return Ok(handle);
        }
        let keys = self.keys.named(name)?;
        let handle = {
            let mut all = lock(&self.handles);
            let handle = all.entry((kind, name.to_owned())).or_insert_with(|| {
                let wakeup = Arc::new(Wakeup::default());
                let watcher = wakeup.start(Arc::clone(&self.servers), kind, keys.list.clone());
                lock(&self.tasks).push(watcher);
                Arc::new(ResourceHandle {
                    kind,
                    keys,
                    wakeup,
                    enqueues: Batcher::default(),
                    leases: Batcher::default(),
                    acks: Batcher::default(),
                    listed: AtomicBool::new(false),
                    made: AtomicBool::new(false),
                    end: Mutex::default(),
                    unusable: AtomicBool::new(false),
                    consumers: Mutex::default(),
                })
            });
            Arc::clone(handle)
        };
        if !handle.listed.load(Ordering::Acquire) {
            self.list_name(kind, name).await?;
            // Reports a missing permission before the first message is stored.
            let mut probe = handle.probe();
            probe.arg("first");
            self.servers.run(probe).await?;
            handle.listed.store(true, Ordering::Release);
        }
        Ok(handle)
    }

    /// The names that this process has listed.
    pub(super) fn used_names(&self, kind: Kind) -> Vec<String> {
        let all = lock(&self.handles);
        all.iter()
            .filter(|((of, _), handle)| *of == kind && handle.listed.load(Ordering::Acquire))
            .map(|((_, name), _)| name.clone())
            .collect()
    }

    /// Every queue and stream that this process uses.
    pub(super) fn all_handles(&self) -> Vec<(String, Arc<ResourceHandle>)> {
        let all = lock(&self.handles);
        all.iter()
            .map(|((_, name), handle)| (name.clone(), Arc::clone(handle)))
            .collect()
    }

    /// Names of the queues that this process has created.
    pub(super) fn made_names(&self) -> Vec<String> {
        let all = lock(&self.handles);
        let made = all
            .iter()
            .filter(|(_, handle)| handle.made.load(Ordering::Acquire));
        made.map(|((_, name), _)| name.clone()).collect()
    }

    /// The names of all queues or streams, in order.
    pub(super) async fn names(&self, kind: Kind) -> Result<Vec<String>> {
        let key = self.keys.names(kind);
        let mut members = redis::cmd("SMEMBERS");
        members.arg(&key);
        let mut names: Vec<String> =
            reply::list(self.servers.query(key.as_bytes(), &members).await?)?
                .into_iter()
                .map(reply::text)
                .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// Wakes waiting consumers of the queue in this process.
    pub(super) fn wake(&self, name: &QueueName) {
        if let Some(handle) = lock(&self.handles).get(&(Kind::Queue, name.to_string())) {
            handle.wakeup.changed.notify_waiters();
        }
    }

    /// Wakes every waiting consumer of this process, after a step whose queues only the server knows.
    pub(super) fn wake_all(&self) {
        for handle in lock(&self.handles).values() {
            handle.wakeup.changed.notify_waiters();
        }
    }

    /// Takes the consumers of this process, whose heartbeats end.
    fn forget_consumers(&self) -> Vec<(Arc<ResourceHandle>, BTreeSet<ConsumerId>)> {
        lock(&self.handles)
            .values()
            .map(|handle| {
                (
                    Arc::clone(handle),
                    std::mem::take(&mut *lock(&handle.consumers)),
                )
            })
            .collect()
    }

    /// Returns the deliveries of its consumers, and closes every connection.
    ///
    /// When the server does not answer, they are returned after `consumer_timeout`.
    pub(super) async fn close(&self) -> Result<()> {
        if self.servers.is_closed() {
            return Ok(());
        }
        for (handle, consumers) in self.forget_consumers() {
            for consumer in consumers {
                if let Err(error) = self
                    .disconnect_consumer(&handle, &consumer, &self.session)
                    .await
                {
                    tracing::warn!(
                        %consumer,
                        error = error.chain(),
                        "deliveries not returned; redelivered after the consumer timeout"
                    );
                    break;
                }
            }
        }
        for task in std::mem::take(&mut *lock(&self.tasks)) {
            task.abort();
        }
        self.servers.close().await;
        self.closing.notify_waiters();
        Ok(())
    }

    /// Returns the deliveries of a consumer of one queue or stream; with an empty `session` also those of another process.
    pub(super) async fn disconnect_consumer(
        &self,
        handle: &ResourceHandle,
        consumer: &ConsumerId,
        session: &str,
    ) -> Result<u64> {
        let mut call = handle.call(match handle.kind {
            Kind::Queue => &script::DISCONNECT,
            Kind::Stream => &script::DISCONNECT_STREAM,
        });
        call.arg(consumer.as_str()).arg(session);
        let found = reply::number(self.servers.run(call).await?)?;
        lock(&handle.consumers).remove(consumer);
        handle.wakeup.changed.notify_waiters();
        Ok(found)
    }

    /// One round over every queue and stream; an error of one does not delay the others.
    async fn maintain(&self) {
        if let Err(error) = self.declare_lost().await {
            tracing::debug!(error = error.chain(), "redeclaration failed");
        }
        for (_, handle) in self.all_handles() {
            if !handle.listed.load(Ordering::Acquire) {
                continue;
            }
            let tended = self.maintain_one(&handle).await;
            self.report(&handle, tended.err()).await;
        }
    }

    async fn maintain_one(&self, handle: &ResourceHandle) -> Result<()> {
        let mut call = handle.call(match handle.kind {
            Kind::Queue => &script::MAINTAIN,
            Kind::Stream => &script::MAINTAIN_STREAM,
        });
        call.arg(millis(self.config.consumer_timeout))
            .arg(&self.session);
        for consumer in &*lock(&handle.consumers) {
            call.arg(consumer.as_str());
        }
        let answer = self.servers.run(call).await?;
        if handle.kind == Kind::Stream {
            return self.watch_end(handle, answer);
        }
        let ready = reply::number(answer)?;
        if ready > 0 && handle.wakeup.is_awaited() {
            handle.wakeup.changed.notify_waiters();
        }
        Ok(())
    }

    /// Logs once that a queue or stream is unusable, and once that it is usable again.
    async fn report(&self, handle: &ResourceHandle, error: Option<Error>) {
        // A server that does not answer is logged by its connection.
        if error.is_some() && !self.servers.is_connected(handle.keys.list.as_bytes()).await {
            return;
        }
        let name = &handle.keys.list;
        let logged = handle.unusable.swap(error.is_some(), Ordering::AcqRel);
        match error {
            Some(error) if !logged => {
                tracing::warn!(
                    name,
                    error = error.chain(),
                    "queue or stream unusable; retrying"
                );
            }
            None if logged => tracing::info!(name, "queue or stream usable again"),
            _ => {}
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

impl ResourceHandle {
    /// A call about this queue or stream.
    pub(super) fn call(&self, script: &'static script::Script) -> script::Call {
        let mut call = script.on([&self.keys.list]);
        call.arg(&self.keys.side);
        call
    }

    /// The probe of this queue or stream.
    pub(super) fn probe(&self) -> script::Call {
        self.call(self.kind.probe())
    }

    pub(super) fn remember(&self, consumer: &ConsumerId) {
        lock(&self.consumers).insert(consumer.clone());
    }
}

/// Maintenance of every queue and stream, until the store is dropped.
async fn maintain(store: Weak<Store>) {
    let Some(pause) = store
        .upgrade()
        .map(|store| (store.config.consumer_timeout / 10).clamp(OFTEN, SELDOM))
    else {
        return;
    };
    loop {
        tokio::time::sleep(pause).await;
        let Some(store) = store.upgrade() else { return };
        store.maintain().await;
    }
}

/// An empty answer of a script.
pub(super) fn is_nothing(value: &Value) -> bool {
    matches!(value, Value::Nil)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
