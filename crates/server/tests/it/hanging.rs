//! Disks that hang: the call does not return, and later it does.
//!
//! A preloaded library holds the calls, and lets them go when a file is removed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::{World, able, wait_until};

/// A library that holds calls of a process to its disk.
pub(crate) struct Library {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Library {
    /// Needs a C compiler.
    pub(crate) fn build() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (folder.path().join("hang.c"), folder.path().join("hang.so"));
        fs::write(&source, include_str!("hang.c")).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&path, &source])
            .arg("-ldl")
            .output();
        let is_built = built.is_ok_and(|output| output.status.success());
        able("cc", is_built).then_some(Self {
            path,
            _folder: folder,
        })
    }

    /// A world with a disk that can hang.
    pub(crate) fn world(&self) -> World {
        let mut world = World::new();
        let (file, folder) = (
            world.runtime.path().join("hang"),
            world.folder.display().to_string(),
        );
        world
            .set("LD_PRELOAD", self.path.display())
            .set("HANG_FILE", file.display())
            .set("HANG_FOLDER", folder)
            .set("TOWPATH_SERVER__DISK_TIMEOUT", "1s")
            .set("TOWPATH_SERVER__DRAIN", "4s");
        world
    }
}

/// A disk that does not answer until this is dropped.
struct Hang(PathBuf);

impl Hang {
    fn of(world: &World, calls: &str) -> Self {
        let file = world.runtime.path().join("hang");
        fs::write(&file, calls).unwrap();
        Self(file)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Every call of the log, the checkpoints, SQLite, the output and its journal that makes something durable.
const SYNCS: &str = "<sync>";

/// Status and text of an answer, and how long it took.
type PendingRequest = thread::JoinHandle<(u16, String, Duration)>;

#[test]
fn requests_on_a_hanging_disk_are_answered_and_service_resumes() {
    let Some(library) = Library::build() else {
        return;
    };
    for calls in [SYNCS, "<write>", "<sync><write><rename><open><read>"] {
        let world = library.world();
        let running = world.up();
        let mut client = world.client();
        assert_eq!(client.post("/enqueue", &[], b"before").status, 200);
        world.wait_drained();
        let hang = Hang::of(&world, calls);
        let began = Instant::now();
        let unknown = client.post("/enqueue", &[], b"unknown");
        assert!(began.elapsed() < Duration::from_secs(5), "{calls}");
        assert_eq!(unknown.status, 503, "{calls}: {}", unknown.text());
        assert!(
            unknown.text().contains("outcome is unknown"),
            "{}",
            unknown.text()
        );
        wait_until("the hang to be named", Duration::from_secs(5), || {
            let ready = world.admin_client().get("/readyz?verbose");
            ready.status == 503 && ready.text().contains("has not answered for")
        });
        assert_eq!(world.admin_client().get("/livez").status, 200);
        let folder = std::path::absolute(world.data()).unwrap();
        let folder = folder.display();
        let stalled = format!("towpath_disk_stalled_seconds{{disk=\"embedded `{folder}`\"}}");
        wait_until("the metric", Duration::from_secs(5), || {
            world.metric(&stalled) >= 1.0
        });
        // From now on nothing is taken, and no request waits for it.
        let began = Instant::now();
        let refused = client.post("/enqueue", &[], b"refused");
        assert_eq!(refused.status, 503);
        assert!(!refused.text().contains("unknown"), "{}", refused.text());
        assert!(began.elapsed() < Duration::from_millis(900));

        drop(hang);
        // A refused call counts for ten seconds after it.
        wait_until("service to resume", Duration::from_secs(20), || {
            world.admin_client().get("/readyz").status == 200
        });
        assert_eq!(client.post("/enqueue", &[], b"after").status, 200);
        world.wait_drained();
        assert_eq!(world.metric(&stalled), 0.0);
        let messages = world.messages();
        // Its record was buffered, so it is there once the disk is.
        assert_eq!(messages, ["before", "unknown", "after"], "{calls}");
        let log = running.log();
        let said = log
            .lines()
            .filter(|line| line.contains("disk not responding") && line.contains("embedded `"));
        assert_eq!(said.count(), 1, "{log}");
        let (status, log, _) = running.stop();
        assert!(status.success(), "{log}");
    }
}

#[test]
fn stop_ends_within_the_drain_on_a_hanging_disk() {
    let Some(library) = Library::build() else {
        return;
    };
    for calls in [SYNCS, "<write>", "<sync><write><rename><open><read>"] {
        let world = library.world();
        let running = world.up();
        let mut kept = vec![];
        for number in 0..20 {
            let text = format!("m-{number}");
            assert_eq!(
                world.client().post("/enqueue", &[], text.as_bytes()).status,
                200
            );
            kept.push(text);
        }
        let hang = Hang::of(&world, calls);
        let address = world.http;
        let waiting = thread::spawn(move || {
            let mut client = crate::client::Client::new(address);
            client
                .send("POST", "/enqueue", &[], b"waiting")
                .map(|answer| answer.status)
        });
        thread::sleep(Duration::from_millis(300));
        let (status, log, took) = running.stop();
        assert!(took < Duration::from_secs(6), "{calls}: {took:?}: {log}");
        assert_eq!(status.code(), Some(7), "{calls}: {log}");
        assert_ne!(waiting.join().unwrap().ok(), Some(200));
        drop(hang);

        let running = world.up();
        world.wait_drained();
        let mut messages = world.messages();
        messages.retain(|message| message != "waiting");
        messages.sort_by_key(|message| message[2..].parse::<u32>().unwrap());
        assert_eq!(messages, kept, "{calls}");
        drop(running);
    }
}

#[test]
fn every_app_answers_on_a_hanging_disk() {
    let Some(library) = Library::build() else {
        return;
    };
    let world = library.world();
    let _running = world.up();
    let bearer = world.bearer();
    let token = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let user = |name: &str| {
        let user = json!({"name": name, "email": format!("{name}@example.com")});
        user.to_string().into_bytes()
    };
    let order = |id: &str| {
        let order = json!({"id": id, "sku": "a", "qty": 1});
        order.to_string().into_bytes()
    };
    let _hang = Hang::of(&world, SYNCS);
    let mut asked: Vec<(&str, PendingRequest)> = Vec::new();
    for (method, admin, path, body) in [
        ("POST", false, "/enqueue", b"x".to_vec()),
        ("POST", false, "/enqueue/batch", b"\"a\"\n\"b\"\n".to_vec()),
        ("POST", false, "/api/users", user("one")),
        ("POST", false, "/orders", order("o-1")),
        ("PUT", true, "/v1/kv/key", b"{\"value\":\"x\"}".to_vec()),
        (
            "POST",
            true,
            "/v1/queues/other/messages",
            b"{\"payload\":\"x\"}".to_vec(),
        ),
        ("POST", true, "/v1/queues/messages/pause", Vec::new()),
    ] {
        let address = if admin { world.admin } else { world.http };
        let headers: &[(&str, &str)] = if admin { &token } else { &[] };
        let headers: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        asked.push((
            path,
            thread::spawn(move || {
                let headers: Vec<(&str, &str)> = headers
                    .iter()
                    .map(|(a, b)| (a.as_str(), b.as_str()))
                    .collect();
                let began = Instant::now();
                let answer = crate::client::Client::new(address)
                    .send(method, path, &headers, &body)
                    .unwrap();
                (answer.status, answer.text(), began.elapsed())
            }),
        ));
    }
    for (path, asked) in asked {
        let (status, text, took) = asked.join().unwrap();
        assert_eq!(status, 503, "{path}: {text}");
        assert!(text.contains("outcome is unknown"), "{path}: {text}");
        assert!(took < Duration::from_secs(5), "{path}: {took:?}");
    }
}

#[test]
fn process_ends_at_once_after_a_failed_sync() {
    let Some(library) = Library::build() else {
        return;
    };
    let mut world = library.world();
    world.set("TOWPATH_SERVER__DRAIN", "25s");
    let running = world.up();
    let (mut client, mut kept) = (world.client(), Vec::new());
    for number in 0..50 {
        let text = format!("m-{number}");
        assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
        kept.push(text);
    }
    let hang = Hang::of(&world, "<eio>");
    let failed = client.send("POST", "/enqueue", &[], b"failed");
    let began = Instant::now();
    assert!(failed.is_err() || failed.is_ok_and(|answer| answer.status == 503));
    let (status, log) = running.wait();
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}: {log}",
        began.elapsed()
    );
    assert_eq!(status.code(), Some(4), "{log}");
    assert!(log.contains("syncing the log failed"), "{log}");
    assert!(log.matches("settle failed").count() < 5, "{log}");
    drop(hang);

    let running = world.up();
    world.wait_drained();
    let mut messages = world.messages();
    messages.retain(|message| message != "failed");
    messages.sort_by_key(|message| message[2..].parse::<u32>().unwrap());
    assert_eq!(messages, kept);
    drop(running);
}
