//! Broken connections, stopped brokers, dead nodes: acknowledged messages are delivered, and clients recover automatically.

use std::collections::BTreeSet;

use rand::Rng;
use towpath_core::port::queue::Settings;
use towpath_core::{ErrorKind, MessageId};
use towpath_testkit::proxy::{Fault, Proxy};
use towpath_testkit::servers::rabbitmq::{self, Server};

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        nothing_is_lost_while_connections_are_reset,
        a_cut_at_any_byte_loses_nothing,
        a_black_hole_is_noticed_within_the_timeout,
        a_half_open_connection_is_noticed_within_the_timeout,
        nothing_is_lost_when_the_broker_is_killed_and_restarted,
        a_broker_without_memory_is_reported_and_recovers,
        the_other_node_of_a_cluster_takes_over,
        a_wrong_password_is_named,
        speaks_tls_and_checks_the_certificate,
        an_ack_of_a_row_covers_nothing_that_is_open,
    ]
}

/// Sent and received messages.
struct Ledger {
    queue: Arc<dyn Queue>,
    sent: BTreeSet<MessageId>,
    seen: BTreeSet<MessageId>,
}

impl Ledger {
    /// Attempts without end: each broken connection costs one attempt of every in-flight message.
    async fn new(backend: &Backend) -> Self {
        let queue = queue_of(backend);
        let mut settings = Settings::default();
        settings.retry.attempts = u32::MAX;
        queue
            .declare(&messages(), &settings)
            .await
            .expect("declared");
        Self {
            queue,
            sent: BTreeSet::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Enqueues one until it is acknowledged.
    async fn send(&mut self) {
        let message = NewMessage::new("x");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let outcomes = self.queue.enqueue(&messages(), vec![message.clone()]).await;
            match outcomes.and_then(|mut outcomes| outcomes.remove(0)) {
                Ok(stored) => {
                    assert_eq!(stored.id(), message.id);
                    self.sent.insert(message.id);
                    return;
                }
                Err(error) => excuse(&error, deadline).await,
            }
        }
    }

    /// Leases ready messages and acks them. A failed ack leads to a redelivery.
    async fn work(&mut self, wait: Duration) {
        let held = try_lease(&self.queue, "one", wait).await;
        let Ok(held) = held else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        };
        self.seen.extend(held.iter().map(|one| one.message.id));
        let acks = held.into_iter().map(|one| Settlement {
            receipt: one.receipt,
            disposition: Disposition::Ack,
        });
        drop(self.queue.settle(acks.collect()).await);
    }

    /// Works until everything that was acknowledged has come.
    async fn close(mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.sent.is_subset(&self.seen) {
            let missing = self.sent.difference(&self.seen).count();
            assert!(
                Instant::now() < deadline,
                "{missing} of {} are lost",
                self.sent.len()
            );
            self.work(Duration::from_millis(200)).await;
        }
    }
}

/// Only one kind of error is an excuse, and not for ever.
async fn excuse(error: &towpath_core::Error, deadline: Instant) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(Instant::now() < deadline, "still {error:?}");
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// A backend behind a proxy in front of the shared broker.
async fn proxied(parameters: &str) -> (Proxy, Backend) {
    let proxy = Proxy::start(rabbitmq::shared().port()).await;
    let (port, prefix) = (proxy.port(), prefix());
    let url = format!("amqp://guest:guest@127.0.0.1:{port}?prefix={prefix}{parameters}");
    (proxy, open(&url).await)
}

async fn nothing_is_lost_while_connections_are_reset() {
    let (proxy, backend) = proxied("").await;
    let mut ledger = Ledger::new(&backend).await;
    for round in 0..40 {
        ledger.send().await;
        ledger.work(Duration::ZERO).await;
        if round % 3 == 0 {
            proxy.set(Fault::Reset);
            proxy.set(Fault::None);
        }
    }
    ledger.close().await;
}

async fn a_cut_at_any_byte_loses_nothing() {
    let (proxy, backend) = proxied("").await;
    let mut ledger = Ledger::new(&backend).await;
    for _ in 0..15 {
        let bytes = rand::rng().random_range(0..2_500);
        proxy.set(Fault::Reset);
        proxy.set(Fault::CutAfter(bytes));
        ledger.work(Duration::ZERO).await;
        proxy.set(Fault::None);
        ledger.send().await;
        proxy.set(Fault::CutAfter(bytes % 300));
        ledger.work(Duration::ZERO).await;
        proxy.set(Fault::None);
    }
    ledger.close().await;
}

async fn is_noticed(fault: Fault) {
    let (proxy, backend) = proxied("&timeout=500ms").await;
    let mut ledger = Ledger::new(&backend).await;
    ledger.send().await;
    proxy.set(fault);
    let began = Instant::now();
    let outcomes = ledger
        .queue
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await;
    let refused = outcomes
        .and_then(|mut outcomes| outcomes.remove(0))
        .expect_err("nothing passes");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(backend.lifecycle.health().await.is_err());
    proxy.set(Fault::None);
    ledger.send().await;
    let health = || async { backend.lifecycle.health().await.is_ok() };
    until("the backend to be well again", health).await;
    ledger.close().await;
}

async fn a_black_hole_is_noticed_within_the_timeout() {
    is_noticed(Fault::BlackHole).await;
}

async fn a_half_open_connection_is_noticed_within_the_timeout() {
    is_noticed(Fault::HalfOpen).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("joined")
}

async fn nothing_is_lost_when_the_broker_is_killed_and_restarted() {
    let mut server = blocking(Server::start).await;
    let backend = open(&server.url()).await;
    let mut ledger = Ledger::new(&backend).await;
    // RabbitMQ 3.10 itself forgets a quorum queue that was made moments before its node is killed.
    server = blocking(move || {
        server.stop();
        server.restart();
        server
    })
    .await;
    for _ in 0..2 {
        for _ in 0..20 {
            ledger.send().await;
        }
        ledger.work(Duration::ZERO).await;
        for _ in 0..10 {
            ledger.send().await;
        }
        server = blocking(move || {
            server.restart();
            server
        })
        .await;
    }
    ledger.close().await;
}

async fn a_broker_without_memory_is_reported_and_recovers() {
    let server = Arc::new(blocking(Server::start).await);
    let backend = open(&server.url()).await;
    let mut ledger = Ledger::new(&backend).await;
    ledger.send().await;
    let control = |words: &'static [&'static str]| {
        let server = Arc::clone(&server);
        blocking(move || server.control(words))
    };
    control(&["set_vm_memory_high_watermark", "0.000001"]).await;
    let queue = Arc::clone(&ledger.queue);
    // The broker blocks publishing connections.
    until("a refusal with a time to come back", || async {
        let outcomes = queue.enqueue(&messages(), vec![NewMessage::new("x")]).await;
        let outcome = outcomes.and_then(|mut outcomes| outcomes.remove(0));
        outcome.is_err_and(|error| error.retry_after().is_some())
    })
    .await;
    backend.lifecycle.health().await.expect("it answers");
    let refusals = || backend.lifecycle.refusals();
    assert_eq!(refusals(), [("disk", false), ("memory", true)]);
    control(&["set_vm_memory_high_watermark", "0.9"]).await;
    ledger.send().await;
    assert_eq!(refusals(), [("disk", false), ("memory", false)]);
    ledger.close().await;
}

async fn the_other_node_of_a_cluster_takes_over() {
    let [mut first, second] = blocking(Server::start_cluster).await;
    // Two nodes have no majority when one dies, so replication is the classic queues' own.
    let policy = [
        "set_policy",
        "all",
        ".*",
        r#"{"ha-mode":"all","ha-sync-mode":"automatic","ha-promote-on-failure":"always"}"#,
    ];
    let second = blocking(move || {
        second.control(&policy);
        second
    })
    .await;
    let url = format!("{},{}?queue_type=classic", first.url(), second.url());
    let backend = open(&url).await;
    let mut ledger = Ledger::new(&backend).await;
    for _ in 0..50 {
        ledger.send().await;
    }
    let first = blocking(move || {
        first.kill();
        first
    })
    .await;
    let began = Instant::now();
    ledger.send().await;
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    for _ in 0..20 {
        ledger.send().await;
    }
    ledger.close().await;
    drop((first, second));
}

async fn a_wrong_password_is_named() {
    let port = rabbitmq::shared().port();
    let backend = open(&format!("amqp://guest:wrong-one@127.0.0.1:{port}")).await;
    assert!(!backend.url.contains("wrong-one"), "{}", backend.url);
    let refused = backend.lifecycle.health().await.expect_err("refused");
    assert!(
        refused.chain().contains("refused the user"),
        "{}",
        refused.chain()
    );
    assert!(
        !refused.chain().contains("wrong-one"),
        "{}",
        refused.chain()
    );
}

async fn speaks_tls_and_checks_the_certificate() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    towpath_testkit::certificates::make(folder.path());
    let (_server, port) = Server::start_with_tls(folder.path());
    let trusted = format!("tls_ca={}", folder.path().join("ca.pem").display());
    let backend = open(&format!("amqps://localhost:{port}?{trusted}")).await;
    let queue = queue_of(&backend);
    let sent = queue.enqueue(&messages(), vec![NewMessage::new("x")]).await;
    assert!(sent.expect("enqueue").iter().all(Result::is_ok));
    assert_eq!(backend.url, format!("amqps://localhost:{port}"));
    for doubtful in [
        format!("amqps://localhost:{port}"),
        format!("amqps://127.0.0.1:{port}?{trusted}"),
    ] {
        let backend = open(&doubtful).await;
        let refused = backend.lifecycle.health().await.expect_err(&doubtful);
        let text = refused.chain();
        assert!(text.contains("certificate"), "{text}");
    }
}

async fn an_ack_of_a_row_covers_nothing_that_is_open() {
    let url = format!(
        "{}?prefix={}",
        towpath_testkit::servers::rabbitmq::shared().url(),
        prefix()
    );
    let backend = open(&url).await;
    let queue = queue_of(&backend);
    // A waiting consumer receives new messages.
    assert!(
        try_lease(&queue, "one", Duration::from_millis(50))
            .await
            .expect("lease")
            .is_empty()
    );
    let texts = ["a", "b", "c", "d", "e"];
    let sent = queue
        .enqueue(&messages(), texts.map(NewMessage::new).into())
        .await;
    assert!(sent.expect("enqueue").iter().all(Result::is_ok));
    let mut held = Vec::new();
    while held.len() < texts.len() {
        held.extend(lease(&queue).await);
    }
    // The first stays open, then the fourth too: those behind them are done.
    for done in [1, 2, 4, 0] {
        settle(&queue, &held[done], Disposition::Ack).await;
        if done == 2 {
            settle(&queue, &held[3], Disposition::RELEASE).await;
        }
    }
    backend.lifecycle.close().await.expect("closed");
    let backend = open(&url).await;
    let rest = lease(&queue_of(&backend)).await;
    let rest: Vec<_> = rest.iter().map(|one| one.message.payload.clone()).collect();
    assert_eq!(rest, ["d"]);
}
