//! Dead letters: in a queue of their own, oldest first, with why and when in their headers.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use towpath_core::port::queue::{DeadLetter, Selection};
use towpath_core::{MessageId, Result, ResultExt};

use crate::broker::envelope::Envelope;

use super::envelope;
use super::incoming::Incoming;
use super::link::Open;
use super::publisher::Letter;
use super::store::{Desk, Known, Store};

/// Calls on their way at once; `join_all` sends no more than these in order.
const AT_ONCE: usize = 30;

/// How long what was given back may take to be counted again.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// A dead letter in hand.
struct Found {
    envelope: Envelope,
    /// How often it came back to the queue of dead letters.
    returns: u32,
    acker: lapin::Acker,
}

impl Store {
    /// The queue of dead letters, made when it is not there.
    pub(super) async fn dead_place(&self, known: &Known, open: &Open) -> Result<String> {
        let name = known.dead();
        self.declare_side(open, &name, self.side()).await?;
        Ok(name)
    }

    pub(super) async fn dead_letters(
        &self,
        known: &Known,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let _turn = self.turn.lock().await;
        let (desk, found) = self.fetch(known).await?;
        let skipped = after
            .and_then(|after| {
                found
                    .iter()
                    .position(|one| one.envelope.message.id == after)
            })
            .map_or(0, |at| at + 1);
        let letters = found.iter().skip(skipped).take(max);
        let letters = letters
            .filter_map(|one| one.envelope.clone().dead_letter(known.name.clone()))
            .collect();
        self.put_back(known, &desk, &found).await?;
        Ok(letters)
    }

    pub(super) async fn redrive(&self, known: &Known, selection: &Selection) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let (desk, found) = self.fetch(known).await?;
        let (chosen, rest) = choose(found, selection);
        let letters = chosen.iter().map(|one| {
            let mut envelope = one.envelope.clone();
            envelope.revive();
            Letter {
                exchange: String::new(),
                routing_key: known.wire.clone(),
                properties: envelope::properties(&envelope),
                payload: envelope.message.payload,
            }
        });
        let mut count = 0;
        let mut failed = None;
        for (one, sent) in chosen.iter().zip(self.post(known, letters.collect()).await) {
            match sent {
                Ok(()) => {
                    let ack = one.acker.ack(BasicAckOptions::default());
                    self.link.call(&desk.open, ack).await?;
                    count += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        self.put_back(known, &desk, &rest).await?;
        match failed {
            // Those that were not sent fall back with the channel.
            Some(error) => Err(error).context(|| format!("redrive to `{}`", known.name)),
            None => Ok(count),
        }
    }

    pub(super) async fn drop_dead(&self, known: &Known, selection: &Selection) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let (desk, found) = self.fetch(known).await?;
        let (chosen, rest) = choose(found, selection);
        for one in &chosen {
            let ack = one.acker.ack(BasicAckOptions::default());
            self.link.call(&desk.open, ack).await?;
        }
        self.put_back(known, &desk, &rest).await?;
        known
            .tally
            .dropped
            .fetch_add(chosen.len() as u64, Ordering::Relaxed);
        Ok(chosen.len() as u64)
    }

    /// Takes all dead letters, oldest first, on a channel of their own.
    async fn fetch(&self, known: &Known) -> Result<(Desk, Vec<Found>)> {
        let desk = self.desk(known).await?;
        let name = self.dead_place(known, &desk.open).await?;
        let desk = Desk {
            incoming: Incoming::in_any_order(self.link.channel(&desk.open).await?),
            ..desk
        };
        let mut found = Vec::new();
        loop {
            let get = || {
                desk.incoming
                    .channel
                    .basic_get(name.as_str().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..AT_ONCE).map(|_| get()));
            let before = found.len();
            for answer in self.link.ask(&desk.open, answers).await? {
                let answer = self.link.call(&desk.open, async { answer }).await?;
                if let Some(message) = answer {
                    let arrival = message.delivery;
                    let now = self.clock.now();
                    let mut envelope = envelope::read(&arrival.properties, arrival.data, now);
                    if envelope.death.is_none() {
                        let by_broker = envelope::death(&arrival.properties, &known.wire);
                        let unknown = || ("put here by another program".to_owned(), now);
                        envelope.death = Some(by_broker.unwrap_or_else(unknown));
                    }
                    found.push(Found {
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
        // Those that were looked at before come back in front: the time of death tells the order.
        found.sort_by_key(|one: &Found| one.envelope.death.as_ref().map(|(_, at)| *at));
        Ok((desk, found))
    }

    /// Gives back those that stay, in their order.
    async fn put_back(&self, known: &Known, desk: &Desk, rest: &[Found]) -> Result<()> {
        // The broker may limit how often a message comes back: a copy begins again.
        let (renewed, returned): (Vec<_>, Vec<_>) = rest.iter().partition(|one| one.returns > 0);
        let letter = |one: &&Found| Letter {
            exchange: String::new(),
            routing_key: known.dead(),
            properties: envelope::properties(&one.envelope),
            payload: one.envelope.message.payload.clone(),
        };
        let sent = self.post(known, renewed.iter().map(letter).collect()).await;
        for (one, sent) in renewed.into_iter().zip(sent) {
            sent?;
            let ack = one.acker.ack(BasicAckOptions::default());
            self.link.call(&desk.open, ack).await?;
        }
        for one in returned {
            let nack = one.acker.nack(BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            });
            self.link.call(&desk.open, nack).await?;
        }
        self.settle_down(desk, &desk.incoming.channel).await?;
        self.see(known, rest.len()).await
    }

    /// Waits until what was given back can be seen: a quorum queue takes it in a moment after it answered.
    async fn see(&self, known: &Known, at_least: usize) -> Result<()> {
        let (name, began) = ([known.dead()], Instant::now());
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

fn choose(found: Vec<Found>, selection: &Selection) -> (Vec<Found>, Vec<Found>) {
    match selection {
        Selection::All => (found, Vec::new()),
        Selection::Ids(ids) => found
            .into_iter()
            .partition(|one| ids.contains(&one.envelope.message.id)),
    }
}
