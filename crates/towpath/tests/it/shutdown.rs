//! SIGTERM under full load: nothing lost, nothing charged, and the printed account is true.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::process::World;

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

    // What is left is there, and its first delivery is its first attempt.
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
