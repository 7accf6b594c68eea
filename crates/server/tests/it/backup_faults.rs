//! Backups and restores that were cut off, and backups whose files are not as they were: never a silent success.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::Client;
use crate::disk::SmallDisk;
use crate::process::{World, able, seeds};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A world whose store has several segments, a checkpoint and databases; its process was stopped.
pub(crate) fn filled(messages: u32) -> World {
    let mut world = World::new();
    world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB");
    let running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    let mut client = world.client();
    for number in 0..messages {
        let body = format!("{number}-{}", "x".repeat(20_000));
        assert_eq!(client.post("/enqueue", &[], body.as_bytes()).status, 200);
    }
    assert!(running.stop().0.success());
    world
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => {
                fs::copy(&path, &target).unwrap();
            }
        }
    }
}

/// The files of a folder, by their paths from there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = PathBuf::from(entry.file_name());
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path()).into_iter().map(|one| name.join(one))),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

/// Neither verified nor restored, each time with words that name it.
fn refused(world: &World, backup: &Path, words: &str, at: &str) {
    let shown = backup.display().to_string();
    let verified = world.run(&["verify", &shown]);
    assert_eq!(
        verified.status.code(),
        Some(5),
        "{at}: {}",
        stderr(&verified)
    );
    assert!(
        stderr(&verified).contains(words),
        "{at}: {}",
        stderr(&verified)
    );
    let data = world.folder.join("elsewhere");
    let data = data.display().to_string();
    let restored = world.run(&["restore", &shown, "--data", &data]);
    assert_eq!(
        restored.status.code(),
        Some(1),
        "{at}: {}",
        stderr(&restored)
    );
    assert!(
        stderr(&restored).contains(words),
        "{at}: {}",
        stderr(&restored)
    );
    assert!(!Path::new(&data).exists(), "{at}");
    let left = fs::read_dir(&world.folder).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left
        .filter(|name| name.to_string_lossy().contains("restoring"))
        .collect();
    assert!(left.is_empty(), "{at}: {left:?}");
}

type Fault = fn(&Path, &Path);

const FAULTS: [(&str, Fault); 6] = [
    ("missing", |file, _| fs::remove_file(file).unwrap()),
    ("short", |file, _| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 2]).unwrap();
    }),
    ("empty", |file, _| fs::write(file, "").unwrap()),
    ("longer", |file, _| {
        let mut bytes = fs::read(file).unwrap();
        bytes.push(0);
        fs::write(file, bytes).unwrap();
    }),
    ("flipped", |file, _| {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(file, bytes).unwrap();
    }),
    ("another one", |file, other| {
        fs::copy(other, file).unwrap();
    }),
];

#[test]
fn a_backup_with_a_fault_in_any_file_is_never_restored() {
    let world = filled(150);
    world.ok(&["backup", "whole"]);
    let whole = world.folder.join("whole");
    let verified = world.json(&["verify", "whole"]);
    assert_eq!(verified["faults"], serde_json::json!([]));
    assert_eq!(verified["store"]["waiting"], 150);
    let names = files(&whole);
    assert!(names.len() > 6, "{names:?}");
    let backup = world.folder.join("faulty");
    let tried = |name: &Path, what: &str, apply: &dyn Fn(&Path)| {
        fs::remove_dir_all(&backup).ok();
        copy(&whole, &backup);
        apply(&backup.join(name));
        let words = match name.ends_with("manifest.json") {
            true => "manifest.json",
            false => name.to_str().unwrap(),
        };
        refused(
            &world,
            &backup,
            words,
            &format!("{} {what}", name.display()),
        );
    };
    for (index, name) in names.iter().enumerate() {
        let other = whole.join(&names[(index + 1) % names.len()]);
        for (what, apply) in FAULTS {
            if what == "longer" && name.ends_with("manifest.json") {
                continue;
            }
            tried(name, what, &|file| apply(file, &other));
        }
    }
    // Of another backup of the same store, taken later: most of its files have the same names.
    let running = world.up();
    let mut client = world.client();
    assert_eq!(client.post("/enqueue", &[], b"later").status, 200);
    world.ok(&["backup", "later"]);
    drop(running);
    for name in &names {
        let later = world.folder.join("later").join(name);
        if later.exists() && fs::read(&later).unwrap() != fs::read(whole.join(name)).unwrap() {
            let apply = |file: &Path| {
                fs::copy(&later, file).unwrap();
            };
            if name.ends_with("manifest.json") {
                fs::remove_dir_all(&backup).ok();
                copy(&whole, &backup);
                apply(&backup.join(name));
                refused(&world, &backup, " ", "manifest of another backup");
            } else {
                tried(name, "of another backup", &apply);
            }
        }
    }
    tried(Path::new("manifest.json"), "edited", &|file| {
        let text = fs::read_to_string(file).unwrap();
        let edited = text.replacen("\"bytes\": 1048576", "\"bytes\": 1048575", 1);
        assert_ne!(text, edited);
        fs::write(file, edited).unwrap();
    });
    tried(Path::new("manifest.json"), "of the future", &|file| {
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, text.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    });
}

#[test]
fn a_backup_without_a_manifest_needs_a_flag_and_a_whole_store() {
    let world = filled(150);
    world.ok(&["backup", "copy"]);
    let copy = world.folder.join("copy");
    fs::remove_file(copy.join("manifest.json")).unwrap();
    refused(&world, &copy, "has no `manifest.json`", "no manifest");
    let other = World::new();
    let shown = copy.display().to_string();
    let restored = other.ok(&["restore", "--without-manifest", &shown]);
    assert!(restored.contains("150 messages wait"), "{restored}");
    // As one that was cut off: the last segments are missing.
    let mut segments = fs::read_dir(copy.join("store/log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    segments.sort();
    for lost in &segments[1..] {
        fs::remove_file(lost).unwrap();
        let other = World::new();
        let refused = other.run(&["restore", "--without-manifest", &shown]);
        assert_eq!(refused.status.code(), Some(1));
        let words = "is not a whole backup";
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
        assert!(!other.data().exists());
    }
}

#[test]
fn a_restore_over_existing_data_names_the_next_step() {
    let world = filled(3);
    world.ok(&["backup", "copy"]);
    let refused = world.run(&["restore", "copy"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(
        text.contains("is not empty") && text.contains("mv "),
        "{text}"
    );
    // A mount is empty but for this.
    let data = world.folder.join("mounted");
    fs::create_dir_all(data.join("lost+found")).unwrap();
    let shown = data.display().to_string();
    world.ok(&["restore", "copy", "--data", &shown]);
    assert!(!data.join("restoring").exists());
    assert_eq!(world.json(&["verify", &shown])["store"]["waiting"], 3);
    // One that was cut off there: no start uses it, no restore goes over it.
    fs::create_dir(data.join("restoring")).unwrap();
    for command in [
        vec!["run", "ingest.api", "--data", &shown],
        vec!["run", "accounts.api", "--data", &shown],
        vec!["restore", "copy", "--data", &shown],
    ] {
        let refused = world.run(&command);
        assert_eq!(refused.status.code(), Some(1), "{command:?}");
        let text = stderr(&refused);
        assert!(text.contains("restore into"), "{command:?}: {text}");
    }
}

/// Enqueues until stopped, and counts everything acknowledged.
fn load(world: &World) -> (Arc<AtomicBool>, std::thread::JoinHandle<u64>) {
    let (ends, address) = (Arc::new(AtomicBool::new(false)), world.http);
    let ended = Arc::clone(&ends);
    let thread = std::thread::spawn(move || {
        let (mut client, mut acknowledged) = (Client::new(address), 0);
        while !ended.load(Ordering::SeqCst) {
            let body = "y".repeat(5_000);
            match client.send("POST", "/enqueue", &[], body.as_bytes()) {
                Ok(answer) => acknowledged += u64::from(answer.status == 200),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        acknowledged
    });
    (ends, thread)
}

#[test]
fn chaos_whatever_is_killed_nothing_cut_off_is_taken_for_whole() {
    for seed in 0..seeds(6) {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = filled(400);
        let running = world.up();
        let (ends, load) = load(&world);
        let backup = world.command(&["backup", "copy"]);
        let mut backup = quiet(backup).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.random_range(0..250_000)));
        let (mut running, what) = (Some(running), seed % 3);
        match what {
            0 => running.take().unwrap().kill(),
            1 => backup.kill().unwrap(),
            _ => {}
        }
        let finished = backup.wait_with_output().unwrap();
        assert!(
            what != 2 || finished.status.success(),
            "{}",
            stderr(&finished)
        );
        ends.store(true, Ordering::SeqCst);
        load.join().unwrap();
        let copy = world.folder.join("copy");
        let at = format!("seed {seed}: {}", stderr(&finished));
        let other = World::new();
        let shown = copy.display().to_string();
        if copy.join("manifest.json").exists() {
            // It was complete before the kill.
            world.ok(&["verify", "copy"]);
            kill_restores(&other, &shown, &mut rng);
        } else {
            assert!(!finished.status.success(), "{at}");
            if what == 0 {
                let text = stderr(&finished);
                assert!(text.contains("was removed") || !copy.exists(), "{at}");
                assert!(!copy.exists(), "{at}");
            } else {
                let refused = other.run(&["restore", &shown]);
                assert!(!refused.status.success() && !other.data().exists(), "{at}");
            }
        }
        if what == 1 {
            // The process has noticed that its client is gone: segments go again, and it backs up as before.
            world.ok(&["backup", "again"]);
            world.ok(&["verify", "again"]);
        }
        drop(running);
    }
}

/// Restores that are killed at some moment leave nothing that a start would open.
fn kill_restores(other: &World, backup: &str, rng: &mut StdRng) {
    for _ in 0..6 {
        let mut restore = quiet(other.command(&["restore", backup])).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.random_range(0..120_000)));
        restore.kill().unwrap();
        restore.wait().unwrap();
        if other.data().exists() {
            let verified = other.ok(&["verify", &other.data().display().to_string()]);
            assert!(verified.contains("no fault"), "{verified}");
            return;
        }
    }
    other.ok(&["restore", backup]);
}

fn quiet(mut command: Command) -> Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_copy_ends_with_its_client() {
    let world = filled(700);
    let running = world.up();
    let mut backup = quiet(world.command(&["backup", "copy"])).spawn().unwrap();
    let log = world.folder.join("copy/store/log");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_dir(&log).is_ok_and(|entries| entries.count() > 1) {
        assert!(Instant::now() < deadline, "no segments");
        std::thread::sleep(Duration::from_micros(500));
    }
    backup.kill().unwrap();
    backup.wait().unwrap();
    let copied = files(&world.folder.join("copy")).len();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(files(&world.folder.join("copy")).len(), copied);
    assert!(!world.folder.join("copy/manifest.json").exists());
    // Nothing of it holds up a stop.
    let began = Instant::now();
    assert!(running.stop().0.success());
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_full_disk_leaves_neither_a_backup_nor_a_data_folder() {
    let world = filled(300);
    let mount = world.folder.join("small");
    let disk = SmallDisk::mount(&mount, 4);
    if !able("tmpfs", disk.is_some()) {
        return;
    }
    let shown = mount.join("copy").display().to_string();
    let refused = world.run(&["backup", &shown]);
    assert!(!refused.status.success());
    let text = stderr(&refused);
    assert!(
        text.contains("No space left") && text.contains("was removed"),
        "{text}"
    );
    assert!(!mount.join("copy").exists());
    world.ok(&["backup", "copy"]);
    let data = mount.join("data");
    let shown = data.display().to_string();
    let refused = world.run(&["restore", "copy", "--data", &shown]);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("No space left"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
}

#[test]
fn a_store_that_lacks_a_segment_is_named_and_not_started() {
    let world = filled(200);
    let segment = world.data().join("log/0000000002.log");
    let kept = fs::read(&segment).unwrap();
    fs::remove_file(&segment).unwrap();
    let data = world.data().display().to_string();
    let verified = world.run(&["verify", &data]);
    assert_eq!(verified.status.code(), Some(5));
    let words = "segment 2 of the log is missing";
    assert!(stderr(&verified).contains(words), "{}", stderr(&verified));
    let doctor = world.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(5));
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains(words), "{text}");
    let (status, log) = world.spawn(&["run", "ingest.api"]).wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(words) && log.contains("accept-loss"), "{log}");
    // Put back, nothing is lost; accepted, it is named everywhere.
    fs::write(&segment, &kept).unwrap();
    world.up().kill();
    fs::remove_file(&segment).unwrap();
    fs::write(world.data().join("accept-loss"), "").unwrap();
    let running = world.up();
    assert!(running.log().contains(words), "{}", running.log());
    let ready = world.admin_client().get("/readyz?verbose").text();
    assert!(ready.contains(words), "{ready}");
    let doctor = world.ok(&["doctor"]);
    let warned = doctor.lines().find(|line| line.contains(words)).unwrap();
    assert!(warned.contains("warn"), "{doctor}");
    running.kill();
}

#[test]
fn a_damaged_database_is_named_by_verify() {
    let world = World::new();
    let running = world.up();
    let json = ("content-type", "application/json");
    for number in 0..200 {
        let user = format!(r#"{{"name":"user {number}","email":"{number}@example.com"}}"#);
        let created = world.client().post("/api/users", &[json], user.as_bytes());
        assert_eq!(created.status, 201, "{}", created.text());
    }
    assert!(running.stop().0.success());
    let data = world.data().display().to_string();
    let verified = world.json(&["verify", &data]);
    let databases = serde_json::json!(["accounts.db", "controller.db"]);
    assert_eq!(verified["databases"], databases, "{verified}");
    let file = world.data().join("accounts.db");
    let mut bytes = fs::read(&file).unwrap();
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..100].fill(0xa5);
    }
    fs::write(&file, bytes).unwrap();
    let verified = world.run(&["verify", &data]);
    assert_eq!(verified.status.code(), Some(5));
    let words = "database `accounts.db`";
    assert!(stderr(&verified).contains(words), "{}", stderr(&verified));
}
