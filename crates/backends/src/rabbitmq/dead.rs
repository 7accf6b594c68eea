//! Dead letters: in their own queue, oldest first, with reason and time in headers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use towpath_core::port::queue::{DeadLetter, Selection};
use towpath_core::{MessageId, Result, ResultExt};

use crate::broker::envelope::Envelope;

use super::connection::OpenConnection;
use super::consumer_channel::ConsumerChannel;
use super::envelope;
use super::publisher::Publish;
use super::store::{QueueChannel, QueueHandle, Store};

/// Concurrent calls; `join_all` keeps the order of no more than these.
const AT_ONCE: usize = 30;

/// Time within which requeued messages are counted again.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// A fetched dead letter.
struct FetchedDeadLetter {
    envelope: Envelope,
    /// Number of requeues.
    returns: u32,
    acker: lapin::Acker,
}

impl Store {
    /// The queue of dead letters, declared when missing.
    pub(super) async fn dead_place(
        &self,
        handle: &QueueHandle,
        open: &OpenConnection,
    ) -> Result<String> {
        let name = handle.dead();
        self.declare_side(open, &name, self.side()).await?;
        Ok(name)
    }

    pub(super) async fn dead_letters(
        &self,
        handle: &QueueHandle,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let _turn = self.turn.lock().await;
        let (queue_channel, found) = self.fetch(handle).await?;
        let skipped = after
            .and_then(|after| {
                found
                    .iter()
                    .position(|one| one.envelope.message.id == after)
            })
            .map_or(0, |at| at + 1);
        let letters = found.iter().skip(skipped).take(max);
        let letters = letters
            .filter_map(|one| one.envelope.clone().dead_letter(handle.name.clone()))
            .collect();
        self.put_back(handle, &queue_channel, &found).await?;
        Ok(letters)
    }

    pub(super) async fn redrive(&self, handle: &QueueHandle, selection: &Selection) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let (queue_channel, found) = self.fetch(handle).await?;
        let (chosen, rest) = choose(found, selection);
        let letters = chosen.iter().map(|one| {
            let mut envelope = one.envelope.clone();
            envelope.redrive();
            Publish {
                exchange: String::new(),
                routing_key: handle.wire.clone(),
                properties: envelope::properties(&envelope),
                payload: envelope.message.payload,
            }
        });
        let mut count = 0;
        let mut failed = None;
        for (one, sent) in chosen
            .iter()
            .zip(self.post(handle, letters.collect()).await)
        {
            match sent {
                Ok(()) => {
                    let ack = one.acker.ack(BasicAckOptions::default());
                    self.broker.call(&queue_channel.open, ack).await?;
                    count += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        self.put_back(handle, &queue_channel, &rest).await?;
        match failed {
            // Unpublished ones are requeued when the channel closes.
            Some(error) => Err(error).context(|| format!("redrive to `{}`", handle.name)),
            None => Ok(count),
        }
    }

    pub(super) async fn drop_dead(
        &self,
        handle: &QueueHandle,
        selection: &Selection,
    ) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let (queue_channel, found) = self.fetch(handle).await?;
        let (chosen, rest) = choose(found, selection);
        for one in &chosen {
            let ack = one.acker.ack(BasicAckOptions::default());
            self.broker.call(&queue_channel.open, ack).await?;
        }
        self.put_back(handle, &queue_channel, &rest).await?;
        handle
            .counters
            .dropped
            .fetch_add(chosen.len() as u64, Ordering::Relaxed);
        Ok(chosen.len() as u64)
    }

    /// Fetches all dead letters, oldest first, on a separate channel.
    async fn fetch(&self, handle: &QueueHandle) -> Result<(QueueChannel, Vec<FetchedDeadLetter>)> {
        let queue_channel = self.queue_channel(handle).await?;
        let name = self.dead_place(handle, &queue_channel.open).await?;
        let queue_channel = QueueChannel {
            consumer_channel: ConsumerChannel::in_any_order(
                self.broker.channel(&queue_channel.open).await?,
            ),
            ..queue_channel
        };
        let mut found = Vec::new();
        loop {
            let get = || {
                queue_channel
                    .consumer_channel
                    .channel
                    .basic_get(name.as_str().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..AT_ONCE).map(|_| get()));
            let before = found.len();
            for answer in self.broker.ask(&queue_channel.open, answers).await? {
                let answer = self
                    .broker
                    .call(&queue_channel.open, async { answer })
                    .await?;
                if let Some(message) = answer {
                    let arrival = message.delivery;
                    let now = self.clock.now();
                    let mut envelope = envelope::read(&arrival.properties, arrival.data, now);
                    if envelope.death.is_none() {
                        let by_broker = envelope::death(&arrival.properties, &handle.wire);
                        let unknown = || ("put here by another program".to_owned(), now);
                        envelope.death = Some(by_broker.unwrap_or_else(unknown));
                    }
                    found.push(FetchedDeadLetter {
                        envelope,
                        returns: envelope::returns(&arrival.properties).unwrap_or(0),
                        acker: arrival.acker,
                    });
                }
            }
            if found.len() == before {
                break;
            }
        }
        // Requeued ones come first: sort by the time of death.
        found.sort_by_key(|one: &FetchedDeadLetter| one.envelope.death.as_ref().map(|(_, at)| *at));
        Ok((queue_channel, found))
    }

    /// Requeues those that stay, in order.
    async fn put_back(
        &self,
        handle: &QueueHandle,
        queue_channel: &QueueChannel,
        rest: &[FetchedDeadLetter],
    ) -> Result<()> {
        // The broker may limit requeues: a copy starts from zero.
        let (renewed, returned): (Vec<_>, Vec<_>) = rest.iter().partition(|one| one.returns > 0);
        let publish = |one: &&FetchedDeadLetter| Publish {
            exchange: String::new(),
            routing_key: handle.dead(),
            properties: envelope::properties(&one.envelope),
            payload: one.envelope.message.payload.clone(),
        };
        let sent = self
            .post(handle, renewed.iter().map(publish).collect())
            .await;
        for (one, sent) in renewed.into_iter().zip(sent) {
            sent?;
            let ack = one.acker.ack(BasicAckOptions::default());
            self.broker.call(&queue_channel.open, ack).await?;
        }
        for one in returned {
            let nack = one.acker.nack(BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            });
            self.broker.call(&queue_channel.open, nack).await?;
        }
        self.flush(queue_channel, &queue_channel.consumer_channel.channel)
            .await?;
        self.see(handle, rest.len()).await
    }

    /// Waits until requeued messages are visible: a quorum queue requeues shortly after it answered.
    async fn see(&self, handle: &QueueHandle, at_least: usize) -> Result<()> {
        let (name, began) = ([handle.dead()], Instant::now());
        while at_least > 0 && began.elapsed() < SEEN_WITHIN {
            let count = self
                .count(&name)
                .await?
                .pop()
                .flatten()
                .map_or(0, |(messages, _)| messages);
            if count >= at_least as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

fn choose(
    found: Vec<FetchedDeadLetter>,
    selection: &Selection,
) -> (Vec<FetchedDeadLetter>, Vec<FetchedDeadLetter>) {
    match selection {
        Selection::All => (found, Vec::new()),
        Selection::Ids(ids) => found
            .into_iter()
            .partition(|one| ids.contains(&one.envelope.message.id)),
    }
}
