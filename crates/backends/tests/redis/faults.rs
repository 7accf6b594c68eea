//! Broken connections and stopped servers: acknowledged messages stay, and clients recover automatically.

use std::collections::BTreeSet;

use rand::Rng;
use towpath_core::{ErrorKind, MessageId};
use towpath_testkit::Own;
use towpath_testkit::proxy::{Fault, Proxy};

use super::redis::{DURABLE, EPHEMERAL, Server};
use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        nothing_is_lost_while_connections_are_killed,
        nothing_is_lost_when_the_server_is_killed_and_restarted,
        a_reset_at_any_byte_loses_nothing,
        a_black_hole_is_noticed_within_the_timeout,
        a_half_open_connection_is_noticed_within_the_timeout,
        a_slow_network_is_only_slow,
        a_server_that_is_not_there_yet_is_found_when_it_comes,
        a_wrong_password_is_named,
    ]
}

/// A server, and a record of the run.
struct Ledger {
    queue: Arc<dyn Queue>,
    sent: BTreeSet<MessageId>,
    done: BTreeSet<MessageId>,
}

impl Ledger {
    const fn new(queue: Arc<dyn Queue>) -> Self {
        Self {
            queue,
            sent: BTreeSet::new(),
            done: BTreeSet::new(),
        }
    }

    /// Enqueues one, again with the same dedup id until it is acknowledged.
    async fn send(&mut self) {
        let message = NewMessage::new("x");
        let message = NewMessage {
            dedup_id: Some(message.id.to_string()),
            ..message
        };
        loop {
            match self.queue.enqueue(&messages(), vec![message.clone()]).await {
                Ok(outcomes) => {
                    for outcome in outcomes {
                        assert_eq!(outcome.expect("taken").id(), message.id);
                    }
                    self.sent.insert(message.id);
                    return;
                }
                Err(error) => Self::excuse(&error).await,
            }
        }
    }

    /// Leases ready messages and acks them; a failed ack leaves the message to its lease.
    async fn work(&mut self, who: &str) {
        match try_lease(&self.queue, who, Duration::from_millis(20)).await {
            Ok(held) if held.is_empty() => {}
            Ok(held) => match self.queue.settle(acks(&held)).await {
                Ok(outcomes) => {
                    for (one, outcome) in held.iter().zip(outcomes) {
                        if outcome.is_ok() {
                            assert!(self.done.insert(one.message.id), "acked twice");
                        }
                    }
                }
                Err(error) => Self::excuse(&error).await,
            },
            Err(error) => Self::excuse(&error).await,
        }
    }

    /// Only one kind of error is an excuse.
    async fn excuse(error: &towpath_core::Error) {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    /// Settles the rest, including messages leased by a call whose answer was lost, and compares.
    async fn close(mut self, known_done: bool) {
        let began = Instant::now();
        loop {
            for who in ["one", "two"] {
                while self.queue.disconnect(&consumer(who)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            self.work("one").await;
            match self.queue.stats(&messages()).await {
                Ok(stats) if stats.ready + stats.leased + stats.delayed == 0 => break,
                _ => assert!(began.elapsed() < Duration::from_secs(30), "it does not end"),
            }
        }
        let stats = stats(&self.queue).await;
        assert_eq!(
            (stats.enqueued, stats.acked, stats.dead),
            (self.sent.len() as u64, self.sent.len() as u64, 0),
            "each acknowledged message exactly once"
        );
        assert!(self.done.is_subset(&self.sent));
        if known_done {
            assert_eq!(self.done, self.sent);
        }
    }
}

async fn nothing_is_lost_while_connections_are_killed() {
    // Of its own: the shared one has others' connections.
    let server = Server::start(EPHEMERAL);
    let backend = open(&server.url()).await;
    let mut ledger = Ledger::new(queue_of(&backend));
    let killing = tokio::task::spawn_blocking(move || {
        for _ in 0..150 {
            server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            let pause = rand::rng().random_range(1_000..20_000);
            std::thread::sleep(Duration::from_micros(pause));
        }
        server
    });
    while !killing.is_finished() {
        ledger.send().await;
        ledger.work("one").await;
        // Others of the same kinds of calls, in between.
        for call in [
            ledger.queue.peek(&messages(), 5).await.map(drop),
            ledger.queue.list().await.map(drop),
            ledger.queue.pause(&messages()).await,
        ] {
            if let Err(error) = call {
                Ledger::excuse(&error).await;
            }
        }
        while ledger.queue.resume(&messages()).await.is_err() {}
    }
    let _server = killing.await.expect("joined");
    ledger.close(false).await;
}

async fn nothing_is_lost_when_the_server_is_killed_and_restarted() {
    let mut server = Server::start(DURABLE);
    let backend = open(&server.url()).await;
    let mut ledger = Ledger::new(queue_of(&backend));
    for _ in 0..4 {
        for _ in 0..30 {
            ledger.send().await;
        }
        ledger.work("one").await;
        for _ in 0..10 {
            ledger.send().await;
        }
        server = tokio::task::spawn_blocking(move || {
            server.restart();
            server
        })
        .await
        .expect("joined");
    }
    ledger.close(true).await;
}

async fn a_reset_at_any_byte_loses_nothing() {
    let prefix = prefix();
    let proxy = Proxy::start(redis::shared().port()).await;
    let place = format!("redis://127.0.0.1:{}?prefix={prefix}", proxy.port());
    let backend = open(&place).await;
    let mut ledger = Ledger::new(queue_of(&backend));
    for bytes in (0..60).chain((60..2_000).step_by(61)) {
        // The first connection from here on breaks in the middle of an answer.
        proxy.set(Fault::Reset);
        proxy.set(Fault::CutAfter(bytes));
        drop(try_lease(&ledger.queue, "two", Duration::ZERO).await);
        proxy.set(Fault::None);
        ledger.send().await;
        proxy.set(Fault::CutAfter(bytes % 200));
        ledger.work("one").await;
        proxy.set(Fault::None);
    }
    ledger.close(false).await;
}

/// The result of a call while no requests, or no answers, pass.
async fn is_noticed(fault: Fault) {
    let prefix = prefix();
    let proxy = Proxy::start(redis::shared().port()).await;
    let place = format!(
        "redis://127.0.0.1:{}?prefix={prefix}&timeout=400ms",
        proxy.port()
    );
    let backend = open(&place).await;
    let mut ledger = Ledger::new(queue_of(&backend));
    ledger.send().await;
    proxy.set(fault);
    let began = Instant::now();
    let refused = ledger
        .queue
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await
        .expect_err("nothing passes");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(backend.lifecycle.health().await.is_err());
    proxy.set(Fault::None);
    let began = Instant::now();
    ledger.send().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    backend.lifecycle.health().await.expect("well again");
    // The message whose answer was lost may be there: at least the acknowledged ones are.
    let held = lease(&ledger.queue, "one", Duration::from_secs(5)).await;
    let found: BTreeSet<MessageId> = held.iter().map(|one| one.message.id).collect();
    assert!(ledger.sent.is_subset(&found));
}

async fn a_black_hole_is_noticed_within_the_timeout() {
    is_noticed(Fault::BlackHole).await;
}

async fn a_half_open_connection_is_noticed_within_the_timeout() {
    is_noticed(Fault::HalfOpen).await;
}

async fn a_slow_network_is_only_slow() {
    let prefix = prefix();
    let proxy = Proxy::start(redis::shared().port()).await;
    let backend = open(&format!(
        "redis://127.0.0.1:{}?prefix={prefix}",
        proxy.port()
    ))
    .await;
    let mut ledger = Ledger::new(queue_of(&backend));
    proxy.set(Fault::Latency(Duration::from_millis(20)));
    for _ in 0..5 {
        ledger.send().await;
        ledger.work("one").await;
    }
    ledger.close(true).await;
}

async fn a_server_that_is_not_there_yet_is_found_when_it_comes() {
    let mut server = Server::start(EPHEMERAL);
    server.kill();
    let backend = open(&server.url()).await;
    let refused = backend
        .lifecycle
        .health()
        .await
        .expect_err("the server is stopped");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        refused.chain().contains(&server.port().to_string()),
        "{}",
        refused.chain()
    );
    let queue = queue_of(&backend);
    let waiting = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            loop {
                match try_lease(&queue, "one", Duration::from_secs(20)).await {
                    Ok(held) => return held,
                    Err(error) => Ledger::excuse(&error).await,
                }
            }
        })
    };
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .expect("joined");
    let began = Instant::now();
    server.command(&["LPUSH", "messages", "raw"]);
    assert_eq!(payloads(&waiting.await.expect("joined")), ["raw"]);
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
}

async fn a_wrong_password_is_named() {
    let server = Server::start(&["--requirepass", "right"]);
    let place = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port());
    let backend = open(&place("wrong")).await;
    assert!(!backend.url.contains("wrong"), "{}", backend.url);
    let refused = backend.lifecycle.health().await.expect_err("refused");
    assert!(
        refused
            .chain()
            .contains("did not accept the user or password"),
        "{}",
        refused.chain()
    );
    assert!(!refused.chain().contains("wrong"), "{}", refused.chain());
    let backend = open(&place("right")).await;
    backend.lifecycle.health().await.expect("let in");
}
