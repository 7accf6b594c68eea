//! Our place at a queue: a member for what is to be delivered and one for what comes later, with a task for each.

use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use towpath_core::Result;
use tracing::warn;

use super::member::{Member, lock};
use super::queue::Known;
use super::registrar::{Members, Registrar};
use super::retry;
use super::store::{Store, blocking};

pub(super) struct Desk {
    pub(super) members: Members,
    /// Settles what was delivered, and what came later.
    pub(super) ready: Arc<Registrar>,
    pub(super) later: Arc<Registrar>,
    forward: Mutex<Option<JoinHandle<()>>>,
}

impl Desk {
    fn is_lost(&self) -> bool {
        self.ready.is_lost() || self.later.is_lost()
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
            ready: self.join(&known.topic).await?,
            later: self.join(&known.later_topic).await?,
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

    /// Joins the group that is called as its topic is.
    async fn join<S: super::member::Shelf>(&self, topic: &str) -> Result<Arc<Member<S>>> {
        let (config, clock) = (self.config.clone(), Arc::clone(&self.clock));
        let topic = topic.to_owned();
        let joined = blocking(move || Member::join(&config, &topic, &topic, clock));
        joined.await.map(Arc::new)
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
