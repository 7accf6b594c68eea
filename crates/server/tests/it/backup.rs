//! Backups taken under load, and the data after a restore.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::client::Client;
use crate::process::World;

#[test]
fn a_restore_has_everything_acknowledged_before_the_backup() {
    let mut world = World::new();
    world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB");
    let running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    let user = json!({ "email": "ann@example.org", "name": "Ann" }).to_string();
    assert_eq!(
        world
            .client()
            .post("/api/users", &[], user.as_bytes())
            .status,
        201
    );
    let post = |client: &mut Client, number: u32| {
        // Large ones, so that segments fill while they are copied.
        let body = format!("{number}-{}", "x".repeat(20_000));
        assert_eq!(client.post("/enqueue", &[], body.as_bytes()).status, 200);
    };
    let mut client = world.client();
    for number in 0..300 {
        post(&mut client, number);
    }
    let ends = Arc::new(AtomicBool::new(false));
    let load = {
        let (ends, address) = (Arc::clone(&ends), world.http);
        std::thread::spawn(move || {
            let mut client = Client::new(address);
            let mut number = 1_000;
            while !ends.load(Ordering::SeqCst) {
                let body = format!("{number}-{}", "y".repeat(20_000));
                client.post("/enqueue", &[], body.as_bytes());
                number += 1;
            }
        })
    };
    let copy = world.folder.join("copy");
    let made = world.json(&["backup", "copy"]);
    ends.store(true, Ordering::SeqCst);
    load.join().unwrap();
    assert!(made["files"].as_u64().unwrap() > 6, "{made}");
    assert_eq!(made["databases"], json!(["accounts.db", "controller.db"]));
    assert!(
        !world.run(&["backup", "copy"]).status.success(),
        "it is there"
    );
    running.kill();
    let other = World::new();
    let restored = other.ok(&["restore", &copy.display().to_string()]);
    assert!(restored.contains("messages wait in"), "{restored}");
    assert!(
        !other
            .run(&["restore", &copy.display().to_string()])
            .status
            .success(),
        "it has a store"
    );
    let _running = other.up();
    let users = other.client().get("/api/users").json();
    assert_eq!(users["users"][0]["email"], "ann@example.org");
    other.ok(&["queue", "resume", "messages"]);
    other.wait_drained();
    let messages = other.messages();
    for number in 0..300 {
        let start = format!("{number}-x");
        assert_eq!(
            messages
                .iter()
                .filter(|one| one.starts_with(&start))
                .count(),
            1,
            "{start}"
        );
    }
}

#[test]
fn a_store_that_is_not_in_use_is_backed_up_too() {
    let world = World::new();
    let running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    world.ok(&["send", "messages", "one"]);
    let (status, ..) = running.stop();
    assert!(status.success());
    world.ok(&["backup", "copy"]);
    let other = World::new();
    let copy = world.folder.join("copy").display().to_string();
    assert!(other.ok(&["restore", &copy]).contains("1 messages wait"));
    assert!(!other.run(&["restore", "/nowhere"]).status.success());
}
