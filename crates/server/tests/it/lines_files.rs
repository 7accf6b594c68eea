//! Files that the reader follows, files that it refuses, and the state of those that are gone.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use crate::lines::SOON;
use crate::process::{Running, World, able, wait_until};

/// A world that follows these files or patterns in its folder.
fn world(inputs: &[&str]) -> World {
    let mut world = World::new();
    let folder = world.folder.display().to_string();
    let inputs: Vec<String> = inputs
        .iter()
        .map(|one| format!("\"{folder}/{one}\""))
        .collect();
    world.set("TOWPATH_LINES__INPUTS", format!("[{}]", inputs.join(", ")));
    world.set("OUTPUT_PATH", world.folder.join("out/lines").display());
    world.set("TOWPATH_LINES__POLL", "20ms");
    world
}

fn append(world: &World, name: &str, text: &str) {
    let path = world.folder.join(name);
    let mut options = OpenOptions::new();
    let mut file = options.create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Reader and writer, without the ingest worker whose output `OUTPUT_PATH` is.
fn start(world: &World) -> Running {
    let running = world.spawn(&["run", "lines.reader,lines.writer"]);
    running.wait_ready(world);
    running
}

fn written(world: &World) -> String {
    fs::read_to_string(world.folder.join("out/lines")).unwrap_or_default()
}

#[test]
fn lines_between_a_rename_and_the_reopen_are_not_lost() {
    let world = world(&["app.log"]);
    let running = start(&world);
    append(&world, "app.log", "A\n");
    let mut writer = OpenOptions::new()
        .append(true)
        .open(world.folder.join("app.log"))
        .unwrap();
    wait_until("the first line", SOON, || written(&world) == "A\n");
    fs::rename(world.folder.join("app.log"), world.folder.join("app.log.1")).unwrap();
    append(&world, "app.log", "");
    // Also across a restart.
    running.kill();
    let _running = start(&world);
    writer.write_all(b"B\n").unwrap();
    wait_until("the late line", SOON, || written(&world) == "A\nB\n");
    append(&world, "app.log", "C\n");
    wait_until("the next file", SOON, || written(&world) == "A\nB\nC\n");
}

#[test]
fn files_that_are_gone_leave_nothing() {
    let mut world = world(&["logs/day-*.log"]);
    world.set("TOWPATH_LINES__ROTATE_WAIT", "1s");
    world.set("TOWPATH_LINES__FORGET_AFTER", "1s");
    fs::create_dir(world.folder.join("logs")).unwrap();
    let running = start(&world);
    let descriptors = |what: &str| {
        let all = fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap();
        let links = all.filter_map(|one| fs::read_link(one.unwrap().path()).ok());
        links
            .filter(|path| path.to_string_lossy().contains(what))
            .count()
    };
    let series = || {
        let text = world.admin_client().get("/metrics").text();
        let name = "towpath_lines_input_read_bytes{";
        text.lines().filter(|line| line.starts_with(name)).count()
    };
    let positions = || {
        world
            .ok(&["kv", "keys", "lines.position:", "--max", "1000"])
            .matches("file-")
            .count()
    };
    for round in 1..=2 {
        for day in 0..300 {
            append(&world, &format!("logs/day-{day}.log"), "line\n");
        }
        wait_until("every line", SOON, || {
            written(&world).len() == 300 * 5 * round
        });
        wait_until("all to be shown", SOON, || series() == 300);
        assert_eq!(descriptors("logs/day-"), 300);
        assert_eq!(descriptors("inotify"), 1);
        assert_eq!(positions(), 300);
        for day in 0..300 {
            fs::remove_file(world.folder.join(format!("logs/day-{day}.log"))).unwrap();
        }
        wait_until("all to be closed", SOON, || descriptors("logs/day-") == 0);
        wait_until("no series", SOON, || series() == 0);
        wait_until("no positions", SOON, || positions() == 0);
    }
}

#[test]
fn a_missing_input_is_logged_once_and_shown() {
    let world = world(&["typo.log"]);
    let running = start(&world);
    let shown = || world.admin_client().get("/readyz?verbose").text();
    wait_until("the note", SOON, || {
        shown().contains("typo.log` is missing")
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(running.log().matches("input file missing").count(), 1);
    append(&world, "typo.log", "line\n");
    wait_until("the line", SOON, || written(&world) == "line\n");
    wait_until("no note", SOON, || !shown().contains("is missing"));
}

#[test]
fn unsuitable_inputs_are_refused_by_name() {
    let refused = |input: &str, output: &str, why: &str| {
        let mut world = world(&[input]);
        fs::create_dir_all(world.folder.join("logs")).unwrap();
        world.set("OUTPUT_PATH", world.folder.join(output).display());
        let pipe = world.folder.join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let answer = world.run(&["run", "lines.reader,lines.writer"]);
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(!answer.status.success() && said.contains(why), "{said}");
        assert!(said.contains(input), "{said}");
    };
    refused("pipe", "out", "is a pipe, and only files can be followed");
    refused("logs/*", "logs/out.log", "matches the output");
    refused("out.log", "out.log", "is the output");
    let world = World::new();
    let copied = world.run(&["lines", "copy", "/dev/null", "copy"]);
    let said = String::from_utf8_lossy(&copied.stderr).into_owned();
    assert!(said.contains("`/dev/null` is a device"), "{said}");
}

#[test]
fn healthz_of_the_writer_reports_an_output_that_cannot_be_written() {
    let mut world = world(&["in.log"]);
    fs::write(world.folder.join("file"), "").unwrap();
    world.set("OUTPUT_PATH", world.folder.join("file/out").display());
    let running = world.spawn(&["run", "lines.writer"]);
    wait_until("the answer", SOON, || {
        let answer = world.client().send("GET", "/healthz", &[], b"");
        answer
            .is_ok_and(|answer| answer.status == 503 && answer.text().contains("cannot be written"))
    });
    fs::remove_file(world.folder.join("file")).unwrap();
    wait_until("all to be well", SOON, || {
        let answer = world.client().get("/healthz");
        (answer.status, answer.text().as_str()) == (200, "OK")
    });
    drop(running);
}

#[test]
fn the_end_is_where_it_was_at_the_first_start() {
    let mut world = world(&["in.log"]);
    world.set("TOWPATH_LINES__START", "end");
    append(&world, "in.log", "before\n");
    let running = start(&world);
    wait_until("the position", SOON, || {
        world
            .ok(&["kv", "keys", "lines.position:", "--max", "1000"])
            .contains("file-")
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    append(&world, "in.log", "x\n");
    let _running = start(&world);
    append(&world, "in.log", "y\n");
    wait_until("both lines", SOON, || written(&world) == "x\ny\n");
}

/// Stores a position as release 0.1.0 did, and reads on.
fn upgrade(mut world: World) {
    append(&world, "in.log", "a\nb\nc\n");
    let path = world.folder.join("in.log");
    let inode = fs::metadata(&path).unwrap().ino();
    let checksum = crc32c(b"a\nb\n");
    let position =
        format!(r#"{{"device":1,"inode":{inode},"offset":4,"head":4,"checksum":{checksum}}}"#);
    let name = format!("lines.position:line_stream:{}", path.display());
    let before = world.spawn(&["run", "lines.writer"]);
    before.wait_ready(&world);
    world.ok(&["kv", "set", &name, &position]);
    drop(before.stop());
    world.set("TOWPATH_LINES__START", "beginning");
    let _running = start(&world);
    append(&world, "in.log", "d\n");
    wait_until("the new lines", SOON, || written(&world) == "c\nd\n");
    let keys = world.ok(&["kv", "keys", "lines.position:"]);
    assert!(!keys.contains(&name) && keys.contains("file-"), "{keys}");
}

#[test]
fn positions_of_release_0_1_0_are_read() {
    upgrade(world(&["in.log"]));
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(DURABLE);
    let mut world = world(&["in.log"]);
    world.set("TOWPATH_BACKENDS__DEFAULT", server.url());
    upgrade(world);
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), step)
    });
    !sum
}

#[test]
fn a_neighbour_is_not_read_when_a_file_is_renamed() {
    let world = world(&["app.log"]);
    let _running = start(&world);
    append(&world, "app.log", "app 1\n");
    wait_until("the first line", SOON, || written(&world) == "app 1\n");
    let beside = |name: &str| world.folder.join(name);
    for name in ["app-audit.log", "app.log.gz", "app.log~"] {
        fs::write(beside(name), "OTHER\n").unwrap();
    }
    // File systems know when a file was made to a few milliseconds.
    std::thread::sleep(Duration::from_millis(20));
    fs::rename(beside("app.log"), beside("app.log.1")).unwrap();
    append(&world, "app.log", "app 2\n");
    wait_until("the next file", SOON, || {
        written(&world) == "app 1\napp 2\n"
    });
}
