//! Callers that publish at the same time share batches, and each gets its own outcome.

use futures_util::future::join_all;
use towpath_core::port::routes::Publication;
use towpath_core::{ErrorKind, ExchangeName, MessageId};
use towpath_testkit::servers::rabbitmq::shared;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        publishes_of_concurrent_callers_share_a_few_channels,
        refused_and_unroutable_messages_fail_alone,
    ]
}

/// A new virtual host, and its URL.
fn add_host() -> (String, String) {
    let host = format!("h{}", MessageId::new());
    let server = shared();
    server.control(&["add_vhost", &host]);
    server.control(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]);
    let url = format!("{}/{host}?queue_type=classic", server.url());
    (host, url)
}

async fn publishes_of_concurrent_callers_share_a_few_channels() {
    let (host, url) = add_host();
    let backend = open(&url).await;
    let queue = queue_of(&backend);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let queue = Arc::clone(&queue);
        calls.spawn(async move {
            let message = NewMessage::new(number.to_string());
            let to = messages();
            let call = queue.enqueue(&to, vec![message]);
            if number % 7 == 3 {
                // Polled once, so it is with the others, and then gone.
                tokio::select! { biased; _ = call => {} () = std::future::ready(()) => {} }
                return;
            }
            let outcomes = call.await.expect("enqueue");
            assert_eq!(outcomes.len(), 1);
            assert!(outcomes[0].is_ok(), "{outcomes:?}");
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("a caller gets its own outcome");
    }
    let mut found = std::collections::BTreeSet::new();
    while found.len() < 171 {
        let deliveries = lease(&queue).await;
        assert!(!deliveries.is_empty(), "{} of 171", found.len());
        for delivery in &deliveries {
            settle(&queue, delivery, Disposition::Ack).await;
        }
        found.extend(deliveries.into_iter().map(|one| one.message.payload));
    }
    let channels = shared().control(&["list_channels", "vhost", "name"]);
    let channels = channels.lines().filter(|line| line.starts_with(&host));
    let channels = channels.count();
    assert!(channels < 12, "{channels} channels for 200 callers");
    backend.lifecycle.close().await.expect("close");
}

async fn refused_and_unroutable_messages_fail_alone() {
    let (host, url) = add_host();
    let policy = r#"{"max-length":5,"overflow":"reject-publish"}"#;
    let set = ["set_policy", "-p", &host, "full", "^full$", policy];
    shared().control(&[&set[..], &["--apply-to", "queues"]].concat());
    let backend = open(&url).await;
    let queue = queue_of(&backend);
    let routes = backend.routes.clone().expect("rabbitmq has exchanges");
    let full = QueueName::new("full").expect("a valid name");
    let exchange = ExchangeName::new("orders.direct").expect("a valid name");
    let calls = (0..60).map(async |number| {
        let message = NewMessage::new(number.to_string());
        let outcome = match number % 3 {
            0 => queue.enqueue(&full, vec![message]).await.map(drop_all),
            1 => queue
                .enqueue(&messages(), vec![message])
                .await
                .map(drop_all),
            _ => {
                let routing_key = format!("nowhere.{}", number % 2);
                let one = Publication {
                    routing_key,
                    message,
                };
                routes.publish(&exchange, vec![one]).await.map(drop_all)
            }
        };
        outcome.and_then(|own| own)
    });
    let outcomes = join_all(calls).await;
    let of = |rest: usize| {
        let numbered = outcomes.iter().enumerate();
        numbered.filter(move |(number, _)| number % 3 == rest)
    };
    let accepted = of(0).filter(|(_, outcome)| outcome.is_ok()).count();
    assert!(
        (5..10).contains(&accepted),
        "{accepted} of 20 in a queue of 5"
    );
    for (number, outcome) in of(0) {
        if let Err(error) = outcome {
            assert!(error.retry_after().is_some(), "{number}: {error:?}");
        }
    }
    for (number, outcome) in of(1) {
        assert!(outcome.is_ok(), "{number}: {outcome:?}");
    }
    for (number, outcome) in of(2) {
        let kind = outcome.as_ref().expect_err("not routed").kind();
        assert_eq!(kind, ErrorKind::NotFound, "{number}: {outcome:?}");
    }
    backend.lifecycle.close().await.expect("close");
}

/// The outcome of the one message of a call.
fn drop_all<T>(outcomes: Vec<towpath_core::Result<T>>) -> towpath_core::Result<()> {
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().try_for_each(|one| one.map(drop))
}
