//! The promises of the effects port.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use towpath_core::port::Effects;
use towpath_core::port::effects::{Outcome, Transaction};
use towpath_core::port::kv::Op;
use towpath_core::port::queue::{Disposition, Settings, Settlement};
use towpath_core::port::routes::Publication;
use towpath_core::port::stream::Start;
use towpath_core::{Delivery, ErrorKind, ExchangeName, GroupName, NewMessage, StreamName};

use crate::World;
use crate::world::*;

crate::promises! { Effects:
    everything_happens_in_one_step needs Queue, Kv;
    nothing_changes_when_a_receipt_is_stale needs Queue, Kv;
    nothing_changes_when_a_condition_does_not_hold needs Queue, Kv;
    nothing_changes_when_a_publication_matches_no_route needs Queue, Kv, Routes;
    a_position_moves_in_the_same_step_as_the_append needs Stream, Kv;
    an_entry_is_finished_in_the_same_step_as_its_effect needs Stream, Kv;
    one_of_many_settles_a_receipt needs Queue, Kv;
    nothing_changes_when_a_queue_is_full needs Queue, Kv, MaxDepth;
    a_repeated_dedup_id_is_skipped needs Queue, Kv, Dedup;
    a_refusal_counts_no_duplicates needs Queue, Kv, Dedup, MaxDepth;
}

async fn effects(world: &mut World) -> Arc<dyn Effects> {
    world
        .backend()
        .await
        .effects
        .expect("the row offers effects")
}

/// The transaction of an order processor: take stock, publish, ack.
fn order(delivery: &Delivery, quantity: i64) -> Transaction {
    Transaction {
        kv: vec![Op::Add {
            key: "stock".to_owned(),
            delta: -quantity,
            min: 0,
            max: i64::MAX,
        }],
        enqueue: vec![(name("notify"), text("sold"))],
        settle: vec![Settlement {
            receipt: delivery.receipt.clone(),
            disposition: Disposition::Ack,
        }],
        ..Transaction::default()
    }
}

/// Stock of ten, and a leased order.
async fn prepared(world: &mut World) -> Delivery {
    let backend = world.backend().await;
    backend
        .kv
        .expect("the row offers keys")
        .put("stock", "10".into(), None)
        .await
        .expect("put");
    let queue = world.queue().await;
    enqueue(&queue, &["order"]).await;
    lease(&queue, 1).await.remove(0)
}

async fn state(world: &mut World) -> (String, u64, u64) {
    let kv = world.backend().await.kv.expect("the row offers keys");
    let stock = kv
        .get("stock")
        .await
        .expect("get")
        .map(|value| String::from_utf8_lossy(&value).into_owned());
    let queue = world.queue().await;
    let notify = queue
        .stats(&name("notify"))
        .await
        .map_or(0, |stats| stats.ready);
    (stock.unwrap_or_default(), notify, stats(&queue).await.acked)
}

async fn everything_happens_in_one_step(mut world: World) {
    let delivery = prepared(&mut world).await;
    let outcome = effects(&mut world)
        .await
        .apply(order(&delivery, 4))
        .await
        .expect("apply");
    assert_eq!(outcome, Outcome::Applied(vec![Some("6".into())]));
    assert_eq!(state(&mut world).await, ("6".to_owned(), 1, 1));
    world.reopen().await;
    assert_eq!(state(&mut world).await, ("6".to_owned(), 1, 1));
}

async fn nothing_changes_when_a_receipt_is_stale(mut world: World) {
    let delivery = prepared(&mut world).await;
    let effects = effects(&mut world).await;
    effects.apply(order(&delivery, 4)).await.expect("apply");
    assert_kind(
        effects.apply(order(&delivery, 4)).await,
        ErrorKind::Conflict,
    );
    assert_eq!(state(&mut world).await, ("6".to_owned(), 1, 1));
}

async fn nothing_changes_when_a_condition_does_not_hold(mut world: World) {
    let delivery = prepared(&mut world).await;
    let outcome = effects(&mut world)
        .await
        .apply(order(&delivery, 11))
        .await
        .expect("apply");
    assert_eq!(
        outcome,
        Outcome::Refused {
            index: 0,
            current: Some("10".into())
        }
    );
    assert_eq!(state(&mut world).await, ("10".to_owned(), 0, 0));
}

async fn nothing_changes_when_a_publication_matches_no_route(mut world: World) {
    let delivery = prepared(&mut world).await;
    let exchange = ExchangeName::new("nowhere").expect("a valid name");
    let publication = Publication {
        routing_key: "x".to_owned(),
        message: text("x"),
    };
    let transaction = Transaction {
        publish: vec![(exchange, publication)],
        ..order(&delivery, 4)
    };
    assert_kind(
        effects(&mut world).await.apply(transaction).await,
        ErrorKind::NotFound,
    );
    assert_eq!(state(&mut world).await, ("10".to_owned(), 0, 0));
}

fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

/// The transaction of a file reader: append the line, and move its position from the expected one.
fn line(text_of: &str, from: Option<&'static str>, to: &'static str) -> Transaction {
    Transaction {
        kv: vec![Op::CompareAndSwap {
            key: "position".to_owned(),
            expected: from.map(Bytes::from),
            value: to.into(),
            ttl: None,
        }],
        append: vec![(lines(), text(text_of))],
        ..Transaction::default()
    }
}

async fn a_position_moves_in_the_same_step_as_the_append(mut world: World) {
    let effects = effects(&mut world).await;
    effects.apply(line("a", None, "2")).await.expect("apply");
    let again = effects.apply(line("a", None, "2")).await.expect("apply");
    assert!(
        matches!(again, Outcome::Refused { index: 0, .. }),
        "{again:?}"
    );
    effects
        .apply(line("b", Some("2"), "4"))
        .await
        .expect("apply");
    world.reopen().await;
    let stream = world.stream().await;
    let entries = stream.range(&lines(), None, 10).await.expect("range");
    let payloads: Vec<_> = entries
        .iter()
        .map(|entry| &entry.message.payload[..])
        .collect();
    assert_eq!(payloads, [b"a", b"b"]);
}

async fn an_entry_is_finished_in_the_same_step_as_its_effect(mut world: World) {
    let effects = effects(&mut world).await;
    let (stream, group) = (
        world.stream().await,
        GroupName::new("g").expect("a valid name"),
    );
    stream
        .create_group(&lines(), &group, Start::Beginning)
        .await
        .expect("create a group");
    let appended = stream
        .append(&lines(), vec![text("a")])
        .await
        .expect("append");
    let offset = *appended[0].as_ref().expect("taken");
    let count = |commit_in: &GroupName| Transaction {
        kv: vec![Op::Add {
            key: "seen".to_owned(),
            delta: 1,
            min: 0,
            max: 9,
        }],
        commit: vec![(lines(), commit_in.clone(), vec![offset])],
        ..Transaction::default()
    };
    let missing = GroupName::new("missing").expect("a valid name");
    assert_kind(effects.apply(count(&missing)).await, ErrorKind::NotFound);
    effects.apply(count(&group)).await.expect("apply");
    let kv = world.backend().await.kv.expect("the row offers keys");
    assert_eq!(
        kv.get("seen").await.expect("get").as_deref(),
        Some(&b"1"[..])
    );
    let stats = stream.stats(&lines()).await.expect("stats");
    assert_eq!(
        (stats.groups[0].lag, stats.groups[0].committed),
        (0, Some(offset))
    );
}

async fn one_of_many_settles_a_receipt(mut world: World) {
    let delivery = prepared(&mut world).await;
    let effects = effects(&mut world).await;
    let mut racers = JoinSet::new();
    for _ in 0..20 {
        let (effects, order) = (Arc::clone(&effects), order(&delivery, 1));
        racers.spawn(async move { effects.apply(order).await.is_ok() });
    }
    let won = racers
        .join_all()
        .await
        .into_iter()
        .filter(|won| *won)
        .count();
    assert_eq!((won, state(&mut world).await), (1, ("9".to_owned(), 1, 1)));
}

/// Makes the queue `notify` hold one message at most.
async fn small_notify(world: &mut World) {
    let settings = Settings {
        max_depth: Some(1),
        ..Settings::default()
    };
    let queue = world.queue().await;
    queue
        .declare(&name("notify"), &settings)
        .await
        .expect("declare");
}

async fn nothing_changes_when_a_queue_is_full(mut world: World) {
    let delivery = prepared(&mut world).await;
    small_notify(&mut world).await;
    let mut transaction = order(&delivery, 4);
    transaction
        .enqueue
        .push((name("notify"), text("one too many")));
    let refusal = effects(&mut world)
        .await
        .apply(transaction)
        .await
        .expect_err("full");
    assert!(refusal.retry_after().is_some(), "{refusal:?}");
    assert_eq!(state(&mut world).await, ("10".to_owned(), 0, 0));
}

fn sold_once() -> NewMessage {
    NewMessage {
        dedup_id: Some("order 1".to_owned()),
        ..text("sold")
    }
}

async fn a_repeated_dedup_id_is_skipped(mut world: World) {
    let delivery = prepared(&mut world).await;
    let mut transaction = order(&delivery, 4);
    transaction.enqueue = vec![(name("notify"), sold_once()), (name("notify"), sold_once())];
    effects(&mut world)
        .await
        .apply(transaction)
        .await
        .expect("apply");
    assert_eq!(state(&mut world).await, ("6".to_owned(), 1, 1));
}

async fn a_refusal_counts_no_duplicates(mut world: World) {
    let delivery = prepared(&mut world).await;
    small_notify(&mut world).await;
    let mut transaction = order(&delivery, 4);
    transaction.enqueue = vec![
        (name("notify"), sold_once()),
        (name("notify"), sold_once()),
        (name("notify"), text("one too many")),
    ];
    assert_kind(
        effects(&mut world).await.apply(transaction).await,
        ErrorKind::Unavailable,
    );
    let queue = world.queue().await;
    let counted = queue
        .stats(&name("notify"))
        .await
        .expect("stats")
        .duplicates;
    assert_eq!(counted, 0, "nothing happened, so nothing is counted");
}
