//! Callers of one process share steps, and each gets its own answer.

use towpath_testkit::Own;
use towpath_testkit::servers::redis::{EPHEMERAL, Server};

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![callers_that_come_together_share_a_step]
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
    let stats = server.command(&["INFO", "commandstats"]);
    let steps = stats.split("cmdstat_evalsha:calls=").nth(1).expect("steps");
    let steps: u32 = steps
        .split(',')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(steps < 60, "{steps} steps for 200 callers");
    backend.lifecycle.close().await.expect("close");
}
