//! What the ports share: the servers, the queues this process knows, and the task that tends them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use towpath_core::{ConsumerId, Error, MessageId, QueueName, Result, StreamName};

use super::batcher::Gather;
use super::config::Config;
use super::declared::Declared;
use super::keys::{Keys, Named};
use super::notify::{Bell, Kind};
use super::servers::Servers;
use super::stream::End;
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
    pub(super) declared: Declared,
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
    /// Whether it is in the set of all names.
    listed: AtomicBool,
    /// Whether the queue is there for sure.
    made: AtomicBool,
    /// Of a stream: where it ended.
    pub(super) end: Mutex<End>,
    /// Whether the last round of tending failed.
    unusable: AtomicBool,
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
            declared: Declared::default(),
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
            self.mark_made(&known.keys).await?;
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
        let known = lock(&self.known).get(&(kind, name.to_owned())).cloned();
        if let Some(known) = known.filter(|known| known.listed.load(Ordering::Acquire)) {
            return Ok(known);
        }
        let keys = self.keys.named(name)?;
        let known = {
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
                    listed: AtomicBool::new(false),
                    made: AtomicBool::new(false),
                    end: Mutex::default(),
                    unusable: AtomicBool::new(false),
                    consumers: Mutex::default(),
                })
            });
            Arc::clone(known)
        };
        if !known.listed.load(Ordering::Acquire) {
            self.list_name(kind, name).await?;
            // Names a right that is missing before the first message is in.
            let mut probe = known.probe();
            probe.arg("first");
            self.servers.run(probe).await?;
            known.listed.store(true, Ordering::Release);
        }
        Ok(known)
    }

    /// The names that this process has listed.
    pub(super) fn known_names(&self, kind: Kind) -> Vec<String> {
        let all = lock(&self.known);
        all.iter()
            .filter(|((of, _), known)| *of == kind && known.listed.load(Ordering::Acquire))
            .map(|((_, name), _)| name.clone())
            .collect()
    }

    /// Every queue and stream that this process uses.
    pub(super) fn all_known(&self) -> Vec<(String, Arc<Known>)> {
        let all = lock(&self.known);
        all.iter()
            .map(|((_, name), known)| (name.clone(), Arc::clone(known)))
            .collect()
    }

    /// Those of the queues that this process has made.
    pub(super) fn made_names(&self) -> Vec<String> {
        let all = lock(&self.known);
        let made = all
            .iter()
            .filter(|(_, known)| known.made.load(Ordering::Acquire));
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

    /// One round over every queue and stream; what is wrong with one keeps no other waiting.
    async fn tend(&self) {
        if let Err(error) = self.declare_lost().await {
            tracing::debug!(error = error.chain(), "declare again");
        }
        for (_, known) in self.all_known() {
            if !known.listed.load(Ordering::Acquire) {
                continue;
            }
            let tended = self.tend_one(&known).await;
            self.report(&known, tended.err()).await;
        }
    }

    async fn tend_one(&self, known: &Known) -> Result<()> {
        let mut call = known.call(match known.kind {
            Kind::Queue => &script::TEND,
            Kind::Stream => &script::TEND_STREAM,
        });
        call.arg(millis(self.config.consumer_timeout))
            .arg(&self.session);
        for consumer in &*lock(&known.consumers) {
            call.arg(consumer.as_str());
        }
        let answer = self.servers.run(call).await?;
        if known.kind == Kind::Stream {
            return self.watch_end(known, answer);
        }
        let ready = reply::number(answer)?;
        if ready > 0 && known.bell.is_awaited() {
            known.bell.news.notify_waiters();
        }
        Ok(())
    }

    /// Logs once that a queue or stream cannot be used, and once that it can again.
    async fn report(&self, known: &Known, error: Option<Error>) {
        // A server that does not answer is logged by its connection.
        if error.is_some() && !self.servers.is_connected(known.keys.list.as_bytes()).await {
            return;
        }
        let name = &known.keys.list;
        let said = known.unusable.swap(error.is_some(), Ordering::AcqRel);
        match error {
            Some(error) if !said => {
                tracing::warn!(
                    name,
                    error = error.chain(),
                    "queue or stream unusable; retrying"
                );
            }
            None if said => tracing::info!(name, "queue or stream usable again"),
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

impl Known {
    /// A call about this queue or stream.
    pub(super) fn call(&self, script: &'static script::Script) -> script::Call {
        let mut call = script.on([&self.keys.list]);
        call.arg(&self.keys.side);
        call
    }

    /// What finds out whether it can be used.
    pub(super) fn probe(&self) -> script::Call {
        self.call(self.kind.probe())
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
        store.tend().await;
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
