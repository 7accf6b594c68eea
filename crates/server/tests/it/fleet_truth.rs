//! The fleet's answers are true: the version that a worker runs, the list of agents, the fault of a request.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::fleet::{KEY, ask, publish, run, url, version_of, wait_task, wait_version, world};
use crate::process::{World, wait_until};
use crate::web::{Reply, Request, serve};

fn agents(world: &World) -> Vec<Value> {
    let answer = ask(world, "GET", "/agents", &[], &Value::Null);
    answer.json()["data"].as_array().unwrap().clone()
}

fn worker_has(world: &World) -> Value {
    Client::new(world.hits).get("/config").json()["data"].clone()
}

fn give(world: &World, config: &Value) -> u16 {
    let body = config.to_string();
    Client::new(world.hits)
        .post("/config", &[], body.as_bytes())
        .status
}

#[test]
fn a_configuration_of_another_line_gives_way() {
    let world = world();
    let _running = run(&world, "fleet.controller,fleet.agent,fleet.worker");
    // As an agent of the reference system left it.
    let old = json!({ "version": 50, "data": { "url": "https://old.example/" } });
    assert_eq!(give(&world, &old), 200);
    publish(&world, &url("https://new.example/"));
    wait_version(&world, 1);
    assert_eq!(worker_has(&world)["data"]["url"], "https://new.example/");
    wait_until("the report", Duration::from_secs(10), || {
        agents(&world)[0]["applied_version"] == 1
    });
    // A later one is replaced within a poll interval.
    let pinned = json!({ "version": 999_999, "data": { "url": "https://pinned.example/" } });
    assert_eq!(give(&world, &pinned), 200);
    wait_version(&world, 1);
    assert_eq!(worker_has(&world)["data"]["url"], "https://new.example/");
}

#[test]
fn a_worker_that_runs_another_version_is_reported() {
    let world = world();
    let _running = run(&world, "fleet.controller,fleet.agent,fleet.worker");
    publish(&world, &url("https://new.example/"));
    wait_until("the report", Duration::from_secs(15), || {
        agents(&world)
            .first()
            .is_some_and(|agent| agent["applied_version"] == 1)
    });
    let mut forged = worker_has(&world);
    forged["version"] = json!(999);
    assert_eq!(give(&world, &forged), 200);
    wait_until("the failure", Duration::from_secs(15), || {
        let agent = agents(&world)[0].clone();
        let error = agent["last_error"].as_str().unwrap_or_default().to_owned();
        agent["failed_version"] == 1 && error.contains("it runs version 999")
    });
}

#[test]
fn a_staged_rollout_stops_at_a_worker_that_refuses() {
    let world = world();
    let _controller = run(&world, "fleet.controller");
    // It takes the first version, and answers 409 to every other one.
    let kept: Mutex<Option<Value>> = Mutex::default();
    let worker = serve(move |asked: Request| {
        let mut kept = kept.lock().unwrap();
        let (status, data) = match asked.method.as_str() {
            "GET" if kept.is_none() => (404, Value::Null),
            "GET" => (200, kept.clone().unwrap()),
            _ if kept.is_some() => (409, Value::Null),
            _ => {
                *kept = Some(serde_json::from_slice(&asked.body).unwrap());
                (200, json!({ "version": 1 }))
            }
        };
        let envelope =
            json!({ "status": status, "success": status == 200, "message": "x", "data": data });
        Reply::text(status, &envelope.to_string())
    });
    let mut other = World::new();
    other
        .set("API_KEY", KEY)
        .set("CONTROLLER_URL", format!("http://{}", world.controller))
        .set("WORKER_URL", format!("http://{worker}"));
    let _agent = run(&other, "fleet.agent");
    publish(&world, &url("https://one.example/"));
    wait_until("the report", Duration::from_secs(15), || {
        agents(&world)
            .first()
            .is_some_and(|agent| agent["applied_version"] == 1)
    });
    let mut second = url("https://two.example/");
    second["rollout"] = json!({ "steps": ["100%"], "bake_seconds": 0 });
    publish(&world, &second);
    let rollout = || ask(&world, "GET", "/rollout", &[], &Value::Null).json()["data"].clone();
    wait_until("the stop", Duration::from_secs(15), || {
        rollout()["status"] == "stopped"
    });
    let reason = rollout()["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("it runs version 1") && reason.contains("refuses version 2"),
        "{reason}"
    );
    assert_eq!(agents(&world)[0]["applied_version"], 1);
}

#[test]
fn versions_of_a_reference_controller_may_begin_again() {
    let world = world();
    let running = run(&world, "fleet.worker");
    let config = |id: &str, version: u64| json!({ "id": id, "version": version, "data": {} });
    assert_eq!(give(&world, &config("a", 56)), 200);
    assert_eq!(give(&world, &config("b", 57)), 200);
    assert_eq!(give(&world, &config("a", 56)), 409, "it was in force");
    // The controller has a new database.
    assert_eq!(give(&world, &config("c", 1)), 200);
    assert_eq!(give(&world, &config("d", 2)), 200);
    drop(running);
    let _running = run(&world, "fleet.worker");
    assert_eq!(
        give(&world, &config("c", 1)),
        409,
        "after a restart as well"
    );
    assert_eq!(give(&world, &json!({ "version": 1, "data": {} })), 409);
    assert_eq!(version_of(&world), 2);
}

#[test]
fn agents_name_their_machine_and_two_of_one_name_are_reported() {
    let world = world();
    let controller = run(&world, "fleet.controller");
    publish(&world, &url("https://one.example/"));
    let agent = || {
        let mut agent = World::new();
        agent
            .set("API_KEY", KEY)
            .set("CONTROLLER_URL", format!("http://{}", world.controller))
            .set("TOWPATH_FLEET__AGENT__POLL", "1s");
        agent
    };
    let (one, mut two) = (agent(), agent());
    let _one = run(&one, "fleet.agent");
    wait_until("the first", Duration::from_secs(15), || {
        agents(&world).len() == 1
    });
    let first = agents(&world)[0].clone();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(first["hostname"], host.trim());
    assert_eq!(first["ip_address"], "127.0.0.1", "from where it asks");
    assert_eq!(first["shared_by"], json!([]));
    let running = run(&two, "fleet.agent");
    wait_until("that two speak", Duration::from_secs(30), || {
        let all = agents(&world);
        all.len() == 1 && all[0]["shared_by"].as_array().unwrap().len() == 2
    });
    wait_until("the log", Duration::from_secs(15), || {
        controller.log().contains("agents share an identity")
    });
    let shown = world.ok(&["fleet", "agents"]);
    assert!(shown.contains("2 agents share this identity"), "{shown}");
    wait_until("the problem", Duration::from_secs(30), || {
        // They have no worker, which is a problem of its own.
        let found = world.json_of(&["status"]);
        let mut found = found.as_array().unwrap().iter();
        found.any(|one| one["problem"] == "agents_disagree" && one["figure"] == "1 agent")
    });
    drop(running);
    // Under a name of its own it is an agent of its own.
    two.set("AGENT_HOSTNAME", "another");
    let _running = run(&two, "fleet.agent");
    wait_until("both names", Duration::from_secs(15), || {
        let mut names: Vec<Value> = agents(&world)
            .iter()
            .map(|agent| agent["hostname"].clone())
            .collect();
        names.sort_by_key(Value::to_string);
        let mut expected = [json!("another"), json!(host.trim())];
        expected.sort_by_key(Value::to_string);
        names == expected
    });
}

#[test]
fn slips_in_names_are_refused_with_the_name_that_was_meant() {
    let world = world();
    let _running = run(&world, "fleet.controller,fleet.worker");
    let refused = |path: &str, body: Value, meant: &str| {
        let answer = ask(&world, "POST", path, &[], &body);
        let text = answer.text();
        assert_eq!(answer.status, 400, "{path}: {text}");
        let meant = format!("did you mean `{meant}`?");
        assert!(text.contains(&meant), "{path}: {text}");
    };
    refused(
        "/config",
        json!({ "data": {}, "rolout": { "steps": ["10%"] } }),
        "rollout",
    );
    refused(
        "/config",
        json!({ "data": {}, "rollout": { "steps": ["10%"], "bake_second": 1 } }),
        "bake_seconds",
    );
    let place =
        json!({ "hostname": "a", "ip_address": "b", "port": 1, "label": { "env": "canary" } });
    refused("/register", place, "labels");
    refused("/config/rollback", json!({ "versoin": 1 }), "version");
    refused("/rollout/stop", json!({ "reasons": "x" }), "reason");
    let mut worker = Client::new(world.hits);
    let answer = worker.post("/hit", &[], br#"{"callbackUrl":"http://127.0.0.1/"}"#);
    assert!(answer.status == 400 && answer.text().contains("callback_url"));
    let answer = worker.post("/config", &[], br#"{"version":1,"dta":{}}"#);
    assert!(answer.status == 400 && answer.text().contains("did you mean `data`?"));
    let head = worker.send("HEAD", "/hit", &[], b"").unwrap();
    assert_eq!(head.status, 405, "a look at it starts no task");
    // Fields of a newer version are ignored.
    let newer = br#"{"version":1,"data":{},"zone":"north"}"#;
    assert_eq!(worker.post("/config", &[], newer).status, 200);
    let bearer = format!("bearer {KEY}");
    let mut controller = Client::new(world.controller);
    let headers = [("authorization", bearer.as_str())];
    let listed = controller.send("GET", "/agents", &headers, b"").unwrap();
    assert_eq!(listed.status, 200, "the scheme has no case");
    for (wrong, said) in [
        (&["url=a", "url=b"][..], "`url` is given more than once"),
        (&["=x"], "`=x` has no name"),
    ] {
        let output = world.run(&[&["fleet", "config", "publish"][..], wrong].concat());
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn results_of_the_reference_worker_are_answered() {
    let world = world();
    let _running = run(&world, "fleet.worker");
    let id = "0d9f7dd4-5a3c-4b6b-9a39-5a1a3f1c7d10";
    let key = format!("worker:hit:result:{id}");
    let record = json!({ "task_id": id, "status": "completed", "status_code": 204, "body": "" });
    world.ok(&["kv", "set", &key, &record.to_string()]);
    let mut client = Client::new(world.hits);
    let answer = client.get(&format!("/hit/{id}"));
    let data = answer.json()["data"].clone();
    assert_eq!(
        (answer.status, &data["status"], &data["status_code"]),
        (200, &json!("completed"), &json!(204))
    );
    assert_eq!(client.get("/hits").json()["data"][0]["task_id"], id);
    world.ok(&["kv", "set", &key, "rubbish"]);
    let answer = client.get(&format!("/hit/{id}"));
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (500, &json!("RESULT_FETCH_FAILED")),
        "trying again reads the same"
    );
}

#[test]
fn every_line_of_a_header_is_kept_and_a_pause_that_is_asked_for_is_made() {
    let tries: Mutex<Vec<Instant>> = Mutex::default();
    let site = serve(move |_| {
        let mut tries = tries.lock().unwrap();
        tries.push(Instant::now());
        if tries.len() == 1 {
            return Reply::Answer(500, vec![("retry-after", "3".to_owned())], Vec::new());
        }
        let pause = tries[1].duration_since(tries[0]).as_millis().to_string();
        let cookies = ["a=1", "b=2"].map(|cookie| ("set-cookie", cookie.to_owned()));
        let mut headers = vec![("x-pause", pause), ("x-name", "Zoë".to_owned())];
        headers.extend(cookies);
        Reply::Answer(200, headers, b"fine".to_vec())
    });
    let world = world();
    let _running = run(&world, "fleet.worker");
    let config = json!({ "version": 1, "data": { "url": format!("http://{site}/") } });
    assert_eq!(give(&world, &config), 200);
    let started = Client::new(world.hits).post("/hit", &[], b"").json();
    let task = wait_task(&world, started["data"]["task_id"].as_str().unwrap());
    assert_eq!(
        (&task["status"], &task["attempts"]),
        (&json!("completed"), &json!(2))
    );
    let headers = &task["headers"];
    assert_eq!(headers["set-cookie"], json!(["a=1", "b=2"]));
    assert_eq!(headers["x-name"], "Zoë");
    let pause: u64 = headers["x-pause"].as_str().unwrap().parse().unwrap();
    assert!(pause >= 2_900, "{pause} ms");
}
