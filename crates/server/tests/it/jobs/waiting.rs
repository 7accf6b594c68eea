//! Lease requests that wait.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::client::connect;

#[test]
fn two_hundred_waiting_workers_get_a_message_each() {
    const WORKERS: usize = 200;
    let mut world = World::new();
    // Fewer than the waiting ones: they do not count as concurrent requests.
    world.set("TOWPATH_SERVER__MAX_IN_FLIGHT", 16);
    let site = Site::start("embedded", world, None);
    let mut api = site.api();
    api.create("jobs", &Value::Null);
    let received = Arc::new(Mutex::new(BTreeSet::new()));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (mut api, received) = (site.api(), Arc::clone(&received));
            std::thread::spawn(move || {
                let delivery = api.lease_one("jobs", "1m");
                let payload = delivery["payload"].as_str().unwrap().to_owned();
                received.lock().unwrap().insert(payload);
            })
        })
        .collect();
    // The listener answers others meanwhile.
    for _ in 0..20 {
        assert_eq!(api.stats("jobs")["ready"], 0);
    }
    let messages: Vec<Value> = (0..WORKERS)
        .map(|number| json!({"text": number.to_string()}))
        .collect();
    let path = "/v1/queues/jobs/messages/batch";
    api.ok("POST", path, &json!({ "messages": messages }));
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(received.lock().unwrap().len(), WORKERS);
}

#[test]
fn a_waiting_worker_gets_a_message_when_it_is_sent() {
    let sites = [Some(Site::embedded()), Site::redis()];
    for site in sites.into_iter().flatten() {
        let mut api = site.api();
        api.create("jobs", &Value::Null);
        let mut waiting = site.api();
        let worker = std::thread::spawn(move || {
            let delivery = waiting.lease_one("jobs", "1m");
            (delivery, Instant::now())
        });
        // Long enough that the request waits; the assertions hold for a shorter wait too.
        std::thread::sleep(Duration::from_millis(300));
        api.send("jobs", &[], "work");
        let sent = Instant::now();
        let (delivery, received) = worker.join().unwrap();
        assert_eq!(delivery["payload"], "work");
        assert!(received.saturating_duration_since(sent) < Duration::from_secs(2));
    }
}

#[test]
fn waits_have_a_bound_and_end_with_their_client() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__MAX_WAITING", 1);
    let site = Site::start("embedded", world, None);
    let mut api = site.api();
    api.create("jobs", &Value::Null);
    let head = format!(
        "POST /v1/queues/jobs/lease HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ncontent-length: 0\r\n\r\n",
        site.world.bearer()
    );
    let mut stream = connect(site.world.admin);
    stream.write_all(head.as_bytes()).unwrap();
    // No answer: it waits.
    let silence = Duration::from_millis(500);
    stream.set_read_timeout(Some(silence)).unwrap();
    let read = stream.read(&mut [0]);
    assert!(read.is_err(), "{read:?}");
    let path = "/v1/queues/jobs/lease";
    let answer = api.call("POST", path, &json!({"wait": "100ms"}));
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    // Without a wait there is always an answer.
    assert_eq!(api.call("POST", path, &json!({"wait": "0s"})).status, 200);
    drop(stream);
    wait_until(
        "the permit of the client that left",
        Duration::from_secs(10),
        || api.call("POST", path, &json!({"wait": "100ms"})).status == 200,
    );
    // The abandoned request took nothing.
    api.send("jobs", &[], "work");
    let delivery = api.lease_one("jobs", "1m");
    assert_eq!(delivery["attempt"], 1);
}

#[test]
fn a_drain_ends_waits_at_once() {
    let sites = [Some(Site::embedded()), Site::redis()];
    for mut site in sites.into_iter().flatten() {
        let mut api = site.api();
        api.create("jobs", &Value::Null);
        let mut waiting = site.api();
        let worker = std::thread::spawn(move || waiting.lease("jobs", &json!({"wait": "30s"})));
        // Long enough that the request waits.
        std::thread::sleep(Duration::from_millis(300));
        let (status, log, took) = site.running.take().unwrap().stop();
        assert!(status.success(), "{log}");
        assert!(took < Duration::from_secs(10), "{took:?}\n{log}");
        assert_eq!(worker.join().unwrap(), Vec::<Value>::new(), "{}", site.name);
    }
}
