//! Disks that fill up and paths that cannot be written: no loss, and automatic recovery.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::ledger::Ledger;

use crate::fleet;
use crate::process::{World, able, lines_of, seeds, wait_until};
use crate::producers::{ledger, read_output, text, up};

/// A small file system of its own, unmounted at the end.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .output()
            .ok()?;
        mounted.status.success().then(|| Self(at.to_owned()))
    }

    fn resize(&self, mebibytes: u32) {
        let options = format!("remount,size={mebibytes}m");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn chaos_a_full_disk_refuses_and_recovers_and_loses_nothing() {
    for seed in 0..seeds(2) {
        let mut rng = StdRng::seed_from_u64(seed);
        let size = rng.random_range(20..32);
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(&folder.path().join("disk"), size);
        if !able("tmpfs", disk.is_some()) {
            return;
        }
        let disk = disk.unwrap();
        let ledger = ledger(&format!("full-disk-{seed}"));
        // Either the queue fills the disk, or the output and the queue do.
        fill_and_widen(&disk, &ledger, seed % 2 == 0);
        drop(disk);
        let account = ledger.settle().unwrap_or_else(|wrong| panic!("{wrong}"));
        eprintln!("seed {seed}, {size} MiB: {account}");
    }
}

fn fill_and_widen(disk: &SmallDisk, ledger: &Ledger, paused: bool) {
    let mut world = World::at(&disk.0);
    world
        .set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB")
        .set("TOWPATH_EMBEDDED__DISK_RESERVE", "4MiB");
    let running = up(&world, ledger);
    if paused {
        world.ok(&["queue", "pause", "messages"]);
    }
    let mut client = world.client();
    let mut send = |number: usize| {
        let id = format!("p-{number}");
        ledger.offered("p", &id, Some("p"));
        let answer = client.post("/enqueue", &[], text(&id).as_bytes());
        match answer.status {
            200 => ledger.acknowledged("p", &id),
            429 => ledger.refused("p", &id),
            _ => panic!("{}\n{}", answer.text(), running.log()),
        }
        answer
    };
    let refused = (0..40_000)
        .map(|number| (number, send(number)))
        .find(|(_, answer)| answer.status == 429);
    let (mut number, refused) = refused.expect("32 MiB hold no 40,000 messages of 4 KiB");
    ledger.fault("disk", "full");
    assert!(refused.headers.contains_key("retry-after"));
    let ready = world.admin_client().get("/readyz?verbose");
    assert!(ready.text().contains("disk"), "{}", ready.text());
    let folder = format!("{{folder=\"{}\"}}", world.data().display());
    let room = world.metric(&format!("towpath_disk_free_bytes{folder}"));
    let size = world.metric(&format!("towpath_disk_size_bytes{folder}"));
    assert!(
        room < size / 4.0 && size < f64::from(32 << 20),
        "{room} {size}"
    );

    // The worker continues with waiting messages as far as the output fits, and notices freed space.
    disk.resize(96);
    if paused {
        world.ok(&["queue", "resume", "messages"]);
    }
    wait_until("enqueueing to work again", Duration::from_secs(20), || {
        number += 1;
        send(number).status == 200
    });
    world.wait_drained();
    drop(running);
    read_output(&world, ledger);
}

#[test]
fn a_full_disk_takes_messages_again_once_the_queue_is_drained() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), 24);
    if !able("tmpfs", disk.is_some()) {
        return;
    }
    let disk = disk.unwrap();
    let mut world = World::at(&disk.0);
    world
        .set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "2MiB")
        .set("TOWPATH_EMBEDDED__DISK_RESERVE", "6MiB")
        .set("OUTPUT_PATH", folder.path().join("processed.log").display());
    let running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    let mut client = world.client();
    let payload = "x".repeat(100_000);
    let refused =
        (0..1000).find(|_| client.post("/enqueue", &[], payload.as_bytes()).status != 200);
    assert!(refused.is_some(), "24 MiB hold no 1,000 messages of 100 kB");
    // Its checkpoint is written, and no other: later records are too few for another one.
    std::thread::sleep(Duration::from_secs(1));
    world.ok(&["queue", "resume", "messages"]);
    world.wait_drained();
    wait_until(
        "the log to give its space back",
        Duration::from_secs(20),
        || client.post("/enqueue", &[], b"after").status == 200,
    );
    world.wait_drained();
    drop(running);
    drop(disk);
}

#[test]
fn an_output_on_a_full_disk_of_its_own_keeps_the_queue_and_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), 1);
    if !able("tmpfs", disk.is_some()) {
        return;
    }
    let disk = disk.unwrap();
    let output = disk.0.join("processed.log");
    let mut world = World::new();
    // One by one and of this size, so that the last announcement fits and its line does not.
    world
        .set("OUTPUT_PATH", output.display())
        .set("TOWPATH_INGEST__WORKER__BATCH", 1);
    let running = world.up();
    let mut client = world.client();
    let messages: Vec<String> = (0..40)
        .map(|number| format!("{number} {}", "x".repeat(45_000)))
        .collect();
    for text in &messages {
        assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
    }
    wait_until("the full disk to be named", Duration::from_secs(20), || {
        let ready = world.admin_client().get("/readyz?verbose");
        ready.status == 503 && ready.text().contains("No space left")
    });
    disk.resize(16);
    world.wait_drained();
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!((&stats["dead"], &stats["retried"]), (&0.into(), &0.into()));
    let written: Vec<String> = lines_of(&output)
        .into_iter()
        .map(|line| line.split_once(" | ").unwrap().1.to_owned())
        .collect();
    assert!(written == messages, "{} lines", written.len());
    drop(running);
    drop(disk);
}

#[test]
fn an_output_that_cannot_be_written_keeps_the_queue_and_recovers() {
    let mut world = World::new();
    let parent = world.folder.join("out");
    fs::create_dir(&parent).unwrap();
    let output = parent.join("processed.log");
    // A folder in the file's place cannot be written by any user, root included.
    fs::create_dir(&output).unwrap();
    world.set("OUTPUT_PATH", output.display());
    let running = world.spawn(&["up"]);
    wait_until("the listener", Duration::from_secs(10), || {
        world
            .client()
            .send("GET", "/healthz", &[], b"")
            .is_ok_and(|answer| answer.status == 200)
    });
    let mut client = world.client();
    for number in 0..100 {
        assert_eq!(
            client
                .post("/enqueue", &[], number.to_string().as_bytes())
                .status,
            200
        );
    }
    let ready = world.admin_client().get("/readyz?verbose");
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(ready.text().contains("ingest.worker"), "{}", ready.text());

    fs::remove_dir(&output).unwrap();
    wait_until("the lines", Duration::from_secs(20), || {
        output.is_file() && lines_of(&output).len() == 100
    });
    world.wait_drained();
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&stats["dead"], &stats["retried"]),
        (&0.into(), &0.into()),
        "no attempt was charged"
    );
    drop(running);
}

#[test]
fn an_output_folder_without_permission_is_named() {
    if !able("unprivileged", !is_root()) {
        return;
    }
    let mut world = World::new();
    let parent = world.folder.join("out");
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o555)).unwrap();
    world.set("OUTPUT_PATH", parent.join("processed.log").display());
    let running = world.spawn(&["up"]);
    wait_until("the reason", Duration::from_secs(10), || {
        running.log().contains("Permission denied")
    });
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_controller_on_a_full_disk_refuses_and_tells_nothing_of_its_inside() {
    let world = fleet::world();
    let disk = SmallDisk::mount(&world.data(), 4);
    if !able("tmpfs", disk.is_some()) {
        return;
    }
    let _running = fleet::run(&world, "fleet.controller");
    let publish = |text: &str| fleet::publish(&world, &fleet::url(text));
    assert_eq!(publish("http://first/").status, 201);
    let filler = world.data().join("filler");
    fs::write(&filler, vec![0; 8 << 20]).unwrap_err();
    // The space that the database already has takes a few more.
    let large = "x".repeat(100_000);
    let mut taken = 1;
    let refused = loop {
        let answer = publish(&large);
        if answer.status != 201 {
            break answer;
        }
        taken += 1;
        assert!(taken < 50, "the disk is never full");
    };
    let error = &refused.json()["error"];
    assert_eq!(
        (refused.status, &error["code"]),
        (503, &"UPDATE_FAILED".into())
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("try again") && !message.contains("disk"),
        "{message}"
    );
    fs::remove_file(filler).unwrap();
    let published = publish("http://last/").json();
    assert_eq!(published["data"]["version"], taken + 1, "{published}");
}

#[test]
fn full_disk_can_be_left_by_purging() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), 64);
    if !able("tmpfs", disk.is_some()) {
        return;
    }
    let disk = disk.unwrap();
    let mut world = World::at(&disk.0);
    world
        .set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB")
        .set("TOWPATH_EMBEDDED__DISK_RESERVE", "16MiB");
    let running = world.up();
    let reserve = world.data().join("reserve");
    wait_until("the reserve", Duration::from_secs(10), || reserve.exists());
    world.ok(&["queue", "pause", "messages"]);
    let (mut client, payload) = (world.client(), "x".repeat(10_000));
    let refused =
        (0..10_000).find(|_| client.post("/enqueue", &[], payload.as_bytes()).status != 200);
    assert!(refused.is_some(), "64 MiB hold no 10,000 messages of 10 kB");
    // Others take the rest.
    let filler = disk.0.join("filler");
    let full = fs::write(&filler, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert!(reserve.exists());
    // The output leaves the reserve alone.
    world.ok(&["queue", "resume", "messages"]);
    wait_until("the output to stop", Duration::from_secs(20), || {
        let ready = world.admin_client().get("/readyz?verbose");
        ready.status == 503 && ready.text().contains("No space left")
    });
    let waiting = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&waiting["dead"], &waiting["retried"]),
        (&0.into(), &0.into())
    );
    // So does a start.
    running.kill();
    let running = world.spawn(&["up"]);
    wait_until("the listener", Duration::from_secs(10), || {
        let health = world.client().send("GET", "/healthz", &[], b"");
        health.is_ok_and(|answer| answer.status == 200)
    });
    let segments = || fs::read_dir(world.data().join("log")).unwrap().count();
    let before = segments();
    world.ok(&["queue", "pause", "messages"]);
    world.ok(&["queue", "purge", "messages", "--yes"]);
    wait_until("segments to be removed", Duration::from_secs(30), || {
        segments() < before / 2
    });
    wait_until(
        "messages to be taken again",
        Duration::from_secs(20),
        || world.client().post("/enqueue", &[], b"after").status == 200,
    );
    world.ok(&["queue", "resume", "messages"]);
    world.wait_drained();
    wait_until(
        "the reserve to be held again",
        Duration::from_secs(20),
        || reserve.exists(),
    );
    assert!(running.log().matches("store maintenance failed").count() < 10);
    drop(running);
    drop(disk);
}
