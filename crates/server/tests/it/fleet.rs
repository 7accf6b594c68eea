//! The fleet app: configuration reaches every worker and never goes back, rollouts stop automatically, and each task
//! ends once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::process::{Running, World, wait_until};
use crate::web::{Reply, Request, serve};

pub(crate) const KEY: &str = "a-key-of-this-test";

/// A world of the fleet app.
pub(crate) fn world() -> World {
    let mut world = World::new();
    world.set("API_KEY", KEY);
    world.set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1");
    world
}

/// Sends a request to the controller with the key.
pub(crate) fn ask(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let mut all = vec![("x-api-key", KEY), ("content-type", "application/json")];
    all.extend_from_slice(headers);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut client = Client::new(world.controller);
    client.send(method, path, &all, body.as_bytes()).unwrap()
}

pub(crate) fn publish(world: &World, body: &Value) -> Answer {
    ask(world, "POST", "/config", &[], body)
}

pub(crate) fn url(text: &str) -> Value {
    json!({ "data": { "url": text }, "poll_interval_seconds": 1 })
}

/// The version that a worker has.
pub(crate) fn version_of(world: &World) -> u64 {
    let answer = Client::new(world.hits).send("GET", "/config", &[], b"");
    match answer {
        Ok(answer) if answer.status == 200 => answer.json()["data"]["version"].as_u64().unwrap(),
        _ => 0,
    }
}

pub(crate) fn wait_version(world: &World, version: u64) {
    wait_until(
        &format!("version {version}"),
        Duration::from_secs(15),
        || version_of(world) == version,
    );
}

pub(crate) fn wait_task(world: &World, id: &str) -> Value {
    let mut client = Client::new(world.hits);
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let task = client.get(&format!("/hit/{id}?wait=10")).json()["data"].clone();
        if ["completed", "failed", "cancelled"].contains(&task["status"].as_str().unwrap_or("")) {
            return task;
        }
        assert!(Instant::now() < deadline, "{task}");
    }
}

pub(crate) fn run(world: &World, roles: &str) -> Running {
    let running = world.spawn(&["run", roles]);
    running.wait_ready(world);
    running
}

#[test]
fn the_controller_answers_as_the_contract_says() {
    let world = world();
    let _running = run(&world, "fleet.controller");
    let mut bare = Client::new(world.controller);
    let missing = bare.get("/config");
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (401, &json!("UNAUTHORIZED"))
    );
    assert_eq!(missing.json()["message"], "missing API key");
    let wrong = bare
        .send("GET", "/config", &[("x-api-key", "wrong")], b"")
        .unwrap();
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["code"]),
        (403, &json!("FORBIDDEN"))
    );
    let none = ask(&world, "GET", "/config", &[], &Value::Null);
    assert_eq!(
        (none.status, &none.json()["message"]),
        (404, &json!("no config available"))
    );
    for wrong in [
        json!({}),
        json!({ "data": 7 }),
        json!({ "data": { "a": 1 } }),
        json!([]),
    ] {
        let refused = publish(&world, &wrong);
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (400, &json!("INVALID_REQUEST")),
            "{wrong}"
        );
    }
    let first = publish(&world, &json!({ "data": {}, "poll_interval_seconds": -1 }));
    let envelope = first.json();
    assert_eq!(
        (first.status, &envelope["status"], &envelope["success"]),
        (201, &json!(201), &json!(true))
    );
    assert_eq!(
        (&envelope["message"], envelope["error"].is_null()),
        (&json!("success"), true)
    );
    let data = &envelope["data"];
    assert_eq!(
        (
            &data["version"],
            &data["data"],
            &data["poll_interval_seconds"]
        ),
        (&json!(1), &json!({}), &json!(30))
    );
    let second = publish(&world, &url("http://127.0.0.1/"));
    let etag = second.headers["etag"].clone();
    let newest = ask(&world, "GET", "/config", &[], &Value::Null);
    assert_eq!((newest.status, &newest.headers["etag"]), (200, &etag));
    for known in [etag.as_str(), "2", "\"2\"", "\"x\", W/\"2\"", "*"] {
        let same = ask(
            &world,
            "GET",
            "/config",
            &[("if-none-match", known)],
            &Value::Null,
        );
        assert_eq!(
            (same.status, same.body.len(), &same.headers["etag"]),
            (304, 0, &etag),
            "{known}"
        );
    }
    let other = ask(
        &world,
        "GET",
        "/config",
        &[("if-none-match", "1")],
        &Value::Null,
    );
    assert_eq!(other.json()["data"]["version"], 2);
    let old = ask(&world, "GET", "/config/1", &[], &Value::Null);
    assert_eq!(
        (old.status, &old.json()["data"]["version"]),
        (200, &json!(1))
    );
    let wrong = ask(&world, "GET", "/config/x", &[], &Value::Null);
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["code"]),
        (400, &json!("INVALID_VERSION"))
    );
    assert_eq!(
        ask(&world, "GET", "/config/3", &[], &Value::Null).json()["message"],
        "config version not found"
    );
    for wrong in [
        json!({}),
        json!({ "hostname": "a", "ip_address": "b", "port": 0 }),
    ] {
        assert_eq!(
            ask(&world, "POST", "/register", &[], &wrong).status,
            400,
            "{wrong}"
        );
    }
    let place = json!({ "hostname": "a", "ip_address": "127.0.0.1", "port": 8081 });
    let agent = ask(&world, "POST", "/register", &[], &place);
    let data = agent.json()["data"].clone();
    assert_eq!(
        (agent.status, &data["status"], &data["poll_url"]),
        (201, &json!("active"), &json!("/config"))
    );
    assert_eq!(data["poll_interval_seconds"], 1);
    let again = ask(&world, "POST", "/register", &[], &place);
    assert_eq!(
        again.json()["data"]["agent_id"],
        data["agent_id"],
        "the same place, the same agent"
    );
    assert_eq!(
        ask(&world, "GET", "/nothing", &[], &Value::Null).status,
        404
    );
}

#[test]
fn a_publisher_can_state_the_expected_version_and_roll_back() {
    let world = world();
    let _running = run(&world, "fleet.controller");
    publish(&world, &json!({ "data": { "a": "1", "b": "2" } }));
    let second = json!({ "data": { "b": "3", "c": "4" }, "schema": { "required": ["b"] } });
    let second = ask(&world, "POST", "/config", &[("if-match", "\"1\"")], &second);
    assert_eq!(second.status, 201);
    let late = ask(
        &world,
        "POST",
        "/config",
        &[("if-match", "1")],
        &json!({ "data": {} }),
    );
    assert_eq!(
        (late.status, &late.json()["error"]["code"]),
        (412, &json!("PRECONDITION_FAILED"))
    );
    let wrong = publish(&world, &json!({ "data": { "c": "5" } }));
    assert_eq!(wrong.status, 400, "the schema continues");
    assert!(wrong.json()["message"].as_str().unwrap().contains('b'));
    let diff =
        ask(&world, "GET", "/config/diff?from=1&to=2", &[], &Value::Null).json()["data"].clone();
    assert_eq!(diff["data"]["a"], json!({ "from": "1", "to": null }));
    assert_eq!(diff["data"]["b"], json!({ "from": "2", "to": "3" }));
    let etag = second.headers["etag"].clone();
    let back = ask(
        &world,
        "POST",
        "/config/rollback",
        &[("if-match", &etag)],
        &json!({ "version": 1 }),
    );
    let data = back.json()["data"].clone();
    assert_eq!(
        (&data["version"], &data["rolls_back_to"], &data["data"]["a"]),
        (&json!(3), &json!(1), &json!("1"))
    );
    let history =
        ask(&world, "GET", "/config/history?limit=2", &[], &Value::Null).json()["data"].clone();
    assert_eq!(
        (
            history[0]["version"].as_u64(),
            history[1]["version"].as_u64()
        ),
        (Some(3), Some(2))
    );
    let audit = ask(&world, "GET", "/audit", &[], &Value::Null).json()["data"].clone();
    assert_eq!(
        (&audit[0]["action"], audit.as_array().unwrap().len()),
        (&json!("rollback"), 3)
    );
    // An agent's own key reads and reports, and no more.
    let place = json!({ "hostname": "a", "ip_address": "b", "port": 1 });
    let agent = ask(&world, "POST", "/register", &[], &place).json()["data"].clone();
    let key = agent["agent_key"].as_str().unwrap();
    let mut client = Client::new(world.controller);
    let own = [("x-api-key", key)];
    assert_eq!(
        client.send("GET", "/config", &own, b"").unwrap().status,
        200
    );
    assert_eq!(
        client
            .send("POST", "/config", &own, br#"{"data":{}}"#)
            .unwrap()
            .status,
        403
    );
    assert_eq!(
        client.send("GET", "/agents", &own, b"").unwrap().status,
        403
    );
    let report = format!("/agents/{}/report", agent["agent_id"].as_str().unwrap());
    let applied = br#"{"version":3,"status":"applied"}"#;
    assert_eq!(
        client.send("POST", &report, &own, applied).unwrap().status,
        200
    );
    let agents = ask(&world, "GET", "/agents", &[], &Value::Null).json()["data"].clone();
    assert_eq!(
        (&agents[0]["applied_version"], &agents[0]["status"]),
        (&json!(3), &json!("active"))
    );
    let gone = format!("/agents/{}", agent["agent_id"].as_str().unwrap());
    assert_eq!(ask(&world, "DELETE", &gone, &[], &Value::Null).status, 200);
    assert_eq!(
        client.send("GET", "/config", &own, b"").unwrap().status,
        403
    );
    // Forged or changed configurations are not taken back.
    let mut forged = back.json()["data"].clone();
    forged["version"] = json!(9);
    assert_eq!(
        ask(&world, "POST", "/config/restore", &[], &forged).status,
        403
    );
}

#[test]
fn a_waiting_agent_is_answered_at_once_and_at_the_timeout() {
    let world = world();
    let running = run(&world, "fleet.controller");
    publish(&world, &json!({ "data": {} }));
    let wait = |known: &'static str, wait: u32| {
        let (address, path) = (world.controller, format!("/config?wait={wait}"));
        std::thread::spawn(move || {
            let headers = [("x-api-key", KEY), ("if-none-match", known)];
            Client::new(address)
                .send("GET", &path, &headers, b"")
                .unwrap()
        })
    };
    let began = Instant::now();
    assert_eq!(wait("1", 1).join().unwrap().status, 304);
    assert!(
        (900..3_000).contains(&began.elapsed().as_millis()),
        "{:?}",
        began.elapsed()
    );
    let waiting: Vec<_> = (0..50).map(|_| wait("1", 30)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    publish(&world, &json!({ "data": { "a": "b" } }));
    for one in waiting {
        assert_eq!(one.join().unwrap().json()["data"]["version"], 2);
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    // A waiting agent does not delay a shutdown.
    let waiting = wait("2", 30);
    std::thread::sleep(Duration::from_millis(300));
    let (status, log, took) = running.stop();
    assert!(
        status.success() && took < Duration::from_secs(4),
        "{took:?}: {log}"
    );
    assert_eq!(waiting.join().unwrap().status, 304);
}

#[test]
fn every_worker_comes_to_the_newest_version_and_none_goes_back() {
    let (world, mut other) = (world(), world());
    other.set("CONTROLLER_URL", format!("http://{}", world.controller));
    let mut controlled = World::new();
    controlled.set("API_KEY", KEY);
    controlled.set("CONTROLLER_URL", format!("http://{}", world.controller));
    controlled.set(
        "WORKER_URL",
        format!("http://{},http://{}", world.hits, other.hits),
    );
    let controller = run(&world, "fleet.controller");
    // Worlds have one admin port each: the first one's worker is a process of a world of its own.
    let mut first = World::at(&world.folder.join("first"));
    std::fs::create_dir_all(&first.folder).unwrap();
    first.set("API_KEY", KEY);
    first.hits = world.hits;
    let one = run(&first, "fleet.worker");
    let two = run(&other, "fleet.worker");
    let agent = run(&controlled, "fleet.agent");
    publish(
        &world,
        &json!({ "data": { "a": "1" }, "poll_interval_seconds": 1 }),
    );
    wait_version(&first, 1);
    wait_version(&other, 1);
    // A worker is down while the next one is published, and has lost everything when it comes back.
    two.kill();
    publish(
        &world,
        &json!({ "data": { "a": "2" }, "poll_interval_seconds": 1 }),
    );
    wait_version(&first, 2);
    std::fs::remove_dir_all(other.data()).unwrap();
    let two = run(&other, "fleet.worker");
    wait_version(&other, 2);
    let applied = || {
        ask(&world, "GET", "/agents", &[], &Value::Null).json()["data"][0]["applied_version"]
            .clone()
    };
    wait_until("the report", Duration::from_secs(10), || applied() == 2);
    // The agent dies and comes back, and a worker forgets meanwhile.
    agent.kill();
    one.kill();
    std::fs::remove_dir_all(first.data()).unwrap();
    let _one = run(&first, "fleet.worker");
    let agent = run(&controlled, "fleet.agent");
    wait_version(&first, 2);
    // The controller's database is replaced by an older copy.
    drop(controller);
    let copy_of = |name: &str| (world.data().join(name), world.folder.join(name));
    let files = ["controller.db", "controller.db-wal"].map(copy_of);
    for (file, copy) in &files {
        std::fs::copy(file, copy).unwrap();
    }
    let controller = run(&world, "fleet.controller");
    publish(
        &world,
        &json!({ "data": { "a": "3" }, "poll_interval_seconds": 1 }),
    );
    wait_version(&first, 3);
    wait_version(&other, 3);
    drop(controller);
    std::fs::remove_file(world.data().join("controller.db-shm")).ok();
    for (file, copy) in &files {
        std::fs::copy(copy, file).unwrap();
    }
    let _controller = run(&world, "fleet.controller");
    wait_until("the lost version", Duration::from_secs(20), || {
        let newest = ask(&world, "GET", "/config", &[], &Value::Null);
        newest.json()["data"]["data"]["a"] == "3"
    });
    assert_eq!((version_of(&first), version_of(&other)), (3, 3));
    let next = publish(
        &world,
        &json!({ "data": { "a": "4" }, "poll_interval_seconds": 1 }),
    );
    assert_eq!(next.json()["data"]["version"], 4);
    wait_version(&first, 4);
    wait_version(&other, 4);
    drop((agent, two));
}

#[test]
fn a_configuration_that_agents_cannot_apply_is_rolled_back_automatically() {
    let world = world();
    let _controller = run(&world, "fleet.controller");
    publish(&world, &url("http://example.org/"));
    // Ten agents, one of which is the canary; each with a worker that is a bare one.
    let broken: Arc<Mutex<Vec<u64>>> = Arc::default();
    let mut agents = Vec::new();
    for number in 0..10 {
        let seen = Arc::clone(&broken);
        let has = Arc::new(AtomicU64::new(0));
        let worker = serve(move |asked| bare_worker(&asked, &has, &seen));
        let mut agent = World::new();
        agent.set("API_KEY", KEY);
        agent.set("CONTROLLER_URL", format!("http://{}", world.controller));
        agent.set("WORKER_URL", format!("http://{worker}"));
        agent.set("AGENT_HOSTNAME", format!("agent-{number}"));
        if number == 3 {
            agent.set("TOWPATH_FLEET__AGENT__LABELS", "env=canary");
        }
        let running = agent.spawn(&["run", "fleet.agent"]);
        agents.push((agent, running));
    }
    let having = |version: u64| {
        let all = ask(&world, "GET", "/agents", &[], &Value::Null).json()["data"].clone();
        let has = |agent: &&Value| agent["applied_version"].as_u64() >= Some(version);
        all.as_array().unwrap().iter().filter(has).count()
    };
    wait_until("all of them", Duration::from_secs(30), || having(1) == 10);
    let invalid = json!({ "data": { "url": "x" }, "schema": { "required": ["name"] }, "rollout": { "steps": ["100%"] } });
    assert_eq!(publish(&world, &invalid).status, 400);
    // A configuration that the schema allows and workers refuse stops at the first step.
    let rollout = json!({ "steps": ["label:env=canary", "50%"], "bake_seconds": 1 });
    let bad =
        json!({ "data": { "url": "broken" }, "poll_interval_seconds": 1, "rollout": rollout });
    assert_eq!(publish(&world, &bad).json()["data"]["version"], 2);
    wait_until("all of them again", Duration::from_secs(30), || {
        having(3) == 10
    });
    let newest = ask(&world, "GET", "/config", &[], &Value::Null).json()["data"].clone();
    assert_eq!(
        (&newest["version"], &newest["rolls_back_to"]),
        (&json!(3), &json!(1))
    );
    let ended = ask(&world, "GET", "/rollout", &[], &Value::Null).json()["data"].clone();
    assert_eq!(
        (&ended["status"], &ended["step"]),
        (&json!("stopped"), &json!(1)),
        "{ended}"
    );
    assert!(
        ended["reason"].as_str().unwrap().contains("agent-3"),
        "{ended}"
    );
    let problems = || {
        let output = world.json_of(&["status"]);
        let all = output.as_array().unwrap().clone();
        all.into_iter()
            .filter(|one| one["problem"] == "rollout_stopped")
            .collect::<Vec<_>>()
    };
    wait_until("the problem", Duration::from_secs(10), || {
        problems()
            .iter()
            .any(|one| one["cause"].as_str().unwrap().contains("agent-3"))
    });
    let tried = broken.lock().unwrap().clone();
    assert!(
        !tried.is_empty() && tried.iter().all(|version| *version == 2),
        "{tried:?}"
    );
    // A good one reaches every agent.
    let mut good = url("http://example.com/");
    good["rollout"] = json!({ "steps": ["label:env=canary", "50%"], "bake_seconds": 1 });
    publish(&world, &good);
    wait_until("a good one", Duration::from_secs(30), || having(4) == 10);
    wait_until("its end", Duration::from_secs(10), || {
        ask(&world, "GET", "/rollout", &[], &Value::Null).json()["data"]["status"] == "done"
    });
    wait_until("no problem", Duration::from_secs(10), || {
        problems().is_empty()
    });
}

/// A worker as the contract has it, which cannot do with one URL.
fn bare_worker(asked: &Request, has: &AtomicU64, broken: &Mutex<Vec<u64>>) -> Reply {
    let answer = |status: u16, data: Value| {
        let message = if status == 200 { "success" } else { "no" };
        Reply::text(status, &json!({ "status": status, "success": status == 200, "message": message, "data": data }).to_string())
    };
    if asked.method == "GET" {
        return match has.load(Ordering::SeqCst) {
            0 => answer(404, Value::Null),
            version => answer(
                200,
                json!({ "version": version, "data": {}, "poll_interval_seconds": 1 }),
            ),
        };
    }
    let config: Value = serde_json::from_slice(&asked.body).unwrap();
    let version = config["version"].as_u64().unwrap();
    if config["data"]["url"] == "broken" {
        broken.lock().unwrap().push(version);
        return answer(400, Value::Null);
    }
    has.store(version, Ordering::SeqCst);
    answer(200, json!({ "version": version }))
}

#[test]
fn the_command_line_reads_publishes_and_rolls_back() {
    let site = serve(|_| Reply::text(200, "hello"));
    let world = world();
    let _running = world.up();
    let address = format!("url=http://{site}/");
    assert_eq!(
        world.ok(&["fleet", "config", "publish", &address]),
        "published version 1\n"
    );
    assert!(
        world
            .ok(&["fleet", "config", "get"])
            .contains(&site.to_string())
    );
    let stale = ["fleet", "config", "publish", "a=b", "--if-version", "7"];
    assert!(!world.run(&stale).status.success());
    wait_version(&world, 1);
    let task = world.json(&["task", "start", "--wait", "10"]);
    assert_eq!(
        (&task["status"], &task["body"]),
        (&json!("completed"), &json!("hello"))
    );
    assert!(world.ok(&["task", "ls"]).contains("completed"));
    world.ok(&[
        "fleet",
        "config",
        "publish",
        &address,
        "--step",
        "label:env=canary",
        "--bake",
        "60",
    ]);
    assert_eq!(
        world.json(&["fleet", "rollout", "status"])["status"],
        "running"
    );
    world.ok(&["fleet", "rollout", "stop", "--reason", "enough"]);
    let history = world.json(&["fleet", "config", "history"]);
    assert_eq!(history[0]["rolls_back_to"], 1);
    assert!(world.ok(&["fleet", "audit"]).contains("enough"));
    assert!(world.ok(&["fleet", "agents"]).contains("active"));
    let mut stranger = World::at(&world.folder);
    let controller = format!("http://{}", world.controller);
    stranger.set("TOWPATH_FLEET__AGENT__CONTROLLER", controller);
    stranger.set("API_KEY", "another-key-of-this-test");
    assert_eq!(stranger.run(&["fleet", "agents"]).status.code(), Some(6));
}
