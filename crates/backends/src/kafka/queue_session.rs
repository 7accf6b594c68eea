//! Our place at a queue: a member for what is to be delivered and one for what comes later, with a task for each.

use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use towpath_core::Result;
use tracing::warn;

use super::consumer::lock;
use super::queue::Known;
use super::retry;
use super::settler::{Members, Registrar};
use super::store::Store;

pub(super) struct Desk {
    pub(super) members: Members,
    /// Settles what was delivered, and what came later.
    pub(super) ready: Arc<Registrar>,
    pub(super) later: Arc<Registrar>,
    forward: Mutex<Option<JoinHandle<()>>>,
}

impl Desk {
    fn is_lost(&self) -> bool {
        let Members { ready, later } = &self.members;
        self.ready.is_lost() || self.later.is_lost() || ready.is_lost() || later.is_lost()
    }

    /// Ends the tasks and leaves both groups.
    async fn close(&self) {
        self.members.later.end();
        let forward = lock(&self.forward).take();
        if let Some(forward) = forward
            && let Err(told) = forward.await
        {
            warn!(%told, "the task of retries");
        }
        self.later.close().await;
        self.ready.close().await;
        self.members.ready.end();
    }
}

impl Store {
    /// Our desk at a queue, taken when there is none.
    pub(super) async fn desk(self: &Arc<Self>, known: &Arc<Known>) -> Result<Arc<Desk>> {
        self.check_open()?;
        let mut kept = known.desk.lock().await;
        if let Some(desk) = &*kept
            && !desk.is_lost()
        {
            return Ok(Arc::clone(desk));
        }
        if let Some(lost) = kept.take() {
            leave(lost).await;
        }
        self.ensure_queue(known).await?;
        self.ensure_later(known).await?;
        let members = Members {
            // The groups are called as their topics are.
            ready: self.join(&known.topic, &known.topic).await?,
            later: self.join(&known.later_topic, &known.later_topic).await?,
        };
        let (store, all) = (|| Arc::clone(self), || members.clone());
        let of = || Arc::clone(known);
        let ready = Registrar::start(store(), of(), all(), Arc::clone(&members.ready));
        let later = Registrar::start(store(), of(), all(), Arc::clone(&members.later));
        let forward = retry::forward(
            Arc::clone(&members.later),
            Arc::clone(&later),
            Arc::clone(&self.clock),
        );
        let desk = Arc::new(Desk {
            members,
            ready,
            later,
            // Ends with its member.
            forward: Mutex::new(Some(tokio::spawn(forward))),
        });
        *kept = Some(Arc::clone(&desk));
        Ok(desk)
    }

    /// Leaves the queue, if we are there.
    pub(super) async fn leave_queue(&self, known: &Known) {
        let desk = known.desk.lock().await.take();
        if let Some(desk) = desk {
            leave(desk).await;
        }
    }
}

async fn leave(desk: Arc<Desk>) {
    desk.close().await;
    let Members { ready, later } = desk.members.clone();
    drop(desk);
    ready.leave().await;
    later.leave().await;
}
