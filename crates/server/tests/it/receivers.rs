//! The effect of a receiver's condition on messages, and of one message on the others.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use towpath_testkit::servers::{rabbitmq, redis};

use crate::client::Client;
use crate::process::{World, able, free_ports, lines_of, wait_until};
use crate::web::{Reply, serve, serve_at};

/// A worker that posts to this URL.
fn webhook(url: &str) -> World {
    let mut world = World::new();
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set("TOWPATH_INGEST__WORKER__WEBHOOK__URL", url)
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 3)
        .set("TOWPATH_INGEST__WORKER__RETRY__FIRST", "100ms")
        .set("TOWPATH_INGEST__WORKER__RETRY__MAX", "1s");
    world
}

fn send(world: &World, count: usize) {
    let lines: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let mut client = world.client();
    for part in lines.chunks(1_000) {
        let type_ = [("content-type", "application/x-ndjson")];
        let part: Vec<String> = part.iter().map(|line| format!("\"{line}\"")).collect();
        let answer = client.post("/enqueue/batch", &type_, part.join("\n").as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Waits until this many are acked; none may be dead.
fn wait_acked(world: &World, count: usize, within: Duration) {
    wait_until("every message to be acked", within, || {
        let stats = world.json(&["queue", "show", "messages"]);
        assert_eq!(stats["dead"], 0, "{stats}");
        stats["acked"] == count
    });
}

#[test]
fn slow_messages_hold_up_no_others() {
    let posts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&posts);
    let receiver = serve(move |asked| {
        count.fetch_add(1, Ordering::SeqCst);
        // Ten of a thousand.
        if asked.body.ends_with(b"50") && asked.body.len() <= 3 {
            std::thread::sleep(Duration::from_secs(5));
        }
        Reply::text(200, "")
    });
    let world = webhook(&format!("http://{receiver}/"));
    let _running = world.up();
    let began = Instant::now();
    send(&world, 1_000);
    wait_acked(&world, 1_000, Duration::from_secs(60));
    let took = began.elapsed();
    eprintln!("1,000 messages of which ten take 5 s: {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(posts.load(Ordering::SeqCst), 1_000);
}

/// Runs jobs of which one kills the worker, until nothing is left to do.
fn one_message_kills_the_worker(world: &mut World) {
    let ran = world.folder.join("ran");
    let script = format!(
        "m=$(cat); echo $m >> {}; [ $m = poison ] && {{ sleep 0.3; kill -9 $PPID; }}; exit 0",
        ran.display()
    );
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "command")
        .set(
            "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
            json!(["sh", "-c", script]),
        )
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 3);
    let api = world.spawn(&["run", "ingest.api"]);
    api.wait_ready(world);
    let mut client = world.client();
    for number in 0..30 {
        let text = match number {
            5 => "poison".to_owned(),
            other => format!("n{other}"),
        };
        assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
    }
    assert!(api.stop().0.success());
    let deadline = Instant::now() + Duration::from_secs(120);
    let dead = loop {
        assert!(Instant::now() < deadline, "the queue is not drained");
        let worker = world.spawn(&["run", "ingest.worker"]);
        let mut killed = false;
        let drained = loop {
            let alive = std::fs::read_to_string(format!("/proc/{}/stat", worker.id()));
            if alive.is_ok_and(|stat| stat.contains(") Z ")) {
                killed = true;
                break false;
            }
            let admin = world.admin_client().send("GET", "/readyz", &[], b"");
            if admin.is_ok_and(|answer| answer.status == 200) {
                let output = world.run(&["queue", "show", "messages", "--output", "json"]);
                let stats: serde_json::Value =
                    serde_json::from_slice(&output.stdout).unwrap_or_default();
                let is_empty = ["ready", "delayed", "leased"]
                    .iter()
                    .all(|place| stats[*place] == 0);
                if is_empty {
                    assert_eq!(stats["dead"], 1, "{stats}");
                    break true;
                }
            }
            assert!(Instant::now() < deadline, "the queue is not drained");
            std::thread::sleep(Duration::from_millis(20));
        };
        if drained {
            break world.json(&["dlq", "ls", "messages"]);
        }
        assert!(killed);
    };
    assert_eq!(dead[0]["payload"], "poison", "{dead}");
    let mut runs = BTreeMap::new();
    // A command whose worker died before it wrote reads nothing.
    for name in lines_of(&ran).into_iter().filter(|name| !name.is_empty()) {
        *runs.entry(name).or_insert(0) += 1;
    }
    assert_eq!(runs.len(), 30, "{runs:?}");
    assert_eq!(runs["poison"], 3, "{runs:?} {dead}");
}

#[test]
fn a_message_that_kills_the_worker_dies_alone() {
    one_message_kills_the_worker(&mut World::new());
}

#[test]
fn a_message_that_kills_the_worker_dies_alone_on_redis() {
    if able("redis", redis::missing().is_none()) {
        let server = redis::Server::start(redis::DURABLE);
        let mut world = World::new();
        let url = format!("redis://127.0.0.1:{}?consumer_timeout=1s", server.port());
        world.set("TOWPATH_BACKENDS__INGEST", url);
        one_message_kills_the_worker(&mut world);
    }
}

#[test]
fn a_message_that_kills_the_worker_dies_alone_on_rabbitmq() {
    if able("rabbitmq", rabbitmq::missing().is_none()) {
        let host = format!("h{}", uuid::Uuid::now_v7().simple());
        let server = rabbitmq::shared();
        server.control(&["add_vhost", &host]);
        server.control(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]);
        let mut world = World::new();
        world.set(
            "TOWPATH_BACKENDS__INGEST",
            format!("{}/{host}", server.url()),
        );
        one_message_kills_the_worker(&mut world);
    }
}

#[test]
fn a_receiver_that_limits_the_rate_gets_that_rate() {
    const RATE: f64 = 100.0;
    let bucket = Mutex::new((RATE, Instant::now()));
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let receiver = serve(move |_| {
        let mut bucket = bucket.lock().unwrap();
        let (tokens, since) = *bucket;
        let now = Instant::now();
        let tokens = (tokens + (now - since).as_secs_f64() * RATE).min(RATE);
        let is_taken = tokens >= 1.0;
        *bucket = (tokens - f64::from(u8::from(is_taken)), now);
        if is_taken {
            return Reply::text(204, "");
        }
        count.fetch_add(1, Ordering::SeqCst);
        Reply::Answer(429, vec![("retry-after", "1".to_owned())], Vec::new())
    });
    let world = webhook(&format!("http://{receiver}/"));
    let running = world.up();
    send(&world, 1_500);
    let began = Instant::now();
    wait_acked(&world, 1_500, Duration::from_secs(60));
    let refused = refused.load(Ordering::SeqCst);
    eprintln!(
        "1,500 posts at 100/s: {:?}, {refused} refused",
        began.elapsed()
    );
    // Two percent, and those that were under way at the first refusal.
    assert!(refused <= 30 + 16, "{refused} refused");
    let log = running.log();
    assert_eq!(
        log.matches("destination limits the rate").count(),
        1,
        "{log}"
    );
}

#[test]
fn a_receiver_that_asks_for_time_charges_no_message() {
    for after in ["1", "0", ""] {
        let posts = Arc::new(AtomicUsize::new(0));
        let (count, began) = (Arc::clone(&posts), Instant::now());
        let receiver = serve(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            if began.elapsed() > Duration::from_secs(4) {
                return Reply::text(200, "");
            }
            let headers = match after {
                "" => Vec::new(),
                after => vec![("retry-after", after.to_owned())],
            };
            Reply::Answer(503, headers, Vec::new())
        });
        let world = webhook(&format!("http://{receiver}/"));
        let running = world.up();
        send(&world, 50);
        wait_acked(&world, 50, Duration::from_secs(30));
        let posts = posts.load(Ordering::SeqCst);
        assert!(posts < 50 + 16 + 20, "{posts} posts, after {after:?}");
        let log = running.log();
        assert_eq!(log.matches("destination paused").count(), 1, "{log}");
        assert_eq!(log.matches("destination resumed").count(), 1, "{log}");
    }
}

#[test]
fn a_receiver_that_is_not_there_is_named_and_charges_no_message() {
    let (address, _) = free_ports();
    let world = webhook(&format!("http://user:geheim@{address}/in?token=geheim"));
    let running = world.up();
    send(&world, 30);
    let ready = || {
        let answer = world.admin_client().get("/readyz?verbose");
        (answer.status, answer.text())
    };
    wait_until("the receiver to be named", Duration::from_secs(10), || {
        let (status, text) = ready();
        status == 503
            && text.contains(&format!(
                "[-]ingest.worker: destination `http://{address}/***` is unavailable: no answer"
            ))
    });
    let paused = "towpath_destinations{role=\"ingest.worker\",state=\"paused\"}";
    assert!((world.metric(paused) - 1.0).abs() < f64::EPSILON);
    std::thread::sleep(Duration::from_secs(6));
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&stats["dead"], &stats["retried"]),
        (&json!(0), &json!(0)),
        "{stats}"
    );
    serve_at((Ipv4Addr::LOCALHOST, address.port()), |_| {
        Reply::text(200, "")
    });
    let began = Instant::now();
    wait_acked(&world, 30, Duration::from_secs(20));
    assert!(began.elapsed() < Duration::from_secs(10), "{began:?}");
    assert_eq!(ready().0, 200, "{}", ready().1);
    assert!(world.metric(paused).abs() < f64::EPSILON);
    let log = running.log();
    assert_eq!(log.matches("destination paused").count(), 1, "{log}");
    assert!(!log.contains("geheim"), "{log}");
}

#[test]
fn a_receiver_that_hangs_charges_no_message() {
    // Connections are made, and nothing reads them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut world = webhook(&format!("http://{address}/"));
    world.set("TOWPATH_INGEST__WORKER__WEBHOOK__TIMEOUT", "300ms");
    let _running = world.up();
    send(&world, 20);
    std::thread::sleep(Duration::from_secs(4));
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&stats["dead"], &stats["retried"], &stats["acked"]),
        (&json!(0), &json!(0), &json!(0)),
        "{stats}"
    );
    drop(listener);
    serve_at((Ipv4Addr::LOCALHOST, address.port()), |_| {
        Reply::text(200, "")
    });
    wait_acked(&world, 20, Duration::from_secs(20));
}

#[test]
fn a_message_that_a_receiver_breaks_on_blocks_no_other() {
    let receiver = serve(|asked| match asked.body.as_slice() {
        b"7" => Reply::Reset,
        b"11" => Reply::text(502, "bad gateway"),
        _ => Reply::text(200, ""),
    });
    let world = webhook(&format!("http://{receiver}/"));
    let _running = world.up();
    send(&world, 500);
    wait_acked(&world, 498, Duration::from_secs(30));
}

#[test]
fn a_program_that_cannot_be_started_charges_no_message() {
    let mut world = World::new();
    let program = world.folder.join("job");
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "command")
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 2)
        .set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", json!([program]));
    let running = world.up();
    send(&world, 10);
    wait_until("the pause", Duration::from_secs(10), || {
        running.log().contains("destination paused")
    });
    std::thread::sleep(Duration::from_secs(2));
    let ready = world.admin_client().get("/readyz?verbose").text();
    assert!(ready.contains("cannot be started"), "{ready}");
    std::fs::write(&program, "#!/bin/sh\ncat > /dev/null\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    wait_acked(&world, 10, Duration::from_secs(15));
}

#[test]
fn a_stop_asks_commands_to_end_before_it_kills_them() {
    let mut world = World::new();
    let said = world.folder.join("said");
    let script = format!(
        "trap 'echo ended >> {0}; exit 1' TERM; echo began >> {0}; sleep 60 & wait",
        said.display()
    );
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "command")
        .set(
            "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
            json!(["sh", "-c", script]),
        )
        .set("TOWPATH_SERVER__DRAIN", "6s");
    let running = world.up();
    send(&world, 1);
    wait_until("the command", Duration::from_secs(10), || {
        lines_of(&said) == ["began"]
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    assert_eq!(lines_of(&said), ["began", "ended"]);
    let _running = world.up();
    wait_until("the command again", Duration::from_secs(10), || {
        lines_of(&said).len() == 3
    });
    let peeked = world.json(&["queue", "peek", "messages"]);
    assert_eq!(
        peeked[0]["attempts"], 1,
        "the first run is not charged: {peeked}"
    );
}

#[test]
fn tasks_wait_for_their_destination() {
    let (address, _) = free_ports();
    let mut world = World::new();
    world
        .set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1")
        .set("WORKER_RETRY_MAX", "1");
    let running = world.spawn(&["run", "fleet.worker"]);
    running.wait_ready(&world);
    let mut client = Client::new(world.hits);
    let config = json!({ "version": 1, "data": { "url": format!("http://{address}/") } });
    client.post("/config", &[], config.to_string().as_bytes());
    let task = client.get("/hit").json()["data"]["task_id"].clone();
    let path = format!("/hit/{}", task.as_str().unwrap());
    std::thread::sleep(Duration::from_secs(6));
    let waiting = client.get(&path).json();
    assert_eq!(waiting["data"]["status"], "pending", "{waiting}");
    assert_eq!(waiting["data"]["state"], "retrying", "{waiting}");
    assert_eq!(waiting["data"]["attempts"], 0, "{waiting}");
    assert_eq!(running.log().matches("destination paused").count(), 1);
    serve_at((Ipv4Addr::LOCALHOST, address.port()), |_| {
        Reply::text(200, "here")
    });
    wait_until("the task", Duration::from_secs(15), || {
        client.get(&path).json()["data"]["status"] == "completed"
    });
    assert_eq!(client.get(&path).json()["data"]["attempts"], 1);
}

#[test]
fn a_receiver_with_a_private_authority_is_trusted_when_named() {
    if !able(
        "openssl",
        std::process::Command::new("openssl")
            .arg("version")
            .output()
            .is_ok(),
    ) {
        return;
    }
    let mut receiver = World::new();
    let keys = receiver.folder.join("keys");
    std::fs::create_dir(&keys).unwrap();
    towpath_testkit::certificates::make(&keys);
    receiver
        .set(
            "TOWPATH_SERVER__TLS__CERTIFICATE",
            keys.join("server.pem").display(),
        )
        .set(
            "TOWPATH_SERVER__TLS__KEY",
            keys.join("server.key").display(),
        );
    let receiving = receiver.spawn(&["run", "ingest.api"]);
    receiving.wait_ready(&receiver);
    let mut world = webhook(&format!(
        "https://localhost:{}/enqueue",
        receiver.http.port()
    ));
    let running = world.up();
    send(&world, 5);
    wait_until("the refusal", Duration::from_secs(10), || {
        running.log().contains("destination paused")
    });
    assert!(running.log().contains("UnknownIssuer"), "{}", running.log());
    drop(running);
    world.set(
        "TOWPATH_INGEST__WORKER__WEBHOOK__CA",
        receiver.folder.join("missing.pem").display(),
    );
    let refused = world.run(&["up"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("must be a PEM file with certificates"),
        "{said}"
    );
    world.set(
        "TOWPATH_INGEST__WORKER__WEBHOOK__CA",
        keys.join("ca.pem").display(),
    );
    let _running = world.up();
    wait_acked(&world, 5, Duration::from_secs(15));
}

#[test]
fn notifications_wait_for_their_mail_server() {
    let (address, _) = free_ports();
    let mut world = World::new();
    world
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "smtp")
        .set(
            "TOWPATH_ORDERS__NOTIFY__SMTP__URL",
            format!("smtp://{address}"),
        )
        .set("TOWPATH_ORDERS__NOTIFY__SMTP__TO", "desk@example.org")
        .set("TOWPATH_ORDERS__RETRY__ATTEMPTS", 2)
        .set("TOWPATH_ORDERS__RETRY__FIRST", "10ms");
    let running = world.up();
    crate::orders::set_stock(&world, "case", 50);
    for number in 0..5 {
        crate::orders::order(&mut world.client(), &format!("o{number}"), "case", 1);
    }
    wait_until(
        "the mail server to be named",
        Duration::from_secs(10),
        || {
            let ready = world.admin_client().get("/readyz?verbose").text();
            ready.contains(&format!("destination `smtp://{address}` is unavailable"))
        },
    );
    std::thread::sleep(Duration::from_secs(3));
    let stats = world.json(&["queue", "show", "notifier.queue"]);
    assert_eq!(
        (&stats["dead"], &stats["retried"]),
        (&json!(0), &json!(0)),
        "{stats}"
    );
    let server = crate::mail::MailServer::start_at(address);
    wait_until("five mails", Duration::from_secs(15), || {
        server.mails().len() == 5
    });
    let log = running.log();
    assert_eq!(log.matches("destination paused").count(), 1, "{log}");
}
