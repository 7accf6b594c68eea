//! The first dead letters that are put back, before the others: their outcome decides whether the others follow.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use towpath_core::units;

use super::Failure;
use super::client::{Client, queue_path};
use super::dlq::Pages;
use crate::admin::{MessageView, QueueStats};

/// Interval of requests for the queue.
const LOOK: Duration = Duration::from_millis(250);

/// Most messages that can be looked at in a queue.
const VISIBLE: usize = 1_000;

/// Waits until each of these messages was delivered; fails with their outcomes otherwise.
pub(super) async fn watch(
    client: &Client,
    queue: &str,
    ids: &[String],
    patience: Duration,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut left: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let stopped = |what: String| {
        let all = units::counted(ids.len() as u64, "canary message");
        Failure::failed(format!(
            "{all}: {what}; the other dead letters were left as they are"
        ))
    };
    loop {
        // Before the dead letters: a message that dies in between is found there.
        let before = waiting(client, queue).await?;
        let path = queue_path(queue, &format!("/messages?max={VISIBLE}"))?;
        let messages: Vec<MessageView> = client.get(&path).await?;
        let after = waiting(client, queue).await?;
        let dead = dead(client, queue, &left).await?;
        if let Some((count, reason)) = dead {
            let text = format!("{} of them died again: {reason}", units::count(count));
            return Err(stopped(text));
        }
        let here: Vec<&MessageView> = { messages.iter() }
            .filter(|message| left.contains(message.id.as_str()))
            .collect();
        let has_failed = |one: &&&MessageView| one.attempts > 0 && one.place != "leased";
        let failed = here.iter().filter(has_failed).count();
        if failed > 0 {
            let failed = units::count(failed as u64);
            let text = format!("the delivery of {failed} of them failed and is tried again later");
            return Err(stopped(text));
        }
        // A message that cannot be seen may still wait.
        if messages.len() as u64 >= before.min(after) {
            let here: BTreeSet<&str> = here.iter().map(|message| message.id.as_str()).collect();
            left.retain(|id| here.contains(id));
        }
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= patience {
            let left = units::count(left.len() as u64);
            let text = format!(
                "{left} of them had no outcome within {}",
                units::age(patience)
            );
            return Err(stopped(text));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn waiting(client: &Client, queue: &str) -> Result<u64, Failure> {
    let stats: QueueStats = client.get(&queue_path(queue, "")?).await?;
    Ok(stats.ready + stats.delayed + stats.leased)
}

/// Number of these that are dead letters again, and the reason of one of them.
async fn dead(
    client: &Client,
    queue: &str,
    ids: &BTreeSet<&str>,
) -> Result<Option<(u64, String)>, Failure> {
    let mut pages = Pages::of(client, queue);
    let mut found: Option<(u64, String)> = None;
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(found);
        }
        for letter in page
            .into_iter()
            .filter(|letter| ids.contains(letter.id.as_str()))
        {
            let count = found.as_ref().map_or(0, |(count, _)| *count);
            found = Some((count + 1, letter.reason));
        }
    }
}
