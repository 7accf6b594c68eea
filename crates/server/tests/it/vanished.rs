//! Files that are removed, renamed or replaced under a running process: it stops acknowledging, and says so.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::{World, wait_until};

#[test]
fn a_process_whose_data_folder_is_gone_stops() {
    type Fault = fn(&Path);
    let faults: [(&str, Fault); 3] = [
        ("removed", |data| fs::remove_dir_all(data).unwrap()),
        ("renamed", |data| {
            fs::rename(data, data.with_extension("old")).unwrap();
        }),
        ("replaced", |data| {
            fs::rename(data, data.with_extension("old")).unwrap();
            fs::create_dir(data).unwrap();
        }),
    ];
    for (name, fault) in faults {
        let world = World::new();
        let running = world.spawn(&["run", "ingest.api"]);
        running.wait_ready(&world);
        assert_eq!(world.client().post("/enqueue", &[], b"kept").status, 200);
        fault(&world.data());
        let (began, mut kept) = (Instant::now(), 1);
        wait_until("no more acknowledgements", Duration::from_secs(5), || {
            let answer = world.client().send("POST", "/enqueue", &[], b"more");
            kept += u64::from(answer.as_ref().is_ok_and(|answer| answer.status == 200));
            answer.is_ok_and(|answer| answer.status == 503)
                || world.client().send("GET", "/healthz", &[], b"").is_err()
        });
        // The promise is a second; tests share a machine.
        assert!(began.elapsed() < Duration::from_secs(3), "{name}");
        let (status, log) = running.wait();
        assert_eq!(status.code(), Some(4), "{name}: {log}");
        let what = "while it was in use";
        assert!(log.contains(what), "{log}");
        if name != "removed" {
            // Everything acknowledged is where the folder is now.
            fs::remove_dir_all(world.data()).ok();
            fs::rename(world.data().with_extension("old"), world.data()).unwrap();
        }
        let running = world.spawn(&["run", "ingest.api"]);
        running.wait_ready(&world);
        if name == "removed" {
            assert!(running.log().contains("created a new store"));
        } else {
            let ready = world.json(&["queue", "show", "messages"])["ready"].as_u64();
            assert!(ready >= Some(kept), "{name}: {ready:?} of {kept}");
        }
    }
}

#[test]
fn a_user_is_not_acknowledged_into_a_database_without_a_name() {
    let world = World::new();
    let running = world.spawn(&["run", "accounts.api"]);
    running.wait_ready(&world);
    let create = |name: &str| {
        let body = json!({ "email": format!("{name}@example.org"), "name": name });
        let body = body.to_string();
        world.client().post("/api/users", &[], body.as_bytes())
    };
    assert_eq!(create("ann").status, 201);
    for file in ["accounts.db", "accounts.db-wal"] {
        let (file, aside) = (world.data().join(file), world.data().join("aside"));
        fs::rename(&file, &aside).unwrap();
        assert_eq!(create("bob").status, 503);
        assert_eq!(world.client().get("/health/users").status, 503);
        let ready = world.admin_client().get("/readyz?verbose");
        assert_eq!(ready.status, 503);
        let why = "was removed or renamed while it was in use";
        assert!(ready.text().contains(why), "{}", ready.text());
        fs::rename(&aside, &file).unwrap();
        wait_until("it to be ready again", Duration::from_secs(20), || {
            world.admin_client().get("/readyz").status == 200
        });
    }
    assert_eq!(create("bob").status, 201);
    let list = world.client().get("/api/users").json();
    assert_eq!(list["users"].as_array().unwrap().len(), 2);
}
