//! Callers of one process share steps, and each gets its own answer.

use towpath_testkit::Own;
use towpath_testkit::servers::redis::{EPHEMERAL, Server};

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        callers_that_come_together_share_a_step,
        leases_and_acks_share_a_step_and_unused_leases_are_released,
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
