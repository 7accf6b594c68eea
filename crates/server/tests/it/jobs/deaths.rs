//! `kill -9` of the server and of workers: every job is done.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

const JOBS: usize = 200;

/// Leases and acks until it is stopped; abandons every seventh delivery, as a worker that dies.
fn work(mut api: Api, done: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let options = json!({"max": 5, "wait": "200ms", "lease": "1s"});
        let headers = [
            ("authorization", api.bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let path = "/v1/queues/jobs/lease";
        let leased = api
            .client
            .send("POST", path, &headers, options.to_string().as_bytes());
        let Some(leased) = leased.ok().filter(|answer| answer.status == 200) else {
            // The server is restarting; its port is closed meanwhile.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        for delivery in leased.json()["deliveries"].as_array().unwrap() {
            count += 1;
            if count % 7 == 0 {
                continue;
            }
            let body =
                json!({"settlements": [{"receipt": delivery["receipt"], "disposition": "ack"}]});
            let path = "/v1/queues/jobs/settle";
            let settled = api
                .client
                .send("POST", path, &headers, body.to_string().as_bytes());
            let Ok(settled) = settled else { break };
            if settled.status == 200 {
                let payload = delivery["payload"].as_str().unwrap();
                // An ack that was answered is final.
                assert!(
                    done.lock().unwrap().insert(payload.to_owned()),
                    "`{payload}` was acked twice"
                );
            }
        }
    }
}

#[test]
fn every_job_is_done_although_server_and_workers_are_killed() {
    let sites = [Some(Site::embedded()), Site::redis()];
    for mut site in sites.into_iter().flatten() {
        let mut api = site.api();
        api.create("jobs", &json!({"retry": {"attempts": 1000}}));
        let messages: Vec<Value> = (0..JOBS)
            .map(|number| json!({"text": number.to_string()}))
            .collect();
        let path = "/v1/queues/jobs/messages/batch";
        api.ok("POST", path, &json!({ "messages": messages }));
        let done = Arc::new(Mutex::new(BTreeSet::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (api, done, stop) = (site.api(), Arc::clone(&done), Arc::clone(&stop));
                std::thread::spawn(move || work(api, &done, &stop))
            })
            .collect();
        for step in 1..=2 {
            wait_until("some jobs", Duration::from_secs(60), || {
                done.lock().unwrap().len() >= step * JOBS / 4
            });
            site.restart();
        }
        let mut api = site.api();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let stats = api.stats("jobs");
            let left = ["ready", "delayed", "leased"].map(|state| stats[state].as_u64().unwrap());
            if left.iter().sum::<u64>() == 0 {
                assert_eq!(stats["dead"], 0, "{stats}");
                break;
            }
            assert!(Instant::now() < until, "{}: {stats}", site.name);
            // The condition has a deadline above.
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        // Acks whose answer was lost with the server are done, and not in the set.
        let done = done.lock().unwrap().len();
        assert!(done >= JOBS - 4 * 5 * 2, "{}: {done}", site.name);
    }
}
