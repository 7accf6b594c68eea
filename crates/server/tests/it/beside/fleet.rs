//! Controller, agent and worker.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};
use towpath_testkit::servers::redis::{DURABLE, Server, missing};
use uuid::Uuid;

use super::{
    Half, Keys, Program, SOON, Side, every_pairing, insist, pause, rounds, start, wait_more,
};
use crate::client::Client;
use crate::fleet::{KEY, version_of};
use crate::process::{able, wait_until};
use crate::web::{Reply, Request, serve};

/// The envelope of every answer.
fn answer(status: u16, data: Value, etag: Option<i64>) -> Reply {
    let mut body = json!({ "request_id": Uuid::now_v7(), "status": status, "success": status < 400,
        "message": "success" });
    if status < 400 {
        body["data"] = data;
    } else {
        body["message"] = data.clone();
        body["error"] = json!({ "code": "FAILED", "message": data });
    }
    let tag = etag.map(|version| ("etag", version.to_string()));
    let kind = ("content-type", "application/json; charset=utf-8".to_owned());
    Reply::Answer(
        status,
        tag.into_iter().chain([kind]).collect(),
        body.to_string().into_bytes(),
    )
}

fn latest(database: &Connection) -> Option<(i64, Value)> {
    let select = "SELECT id, version, data, poll_interval_seconds FROM configs ORDER BY version DESC LIMIT 1";
    let row = database.query_row(select, [], |row| {
        let (version, data): (i64, String) = (row.get(1)?, row.get(2)?);
        let data: Value = serde_json::from_str(&data).unwrap();
        let (id, interval): (String, i64) = (row.get(0)?, row.get(3)?);
        Ok((version, json!({ "id": id, "version": version, "data": data, "poll_interval_seconds": interval })))
    });
    row.optional().unwrap()
}

fn controller(at: SocketAddr, file: &Path) -> Program {
    let open = Connection::open(file).unwrap();
    open.execute_batch(
        "CREATE TABLE IF NOT EXISTS agents (id text PRIMARY KEY, hostname text, ip_address text, port int,
            status text DEFAULT 'active', created_at datetime, updated_at datetime);
        CREATE TABLE IF NOT EXISTS configs (id text PRIMARY KEY, version int UNIQUE, data text,
            poll_interval_seconds int DEFAULT 30, created_at datetime)",
    )
    .unwrap();
    let database = Mutex::new(open);
    Program::serve(at, move |asked: Request| {
        if asked.headers.get("x-api-key").map(String::as_str) != Some(KEY) {
            return answer(403, json!("invalid API key"), None);
        }
        let database = database.lock().unwrap();
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let known = latest(&database);
        match (&*asked.method, asked.path.split('?').next().unwrap()) {
            ("POST", "/register") => {
                let (id, now) = (
                    Uuid::now_v7().to_string(),
                    jiff::Timestamp::now().to_string(),
                );
                let insert =
                    "INSERT INTO agents (id, hostname, ip_address, port, created_at, updated_at)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?5)";
                let place = (
                    &id,
                    body["hostname"].as_str(),
                    body["ip_address"].as_str(),
                    body["port"].as_i64(),
                    &now,
                );
                database.execute(insert, place).unwrap();
                let data = json!({ "agent_id": id, "status": "active", "poll_url": "/config",
                    "poll_interval_seconds": 1 });
                answer(201, data, None)
            }
            ("POST", "/config") => {
                let version = known.map_or(1, |(version, _)| version + 1);
                let insert =
                    "INSERT INTO configs (id, version, data, poll_interval_seconds, created_at)
                    VALUES (?1, ?2, ?3, ?4, ?5)";
                let (id, now) = (
                    Uuid::now_v7().to_string(),
                    jiff::Timestamp::now().to_string(),
                );
                let interval = body["poll_interval_seconds"].as_i64();
                let row = (&id, version, body["data"].to_string(), interval, now);
                database.execute(insert, row).unwrap();
                answer(201, latest(&database).unwrap().1, Some(version))
            }
            ("GET", "/config") => match known {
                None => answer(404, json!("no config available"), None),
                Some((version, _))
                    if asked.headers.get("if-none-match") == Some(&version.to_string()) =>
                {
                    Reply::text(304, "")
                }
                Some((version, data)) => answer(200, data, Some(version)),
            },
            _ => Reply::text(404, "404 page not found"),
        }
    })
}

/// Registers, then polls, and forwards what changed; a forward that fails is not repeated.
fn agent(controller: SocketAddr, worker: SocketAddr) -> Program {
    Program::start(move |stop| {
        let key = ("x-api-key", KEY);
        let place = json!({ "hostname": "agent-01", "ip_address": "127.0.0.1", "port": 8081 });
        insist(controller, "POST /register", &[key], &place.to_string());
        let mut cached = 0;
        while !stop.requested() {
            // The contract's interval is at least a second.
            pause(10);
            let tag = cached.to_string();
            let headers = [key, ("if-none-match", &*tag)];
            let Ok(polled) = Client::new(controller).send("GET", "/config", &headers, b"") else {
                continue;
            };
            if polled.status != 200 {
                continue;
            }
            let mut config = polled.json()["data"].clone();
            cached = config["version"].as_u64().unwrap();
            let fields = ["id", "version", "data", "poll_interval_seconds"];
            let known = config.as_object_mut().unwrap();
            known.retain(|name, _| fields.contains(&&**name));
            config["created_at"] = json!("0001-01-01T00:00:00Z");
            let forward = config.to_string();
            Client::new(worker)
                .send("POST", "/config", &[], forward.as_bytes())
                .ok();
        }
    })
}

/// Keeps its configuration in memory; the tasks that it accepted end before it does.
fn worker(at: SocketAddr, redis: u16) -> Program {
    let tasks = Arc::new(Mutex::new(VecDeque::<(String, String)>::new()));
    let (config, accepted) = (Mutex::new(Value::Null), Arc::clone(&tasks));
    let front = Program::serve(at, move |asked: Request| {
        let mut config = config.lock().unwrap();
        match (&*asked.method, &*asked.path) {
            ("POST", "/config") => {
                *config = serde_json::from_slice(&asked.body).unwrap();
                answer(200, json!({ "version": config["version"] }), None)
            }
            ("GET", "/config") if config.is_null() => answer(404, json!("no config loaded"), None),
            ("GET", "/config") => answer(200, config.clone(), None),
            ("GET", "/hit") => match config["data"]["url"].as_str() {
                None => answer(500, json!("no config available"), None),
                Some(url) => {
                    let task = Uuid::now_v7().to_string();
                    accepted
                        .lock()
                        .unwrap()
                        .push_back((task.clone(), url.to_owned()));
                    answer(202, json!({ "task_id": task, "status": "queued" }), None)
                }
            },
            ("GET", path) => {
                let task = path.trim_start_matches("/hit/");
                match Keys::new(redis).ask(&["GET", &format!("worker:hit:result:{task}")]) {
                    super::Value::Nothing => {
                        answer(200, json!({ "task_id": task, "status": "pending" }), None)
                    }
                    found => answer(200, serde_json::from_str(&found.text()).unwrap(), None),
                }
            }
            _ => Reply::text(404, "404 page not found"),
        }
    });
    Program::start(move |stop| {
        let (mut keys, mut front) = (Keys::new(redis), Some(front));
        loop {
            if stop.requested()
                && let Some(front) = front.take()
            {
                front.stop();
            }
            let task = tasks.lock().unwrap().pop_front();
            let Some((task, url)) = task else {
                if front.is_none() {
                    return;
                }
                pause(1);
                continue;
            };
            let site = url.strip_prefix("http://").unwrap().trim_end_matches('/');
            let got = Client::new(site.parse().unwrap()).get("/");
            let result = json!({ "task_id": task, "status": "completed", "status_code": got.status,
                "body": got.text() });
            let key = format!("worker:hit:result:{task}");
            keys.ask(&["SET", &key, &result.to_string(), "EX", "3600"]);
        }
    })
}

/// Publishes configurations; versions count up without gap or repeat.
fn publisher(at: SocketAddr, site: SocketAddr, versions: &Arc<AtomicUsize>) -> Program {
    let versions = Arc::clone(versions);
    Program::start(move |stop| {
        while !stop.requested() {
            let last = versions.load(Ordering::SeqCst) as u64;
            let config = json!({ "data": { "url": format!("http://{site}/"), "last": last.to_string() },
                "poll_interval_seconds": 1 });
            let headers = [("x-api-key", KEY), ("content-type", "application/json")];
            let (answer, repeated) = insist(at, "POST /config", &headers, &config.to_string());
            assert_eq!(answer.status, 201, "{}", answer.text());
            let version = answer.json()["data"]["version"].as_u64().unwrap();
            // One that was not answered may have been published.
            let next = last + 1..=last + 1 + u64::from(repeated);
            assert!(next.contains(&version), "{version} follows {last}");
            versions.store(usize::try_from(version).unwrap(), Ordering::SeqCst);
            pause(20);
        }
    })
}

#[test]
fn chaos_controller_agent_and_worker_are_switched_under_load() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let (server, hits) = (Server::start(DURABLE), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&hits);
    let site = serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Reply::text(200, "done")
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("controller.db");
    let mut worlds = [(); 3].map(|()| crate::fleet::world());
    let (at, work) = (worlds[0].controller, worlds[2].hits);
    for world in &mut worlds {
        world.set("CONTROLLER_DB_PATH", file.display());
        world.set("CONTROLLER_URL", format!("http://{at}"));
        world.set("WORKER_URL", format!("http://{work}"));
        world.set("REDIS_HOST", "127.0.0.1");
        world.set("REDIS_PORT", server.port());
    }
    let redis = server.port();
    let [one, two, three] = &worlds;
    let mut halves = [
        Half::new(
            "controller",
            || controller(at, &file),
            || start(one, "fleet.controller"),
        ),
        Half::new(
            "agent",
            move || agent(at, work),
            || start(two, "fleet.agent"),
        ),
        Half::new(
            "worker",
            move || worker(work, redis),
            || start(three, "fleet.worker"),
        ),
    ];
    let (versions, tasks) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::<String>::new())),
    );
    let publishing = publisher(at, site, &versions);
    let (accepted, taken) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&tasks));
    let count = Arc::clone(&accepted);
    let hitting = Program::start(move |stop| {
        while !stop.requested() {
            let (answer, _) = insist(work, "GET /hit", &[], "");
            if answer.status == 202 {
                let task = answer.json()["data"]["task_id"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                taken.lock().unwrap().push(task);
                count.fetch_add(1, Ordering::SeqCst);
            }
            pause(4);
        }
    });
    let completed = |task: &str| {
        let (answer, _) = insist(work, &format!("GET /hit/{task}"), &[], "");
        let task = answer.json()["data"].clone();
        task["status"] == "completed" && task["status_code"] == 200 && task["body"] == "done"
    };
    every_pairing(&mut halves, Side::Reference, rounds(), |pairing| {
        let goal = versions.load(Ordering::SeqCst) + 1;
        wait_until(pairing, SOON, || version_of(three) as usize >= goal);
        wait_more(pairing, &accepted, 10);
        // A result of the worker before is read by this one.
        let first = tasks.lock().unwrap()[0].clone();
        assert!(completed(&first), "{pairing}");
        let last = tasks.lock().unwrap().last().unwrap().clone();
        wait_until(pairing, SOON, || completed(&last));
    });
    hitting.stop();
    publishing.stop();
    let tasks = tasks.lock().unwrap();
    wait_until("every task to end", SOON, || {
        tasks.iter().all(|task| completed(task))
    });
    assert_eq!(
        hits.load(Ordering::SeqCst),
        tasks.len(),
        "one request a task"
    );
}
