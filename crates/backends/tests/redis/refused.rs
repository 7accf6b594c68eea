//! Refusals of a server that answers: the health check names each with its remedy before a message depends on it.

use towpath_core::{Error, ErrorKind};
use towpath_testkit::Own;

use super::redis::{EPHEMERAL, Server};
use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        health_reports_the_error_of_a_step,
        an_error_names_the_key_and_the_remedy,
        one_broken_queue_keeps_no_other_from_being_tended,
    ]
}

/// A change by an operator or another program, its reversal, and the text of the health check.
const TROUBLES: &[(&str, &str, &str)] = &[
    (
        "SET messages x",
        "DEL messages",
        "key `messages` holds a string, and a list is needed; rename or delete it",
    ),
    (
        "SET towpath:{messages}:leased x",
        "DEL towpath:{messages}:leased",
        "key `towpath:{messages}:leased` holds a string, and a zset is needed",
    ),
    (
        "HSET towpath:{messages}:queue acked x",
        "HDEL towpath:{messages}:queue acked",
        "field `acked` of key `towpath:{messages}:queue` is not a number",
    ),
    (
        "ACL SETUSER user -rpush",
        "ACL SETUSER user +rpush",
        "the user may not run `RPUSH`",
    ),
    (
        "ACL SETUSER user -hset",
        "ACL SETUSER user +hset",
        "the user may not run `HSET`",
    ),
    (
        "ACL SETUSER user resetkeys ~towpath:*",
        "ACL SETUSER user resetkeys ~*",
        "key `messages`",
    ),
    ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "memory"),
    (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
        "`min-replicas-to-write`",
    ),
    ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "replica"),
];

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

async fn health_reports_the_error_of_a_step() {
    let server = Server::start(EPHEMERAL);
    server.command(&words("ACL SETUSER user on >secret ~* &* +@all"));
    let place = format!("redis://user:secret@127.0.0.1:{}", server.port());
    let backend = open(&place).await;
    let queue = queue_of(&backend);
    enqueue(&queue, vec![NewMessage::new("x")]).await;
    let held = lease(&queue, "one", Duration::ZERO).await;
    queue.settle(acks(&held)).await.expect("settle");
    for (trouble, remedy, text) in TROUBLES {
        backend
            .lifecycle
            .health()
            .await
            .unwrap_or_else(|error| panic!("before {trouble}: {error:?}"));
        let reply = server.command(&words(trouble));
        assert!(!reply.starts_with('-'), "{trouble}: {reply}");
        let refused = backend.lifecycle.health().await.expect_err(trouble);
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
        assert!(
            refused.chain().contains(text),
            "{trouble}: {}",
            refused.chain()
        );
        assert_no_script(&refused);
        server.command(&words(remedy));
        let began = Instant::now();
        while backend.lifecycle.health().await.is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{remedy} does not help"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn assert_no_script(error: &Error) {
    let text = error.chain();
    assert!(
        !text.contains("user_script") && !text.contains("script:"),
        "{text}"
    );
}

async fn an_error_names_the_key_and_the_remedy() {
    let server = Server::start(EPHEMERAL);
    let backend = open(&server.url()).await;
    let queue = queue_of(&backend);
    server.command(&["SET", "messages", "x"]);
    let message = || NewMessage {
        dedup_id: Some("pay-1".to_owned()),
        ..NewMessage::new("payment")
    };
    let refused = queue
        .enqueue(&messages(), vec![message()])
        .await
        .expect_err("a string");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        refused
            .chain()
            .contains("key `messages` holds a string, and a list is needed; rename or delete it"),
        "{}",
        refused.chain()
    );
    assert_no_script(&refused);
    server.command(&["DEL", "messages"]);
    // The repeat is stored: the first one was not.
    let id = message();
    let stored = enqueue(&queue, vec![id.clone()]).await;
    assert_eq!(stored, [Enqueued::New(id.id)]);
    assert_eq!(stats(&queue).await.ready, 1);
    // Full memory is overload, and the answer has no text of the server.
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = queue
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await
        .expect_err("full");
    assert!(full.retry_after().is_some(), "{full:?}");
    assert_no_script(&full);
}

async fn one_broken_queue_keeps_no_other_from_being_tended() {
    let server = Server::start(EPHEMERAL);
    let backend = open(&format!("{}?consumer_timeout=1s", server.url())).await;
    let queue = queue_of(&backend);
    let broken = QueueName::new("broken").expect("a valid name");
    queue
        .enqueue(&broken, vec![NewMessage::new("x")])
        .await
        .expect("enqueue");
    let soon = towpath_core::Timestamp::from_millis(1);
    enqueue(
        &queue,
        vec![NewMessage {
            not_before: Some(soon),
            ..NewMessage::new("x")
        }],
    )
    .await;
    server.command(&["DEL", "broken"]);
    server.command(&["SET", "broken", "x"]);
    server.command(&["HDEL", "towpath:{messages}:queue", "tended"]);
    until("the other one to be tended", || async {
        server.command(&["HEXISTS", "towpath:{messages}:queue", "tended"]) == ":1\r\n"
    })
    .await;
}
