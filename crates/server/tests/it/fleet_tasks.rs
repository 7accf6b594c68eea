//! Tasks of the fleet's worker: each ends once, as the server was seen, and goes nowhere it should not.

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::fleet::{KEY, run, version_of, wait_task, world};
use crate::process::{World, seeds, wait_until};
use crate::web::{Reply, serve};

#[test]
fn tasks_are_queued_worked_on_and_kept() {
    let site = serve(|asked| match asked.path.as_str() {
        "/slow" => {
            std::thread::sleep(Duration::from_millis(600));
            Reply::text(200, "slow")
        }
        "/bytes" => Reply::Answer(200, Vec::new(), vec![0xff, 0xfe]),
        "/large" => Reply::text(200, &"ü".repeat(100_000)),
        _ => Reply::Answer(
            404,
            vec![("x-note", "yes".to_owned())],
            b"not here".to_vec(),
        ),
    });
    let mut world = world();
    world.set("WORKER_RETRY_MAX", "0");
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    assert_eq!(client.get("/config").json()["message"], "no config loaded");
    let early = client.get("/hit");
    assert_eq!(
        (early.status, &early.json()["error"]["code"]),
        (409, &json!("ENQUEUE_FAILED"))
    );
    assert_eq!(early.json()["message"], "no config available");
    assert_eq!(
        client.post("/config", &[], b"{}").json()["data"]["version"],
        0
    );
    assert_eq!(client.get("/hit").json()["message"], "no url configured");
    let mut version = 0;
    let mut hit = |path: &str| {
        version += 1;
        let config =
            json!({ "version": version, "data": { "url": format!("http://{site}{path}") } });
        let answer = client.post("/config", &[], config.to_string().as_bytes());
        assert_eq!(answer.json()["data"]["version"], version);
        let started = client.get("/hit");
        assert_eq!(
            (started.status, &started.json()["data"]["status"]),
            (202, &json!("queued"))
        );
        started.json()["data"]["task_id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let task = wait_task(&world, &hit("/x"));
    assert_eq!(
        (&task["status"], &task["status_code"], &task["body"]),
        (&json!("completed"), &json!(404), &json!("not here"))
    );
    assert_eq!(
        (&task["headers"]["x-note"], &task["attempts"]),
        (&json!("yes"), &json!(1))
    );
    let bytes = wait_task(&world, &hit("/bytes"));
    assert_eq!(
        (&bytes["body"], &bytes["body_encoding"]),
        (&json!("//4="), &json!("base64"))
    );
    let large = wait_task(&world, &hit("/large"));
    assert_eq!(
        (&large["truncated"], large["body"].as_str().unwrap().len()),
        (&json!(true), 65_536)
    );
    let slow = hit("/slow");
    let mut client = Client::new(world.hits);
    wait_until("it runs", Duration::from_secs(5), || {
        client.get(&format!("/hit/{slow}")).json()["data"]["state"] == "running"
    });
    let path = format!("/hit/{slow}");
    assert_eq!(
        client.send("DELETE", &path, &[], b"").unwrap().json()["data"]["status"],
        "cancelled"
    );
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(
        client.get(&path).json()["data"]["status"],
        "cancelled",
        "for good"
    );
    let unknown = client.get("/hit/00000000-0000-0000-0000-000000000000");
    assert_eq!((unknown.status, client.get("/hit/7").status), (404, 404));
    let key = [("idempotency-key", "one")];
    let first = client.post("/hit", &key, b"").json()["data"]["task_id"].clone();
    assert_eq!(
        client.post("/hit", &key, b"").json()["data"]["task_id"],
        first
    );
    let all = client.get("/hits?limit=1000").json()["data"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(all, 5);
    // An older configuration is refused, and the newest survives the process.
    let old = client.post("/config", &[], br#"{"version":1,"data":{}}"#);
    assert_eq!(
        (old.status, &old.json()["error"]["code"]),
        (409, &json!("OUTDATED"))
    );
    drop(_running);
    let _running = run(&world, "fleet.worker");
    assert_eq!(version_of(&world), 4);
}

#[test]
fn a_result_is_posted_where_the_client_wants_it() {
    let posts = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&posts);
    let site = serve(move |asked| {
        if asked.method == "POST" {
            kept.lock().unwrap().push((asked.headers, asked.body));
        }
        Reply::text(200, "fine")
    });
    let mut world = world();
    world.set(
        "TOWPATH_FLEET__WORKER__CALLBACK__SECRETS",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    );
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    let config = json!({ "version": 1, "data": { "url": format!("http://{site}/") } });
    client.post("/config", &[], config.to_string().as_bytes());
    let refused = client.post("/hit", &[], br#"{"callback_url":"http://10.0.0.1/"}"#);
    assert_eq!(refused.status, 400);
    let wanted = json!({ "callback_url": format!("http://{site}/done") }).to_string();
    let id = client.post("/hit", &[], wanted.as_bytes()).json()["data"]["task_id"].clone();
    wait_until("the callback", Duration::from_secs(10), || {
        !posts.lock().unwrap().is_empty()
    });
    let (headers, body) = posts.lock().unwrap()[0].clone();
    let callback: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&callback["task_id"], &callback["body"]),
        (&id, &json!("fine"))
    );
    assert_eq!(headers["webhook-id"], id.as_str().unwrap());
    assert!(
        headers["webhook-signature"].starts_with("v1,"),
        "{headers:?}"
    );
}

#[test]
fn a_callback_survives_kill_9_and_waits_for_its_receiver() {
    let (is_busy, posts) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (busy, posted) = (Arc::clone(&is_busy), Arc::clone(&posts));
    let site = serve(move |asked| match asked.method.as_str() {
        "POST" if busy.load(SeqCst) => Reply::text(503, "later"),
        "POST" => {
            posted.fetch_add(1, SeqCst);
            Reply::text(200, "taken")
        }
        _ => Reply::text(200, "fine"),
    });
    let world = world();
    let running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    let config = json!({ "version": 1, "data": { "url": format!("http://{site}/") } });
    client.post("/config", &[], config.to_string().as_bytes());
    let wanted = json!({ "callback_url": format!("http://{site}/done") }).to_string();
    client.post("/hit", &[], wanted.as_bytes());
    wait_until("the callback to wait", Duration::from_secs(10), || {
        world.json(&["queue", "show", "fleet.callbacks"])["delayed"] == 1
    });
    running.kill();
    is_busy.store(false, SeqCst);
    let _running = run(&world, "fleet.worker");
    wait_until("the callback", Duration::from_secs(20), || {
        posts.load(SeqCst) > 0
    });
    wait_until("the queue to be empty", Duration::from_secs(10), || {
        let stats = world.json(&["queue", "show", "fleet.callbacks"]);
        (&stats["delayed"], &stats["leased"], &stats["dead"]) == (&json!(0), &json!(0), &json!(0))
    });
    assert_eq!(posts.load(SeqCst), 1);
}

#[test]
fn a_cancelled_task_calls_back() {
    let posts = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&posts);
    let site = serve(move |asked| match asked.method.as_str() {
        "POST" => {
            kept.lock().unwrap().push(asked.body);
            Reply::text(200, "taken")
        }
        // The task stays open.
        _ => Reply::text(503, "later"),
    });
    let world = world();
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    let config = json!({ "version": 1, "data": { "url": format!("http://{site}/") } });
    client.post("/config", &[], config.to_string().as_bytes());
    let wanted = json!({ "callback_url": format!("http://{site}/done") }).to_string();
    let id = client.post("/hit", &[], wanted.as_bytes()).json()["data"]["task_id"].clone();
    let path = format!("/hit/{}", id.as_str().unwrap());
    let cancelled = client.send("DELETE", &path, &[], b"").unwrap();
    assert_eq!(cancelled.status, 200);
    wait_until("the callback", Duration::from_secs(10), || {
        !posts.lock().unwrap().is_empty()
    });
    let callback: Value = serde_json::from_slice(&posts.lock().unwrap()[0]).unwrap();
    assert_eq!(
        (&callback["task_id"], &callback["status"]),
        (&id, &json!("cancelled"))
    );
}

#[test]
fn a_worker_lets_in_whom_it_should() {
    let mut world = world();
    world.set("TOWPATH_FLEET__WORKER__AUTH", "on");
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    for (method, path) in [
        ("GET", "/config"),
        ("POST", "/config"),
        ("GET", "/hit"),
        ("GET", "/hits"),
    ] {
        assert_eq!(
            client.send(method, path, &[], b"{}").unwrap().status,
            401,
            "{path}"
        );
    }
    assert_eq!(
        client
            .send("GET", "/config", &[("x-api-key", KEY)], b"")
            .unwrap()
            .status,
        404
    );
}

#[test]
fn hits_go_nowhere_they_should_not() {
    let inside = serve(|_| Reply::text(200, "secret"));
    let redirects = serve(move |_| {
        let to = format!("http://localhost:{}/", inside.port());
        Reply::Answer(302, vec![("location", to)], Vec::new())
    });
    let mut world = World::new();
    world.set(
        "TOWPATH_FLEET__WORKER__ALLOW",
        format!("127.0.0.1:{}", redirects.port()),
    );
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    for (version, url) in (1..).zip([
        format!("http://{inside}/"),
        format!("http://[::ffff:127.0.0.1]:{}/", inside.port()),
        "ftp://example.org/".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ]) {
        let config = json!({ "version": version, "data": { "url": url } }).to_string();
        assert_eq!(
            client.post("/config", &[], config.as_bytes()).status,
            400,
            "{url}"
        );
    }
    let config =
        json!({ "version": 9, "data": { "url": format!("http://{redirects}/") } }).to_string();
    assert_eq!(client.post("/config", &[], config.as_bytes()).status, 200);
    let id = client.get("/hit").json()["data"]["task_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let task = wait_task(&world, &id);
    assert_eq!(
        (&task["status"], &task["attempts"]),
        (&json!("failed"), &json!(1))
    );
    assert!(
        task["error"].as_str().unwrap().contains("refused"),
        "{task}"
    );
    assert!(task["body"].is_null());
}

#[test]
fn chaos_every_task_ends_once_as_the_server_saw_it() {
    // Number of requests to each task's path.
    let asked: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let kept = Arc::clone(&asked);
    let site = serve(move |request| {
        let times = {
            let mut asked = kept.lock().unwrap();
            let times = asked.entry(request.path.clone()).or_insert(0);
            *times += 1;
            *times
        };
        let kind = request.path.split('/').nth(1).unwrap_or_default();
        match kind {
            "slow" => {
                std::thread::sleep(Duration::from_millis(50));
                Reply::text(200, &request.path)
            }
            "reset" => Reply::Reset,
            "once" if times == 1 => Reply::Reset,
            "error" => Reply::text(500, "no"),
            "endless" => Reply::Endless,
            "circle" => Reply::Answer(302, vec![("location", request.path)], Vec::new()),
            _ => Reply::text(200, &request.path),
        }
    });
    for seed in 0..seeds(1) {
        let mut world = world();
        world.set("WORKER_RETRY_MAX", "2");
        world.set("TOWPATH_FLEET__WORKER__TIMEOUT", "2s");
        // After that a destination that breaks connections costs attempts.
        world.set("TOWPATH_FLEET__WORKER__UNAVAILABLE_TIMEOUT", "1s");
        let mut running = run(&world, "fleet.worker");
        let mut tasks = Vec::new();
        let kinds = [
            "fine", "slow", "reset", "once", "error", "endless", "circle",
        ];
        for number in 0..70 {
            let kind = kinds[number % kinds.len()];
            let url = format!("http://{site}/{kind}/{seed}/{number}");
            let config = json!({ "version": number, "data": { "url": url } }).to_string();
            let mut client = Client::new(world.hits);
            assert_eq!(client.post("/config", &[], config.as_bytes()).status, 200);
            let started = client.get("/hit").json()["data"]["task_id"]
                .as_str()
                .unwrap()
                .to_owned();
            tasks.push((kind, started));
            if number % 25 == 10 + usize::try_from(seed % 7).unwrap() {
                running.kill();
                running = run(&world, "fleet.worker");
            }
        }
        for (kind, id) in tasks {
            let task = wait_task(&world, &id);
            let (status, code) = (
                task["status"].as_str().unwrap(),
                task["status_code"].as_u64(),
            );
            match kind {
                "fine" | "slow" | "once" => {
                    assert_eq!((status, code), ("completed", Some(200)), "{task}")
                }
                "endless" => assert_eq!(
                    (status, &task["truncated"]),
                    ("completed", &json!(true)),
                    "{task}"
                ),
                "error" => assert_eq!((status, code), ("failed", Some(500)), "{task}"),
                _ => assert_eq!((status, code), ("failed", None), "{task}"),
            }
            if ["fine", "slow", "once"].contains(&kind) {
                let path = task["url"]
                    .as_str()
                    .unwrap()
                    .split_once(&site.to_string())
                    .unwrap()
                    .1;
                assert_eq!(task["body"], path);
            }
        }
    }
}
