//! A clock that goes back: nothing waits longer than its own length.
//!
//! A preloaded library adds seconds to wall-clock time, and leaves the monotonic clock alone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::hanging::Library;
use crate::process::{World, wait_until};

const HOUR: i64 = 3_600;

fn world(library: &Library) -> (World, PathBuf) {
    let mut world = library.world();
    let clock = world.runtime.path().join("clock");
    world.set("CLOCK_FILE", clock.display());
    (world, clock)
}

fn step(clock: &PathBuf, seconds: i64) {
    fs::write(clock, seconds.to_string()).unwrap();
}

/// Takes everything of a bucket, and the next token is refused.
fn drain(world: &World, key: &str) {
    let path = format!("/api/bucket/consume?key={key}&tokens=100");
    assert_eq!(world.client().post(&path, &[], b"").status, 200);
    let path = format!("/api/bucket/consume?key={key}&tokens=50");
    let refused = world.client().post(&path, &[], b"");
    assert_eq!(refused.status, 429, "{}", refused.text());
}

/// Waits until the bucket has 50 tokens: five seconds at its ten a second.
fn wait_refilled(world: &World, key: &str) {
    let path = format!("/api/bucket/consume?key={key}&tokens=50");
    wait_until("the bucket to be refilled", Duration::from_secs(15), || {
        world.client().post(&path, &[], b"").status == 200
    });
}

fn send_later(world: &World, text: &str, seconds: &str) {
    let bearer = world.bearer();
    let headers = [
        ("authorization", bearer.as_str()),
        ("towpath-delay", seconds),
    ];
    let answer =
        world
            .admin_client()
            .post("/v1/queues/messages/messages", &headers, text.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn wait_for_message(world: &World, text: &str) {
    wait_until("the delayed message", Duration::from_secs(15), || {
        world.messages().iter().any(|message| message == text)
    });
}

#[test]
fn step_back_delays_nothing_in_a_running_process() {
    let Some(library) = Library::build() else {
        return;
    };
    for before in [0, HOUR] {
        let (world, clock) = world(&library);
        step(&clock, before);
        let running = world.up();
        drain(&world, "one");
        send_later(&world, "later", "3");
        step(&clock, before - HOUR);
        wait_refilled(&world, "one");
        wait_for_message(&world, "later");
        let ready = world.admin_client().get("/readyz?verbose");
        assert!(
            ready.text().contains("clock was set back"),
            "{}",
            ready.text()
        );
        drop(running);
    }
}

#[test]
fn step_back_delays_nothing_after_a_restart() {
    let Some(library) = Library::build() else {
        return;
    };
    let (world, clock) = world(&library);
    let running = world.up();
    let user = |name: &str| {
        let user = json!({"name": name, "email": format!("{name}@example.org")});
        let answer = world
            .client()
            .post("/api/users", &[], user.to_string().as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    let events = || {
        let bearer = world.bearer();
        let headers = [("authorization", bearer.as_str())];
        let answer = world
            .admin_client()
            .send("GET", "/v1/outbox", &headers, b"")
            .unwrap();
        answer.json()["new"].as_u64().unwrap()
    };
    user("before");
    wait_until("the relay", Duration::from_secs(15), || events() == 0);
    drain(&world, "two");
    send_later(&world, "later", "3");
    running.kill();
    step(&clock, -HOUR);
    let doctor = world.run(&["doctor"]);
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains("clock was set back"), "{doctor}");
    let running = world.up();
    wait_refilled(&world, "two");
    wait_for_message(&world, "later");
    user("after");
    wait_until("the relay after the step", Duration::from_secs(60), || {
        events() == 0
    });
    drop(running);
}
