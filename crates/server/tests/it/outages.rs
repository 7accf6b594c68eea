//! Outages of a receiver as they are met on call: problems that the process reports, and no message that dies.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::hanging::Library;
use crate::process::{World, free_ports, wait_until};
use crate::web::{Reply, serve_at};

/// A problem appears within this time, and goes within this time after the recovery.
const SHOWN: Duration = Duration::from_secs(10);

/// Messages are delivered within this time after the recovery.
const DELIVERED: Duration = Duration::from_secs(10);

const MESSAGES: usize = 500;

/// Minutes that the receiver is down.
const MINUTES: u64 = 10;

/// The real time of a minute; the wall clock of the process is advanced by the rest. The pauses between trials, by the
/// monotonic clock, are at their longest before the end of the outage all the same.
fn minute() -> Duration {
    let seconds = std::env::var("TOWPATH_TEST_MINUTE").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(1.2);
    Duration::from_secs_f64(seconds)
}

/// The problems, without those of a machine that is busy with other tests.
fn problems(world: &World) -> Vec<Value> {
    let bearer = world.bearer();
    let mut client = world.admin_client();
    let answer = client.send("GET", "/v1/problems", &[("authorization", &bearer)], b"");
    let mut all = answer.unwrap().json().as_array().unwrap().clone();
    all.retain(|one| one["problem"] != "backend_unreachable" && one["problem"] != "disk_stalled");
    all
}

fn stats(world: &World) -> Value {
    world.json(&["queue", "show", "messages"])
}

/// Has the receiver down for ten minutes.
///
/// `fail` and `recover` change the receiver at the address; `error` is text that the problem has to contain.
fn ten_minutes_down(
    fail: impl FnOnce(SocketAddr),
    recover: impl FnOnce(SocketAddr) -> Arc<AtomicUsize>,
    error: &str,
) {
    let Some(library) = Library::build() else {
        return;
    };
    let (address, _) = free_ports();
    let mut world = library.world();
    let clock = world.runtime.path().join("clock");
    world
        .set("CLOCK_FILE", clock.display())
        .set("TOWPATH_SERVER__DISK_TIMEOUT", "30s")
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{address}/hook"),
        )
        // A message that is charged would be dead after half a second.
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 3)
        .set("TOWPATH_INGEST__WORKER__RETRY__FIRST", "100ms");
    std::fs::write(&clock, "0").unwrap();
    let running = world.spawn(&["run", "ingest.api,ingest.worker"]);
    running.wait_ready(&world);
    fail(address);
    let lines: Vec<String> = (0..MESSAGES)
        .map(|number| format!("\"{number}\""))
        .collect();
    let kind = [("content-type", "application/x-ndjson")];
    let body = lines.join("\n");
    let sent = world
        .client()
        .post("/enqueue/batch", &kind, body.as_bytes());
    assert_eq!(sent.status, 200, "{}", sent.text());
    wait_until("the problem", SHOWN, || !problems(&world).is_empty());
    let minute = minute();
    for passed in 1..=MINUTES {
        let before = Instant::now();
        while before.elapsed() < minute {
            let found = problems(&world);
            let [problem] = &*found else {
                panic!("minute {passed}: {found:?}");
            };
            assert_eq!(problem["problem"], "sink_failing", "{problem}");
            assert_eq!(problem["subject"], "ingest.worker", "{problem}");
            let cause = problem["cause"].as_str().unwrap();
            assert!(cause.starts_with("queue `messages`: "), "{cause}");
            assert!(cause.contains(error), "{cause}");
            let figure = problem["figure"].as_str().unwrap();
            assert!(figure.starts_with("100 % of "), "{figure}");
            // The problem has to be there during all of the minute.
            std::thread::sleep(Duration::from_millis(200));
        }
        let ahead = (Duration::from_secs(60).saturating_sub(minute)
            * u32::try_from(passed).unwrap())
        .as_secs();
        std::fs::write(&clock, ahead.to_string()).unwrap();
    }
    let found = stats(&world);
    assert!(
        found["oldest_ready_age_seconds"].as_u64() >= Some(580),
        "{found}"
    );
    assert_eq!(
        (&found["dead"], &found["retried"]),
        (&0.into(), &0.into()),
        "{found}"
    );
    let began = Instant::now();
    let delivered = recover(address);
    wait_until("every message", DELIVERED, || {
        delivered.load(Ordering::SeqCst) >= MESSAGES
    });
    eprintln!(
        "{MESSAGES} messages were delivered {:?} after the recovery",
        began.elapsed()
    );
    wait_until("no problems", SHOWN, || problems(&world).is_empty());
    let found = stats(&world);
    assert_eq!(
        (&found["acked"], &found["dead"]),
        (&MESSAGES.into(), &0.into()),
        "{found}"
    );
    assert_eq!(found["retried"], 0, "{found}");
    let (_, log, _) = running.stop();
    for line in ["destination paused", "destination resumed"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

#[test]
fn no_message_dies_while_nothing_listens_for_ten_minutes() {
    let recover = |address: SocketAddr| {
        let delivered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&delivered);
        serve_at((Ipv4Addr::LOCALHOST, address.port()), move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Reply::text(200, "")
        });
        delivered
    };
    ten_minutes_down(|_| {}, recover, "refused");
}

#[test]
fn no_message_dies_while_a_receiver_answers_503_for_ten_minutes() {
    let is_down = Arc::new(AtomicBool::new(true));
    let delivered = Arc::new(AtomicUsize::new(0));
    let (down, count) = (Arc::clone(&is_down), Arc::clone(&delivered));
    let fail = move |address: SocketAddr| {
        serve_at((Ipv4Addr::LOCALHOST, address.port()), move |_| {
            if down.load(Ordering::SeqCst) {
                return Reply::text(503, "deploying");
            }
            count.fetch_add(1, Ordering::SeqCst);
            Reply::text(200, "")
        });
    };
    let recover = move |_| {
        is_down.store(false, Ordering::SeqCst);
        delivered
    };
    ten_minutes_down(fail, recover, "503");
}
