//! Keys of operators, agents and workers, and the signatures of configurations.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::fleet::{KEY, publish, run, url, version_of, wait_version, world};
use crate::process::{World, wait_until};
use crate::web::{Reply, serve};

/// A running process uses a changed key file within this time.
const NOTICED: Duration = Duration::from_secs(10);

/// The status of a configuration that is offered to a worker, and its answer.
fn offer(world: &World, headers: &[(&str, &str)], config: &Value) -> (u16, String) {
    let body = config.to_string();
    let mut client = Client::new(world.hits);
    let answer = client.post("/config", headers, body.as_bytes());
    (answer.status, answer.text())
}

/// A worker as its contract has it, which notes the keys that it gets.
fn bare_worker() -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&keys);
    let kept = Mutex::new(Value::Null);
    let worker = serve(move |asked| {
        let key = asked.headers.get("x-api-key").cloned();
        seen.lock().unwrap().push(key);
        let mut kept = kept.lock().unwrap();
        if asked.method == "POST" {
            *kept = serde_json::from_slice(&asked.body).unwrap();
        }
        match kept.is_null() {
            true => Reply::text(404, "{}"),
            false => Reply::text(200, &json!({ "success": true, "data": &*kept }).to_string()),
        }
    });
    (format!("http://{worker}"), keys)
}

fn wait_given(keys: &Mutex<Vec<Option<String>>>) -> Vec<String> {
    wait_until("a configuration", Duration::from_secs(30), || {
        keys.lock().unwrap().len() >= 3
    });
    let keys = keys.lock().unwrap();
    keys.iter()
        .map(|key| key.clone().unwrap_or_default())
        .collect()
}

#[test]
fn workers_never_get_the_key_of_operators() {
    let mut world = world();
    let (bare, keys) = bare_worker();
    world.set("WORKER_URL", bare);
    let running = run(&world, "fleet.controller,fleet.agent");
    publish(&world, &url("https://one.example/"));
    let given = wait_given(&keys);
    assert!(given.iter().all(|key| key.starts_with("tpw_")), "{given:?}");
    drop(running);

    // It configures a worker, and neither starts tasks nor publishes.
    let _running = run(&world, "fleet.controller,fleet.worker");
    let headers = [
        ("x-api-key", given[0].as_str()),
        ("x-forwarded-for", "192.0.2.7"),
    ];
    let config = json!({ "version": 7, "data": {} });
    assert_eq!(offer(&world, &headers, &config).0, 200);
    let mut worker = Client::new(world.hits);
    for (method, path) in [("GET", "/hits"), ("POST", "/hit")] {
        let answer = worker.send(method, path, &headers, b"").unwrap();
        assert_eq!(answer.status, 403, "{path}");
    }
    let mut controller = Client::new(world.controller);
    for (method, path) in [
        ("GET", "/config"),
        ("POST", "/config"),
        ("POST", "/register"),
    ] {
        let answer = controller.send(method, path, &headers, b"{}").unwrap();
        assert_eq!(answer.status, 403, "{path}");
    }
}

#[test]
fn agents_work_with_an_enrolment_key_and_a_worker_key() {
    let world = world();
    let _controller = run(&world, "fleet.controller");
    let key = world.json(&["key", "new", "agents", "--scope", "fleet:enroll"]);
    let enrolment = key["key"].as_str().unwrap();
    let (bare, keys) = bare_worker();
    let mut agent = World::new();
    agent
        .set("CONTROLLER_URL", format!("http://{}", world.controller))
        .set("WORKER_URL", bare)
        .set("TOWPATH_FLEET__AGENT__KEY", enrolment)
        .set(
            "TOWPATH_FLEET__AGENT__WORKER_KEY",
            "a-worker-key-of-this-test",
        );
    let _agent = run(&agent, "fleet.agent");
    publish(&world, &url("https://one.example/"));
    let given = wait_given(&keys);
    assert!(
        given.iter().all(|key| key == "a-worker-key-of-this-test"),
        "{given:?}"
    );
    assert!(
        !agent.data().join("fleet.key").exists(),
        "a key of operators"
    );

    // The enrolment key registers agents and nothing else.
    let headers = [("x-api-key", enrolment)];
    let mut controller = Client::new(world.controller);
    for (method, path) in [("GET", "/agents"), ("GET", "/config"), ("POST", "/config")] {
        let answer = controller.send(method, path, &headers, b"{}").unwrap();
        assert_eq!(answer.status, 403, "{path}");
    }
}

#[test]
fn workers_with_a_public_key_take_signed_configurations_only() {
    let world = world();
    let controller = run(&world, "fleet.controller,fleet.agent,fleet.worker");
    publish(&world, &url("https://one.example/"));
    wait_version(&world, 1);
    let mut client = Client::new(world.controller);
    let published = client.send("GET", "/config", &[("x-api-key", KEY)], b"");
    let published = published.unwrap().json()["data"].clone();
    let public_key = published["proof"]["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    // Before it was configured, a program of this machine could put anything there.
    let planted = json!({ "version": 99, "data": { "url": "https://evil.example/" } });
    assert_eq!(offer(&world, &[], &planted).0, 200);
    drop(controller);

    let mut signed = World::at(&world.folder);
    signed.http = world.http;
    signed.admin = world.admin;
    (signed.controller, signed.hits) = (world.controller, world.hits);
    signed
        .set("API_KEY", KEY)
        .set("TOWPATH_FLEET__PUBLIC_KEY", public_key);
    let running = run(&signed, "fleet.worker");
    assert_eq!(
        version_of(&signed),
        0,
        "the planted one is refused at the start"
    );
    assert!(
        running.log().contains("stored configuration refused"),
        "{}",
        running.log()
    );
    let mut changed = published.clone();
    changed["data"]["url"] = "https://evil.example/".into();
    let mut later = published.clone();
    later["version"] = 100.into();
    for (wrong, reason) in [
        (&planted, "has no proof"),
        (&changed, "is not of the controller"),
        (&later, "is not of the controller"),
    ] {
        let headers = [("x-api-key", KEY)];
        let (status, text) = offer(&signed, &headers, wrong);
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(reason), "{text}");
    }
    assert_eq!(version_of(&signed), 0);
    assert_eq!(offer(&signed, &[], &published).0, 200);
    drop(running);
    // An agent passes them on with their proofs, after a restart as well.
    let _running = run(&signed, "fleet.controller,fleet.agent,fleet.worker");
    assert_eq!(version_of(&signed), 1);
    publish(&signed, &url("https://two.example/"));
    wait_version(&signed, 2);
}

#[test]
fn weak_keys_are_refused_unless_in_development() {
    let mut world = World::new();
    world.set("API_KEY", "password1234");
    let check = |world: &World| {
        let output = world.run(&["config", "check"]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let refused = check(&world);
    assert!(
        refused.contains("under 80 bits") && refused.contains("towpath key new"),
        "{refused}"
    );
    assert!(!refused.contains("password1234"), "{refused}");
    world.set("TOWPATH_FLEET__DEVELOPMENT", "on");
    assert!(!check(&world).contains("under 80 bits"));
    let key = world.json(&["key", "new", "operator", "--scope", "fleet:publish"]);
    world.set("TOWPATH_FLEET__DEVELOPMENT", "off");
    world.set("API_KEY", key["key"].as_str().unwrap());
    assert!(!check(&world).contains("under 80 bits"));
    wait_until("the key file", NOTICED, || {
        world.data().join("keys.json").exists()
    });
}
