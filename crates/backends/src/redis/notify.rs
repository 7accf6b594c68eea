//! Waits for work without taking it.
//!
//! One task per queue blocks in `BLMOVE list list RIGHT RIGHT`, and one per
//! stream in `XREAD`: it wakes as soon as any client adds an item, and changes
//! nothing, so that a crash, a lost reply or a dropped connection
//! at this point loses nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng;
use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::script::{self, Script};
use super::servers::Servers;
use super::store::{lock, millis};

/// Timeout of one blocking command.
const BLOCK: Duration = Duration::from_secs(5);

/// Longest pause after a failed wait.
const PAUSE: Duration = Duration::from_secs(1);

/// Kind of a watched key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Queue,
    Stream,
}

impl Kind {
    /// The script that checks whether a key of this kind is usable.
    pub(super) fn probe(self) -> &'static Script {
        match self {
            Self::Queue => &script::PROBE,
            Self::Stream => &script::PROBE_STREAM,
        }
    }
}

/// Wakes the waiting consumers of one queue or stream.
#[derive(Default)]
pub(super) struct Wakeup {
    /// Notified when work may be available.
    pub(super) changed: Notify,
    /// Notified by consumers that found nothing.
    polled: Notify,
    waiting: AtomicUsize,
    /// Of a stream: the newest entry seen.
    newest: Mutex<String>,
}

/// Counts a waiting consumer while it lives.
pub(super) struct WaitGuard<'a>(&'a Wakeup);

impl Wakeup {
    /// Waits for the next push.
    pub(super) fn wait(&self) -> WaitGuard<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.polled.notify_one();
        WaitGuard(self)
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits for an entry after this one.
    pub(super) fn wait_behind(&self, newest: String) -> WaitGuard<'_> {
        *lock(&self.newest) = newest;
        self.wait()
    }

    /// Starts the task that wakes consumers when a client adds an item.
    pub(super) fn start(
        self: &Arc<Self>,
        servers: Arc<Servers>,
        kind: Kind,
        key: String,
    ) -> AbortHandle {
        let wakeup = Arc::clone(self);
        // Ends with the store, which holds the handle.
        crate::task::spawn(async move { watch(&servers, kind, &key, &wakeup).await }).abort_handle()
    }

    /// The command that blocks until an item is available, and takes nothing.
    fn block(&self, kind: Kind, key: &str) -> Cmd {
        match kind {
            Kind::Queue => {
                let mut block = redis::cmd("BLMOVE");
                block
                    .arg(key)
                    .arg(key)
                    .arg("RIGHT")
                    .arg("RIGHT")
                    .arg(BLOCK.as_secs());
                block
            }
            Kind::Stream => {
                let mut block = redis::cmd("XREAD");
                let newest = lock(&self.newest).clone();
                block.arg("COUNT").arg(1).arg("BLOCK").arg(millis(BLOCK));
                block.arg("STREAMS").arg(key).arg(newest);
                block
            }
        }
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn watch(servers: &Servers, kind: Kind, key: &str, wakeup: &Wakeup) {
    let mut connection = None;
    loop {
        wakeup.polled.notified().await;
        while wakeup.is_awaited() {
            match look(servers, key, &wakeup.block(kind, key), &mut connection).await {
                Some(Value::Nil) => {}
                Some(_) => break,
                None => {
                    connection = None;
                    let pause = PAUSE.mul_f64(rand::rng().random_range(0.1..=1.0));
                    tokio::time::sleep(pause).await;
                }
            }
        }
        wakeup.changed.notify_waiters();
    }
}

/// Blocks once on a separate connection; `None` when that failed: the scripts will return the error.
async fn look(
    servers: &Servers,
    key: &str,
    block: &Cmd,
    connection: &mut Option<redis::aio::MultiplexedConnection>,
) -> Option<Value> {
    if connection.is_none() {
        let node = servers.node(key.as_bytes()).await.ok()?;
        *connection = node.dial(BLOCK + PAUSE).await.ok();
    }
    block.query_async(connection.as_mut()?).await.ok()
}
