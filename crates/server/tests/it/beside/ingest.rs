//! API and worker on a Redis list.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use super::{
    Half, Keys, Program, SOON, Side, Value, every_pairing, insist, rounds, start, wait_more,
};
use crate::process::{World, able, lines_of, wait_until};
use crate::web::Reply;

/// `POST /enqueue` of a text, and `GET /healthz`.
fn api(at: SocketAddr, redis: u16) -> Program {
    Program::serve(at, move |asked| {
        let mut keys = Keys::new(redis);
        if asked.path == "/healthz" {
            keys.ask(&["PING"]);
            return Reply::text(200, "ok");
        }
        let message = String::from_utf8(asked.body).unwrap().trim().to_owned();
        if message.is_empty() {
            return Reply::text(400, "message is required\n");
        }
        keys.ask(&["LPUSH", "messages", &message]);
        let body = json!({ "enqueued": true, "queue": "messages", "message": message });
        let kind = vec![("content-type", "application/json".to_owned())];
        Reply::Answer(200, kind, format!("{body}\n").into_bytes())
    })
}

/// Pops a message and appends it to the file, opened for each.
fn worker(redis: u16, output: PathBuf) -> Program {
    Program::start(move |stop| {
        let mut keys = Keys::new(redis);
        while !stop.requested() {
            // The contract's 5 s would be the longest time of a stop.
            let Value::List(popped) = keys.ask(&["BRPOP", "messages", "0.05"]) else {
                continue;
            };
            let options = OpenOptions::new().create(true).append(true).open(&output);
            let line = format!("{} | {}\n", jiff::Timestamp::now(), popped[1].text());
            options.unwrap().write_all(line.as_bytes()).unwrap();
        }
    })
}

#[test]
fn chaos_api_and_worker_are_switched_under_load() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(DURABLE);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("processed.log");
    let (mut front, mut back) = (World::new(), World::new());
    for world in [&mut front, &mut back] {
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        world.set("OUTPUT_PATH", output.display());
    }
    let (at, redis) = (front.http, server.port());
    let mut halves = [
        Half::new(
            "api",
            move || api(at, redis),
            || start(&front, "ingest.api"),
        ),
        Half::new(
            "worker",
            || worker(redis, output.clone()),
            || start(&back, "ingest.worker"),
        ),
    ];
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let load = Program::start(move |stop| {
        while !stop.requested() {
            let number = count.load(Ordering::SeqCst);
            let text = format!("message {number} \\ \u{e9}");
            let (answer, _) = insist(
                at,
                "POST /enqueue",
                &[("content-type", "text/plain")],
                &text,
            );
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["message"], text);
            count.store(number + 1, Ordering::SeqCst);
        }
    });
    let written = || lines_of(&output).len();
    every_pairing(&mut halves, Side::Reference, rounds(), |pairing| {
        wait_more(pairing, &sent, 30);
        let goal = sent.load(Ordering::SeqCst);
        wait_until(pairing, SOON, || written() >= goal);
    });
    load.stop();
    let sent = sent.load(Ordering::SeqCst);
    wait_until("the last messages", SOON, || written() >= sent);
    let numbers: Vec<usize> = lines_of(&output)
        .iter()
        .map(|line| {
            let (time, text) = line.split_once(" | message ").unwrap();
            time.parse::<jiff::Timestamp>().unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    assert!(
        numbers.iter().copied().eq(0..sent),
        "lost, doubled or out of order: {numbers:?}"
    );
}
