//! A session of a queue: a group member for ready messages and one for delayed messages, with a settler each.

use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use towpath_core::Result;
use tracing::warn;

use super::consumer::lock;
use super::queue::QueueHandle;
use super::retry;
use super::settler::{QueueMembers, Settler};
use super::store::Store;

pub(super) struct QueueSession {
    pub(super) members: QueueMembers,
    /// Settlers of both members.
    pub(super) ready: Arc<Settler>,
    pub(super) delayed: Arc<Settler>,
    forward: Mutex<Option<JoinHandle<()>>>,
}

impl QueueSession {
    fn is_lost(&self) -> bool {
        let QueueMembers { ready, delayed } = &self.members;
        self.ready.is_lost() || self.delayed.is_lost() || ready.is_lost() || delayed.is_lost()
    }

    /// Ends the tasks and leaves both groups.
    async fn close(&self) {
        self.members.delayed.end();
        let forward = lock(&self.forward).take();
        if let Some(forward) = forward
            && let Err(error) = forward.await
        {
            warn!(%error, "retry task panicked");
        }
        self.delayed.close().await;
        self.ready.close().await;
        self.members.ready.end();
    }
}

impl Store {
    /// The session of a queue, opened when there is none.
    pub(super) async fn session(
        self: &Arc<Self>,
        handle: &Arc<QueueHandle>,
    ) -> Result<Arc<QueueSession>> {
        self.check_open()?;
        let mut kept = handle.session.lock().await;
        if let Some(session) = &*kept
            && !session.is_lost()
        {
            return Ok(Arc::clone(session));
        }
        if let Some(lost) = kept.take() {
            leave(lost).await;
        }
        self.ensure_queue(handle).await?;
        self.ensure_delayed(handle).await?;
        let members = QueueMembers {
            // The groups have the names of their topics.
            ready: self.join(&handle.topic, &handle.topic).await?,
            delayed: self
                .join(&handle.delayed_topic, &handle.delayed_topic)
                .await?,
        };
        let (store, all) = (|| Arc::clone(self), || members.clone());
        let of = || Arc::clone(handle);
        let ready = Settler::start(store(), of(), all(), Arc::clone(&members.ready));
        let delayed = Settler::start(store(), of(), all(), Arc::clone(&members.delayed));
        let forward = retry::forward(
            Arc::clone(&members.delayed),
            Arc::clone(&delayed),
            Arc::clone(&self.clock),
        );
        let session = Arc::new(QueueSession {
            members,
            ready,
            delayed,
            // Ends with its group member.
            forward: Mutex::new(Some(crate::task::spawn(forward))),
        });
        *kept = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Closes the session of a queue, if one is open.
    pub(super) async fn leave_queue(&self, handle: &QueueHandle) {
        let session = handle.session.lock().await.take();
        if let Some(session) = session {
            leave(session).await;
        }
    }
}

async fn leave(session: Arc<QueueSession>) {
    session.close().await;
    let QueueMembers { ready, delayed } = session.members.clone();
    drop(session);
    ready.leave().await;
    delayed.leave().await;
}
