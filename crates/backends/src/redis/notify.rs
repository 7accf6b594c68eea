//! Waiting for work without taking it.
//!
//! One task per queue blocks in `BLMOVE list list RIGHT RIGHT`, and one per
//! stream in `XREAD`: it wakes as soon as anybody adds something, and leaves
//! everything as it was, so that a crash, a lost reply or a dropped connection
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

/// How long one blocking command waits.
const BLOCK: Duration = Duration::from_secs(5);

/// Pause after a failed attempt to wait, at most.
const PAUSE: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Queue,
    Stream,
}

impl Kind {
    /// What finds out whether one of this kind can be used.
    pub(super) fn probe(self) -> &'static Script {
        match self {
            Self::Queue => &script::PROBE,
            Self::Stream => &script::PROBE_STREAM,
        }
    }
}

/// Where those wait who want work of one queue or stream.
#[derive(Default)]
pub(super) struct Bell {
    /// Rung when it may be worth a look.
    pub(super) news: Notify,
    /// Set by those who looked and found nothing.
    looked: Notify,
    waiting: AtomicUsize,
    /// Of a stream: the newest entry that was seen.
    newest: Mutex<String>,
}

/// Somebody waits for as long as this lives.
pub(super) struct Waiting<'a>(&'a Bell);

impl Bell {
    /// Asks to be told of the next push.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.looked.notify_one();
        Waiting(self)
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Asks to be told of what comes behind this entry of a stream.
    pub(super) fn wait_behind(&self, newest: String) -> Waiting<'_> {
        *lock(&self.newest) = newest;
        self.wait()
    }

    /// Starts the task that rings when somebody adds something.
    pub(super) fn ring(
        self: &Arc<Self>,
        servers: Arc<Servers>,
        kind: Kind,
        key: String,
    ) -> AbortHandle {
        let bell = Arc::clone(self);
        // Ends with the store, which holds the handle.
        tokio::spawn(async move { watch(&servers, kind, &key, &bell).await }).abort_handle()
    }

    /// What blocks until something is there, and takes nothing.
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

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn watch(servers: &Servers, kind: Kind, key: &str, bell: &Bell) {
    let mut connection = None;
    loop {
        bell.looked.notified().await;
        while bell.is_awaited() {
            match look(servers, key, &bell.block(kind, key), &mut connection).await {
                Some(Value::Nil) => {}
                Some(_) => break,
                None => {
                    connection = None;
                    let pause = PAUSE.mul_f64(rand::rng().random_range(0.1..=1.0));
                    tokio::time::sleep(pause).await;
                }
            }
        }
        bell.news.notify_waiters();
    }
}

/// Blocks once on a connection of its own; `None` when that failed, and the scripts will say why.
async fn look(
    servers: &Servers,
    key: &str,
    block: &Cmd,
    connection: &mut Option<redis::aio::MultiplexedConnection>,
) -> Option<Value> {
    if connection.is_none() {
        let link = servers.link(key.as_bytes()).await.ok()?;
        *connection = link.dial(BLOCK + PAUSE).await.ok();
    }
    block.query_async(connection.as_mut()?).await.ok()
}
