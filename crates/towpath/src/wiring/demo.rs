//! A little traffic for a first look.

use std::time::Duration;

use towpath_core::port::Queue;
use towpath_core::{NewMessage, QueueName, Result};

use crate::supervisor::Stop;

const PAUSE: Duration = Duration::from_millis(250);

/// Messages between two lines of the log.
const REPORT_EVERY: u64 = 20;

/// Enqueues four messages a second until the stop, and says every five seconds what became of them.
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
        if number.is_multiple_of(REPORT_EVERY) {
            let stats = queue.stats(name).await?;
            tracing::info!(
                queue = %name,
                sent = number,
                acked = stats.acked,
                waiting = stats.ready + stats.delayed + stats.leased,
                dead = stats.dead,
                "demo"
            );
        }
    }
    Ok(())
}
