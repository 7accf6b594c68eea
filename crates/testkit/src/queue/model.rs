//! Random steps against a small reference model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use towpath_core::backend::Capability;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, Selection};
use towpath_core::{Delivery, MessageId};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    random_steps_agree_with_the_model;
}

/// Attempts of every message.
const ATTEMPTS: u32 = 3;

/// Where every message is, by its payload: ids may be made when a message is first leased.
///
/// The order of redeliveries is tested by other cases; messages that were never
/// delivered come in the order of arrival.
struct Model {
    rng: StdRng,
    queue: Arc<dyn Queue>,
    /// With its deliveries so far.
    ready: BTreeMap<String, u32>,
    held: Vec<Delivery>,
    dead: BTreeMap<String, MessageId>,
    ids: BTreeMap<String, MessageId>,
    /// The newest that was ever delivered; payloads sort as they arrived.
    youngest: String,
    enqueued: u64,
    acked: u64,
    dropped: u64,
    /// Whether the backend counts across a restart.
    keeps_books: bool,
}

async fn random_steps_agree_with_the_model(mut world: World) {
    // Printed with a failure: the same seed takes the same steps.
    let seed: u64 = rand::rng().random();
    let queue = world.queue().await;
    let settings = attempts(ATTEMPTS);
    queue.declare(&jobs(), &settings).await.expect("declare");
    let mut model = Model {
        rng: StdRng::seed_from_u64(seed),
        queue,
        ready: BTreeMap::new(),
        held: Vec::new(),
        dead: BTreeMap::new(),
        ids: BTreeMap::new(),
        youngest: String::new(),
        enqueued: 0,
        acked: 0,
        dropped: 0,
        keeps_books: world.offers(Capability::Bookkeeping),
    };
    for step in 0..250 {
        let at = format!("seed {seed}, step {step}");
        match model.rng.random_range(0..100) {
            0..30 => model.enqueue().await,
            30..55 => {
                let max = model.rng.random_range(1..5);
                model.lease(max, &at).await;
            }
            55..85 => model.settle(&at).await,
            85..89 => {
                let given_back = model.queue.disconnect(&consumer("one")).await;
                let given_back = given_back.expect("disconnect");
                assert_eq!(given_back, model.held.len() as u64, "{at}");
                model.take_back();
                model.lease(MANY, &at).await;
            }
            89..92 => {
                let dropped = model.queue.purge(&jobs()).await.expect("purge");
                assert_eq!(dropped, model.ready.len() as u64, "{at}");
                model.dropped += dropped;
                model.ready.clear();
            }
            92..96 => model.see_to_the_dead(&at).await,
            96..98 => {
                model.queue = world.reopen().await;
                if !model.keeps_books {
                    let declared = model.queue.declare(&jobs(), &settings).await;
                    declared.expect("declare again");
                }
                model.take_back();
                model.lease(MANY, &at).await;
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        model.compare(&at).await;
    }
    assert_balanced(&model.queue).await;
}

/// More than are ever there.
const MANY: usize = 5_000;

impl Model {
    async fn enqueue(&mut self) {
        let count = self.rng.random_range(1..5);
        let payloads: Vec<String> = (self.enqueued..self.enqueued + count)
            .map(|number| format!("{number:06}"))
            .collect();
        let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
        enqueue(&self.queue, &texts).await;
        self.enqueued += count;
        self.ready.extend(payloads.into_iter().map(|one| (one, 0)));
    }

    /// Leases; everything once attempts may be spent, so that the model knows which messages die.
    async fn lease(&mut self, max: usize, at: &str) {
        let got = lease_now(&self.queue, max).await;
        if max == MANY {
            let (ids, dead) = (&self.ids, &mut self.dead);
            self.ready.retain(|payload, attempts| {
                let is_spent = *attempts >= ATTEMPTS;
                if is_spent {
                    dead.insert(payload.clone(), ids[payload]);
                }
                !is_spent
            });
        }
        let strangers: Vec<_> = payloads(&got)
            .into_iter()
            .zip(got.iter().map(|delivery| delivery.attempt))
            .filter(|(payload, _)| !self.ready.contains_key(payload))
            .collect();
        assert_eq!(
            got.len(),
            max.min(self.ready.len()),
            "{at}: came without being ready, with their attempts: {strangers:?}"
        );
        for (payload, delivery) in payloads(&got).into_iter().zip(got) {
            let attempts = self.ready.remove(&payload);
            let attempts = attempts.unwrap_or_else(|| panic!("{at}: `{payload}` was not ready"));
            assert_eq!(delivery.attempt, attempts + 1, "{at}: `{payload}`");
            let id = delivery.message.id;
            match self.ids.insert(payload.clone(), id) {
                Some(known) => assert_eq!(known, id, "{at}: `{payload}`"),
                None => {
                    assert!(payload > self.youngest, "{at}: `{payload}` was overtaken");
                    self.youngest = payload;
                }
            }
            self.held.push(delivery);
        }
    }

    async fn settle(&mut self, at: &str) {
        if self.held.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.held.len());
        let delivery = self.held.swap_remove(index);
        let payload = payloads(std::slice::from_ref(&delivery)).remove(0);
        let (id, attempt) = (delivery.message.id, delivery.attempt);
        let reason = "no".to_owned();
        let disposition = match self.rng.random_range(0..4) {
            0 => Disposition::Ack,
            1 => Disposition::RELEASE,
            2 => Disposition::DeadLetter { reason },
            _ => retry_now(),
        };
        match disposition {
            Disposition::Ack => self.acked += 1,
            Disposition::Release { .. } => _ = self.ready.insert(payload, attempt - 1),
            Disposition::Retry { .. } if attempt < ATTEMPTS => {
                _ = self.ready.insert(payload, attempt);
            }
            Disposition::Retry { .. } | Disposition::DeadLetter { .. } => {
                _ = self.dead.insert(payload, id);
            }
        }
        let outcome = settle(&self.queue, &delivery, disposition).await;
        outcome.unwrap_or_else(|error| panic!("{at}: {error:?}"));
    }

    /// Leased messages are ready again, attempts counted.
    fn take_back(&mut self) {
        for delivery in self.held.drain(..) {
            let payload = payloads(std::slice::from_ref(&delivery)).remove(0);
            self.ready.insert(payload, delivery.attempt);
        }
    }

    async fn see_to_the_dead(&mut self, at: &str) {
        let count = self.rng.random_range(0..4);
        let some = self
            .dead
            .keys()
            .cloned()
            .choose_multiple(&mut self.rng, count);
        let ids = some.iter().map(|payload| self.dead[payload]).collect();
        let selection = Selection::Ids(ids);
        let done = if self.rng.random() {
            self.dropped += some.len() as u64;
            self.queue.drop_dead(&jobs(), &selection).await
        } else {
            self.ready.extend(some.iter().map(|one| (one.clone(), 0)));
            self.queue.redrive(&jobs(), &selection).await
        };
        assert_eq!(done.expect("done"), some.len() as u64, "{at}");
        self.dead.retain(|payload, _| !some.contains(payload));
    }

    async fn compare(&self, at: &str) {
        let now = stats(&self.queue).await;
        let actual = (now.ready + now.delayed, now.leased, now.dead);
        let (ready, held, dead) = (self.ready.len(), self.held.len(), self.dead.len());
        assert_eq!(
            actual,
            (ready as u64, held as u64, dead as u64),
            "{at}: {now:?}"
        );
        let actual = (now.enqueued, now.acked, now.dropped);
        let counts = (self.enqueued, self.acked, self.dropped);
        if self.keeps_books {
            assert_eq!(actual, counts, "{at}: {now:?}");
        }
        let dead = self.queue.dead_letters(&jobs(), None, MANY).await;
        let dead: BTreeSet<_> = dead
            .expect("dead letters")
            .iter()
            .map(|one| one.message.id)
            .collect();
        assert_eq!(dead, self.dead.values().copied().collect(), "{at}");
    }
}
