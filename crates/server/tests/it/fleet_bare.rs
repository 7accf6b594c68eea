//! Parts of the fleet written from the contract, in the place of ours; and requests that make no sense.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::fleet::{KEY, ask, publish, run, url, version_of, wait_version, world};
use crate::web::{Reply, serve};

#[test]
fn a_bare_controller_works_with_our_agent_and_worker() {
    // As the contract has it: bare versions as tags, no waiting, nothing else.
    let version = Arc::new(AtomicU64::new(1));
    let (now, asked_for) = (Arc::clone(&version), Arc::new(AtomicU64::new(0)));
    let asked_for_ = Arc::clone(&asked_for);
    let controller = serve(move |asked| {
        if asked.headers.get("x-api-key").map(String::as_str) != Some(KEY) {
            return Reply::text(403, r#"{"message":"invalid API key"}"#);
        }
        let version = now.load(Ordering::SeqCst);
        let data = match asked.path.split('?').next().unwrap() {
            "/register" => {
                json!({ "agent_id": "7d9f7dd4-5a3c-4b6b-9a39-5a1a3f1c7d10", "status": "active",
                "poll_url": "/config", "poll_interval_seconds": 1 })
            }
            "/config" => {
                asked_for_.fetch_add(1, Ordering::SeqCst);
                if asked.headers.get("if-none-match") == Some(&version.to_string()) {
                    return Reply::text(304, "");
                }
                json!({ "id": "0d9f7dd4-5a3c-4b6b-9a39-5a1a3f1c7d10", "version": version,
                    "data": { "url": "http://example.org/" }, "poll_interval_seconds": 1 })
            }
            _ => return Reply::text(404, "404 page not found"),
        };
        let status = if asked.path == "/register" { 201 } else { 200 };
        let envelope = json!({ "request_id": "x", "status": status, "success": true, "message": "success", "data": data });
        Reply::Answer(
            status,
            vec![("etag", version.to_string())],
            envelope.to_string().into_bytes(),
        )
    });
    let mut world = world();
    world.set("CONTROLLER_URL", format!("http://{controller}"));
    let _running = run(&world, "fleet.agent,fleet.worker");
    wait_version(&world, 1);
    version.store(2, Ordering::SeqCst);
    wait_version(&world, 2);
    asked_for.store(0, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(3));
    let asked = asked_for.load(Ordering::SeqCst);
    assert!(
        (2..=5).contains(&asked),
        "once a second, not {asked} times in three"
    );
}

#[test]
fn a_bare_agent_works_with_our_controller_and_worker() {
    let world = world();
    let _running = run(&world, "fleet.controller,fleet.worker");
    let place = json!({ "hostname": "agent-01", "ip_address": "127.0.0.1", "port": 8081 });
    assert_eq!(ask(&world, "POST", "/register", &[], &place).status, 201);
    let mut cached = 0;
    for round in 1..=3 {
        publish(&world, &url(&format!("http://example.org/{round}")));
        let tag = cached.to_string();
        let answer = ask(
            &world,
            "GET",
            "/config",
            &[("if-none-match", &tag)],
            &Value::Null,
        );
        let data = answer.json()["data"].clone();
        cached = data["version"].as_u64().unwrap();
        // It forwards these fields, without a key.
        let body = json!({ "id": data["id"], "version": data["version"], "data": data["data"],
            "poll_interval_seconds": data["poll_interval_seconds"], "created_at": "0001-01-01T00:00:00Z" });
        let given = Client::new(world.hits).post("/config", &[], body.to_string().as_bytes());
        assert_eq!(
            (given.status, &given.json()["data"]["version"]),
            (200, &json!(round))
        );
        let tag = cached.to_string();
        assert_eq!(
            ask(
                &world,
                "GET",
                "/config",
                &[("if-none-match", &tag)],
                &Value::Null
            )
            .status,
            304
        );
    }
    assert_eq!(version_of(&world), 3);
}

#[test]
fn malformed_requests_are_refused_and_say_nothing_of_the_inside() {
    let world = world();
    let _running = run(&world, "fleet.controller,fleet.worker");
    publish(&world, &url("http://example.org/"));
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\"x\"",
        b"{\"data\":[]}",
        b"\xff\xfe",
        b"{\"data\":{\"a\":null}}",
        b"{\"version\":-1}",
        b"{\"version\":99999999999999999999}",
        b"{\"hostname\":{},\"port\":\"x\"}",
    ];
    let deep = [b"[".repeat(5_000), b"]".repeat(5_000)].concat();
    let controller = [
        "/register",
        "/config",
        "/config/rollback",
        "/config/restore",
        "/rollout/stop",
        "/agents/x/report",
        "/agents/7d9f7dd4-5a3c-4b6b-9a39-5a1a3f1c7d10/report",
        "/config/diff?from=x",
        "/config/history?limit=-1",
        "/config?wait=x",
        "/config/99999999999999999999",
        "/config/%ff",
        "/agents?after=x",
        "/agents/x",
    ];
    let worker = [
        "/config",
        "/hit",
        "/hit/x",
        "/hit/%00",
        "/hits?limit=x",
        "/hit/x?wait=-1",
    ];
    for (address, paths) in [
        (world.controller, &controller[..]),
        (world.hits, &worker[..]),
    ] {
        let mut client = Client::new(address);
        for path in paths {
            for method in ["GET", "POST", "PUT", "DELETE"] {
                for body in bodies.into_iter().chain([&deep[..]]) {
                    let answer = client.send(
                        method,
                        path,
                        &[("x-api-key", KEY), ("if-match", "\"0\"")],
                        body,
                    );
                    let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
                    assert!(
                        answer.status < 500,
                        "{method} {path} {body:?}: {}",
                        answer.text()
                    );
                    let text = answer.text().to_lowercase();
                    for inside in ["sqlite", "select ", "panicked", "src/", "rusqlite"] {
                        assert!(!text.contains(inside), "{method} {path}: {text}");
                    }
                }
            }
        }
    }
}
