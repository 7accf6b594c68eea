//! Backups in an S3-compatible bucket, with a real server.

use std::fs;
use std::process::Output;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::servers::s3::{ACCESS_KEY, BUCKET, SECRET_KEY, Server, missing};

use crate::backup_faults::filled;
use crate::process::{World, able, seeds};

/// Variables of the AWS tools.
fn credentials(world: &mut World, server: &Server) {
    world
        .set("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .set("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .set("AWS_REGION", "us-east-1")
        .set("AWS_ENDPOINT_URL", server.endpoint());
}

/// Both streams; credentials must never be in them.
fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains(SECRET_KEY), "{text}");
    text
}

fn url(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

/// Does something to a folder.
type Fault = fn(&std::path::Path);

#[test]
fn a_backup_in_a_bucket_is_verified_and_restored() {
    if !able("s3", missing().is_none()) {
        return;
    }
    let server = Server::start();
    let mut world = filled(150);
    credentials(&mut world, &server);
    let running = world.up();
    // Without a refused request nothing is there, and nothing is made.
    let mut stranger = World::new();
    credentials(&mut stranger, &server);
    stranger.set("AWS_SECRET_ACCESS_KEY", "wrong");
    let refused = stranger.run(&["verify", &url("monday")]);
    assert!(!refused.status.success(), "{}", said(&refused));
    let made = world.run(&["backup", &url("monday"), "-vv"]);
    assert!(made.status.success(), "{}", said(&made));
    said(&made);
    assert!(!world.run(&["backup", &url("monday")]).status.success());
    let verified = world.json(&["verify", &url("monday")]);
    assert_eq!(verified["faults"], serde_json::json!([]));
    drop(running);
    let mut other = World::new();
    credentials(&mut other, &server);
    let restored = other.ok(&["restore", &url("monday")]);
    assert!(restored.contains("150 messages wait"), "{restored}");
    other.ok(&["verify", &other.data().display().to_string()]);
    // A larger segment goes in parts, and a large one is one object.
    let mut third = World::new();
    credentials(&mut third, &server);
    third.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "32MiB");
    let running = third.up();
    third.ok(&["send", "messages", "one"]);
    third.ok(&["backup", &url("deep/large")]);
    assert_eq!(
        third.json(&["verify", &url("deep/large")])["faults"],
        serde_json::json!([])
    );
    drop(running);
    let objects = server.objects().join("monday");
    let faults: [(&str, Fault); 4] = [
        ("store/log/0000000001.log", |file| {
            fs::remove_file(file).unwrap()
        }),
        ("store/log/0000000002.log", |file| {
            fs::write(file, "short").unwrap()
        }),
        ("accounts.db", |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[100] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("manifest.json", |file| fs::remove_file(file).unwrap()),
    ];
    for (name, fault) in faults {
        let path = objects.join(name);
        let kept = fs::read(&path).unwrap();
        fault(&path);
        let mut last = World::new();
        credentials(&mut last, &server);
        let verified = last.run(&["verify", &url("monday")]);
        assert_eq!(
            verified.status.code(),
            Some(5),
            "{name}: {}",
            said(&verified)
        );
        assert!(said(&verified).contains(name), "{}", said(&verified));
        let refused = last.run(&["restore", &url("monday")]);
        assert_eq!(refused.status.code(), Some(1), "{name}: {}", said(&refused));
        assert!(!last.data().exists(), "{name}");
        fs::write(&path, kept).unwrap();
    }
}

#[test]
fn chaos_a_cut_upload_never_leaves_a_manifest() {
    if !able("s3", missing().is_none()) {
        return;
    }
    for seed in 0..seeds(6) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut server = Server::start();
        let mut world = filled(200);
        credentials(&mut world, &server);
        let running = world.up();
        let mut backup = world
            .command(&["backup", &url("cut")])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(rng.random_range(0..400_000)));
        let mut running = Some(running);
        match seed % 3 {
            // The bucket's server, for good: its client gives up within its deadline, or is killed here.
            0 => {
                server.kill();
                std::thread::sleep(Duration::from_millis(200));
                backup.kill().unwrap();
            }
            1 => running.take().unwrap().kill(),
            _ => backup.kill().unwrap(),
        }
        let finished = backup.wait_with_output().unwrap();
        let at = format!("seed {seed}: {}", said(&finished));
        if seed % 3 == 0 {
            server.start_again();
        }
        let mut other = World::new();
        credentials(&mut other, &server);
        if server.objects().join("cut/manifest.json").exists() {
            other.ok(&["verify", &url("cut")]);
            continue;
        }
        assert!(!finished.status.success(), "{at}");
        let refused = other.run(&["restore", &url("cut")]);
        assert!(!refused.status.success(), "{at}: {}", said(&refused));
        assert!(!other.data().exists(), "{at}");
        if seed % 3 == 1 {
            let left = fs::read_dir(server.objects().join("cut/store/log"));
            assert!(left.is_err(), "{at}");
        }
    }
}
