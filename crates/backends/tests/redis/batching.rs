//! Callers of one process share steps, and each gets its own answer.

use towpath_core::port::kv::{Committed, Kv, Op};
use towpath_testkit::Own;
use towpath_testkit::servers::redis::{EPHEMERAL, Server};

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        callers_that_come_together_share_a_step,
        leases_and_acks_share_a_step_and_unused_leases_are_released,
        kv_steps_share_a_script_and_fail_alone,
        a_kv_step_without_permission_fails_alone,
    ]
}

async fn callers_that_come_together_share_a_step() {
    let server = Server::start(EPHEMERAL);
    let backend = open(&server.url()).await;
    let queue = queue_of(&backend);
    // Every tenth call repeats an earlier message, every seventh is dropped while it waits.
    let twice = || NewMessage {
        dedup_id: Some("twice".to_owned()),
        ..NewMessage::new("twice")
    };
    let first = enqueue(&queue, vec![twice()]).await[0].id();
    server.command(&["CONFIG", "RESETSTAT"]);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let queue = Arc::clone(&queue);
        let mut batch = vec![NewMessage::new(number.to_string()), NewMessage::new("more")];
        if number % 10 == 0 {
            batch.push(twice());
        }
        calls.spawn(async move {
            let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
            let call = enqueue(&queue, batch);
            if number % 7 == 3 {
                // Polled once, so it is with the others, and then gone.
                tokio::select! { biased; _ = call => {} () = std::future::ready(()) => {} }
                return;
            }
            let answers = call.await;
            assert_eq!(answers[0], Enqueued::New(ids[0]));
            assert_eq!(answers[1], Enqueued::New(ids[1]));
            if number % 10 == 0 {
                assert_eq!(answers[2], Enqueued::Duplicate(first));
            }
            assert_eq!(answers.len(), ids.len());
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("a caller gets its own answers");
    }
    let steps = steps(&server);
    assert!(steps < 60, "{steps} steps for 200 callers");
    backend.lifecycle.close().await.expect("close");
}

/// Scripts that the server has run.
fn steps(server: &Server) -> u32 {
    let stats = server.command(&["INFO", "commandstats"]);
    let steps = stats.split("cmdstat_evalsha:calls=").nth(1).expect("steps");
    let steps = steps.split(',').next().expect("a number");
    steps.parse().expect("a number")
}

async fn leases_and_acks_share_a_step_and_unused_leases_are_released() {
    let server = Server::start(EPHEMERAL);
    let backend = open(&server.url()).await;
    let queue = queue_of(&backend);
    let batch = (0..200).map(|number| NewMessage::new(number.to_string()));
    enqueue(&queue, batch.collect()).await;
    server.command(&["CONFIG", "RESETSTAT"]);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let queue = Arc::clone(&queue);
        calls.spawn(async move {
            let call = queue.lease(LeaseRequest {
                queue: messages(),
                consumer: consumer("one"),
                max: 1,
                in_flight: 200,
                lease: Duration::from_secs(600),
                wait: Duration::from_secs(5),
            });
            if number % 7 == 3 {
                // Polled once, so it is with the others, and then gone.
                tokio::select! { biased; _ = call => {} () = std::future::ready(()) => {} }
                return None;
            }
            let deliveries = call.await.expect("lease");
            let [delivery] = deliveries.as_slice() else {
                panic!("one message a caller: {deliveries:?}");
            };
            for settled in queue.settle(acks(&deliveries)).await.expect("settle") {
                settled.expect("acked");
            }
            Some(delivery.message.id)
        });
    }
    let mut acked = std::collections::BTreeSet::new();
    while let Some(ended) = calls.join_next().await {
        acked.extend(ended.expect("a caller gets its own message"));
    }
    assert_eq!(acked.len(), 171, "each message once");
    let steps = steps(&server);
    assert!(steps < 120, "{steps} steps for 200 leases and 171 acks");
    let deadline = Instant::now() + Duration::from_secs(10);
    while stats(&queue).await.leased > 0 {
        assert!(Instant::now() < deadline, "{:?}", stats(&queue).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = queue.peek(&messages(), 100).await.expect("peek");
    assert_eq!(waiting.len(), 29);
    assert!(waiting.iter().all(|one| one.attempts == 0), "{waiting:?}");
    backend.lifecycle.close().await.expect("close");
}

fn add(key: &str, max: i64) -> Op {
    Op::Add {
        key: key.to_owned(),
        delta: 1,
        min: 0,
        max,
    }
}

async fn value(kv: &dyn Kv, key: &str) -> String {
    let value = kv.get(key).await.expect("read").unwrap_or_default();
    String::from_utf8(value.to_vec()).expect("text")
}

async fn kv_steps_share_a_script_and_fail_alone() {
    let server = Server::start(EPHEMERAL);
    let backend = open(&server.url()).await;
    let kv = backend.kv.clone().expect("redis has keys");
    let field = |value: &'static str| Op::SetField {
        key: "fields".to_owned(),
        field: "f".to_owned(),
        value: value.into(),
    };
    kv.commit(vec![field("0")]).await.expect("set");
    server.command(&["LPUSH", "list", "x"]);
    server.command(&["CONFIG", "RESETSTAT"]);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200_u32 {
        let kv = Arc::clone(&kv);
        let claim = Op::PutIfAbsent {
            key: format!("claim-{}", number % 40),
            value: number.to_string().into(),
            ttl: None,
        };
        let ops = match number % 5 {
            // Applied for the first of the callers with this claim; the counter is unchanged for the others.
            0 | 1 => vec![add("count", i64::MAX), claim],
            2 => vec![field("1"), add("fields", i64::MAX)],
            3 => vec![add("count", i64::MAX), add("list", i64::MAX)],
            _ => vec![add("few", 3)],
        };
        calls.spawn(async move {
            let call = kv.commit(ops);
            if number % 7 == 3 && number % 5 > 1 {
                // Polled once, so it is with the others, and then dropped.
                tokio::select! { biased; _ = call => {} () = std::future::ready(()) => {} }
                return None;
            }
            Some((number, call.await))
        });
    }
    let mut applied = 0;
    while let Some(ended) = calls.join_next().await {
        match ended.expect("a caller gets its own answer") {
            None => {}
            Some((number, answer)) if matches!(number % 5, 2 | 3) => {
                let error = answer.expect_err("not a number").chain();
                let reason = ["`fields` holds fields", "`list` holds a list"];
                assert!(error.contains(reason[number as usize % 5 - 2]), "{error}");
            }
            Some((number, answer)) => match answer.expect("an answer") {
                Committed::Applied(_) => applied += u32::from(number % 5 < 2),
                Committed::Refused { index, current } if number % 5 < 2 => {
                    let holder = String::from_utf8(current.expect("held").to_vec());
                    let holder: u32 = holder.expect("text").parse().expect("a number");
                    assert_eq!((index, holder % 40), (1, number % 40));
                }
                Committed::Refused { .. } => {}
            },
        }
    }
    let steps = steps(&server);
    assert_eq!(applied, 16, "one for each claim");
    assert_eq!(value(&*kv, "count").await, "16");
    assert_eq!(value(&*kv, "few").await, "3");
    let fields = kv.fields("fields").await.expect("read");
    assert_eq!(fields, [("f".to_owned(), "0".into())], "refused as a whole");
    // Those of the list run alone after their shared script.
    assert!(steps < 110, "{steps} scripts for 200 callers");
    backend.lifecycle.close().await.expect("close");
}

async fn a_kv_step_without_permission_fails_alone() {
    let server = Server::start(EPHEMERAL);
    let rules = ["~open-*", "~towpath:*", "%R~closed", "&*", "+@all"];
    let user = ["ACL", "SETUSER", "user", "on", ">secret"];
    server.command(&[&user[..], &rules].concat());
    let backend = open(&format!("redis://user:secret@127.0.0.1:{}", server.port())).await;
    let kv = backend.kv.clone().expect("redis has keys");
    let calls = (0..30).map(|number| {
        kv.commit(vec![match number % 3 {
            0 => add("closed", i64::MAX),
            1 => add("hidden", i64::MAX),
            _ => add("open-count", i64::MAX),
        }])
    });
    let answers = futures_util::future::join_all(calls).await;
    for (number, answer) in answers.into_iter().enumerate() {
        match number % 3 {
            2 => drop(answer.expect("permitted")),
            denied => {
                let error = answer.expect_err("not permitted").chain();
                let key = ["`closed`", "`hidden`"][denied];
                assert!(
                    error.contains(key) && error.contains("permission"),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(value(&*kv, "open-count").await, "10");
    backend.lifecycle.close().await.expect("close");
}
