//! SIGTERM under full load: nothing lost, nothing charged, and the printed account is true.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::client::{connect, to_end};
use crate::process::{World, wait_until};

#[test]
fn a_stop_under_load_loses_nothing_and_charges_no_attempt() {
    let world = World::new();
    let running = world.up();
    let over = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let producers: Vec<_> = (0..8)
        .map(|producer| {
            let (mut client, over, acknowledged) =
                (world.client(), Arc::clone(&over), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                for number in 0.. {
                    let text = format!("{producer}-{number}");
                    match client.send("POST", "/enqueue", &[], text.as_bytes()) {
                        Ok(answer) if answer.status == 200 => {
                            acknowledged.lock().unwrap().insert(text);
                        }
                        _ if over.load(Ordering::SeqCst) => break,
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(700));
    let (status, log, took) = running.stop();
    over.store(true, Ordering::SeqCst);
    for producer in producers {
        producer.join().unwrap();
    }
    assert!(status.success(), "{log}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let written = world.messages().len();
    assert!(
        log.contains(&format!("acked={written}")),
        "the account differs from {written} lines:\n{log}"
    );

    // The remaining messages are stored, and their first delivery is their first attempt.
    let mut world = world;
    world.set("TOWPATH_INGEST__WORKER__SINK", "stdout");
    let running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    for message in world
        .json(&["queue", "peek", "messages"])
        .as_array()
        .unwrap()
    {
        assert!(message["attempts"].as_u64().unwrap() <= 1, "{message}");
    }
    world.ok(&["queue", "resume", "messages"]);
    world.wait_drained();
    let stats = world.json(&["queue", "show", "messages"]);
    drop(running);
    let acknowledged = acknowledged.lock().unwrap();
    assert!(
        stats["acked"].as_u64().unwrap() >= acknowledged.len() as u64,
        "{stats} for {}",
        acknowledged.len()
    );
    assert_eq!(stats["retried"], 0);
    assert_eq!(stats["dead"], 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "command").set(
        "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
        r#"["sleep", "60"]"#,
    );
    let running = world.up();
    world.client().post("/enqueue", &[], b"slow");
    crate::process::wait_until("the delivery", Duration::from_secs(5), || {
        world.json(&["queue", "show", "messages"])["leased"] == 1
    });
    running.signal("-TERM");
    crate::process::wait_until("the drain", Duration::from_secs(5), || {
        running.log().contains("stopping")
    });
    running.signal("-TERM");
    let began = std::time::Instant::now();
    let (status, log) = running.wait();
    assert!(began.elapsed() < Duration::from_secs(3), "{log}");
    assert_eq!(status.code(), Some(1), "{log}");
}

#[test]
fn a_stop_waits_for_no_client_beyond_its_grace_and_says_whom_it_cut() {
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__DRAIN", "5s")
        .set("TOWPATH_INGEST__MAX_BODY", "16MiB");
    let running = world.up();
    let open = |bytes: &[u8]| {
        let mut stream = connect(world.http);
        stream.write_all(bytes).unwrap();
        stream
    };
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    // Between requests: nothing to wait for.
    let mut silent = open(b"");
    let mut idle = open(request);
    assert_eq!(idle.read(&mut [0; 1000]).unwrap_or(0).min(1), 1);
    // Inside of one: waited for, then cut.
    let _head = open(b"GET /heal");
    let _unread = open(b"POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 16777216\r\n\r\n");
    (&_unread).write_all(&vec![b'x'; 16 << 20]).unwrap();
    let mut body = open(b"POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nin time");
    wait_until("the large message", Duration::from_secs(10), || {
        world.metric(
            "towpath_http_requests_total{route=\"/enqueue\",method=\"POST\",status=\"200\"}",
        ) == 1.0
    });

    running.signal("-TERM");
    assert_eq!(to_end(&mut silent), "");
    assert_eq!(to_end(&mut idle), "");
    wait_until(
        "new connections to be refused",
        Duration::from_secs(2),
        || std::net::TcpStream::connect(world.http).is_err(),
    );
    body.write_all(b" !").unwrap();
    let answer = to_end(&mut body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    let began = std::time::Instant::now();
    let (status, log) = running.wait();
    assert!(began.elapsed() < Duration::from_secs(8), "{log}");
    assert!(status.success(), "{log}");
    assert!(log.contains("connections cut=2"), "{log}");
}
