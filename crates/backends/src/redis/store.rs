//! What the ports share: the servers, the queues this process knows, and the task that tends them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use towpath_core::{ConsumerId, MessageId, QueueName, Result, StreamName};

use super::config::Config;
use super::gather::Gather;
use super::keys::{Keys, Named};
use super::servers::Servers;
use super::wait::{Bell, Kind};
use super::{reply, script};

/// Bounds of the time between two rounds of tending.
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);

/// An opened Redis.
pub(super) struct Store {
    pub(super) config: Arc<Config>,
    pub(super) servers: Arc<Servers>,
    pub(super) keys: Keys,
    /// Tells this opening from others under which a consumer of the same name leased.
    pub(super) session: String,
    known: Mutex<BTreeMap<(Kind, String), Arc<Known>>>,
    tasks: Mutex<Vec<AbortHandle>>,
    pub(super) closing: Notify,
}

/// A queue or a stream that this process uses.
pub(super) struct Known {
    kind: Kind,
    pub(super) keys: Named,
    pub(super) bell: Arc<Bell>,
    /// Messages on their way in.
    pub(super) gather: Gather,
    /// Whether the queue is there for sure.
    made: AtomicBool,
    /// Those of this process, whose hearts are beaten for them.
    consumers: Mutex<BTreeSet<ConsumerId>>,
}

impl Store {
    pub(super) fn open(config: Config) -> Result<Arc<Self>> {
        // TLS needs a provider; whoever came first has chosen it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let config = Arc::new(config);
        let store = Arc::new(Self {
            servers: Arc::new(Servers::new(Arc::clone(&config))),
            keys: Keys::new(&config)?,
            session: MessageId::new().to_string(),
            known: Mutex::default(),
            tasks: Mutex::default(),
            closing: Notify::new(),
            config,
        });
        // Ends with the store: it holds no more than a weak reference, and its handle is aborted by `close`.
        let tending = tokio::spawn(tend(Arc::downgrade(&store))).abort_handle();
        lock(&store.tasks).push(tending);
        Ok(store)
    }

    /// The queue, made when it is not there.
    pub(super) async fn queue(&self, name: &QueueName) -> Result<Arc<Known>> {
        let known = self.queue_to_lease(name).await?;
        if !known.made.load(Ordering::Acquire) {
            let mut made = redis::cmd("HSETNX");
            made.arg(format!("{}queue", known.keys.side))
                .arg("made")
                .arg(1);
            self.servers
                .query(known.keys.list.as_bytes(), &made)
                .await?;
            known.made.store(true, Ordering::Release);
        }
        Ok(known)
    }

    /// The queue; leasing makes it, so that a queue is seen only once its consumer waits.
    pub(super) async fn queue_to_lease(&self, name: &QueueName) -> Result<Arc<Known>> {
        self.known(Kind::Queue, name.as_str()).await
    }

    /// The stream, listed when it is not.
    pub(super) async fn stream(&self, name: &StreamName) -> Result<Arc<Known>> {
        self.known(Kind::Stream, name.as_str()).await
    }

    async fn known(&self, kind: Kind, name: &str) -> Result<Arc<Known>> {
        self.servers.check_open()?;
        if let Some(known) = lock(&self.known).get(&(kind, name.to_owned())) {
            return Ok(Arc::clone(known));
        }
        let keys = self.keys.named(name)?;
        let names = self.keys.names(kind);
        let mut listed = redis::cmd("SADD");
        listed.arg(&names).arg(name);
        self.servers.query(names.as_bytes(), &listed).await?;
        let mut all = lock(&self.known);
        let known = all.entry((kind, name.to_owned())).or_insert_with(|| {
            let bell = Arc::new(Bell::default());
            let ringing = bell.ring(Arc::clone(&self.servers), kind, keys.list.clone());
            lock(&self.tasks).push(ringing);
            Arc::new(Known {
                kind,
                keys,
                bell,
                gather: Gather::default(),
                made: AtomicBool::new(false),
                consumers: Mutex::default(),
            })
        });
        Ok(Arc::clone(known))
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

    /// Wakes those of this process who wait for work of the queue.
    pub(super) fn wake(&self, name: &QueueName) {
        if let Some(known) = lock(&self.known).get(&(Kind::Queue, name.to_string())) {
            known.bell.news.notify_waiters();
        }
    }

    /// Wakes everybody of this process, after a step whose queues only the server knows.
    pub(super) fn wake_all(&self) {
        for known in lock(&self.known).values() {
            known.bell.news.notify_waiters();
        }
    }

    /// The consumers of this process, which it does not speak for any longer.
    fn forget_consumers(&self) -> Vec<(Arc<Known>, BTreeSet<ConsumerId>)> {
        lock(&self.known)
            .values()
            .map(|known| {
                (
                    Arc::clone(known),
                    std::mem::take(&mut *lock(&known.consumers)),
                )
            })
            .collect()
    }

    /// Gives back what its consumers hold, and lets go of every connection.
    ///
    /// When the server does not answer, what they hold comes back after `consumer_timeout`.
    pub(super) async fn close(&self) -> Result<()> {
        if self.servers.is_closed() {
            return Ok(());
        }
        for (known, consumers) in self.forget_consumers() {
            for consumer in consumers {
                if let Err(error) = self.give_up(&known, &consumer, &self.session).await {
                    tracing::warn!(
                        %consumer,
                        error = error.chain(),
                        "deliveries come back after the consumer timeout only"
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

    /// Takes back what the consumer holds of one queue or stream; with an empty `session` also when it leased elsewhere.
    pub(super) async fn give_up(
        &self,
        known: &Known,
        consumer: &ConsumerId,
        session: &str,
    ) -> Result<u64> {
        let mut call = known.call(match known.kind {
            Kind::Queue => &script::DISCONNECT,
            Kind::Stream => &script::LEAVE,
        });
        call.arg(consumer.as_str()).arg(session);
        let found = reply::number(self.servers.run(call).await?)?;
        lock(&known.consumers).remove(consumer);
        known.bell.news.notify_waiters();
        Ok(found)
    }

    /// One round over every queue.
    async fn tend(&self) -> Result<()> {
        let queues: Vec<Arc<Known>> = lock(&self.known).values().cloned().collect();
        for known in queues {
            let mut call = known.call(match known.kind {
                Kind::Queue => &script::TEND,
                Kind::Stream => &script::TEND_STREAM,
            });
            call.arg(millis(self.config.consumer_timeout))
                .arg(&self.session);
            for consumer in &*lock(&known.consumers) {
                call.arg(consumer.as_str());
            }
            let ready = reply::number(self.servers.run(call).await?)?;
            if ready > 0 && known.bell.is_awaited() {
                known.bell.news.notify_waiters();
            }
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Known {
    /// A call about this queue or stream.
    pub(super) fn call(&self, script: &'static script::Script) -> script::Call {
        let mut call = script.on([&self.keys.list]);
        call.arg(&self.keys.side);
        call
    }

    pub(super) fn remember(&self, consumer: &ConsumerId) {
        lock(&self.consumers).insert(consumer.clone());
    }
}

/// Keeps every queue of the store going until it is gone.
async fn tend(store: Weak<Store>) {
    let Some(pause) = store
        .upgrade()
        .map(|store| (store.config.consumer_timeout / 10).clamp(OFTEN, SELDOM))
    else {
        return;
    };
    loop {
        tokio::time::sleep(pause).await;
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.tend().await {
            // The link has said once that the server is away.
            tracing::debug!(error = error.chain(), "tend queues");
        }
    }
}

/// What a script says when there is nothing.
pub(super) fn is_nothing(value: &Value) -> bool {
    matches!(value, Value::Nil)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
