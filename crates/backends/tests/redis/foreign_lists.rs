//! Lists that other programs push to and pop from.

use std::time::{Duration, Instant};

use towpath_core::{Headers, NewMessage};
use towpath_testkit::Own;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_raw_push_wakes_a_waiting_consumer_at_once,
        a_raw_push_is_retried_and_dies_like_any_other,
        a_bare_pop_reads_our_messages_in_order,
        items_popped_by_others_leave_no_record,
        equal_payloads_do_not_mix_up_headers,
        large_messages_come_in_bounded_steps,
        a_dead_consumers_deliveries_reach_another_in_time,
        a_dead_consumers_deliveries_reach_a_bare_pop,
        a_consumer_that_leaves_puts_its_deliveries_back_into_the_list,
        a_consumer_that_comes_back_under_its_name_gets_its_deliveries,
    ]
}

fn with_header(payload: &str) -> NewMessage {
    NewMessage {
        headers: Headers::from_iter([("name", payload)]),
        ..NewMessage::new(payload.to_owned())
    }
}

/// Short, so that the tests are.
const QUICK: &str = "consumer_timeout=1s";

/// Longest delay by a dead consumer with that timeout: one timeout, and some rounds of tending on a busy machine.
const IN_TIME: Duration = Duration::from_secs(4);

async fn a_raw_push_wakes_a_waiting_consumer_at_once() {
    let (backend, prefix) = fresh("").await;
    let queue = queue_of(&backend);
    let list = format!("{prefix}messages");
    for round in 0..5 {
        let waiting = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { lease(&queue, "one", Duration::from_secs(20)).await })
        };
        tokio::time::sleep(Duration::from_millis(150)).await;
        let began = Instant::now();
        bare(&["LPUSH", &list, &format!("raw {round}")]);
        let held = waiting.await.expect("joined");
        // Far below the one-second poll interval.
        assert!(
            began.elapsed() < Duration::from_millis(300),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(payloads(&held), [format!("raw {round}")]);
        queue.settle(acks(&held)).await.expect("settle");
    }
    assert_eq!(stats(&queue).await.acked, 5);
}

async fn a_raw_push_is_retried_and_dies_like_any_other() {
    let (backend, prefix) = fresh("").await;
    let queue = queue_of(&backend);
    bare(&["LPUSH", &format!("{prefix}messages"), "raw"]);
    assert_eq!(stats(&queue).await.ready, 1);
    let mut ids = Vec::new();
    let attempts = towpath_core::retry::Policy::default().attempts;
    for attempt in 1..=attempts {
        let held = lease(&queue, "one", Duration::from_secs(5)).await;
        assert_eq!(held[0].attempt, attempt);
        ids.push(held[0].message.id);
        let settlement = Settlement {
            receipt: held[0].receipt.clone(),
            disposition: Disposition::Retry {
                after: Duration::ZERO,
                error: "no".to_owned(),
            },
        };
        queue.settle(vec![settlement]).await.expect("settle")[0]
            .as_ref()
            .expect("retried");
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one id from the first lease on");
    let dead = queue
        .dead_letters(&messages(), None, 10)
        .await
        .expect("dead letters");
    assert_eq!((dead[0].message.id, dead[0].attempts), (ids[0], attempts));
    assert_eq!(stats(&queue).await.dead, 1);
}

async fn a_bare_pop_reads_our_messages_in_order() {
    let (backend, prefix) = fresh("").await;
    let queue = queue_of(&backend);
    let list = format!("{prefix}messages");
    enqueue(
        &queue,
        vec![with_header("one"), with_header("two"), with_header("three")],
    )
    .await;
    for expected in ["one", "two", "three"] {
        let reply = bare(&["BRPOP", &list, "1"]);
        assert!(
            reply.ends_with(&format!("\r\n{expected}\r\n")),
            "{expected}: {reply}"
        );
    }
    let now = stats(&queue).await;
    assert_eq!(
        (now.ready, now.enqueued, now.acked),
        (0, 3, 3),
        "popped by another counts as done"
    );
}

async fn items_popped_by_others_leave_no_record() {
    let (backend, prefix) = fresh(QUICK).await;
    let queue = queue_of(&backend);
    let list = format!("{prefix}messages");
    let batch = (0..200).map(|number| with_header(&number.to_string()));
    enqueue(&queue, batch.collect()).await;
    bare(&["RPOP", &list, "200"]);
    let side = format!("towpath:{{{list}}}:");
    for beside in ["records", "index", "payloads"] {
        let key = format!("{side}{beside}");
        until("the leftovers to go", || async {
            bare(&["EXISTS", &key]) == ":0\r\n"
        })
        .await;
    }
    assert_eq!(stats(&queue).await.acked, 200);
}

async fn equal_payloads_do_not_mix_up_headers() {
    let (backend, prefix) = fresh("").await;
    let queue = queue_of(&backend);
    let list = format!("{prefix}messages");
    bare(&["LPUSH", &list, "x"]);
    let sent = enqueue(
        &queue,
        vec![with_header("b"), with_header("a"), with_header("x")],
    )
    .await;
    bare(&["LPUSH", &list, "b"]);
    let held = lease(&queue, "one", Duration::ZERO).await;
    assert_eq!(payloads(&held), ["x", "b", "a", "x", "b"]);
    for (payload, enqueued) in ["b", "a", "x"].into_iter().zip(&sent) {
        let ours: Vec<&Delivery> = held
            .iter()
            .filter(|one| one.message.headers.get("name") == Some(payload))
            .collect();
        assert_eq!(ours.len(), 1, "{payload}");
        assert_eq!(
            (ours[0].message.payload.as_ref(), ours[0].message.id),
            (payload.as_bytes(), enqueued.id())
        );
    }
    queue.settle(acks(&held)).await.expect("settle");
    assert_eq!(stats(&queue).await.acked, 5);
}

async fn large_messages_come_in_bounded_steps() {
    let (backend, _) = fresh("").await;
    let queue = queue_of(&backend);
    for _ in 0..4 {
        let batch = (0..20).map(|_| NewMessage::new(vec![7; 1 << 20]));
        enqueue(&queue, batch.collect()).await;
    }
    let peeked = queue.peek(&messages(), 80).await.expect("peek").len();
    assert!((32..80).contains(&peeked), "{peeked}");
    let mut seen = 0;
    while seen < 80 {
        let held = lease(&queue, "one", Duration::ZERO).await;
        // At most a piece more than 32 MiB.
        assert!((1..=48).contains(&held.len()), "{}", held.len());
        seen += held.len();
        queue.settle(acks(&held)).await.expect("settle");
    }
    assert_eq!(stats(&queue).await.acked, 80);
}

async fn a_dead_consumers_deliveries_reach_another_in_time() {
    let (heir, prefix) = fresh(QUICK).await;
    let queue = queue_of(&heir);
    enqueue(&queue, vec![with_header("one"), with_header("two")]).await;
    let mortal = open(&url(&prefix, QUICK)).await;
    assert_eq!(
        lease(&queue_of(&mortal), "mortal", Duration::ZERO)
            .await
            .len(),
        2
    );
    // No heart beats for it from here on, as when its process is killed.
    drop(mortal);
    let began = Instant::now();
    let again = lease(&queue, "heir", Duration::from_secs(20)).await;
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
    assert_eq!(payloads(&again), ["one", "two"]);
    assert!(again.iter().all(|one| one.attempt == 2));
}

async fn a_dead_consumers_deliveries_reach_a_bare_pop() {
    let (api, prefix) = fresh(QUICK).await;
    let queue = queue_of(&api);
    enqueue(&queue, vec![with_header("one"), with_header("two")]).await;
    let mortal = open(&url(&prefix, QUICK)).await;
    lease(&queue_of(&mortal), "mortal", Duration::ZERO).await;
    drop(mortal);
    let began = Instant::now();
    let list = format!("{prefix}messages");
    until("the list to be filled again", || async {
        bare(&["LLEN", &list]) == ":2\r\n"
    })
    .await;
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
    assert!(bare(&["RPOP", &list]).ends_with("one\r\n"));
    assert!(bare(&["RPOP", &list]).ends_with("two\r\n"));
}

async fn a_consumer_that_leaves_puts_its_deliveries_back_into_the_list() {
    let (backend, prefix) = fresh("").await;
    let queue = queue_of(&backend);
    enqueue(&queue, vec![with_header("one"), with_header("two")]).await;
    let held = lease(&queue, "one", Duration::ZERO).await;
    let release = Settlement {
        receipt: held[1].receipt.clone(),
        disposition: Disposition::RELEASE,
    };
    queue.settle(vec![release]).await.expect("settle");
    backend.lifecycle.close().await.expect("close");
    let list = format!("{prefix}messages");
    assert!(bare(&["RPOP", &list]).ends_with("one\r\n"));
    assert!(bare(&["RPOP", &list]).ends_with("two\r\n"));
}

async fn a_consumer_that_comes_back_under_its_name_gets_its_deliveries() {
    let (first, prefix) = fresh("").await;
    let queue = queue_of(&first);
    enqueue(&queue, vec![with_header("one")]).await;
    let lost = lease(&queue, "same", Duration::ZERO).await;
    drop((first, queue));
    let second = open(&url(&prefix, "")).await;
    let queue = queue_of(&second);
    let again = lease(&queue, "same", Duration::ZERO).await;
    assert_eq!(
        (payloads(&again), again[0].attempt),
        (vec!["one".to_owned()], 2)
    );
    assert!(queue.settle(acks(&lost)).await.expect("settle")[0].is_err());
}
