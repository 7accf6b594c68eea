//! Topologies of Redis: databases, clusters, sentinels, TLS; and their health facts.

use std::io::Write;

use towpath_core::ErrorKind;
use towpath_core::port::kv::Op;
use towpath_core::port::routes::{Binding, Publication};
use towpath_core::{ExchangeName, StreamName};
use towpath_testkit::Own;

use super::redis::{DURABLE, EPHEMERAL, Server};
use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        health_reports_the_durability_of_the_server,
        databases_do_not_mix,
        follows_the_master_that_sentinels_name,
        finds_the_node_of_a_key_in_a_cluster,
        a_step_over_nodes_of_a_cluster_is_refused,
        a_key_of_ours_is_refused_as_a_users,
        speaks_tls_and_checks_the_certificate,
        a_user_needs_no_administration,
    ]
}

async fn warnings(settings: &[&str]) -> Vec<String> {
    let server = Server::start(settings);
    let backend = open(&server.url()).await;
    backend.lifecycle.health().await.expect("health").warnings
}

async fn health_reports_the_durability_of_the_server() {
    assert_eq!(warnings(DURABLE).await, Vec::<String>::new());
    let off = warnings(EPHEMERAL).await;
    assert!(
        off.len() == 1 && off[0].starts_with("`appendonly` is off"),
        "{off:?}"
    );
    let second = warnings(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    assert!(
        second.len() == 1 && second[0].contains("up to about two seconds"),
        "{second:?}"
    );
    let evicts = [
        DURABLE,
        &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"],
    ]
    .concat();
    let evicts = warnings(&evicts).await;
    assert!(
        evicts.len() == 1 && evicts[0].contains("`allkeys-lru`"),
        "{evicts:?}"
    );
}

async fn databases_do_not_mix() {
    let server = Server::start(EPHEMERAL);
    let (one, two) = (
        open(&format!("{}/1", server.url())).await,
        open(&format!("{}/2", server.url())).await,
    );
    enqueue(&queue_of(&one), vec![NewMessage::new("one")]).await;
    assert!(lease(&queue_of(&two), "a", Duration::ZERO).await.is_empty());
    assert_eq!(lease(&queue_of(&one), "a", Duration::ZERO).await.len(), 1);
}

async fn follows_the_master_that_sentinels_name() {
    let (mut master, replica) = (Server::start(EPHEMERAL), Server::start(EPHEMERAL));
    replica.command(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(
        file,
        "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000",
        master.port()
    )
    .expect("written");
    let sentinel = Server::start_with_file(file.path(), &["--sentinel"]);
    until("the replica to be known", || async {
        let known = sentinel.command(&["SENTINEL", "REPLICAS", "main"]);
        known.contains(&replica.port().to_string())
            && known.contains("master-link-status\r\n$2\r\nok")
    })
    .await;
    let place = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port());
    let backend = open(&place).await;
    let queue = queue_of(&backend);
    enqueue(&queue, vec![NewMessage::new("before")]).await;
    until("the replica to have it", || async {
        replica.command(&["LLEN", "messages"]) == ":1\r\n"
    })
    .await;
    master.kill();
    let began = Instant::now();
    while queue
        .enqueue(&messages(), vec![NewMessage::new("after")])
        .await
        .is_err()
    {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "no fail-over is noticed"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        payloads(&lease(&queue, "one", Duration::from_secs(5)).await),
        ["before", "after"]
    );
}

/// Two nodes with half of the slots each.
async fn cluster() -> (Server, Server) {
    let settings = &["--cluster-enabled", "yes", "--appendonly", "no"];
    let (one, two) = (Server::start(settings), Server::start(settings));
    one.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    two.command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    two.command(&["CLUSTER", "SET-CONFIG-EPOCH", "7"]);
    one.command(&["CLUSTER", "MEET", "127.0.0.1", &two.port().to_string()]);
    until("the cluster to be whole", || async {
        [&one, &two].iter().all(|node| {
            let info = node.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
        })
    })
    .await;
    (one, two)
}

async fn finds_the_node_of_a_key_in_a_cluster() {
    let (one, two) = cluster().await;
    let backend = open(&format!("redis+cluster://127.0.0.1:{}", one.port())).await;
    let queue = queue_of(&backend);
    for number in 0..20 {
        let name = QueueName::new(format!("queue-{number}")).expect("a valid name");
        let outcomes = queue
            .enqueue(&name, vec![NewMessage::new(number.to_string())])
            .await
            .expect("enqueue");
        assert!(outcomes[0].is_ok());
    }
    let listed = queue.list().await.expect("list");
    assert_eq!(listed.iter().filter(|one| one.ready == 1).count(), 20);
    // Both have some.
    for node in [&one, &two] {
        assert_ne!(node.command(&["DBSIZE"]), ":0\r\n");
    }
    let stream = backend.stream.clone().expect("redis has streams");
    let lines = StreamName::new("lines").expect("a valid name");
    stream
        .append(&lines, vec![NewMessage::new("a")])
        .await
        .expect("append");
    let kv = backend.kv.clone().expect("redis has keys");
    for key in ["a", "b", "c", "d"] {
        kv.put(key, "x".into(), None).await.expect("put");
    }
    assert_eq!(
        kv.keys("", None, 10).await.expect("keys"),
        ["a", "b", "c", "d"]
    );
    // A waiting consumer is woken on whichever node its queue is.
    for name in ["queue-0", "queue-1", "queue-2", "queue-3"] {
        let list = name.to_owned();
        let waiting = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let mut request = LeaseRequest {
                    queue: QueueName::new(list).expect("a valid name"),
                    consumer: consumer("one"),
                    max: 1,
                    in_flight: 1,
                    lease: Duration::from_secs(60),
                    wait: Duration::ZERO,
                };
                queue.lease(request.clone()).await.expect("lease");
                request.wait = Duration::from_secs(20);
                queue.lease(request).await.expect("lease")
            })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        for node in [&one, &two] {
            node.command(&["LPUSH", name, "raw"]);
        }
        assert_eq!(payloads(&waiting.await.expect("joined")), ["raw"]);
    }
}

async fn a_step_over_nodes_of_a_cluster_is_refused() {
    let (one, _two) = cluster().await;
    let place = format!("redis+cluster://127.0.0.1:{}", one.port());
    let apart = open(&place).await;
    let put = |key: &str| Op::Put {
        key: key.to_owned(),
        value: "x".into(),
        ttl: None,
    };
    let refused = apart
        .kv
        .clone()
        .expect("redis has keys")
        .commit(vec![put("a"), put("b")])
        .await
        .expect_err("on two nodes");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let binding = Binding {
        exchange: ExchangeName::new("orders").expect("a valid name"),
        pattern: "#".to_owned(),
        queue: messages(),
    };
    let refused = apart
        .routes
        .clone()
        .expect("redis has routes")
        .bind(&binding)
        .await
        .expect_err("its queues may be anywhere");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let together = open(&format!("{place}?prefix={{app}}:")).await;
    let routes = together.routes.clone().expect("redis has routes");
    routes.bind(&binding).await.expect("bind");
    let publication = Publication {
        routing_key: "x".to_owned(),
        message: NewMessage::new("x"),
    };
    let outcomes = routes
        .publish(&binding.exchange, vec![publication])
        .await
        .expect("publish");
    assert_eq!(outcomes.into_iter().next().expect("one").ok(), Some(1));
    together
        .kv
        .clone()
        .expect("redis has keys")
        .commit(vec![put("a"), put("b")])
        .await
        .expect("in one slot");
}

async fn a_key_of_ours_is_refused_as_a_users() {
    let (backend, _) = fresh("").await;
    let kv = backend.kv.clone().expect("redis has keys");
    enqueue(&queue_of(&backend), vec![NewMessage::new("x")]).await;
    let refused = kv
        .put("towpath:{messages}:records", "x".into(), None)
        .await
        .expect_err("ours");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(kv.keys("", None, 10).await.expect("keys").is_empty());
    let refused = kv.get("messages").await.expect_err("a list is not a value");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
}

async fn speaks_tls_and_checks_the_certificate() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    towpath_testkit::certificates::make(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = towpath_testkit::servers::free_port().to_string();
    let _server = Server::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let trusted = open(&format!(
        "rediss://localhost:{port}?tls_ca={}",
        path("ca.pem")
    ))
    .await;
    enqueue(&queue_of(&trusted), vec![NewMessage::new("x")]).await;
    for doubtful in [
        format!("rediss://localhost:{port}"),
        format!("rediss://127.0.0.1:{port}?tls_ca={}", path("ca.pem")),
    ] {
        let backend = open(&doubtful).await;
        let refused = backend.lifecycle.health().await.expect_err(&doubtful);
        assert!(
            refused.chain().contains("certificate"),
            "{}",
            refused.chain()
        );
    }
}

async fn a_user_needs_no_administration() {
    let server = Server::start(EPHEMERAL);
    let rule = "on >secret ~app:* ~towpath:* +@all -@admin -@dangerous +info";
    let mut words = vec!["ACL", "SETUSER", "app"];
    words.extend(rule.split(' '));
    assert_eq!(server.command(&words), "+OK\r\n");
    let place = format!("redis://app:secret@127.0.0.1:{}?prefix=app:", server.port());
    let backend = open(&place).await;
    let queue = queue_of(&backend);
    enqueue(&queue, vec![NewMessage::new("x")]).await;
    let held = lease(&queue, "one", Duration::ZERO).await;
    queue.settle(acks(&held)).await.expect("settle");
    assert_eq!(queue.list().await.expect("list").len(), 1);
    let kv = backend.kv.clone().expect("redis has keys");
    kv.put("a", "x".into(), None).await.expect("put");
    assert_eq!(kv.keys("", None, 10).await.expect("keys"), ["a"]);
    let stream = backend.stream.clone().expect("redis has streams");
    let lines = StreamName::new("lines").expect("a valid name");
    stream
        .append(&lines, vec![NewMessage::new("a")])
        .await
        .expect("append");
    backend.lifecycle.health().await.expect("health");
    let elsewhere = format!(
        "redis://app:secret@127.0.0.1:{}?prefix=other:",
        server.port()
    );
    let refused = queue_of(&open(&elsewhere).await)
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await
        .expect_err("not its keys");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
}
