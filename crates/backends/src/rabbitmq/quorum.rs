//! Whether quorum queues can keep messages: asked of a quorum queue that stays empty.
//!
//! Fetching from it costs the broker a consensus step, which a queue without a majority of its nodes never finishes.
//! A message would have to be taken to ask a queue with messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::BasicGetOptions;
use towpath_core::{Error, Result};

use super::connection::{Link, Open};
use super::error;

/// How long the step may take. Readiness probes wait for 2 s.
const WITHIN: Duration = Duration::from_millis(1_500);

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(1);

pub(super) struct Majority {
    link: Arc<Link>,
    pub(super) queue: String,
    /// When it was last asked, and what is wrong. `None` until the queue is there.
    asked: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

impl Majority {
    pub(super) fn new(link: Arc<Link>, prefix: &str) -> Self {
        Self {
            link,
            queue: format!("{prefix}towpath.probe"),
            asked: tokio::sync::Mutex::default(),
        }
    }

    /// Notes that the queue is there, so that it can be asked.
    pub(super) async fn is_there(&self) {
        self.asked
            .lock()
            .await
            .get_or_insert((Instant::now(), None));
    }

    /// Whether there is a majority, by an answer of the last second.
    ///
    /// # Errors
    /// As [`Majority::check_since`].
    pub(super) async fn check(&self) -> Result<()> {
        let since = Instant::now().checked_sub(HOLDS);
        self.check_since(since.unwrap_or_else(Instant::now)).await
    }

    /// The same by an answer to a question asked after this moment. Says nothing against the broker where the queue
    /// could not be made.
    ///
    /// # Errors
    /// `Unavailable` when a majority of the nodes is missing.
    pub(super) async fn check_since(&self, since: Instant) -> Result<()> {
        let mut asked = self.asked.lock().await;
        let Some((at, problem)) = &mut *asked else {
            return Ok(());
        };
        if *at < since {
            let open = self.link.open().await?;
            let asked = Instant::now();
            *problem = self.ask(&open).await?;
            *at = asked;
        }
        match problem {
            None => Ok(()),
            Some(problem) => Err(Error::unavailable(problem.clone())),
        }
    }

    async fn ask(&self, open: &Open) -> Result<Option<String>> {
        let channel = self.link.channel(open).await?;
        let get = channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default());
        Ok(match tokio::time::timeout(WITHIN, get).await {
            Ok(Ok(_)) => None,
            // Deleted by an operator: made again with the next declaration of a queue.
            Ok(Err(told)) if is_missing(&told) => None,
            Ok(Err(told)) => {
                let why = error::text(&told).unwrap_or("no answer").to_owned();
                drop(self.link.failed(open, told));
                Some(lost(&open.node, &why))
            }
            Err(_) => Some(lost(&open.node, &format!("no answer within {WITHIN:?}"))),
        })
    }
}

fn is_missing(told: &lapin::Error) -> bool {
    error::is_not_found(told) && error::text(told).is_some_and(|text| text.contains("no queue"))
}

fn lost(node: &str, why: &str) -> String {
    format!(
        "quorum queues of rabbitmq at `{node}` keep no messages: a majority of their nodes is unavailable, start those ({why})"
    )
}
