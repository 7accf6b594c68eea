//! Checks that quorum queues have a majority, with an empty quorum queue as probe.
//!
//! Fetching from it costs the broker a consensus step, which a queue without a majority of its nodes never finishes.
//! Probing a queue with messages would take one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::BasicGetOptions;
use towpath_core::{Error, Result};

use super::connection::{BrokerConnection, OpenConnection};
use super::error;

/// Timeout of the probe. Readiness probes wait for 2 s.
const WITHIN: Duration = Duration::from_millis(1_500);

/// Time to live of a cached answer.
const HOLDS: Duration = Duration::from_secs(1);

pub(super) struct QuorumCheck {
    broker: Arc<BrokerConnection>,
    pub(super) queue: String,
    /// Time and problem of the last probe. `None` until the queue exists.
    asked: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

impl QuorumCheck {
    pub(super) fn new(broker: Arc<BrokerConnection>, prefix: &str) -> Self {
        Self {
            broker,
            queue: format!("{prefix}towpath.probe"),
            asked: tokio::sync::Mutex::default(),
        }
    }

    /// Records that the queue exists, which enables the probe.
    pub(super) async fn is_there(&self) {
        self.asked
            .lock()
            .await
            .get_or_insert((Instant::now(), None));
    }

    /// Whether there is a majority, by an answer of the last second.
    ///
    /// # Errors
    /// As [`QuorumCheck::check_since`].
    pub(super) async fn check(&self) -> Result<()> {
        let since = Instant::now().checked_sub(HOLDS);
        self.check_since(since.unwrap_or_else(Instant::now)).await
    }

    /// The same with a probe begun after this time. Passes where the queue
    /// could not be declared.
    ///
    /// # Errors
    /// `Unavailable` when a majority of the nodes is missing.
    pub(super) async fn check_since(&self, since: Instant) -> Result<()> {
        let mut asked = self.asked.lock().await;
        let Some((at, problem)) = &mut *asked else {
            return Ok(());
        };
        if *at < since {
            let open = self.broker.open().await?;
            let asked = Instant::now();
            *problem = self.ask(&open).await?;
            *at = asked;
        }
        match problem {
            None => Ok(()),
            Some(problem) => Err(Error::unavailable(problem.clone())),
        }
    }

    async fn ask(&self, open: &OpenConnection) -> Result<Option<String>> {
        let channel = self.broker.channel(open).await?;
        let get = channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default());
        Ok(match tokio::time::timeout(WITHIN, get).await {
            Ok(Ok(_)) => None,
            // Deleted by an operator: declared again with the next queue.
            Ok(Err(error)) if is_missing(&error) => None,
            Ok(Err(error)) => {
                let why = error::text(&error).unwrap_or("no answer").to_owned();
                drop(self.broker.failed(open, error));
                Some(lost(&open.node, &why))
            }
            Err(_) => Some(lost(&open.node, &format!("no answer within {WITHIN:?}"))),
        })
    }
}

fn is_missing(error: &lapin::Error) -> bool {
    error::is_not_found(error) && error::text(error).is_some_and(|text| text.contains("no queue"))
}

fn lost(node: &str, why: &str) -> String {
    format!(
        "quorum queues of rabbitmq at `{node}` cannot accept messages: a majority of their nodes is unavailable; start those ({why})"
    )
}
