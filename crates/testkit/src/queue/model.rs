//! Random steps against a reference small enough to be seen right.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_core::port::queue::{Selection, Verdict};
use towpath_core::{Delivery, MessageId};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    random_steps_agree_with_the_model;
}

/// Attempts of every message.
const ATTEMPTS: u32 = 3;

/// Where every message is; attempts counted as deliveries so far.
#[derive(Default)]
struct Model {
    /// Fresh and redriven ones, and those given back in their old places, by place.
    ready: BTreeMap<u64, (MessageId, u32)>,
    dead: VecDeque<MessageId>,
    next_place: u64,
    enqueued: u64,
    acked: u64,
    dropped: u64,
}

impl Model {
    fn arrive(&mut self, id: MessageId) {
        self.ready.insert(self.next_place, (id, 0));
        self.next_place += 1;
    }
}

/// A delivery in hand, and the place the model gives it back to.
struct InHand {
    delivery: Delivery,
    place: u64,
}

async fn random_steps_agree_with_the_model(mut world: World) {
    // Printed with a failure: the same seed takes the same steps.
    let seed: u64 = rand::rng().random();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut queue = world.queue().await;
    queue
        .declare(&jobs(), &attempts(ATTEMPTS))
        .await
        .expect("declare");
    let (mut model, mut held) = (Model::default(), Vec::<InHand>::new());
    for step in 0..250 {
        let at = format!("seed {seed}, step {step}");
        match rng.random_range(0..100) {
            0..30 => {
                let count = rng.random_range(1..5);
                for id in enqueue(&queue, &vec!["x"; count]).await {
                    model.arrive(id);
                    model.enqueued += 1;
                }
            }
            30..55 => {
                let max = rng.random_range(1..5);
                let got = lease_now(&queue, max).await;
                // Handed out oldest first; those whose attempts are spent die on the way.
                let mut expected = Vec::new();
                while let Some(entry) = model.ready.first_entry()
                    && expected.len() < max
                {
                    let (place, (id, attempts)) = entry.remove_entry();
                    if attempts >= ATTEMPTS {
                        model.dead.push_back(id);
                    } else {
                        expected.push((place, id, attempts + 1));
                    }
                }
                let told: Vec<_> = got
                    .iter()
                    .map(|one| (one.message.id, one.attempt))
                    .collect();
                let wanted: Vec<_> = expected
                    .iter()
                    .map(|(_, id, attempt)| (*id, *attempt))
                    .collect();
                assert_eq!(told, wanted, "{at}");
                held.extend(
                    got.into_iter()
                        .zip(expected)
                        .map(|(delivery, (place, ..))| InHand { delivery, place }),
                );
            }
            55..85 if !held.is_empty() => {
                let InHand { delivery, place } = held.swap_remove(rng.random_range(0..held.len()));
                let (id, attempt) = (delivery.message.id, delivery.attempt);
                let verdict = match rng.random_range(0..4) {
                    0 => {
                        model.acked += 1;
                        Verdict::Ack
                    }
                    1 => {
                        model.ready.insert(place, (id, attempt - 1));
                        Verdict::Release
                    }
                    2 => {
                        model.dead.push_back(id);
                        Verdict::DeadLetter {
                            reason: "no".to_owned(),
                        }
                    }
                    _ if attempt >= ATTEMPTS => {
                        model.dead.push_back(id);
                        retry_now()
                    }
                    _ => {
                        model.ready.insert(place, (id, attempt));
                        retry_now()
                    }
                };
                settle(&queue, &delivery, verdict)
                    .await
                    .unwrap_or_else(|error| panic!("{at}: {error:?}"));
            }
            85..89 => {
                let given_back = queue
                    .disconnect(&consumer("one"))
                    .await
                    .expect("disconnect");
                assert_eq!(given_back, held.len() as u64, "{at}");
                for InHand { delivery, place } in held.drain(..) {
                    model
                        .ready
                        .insert(place, (delivery.message.id, delivery.attempt));
                }
            }
            89..92 => {
                let dropped = queue.purge(&jobs()).await.expect("purge");
                assert_eq!(dropped, model.ready.len() as u64, "{at}");
                model.dropped += dropped;
                model.ready.clear();
            }
            92..96 => {
                let ids: Vec<_> = model
                    .dead
                    .iter()
                    .copied()
                    .filter(|_| rng.random())
                    .collect();
                let selection = Selection::Ids(ids.clone());
                if rng.random() {
                    assert_eq!(
                        queue.drop_dead(&jobs(), &selection).await.expect("drop"),
                        ids.len() as u64,
                        "{at}"
                    );
                    model.dropped += ids.len() as u64;
                    model.dead.retain(|id| !ids.contains(id));
                } else {
                    // The order among several is not promised, so one at a time.
                    for id in ids {
                        assert_eq!(
                            queue
                                .redrive(&jobs(), &Selection::Ids(vec![id]))
                                .await
                                .expect("redrive"),
                            1,
                            "{at}"
                        );
                        model.dead.retain(|dead| *dead != id);
                        model.arrive(id);
                    }
                }
            }
            96..98 => {
                queue = world.reopen().await;
                for InHand { delivery, place } in held.drain(..) {
                    model
                        .ready
                        .insert(place, (delivery.message.id, delivery.attempt));
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        let now = stats(&queue).await;
        assert_eq!(
            (
                now.ready + now.delayed,
                now.leased,
                now.dead,
                now.enqueued,
                now.acked,
                now.dropped
            ),
            (
                model.ready.len() as u64,
                held.len() as u64,
                model.dead.len() as u64,
                model.enqueued,
                model.acked,
                model.dropped
            ),
            "{at}: {now:?}"
        );
    }
    assert_balanced(&queue).await;
}
