//! A little traffic for a first look.

use std::time::Duration;

use towpath_core::port::Queue;
use towpath_core::{NewMessage, QueueName, Result};

use crate::supervisor::Stop;

const PAUSE: Duration = Duration::from_millis(250);

/// Enqueues four messages a second until the stop.
pub(super) async fn run(queue: &dyn Queue, name: &QueueName, stop: &Stop) -> Result<()> {
    for number in 1_u64.. {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.requested() => break,
        }
        for outcome in queue
            .enqueue(
                name,
                vec![NewMessage::new(format!("demo message {number}"))],
            )
            .await?
        {
            outcome?;
        }
        stop.account.add("sent", 1);
    }
    Ok(())
}
