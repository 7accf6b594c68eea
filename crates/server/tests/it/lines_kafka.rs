//! Lines through Kafka: the same stories, with the broker killed too.

use std::fs;

use towpath_testkit::servers::kafka::{Server, missing};

use crate::lines::{SOON, input, output, real_text, story_apart};
use crate::process::{World, able, seeds, wait_until};

/// Two worlds, for reader and writer, that share a folder and a broker.
fn apart(server: &Server, folder: &tempfile::TempDir) -> [World; 2] {
    [(), ()].map(|()| {
        let mut world = World::at(folder.path());
        world.set("INPUT_PATH", folder.path().join("input.txt").display());
        world.set("TOWPATH_BACKENDS__LINES", server.url());
        world.set("TOWPATH_LINES__POLL", "20ms");
        world
    })
}

#[test]
fn chaos_lines_on_kafka_come_out_as_they_went_in() {
    if !able("kafka", missing().is_none()) {
        return;
    }
    for seed in 0..seeds(1) {
        let mut server = Server::start();
        let folder = tempfile::tempdir().unwrap();
        let [reading, writing] = apart(&server, &folder);
        story_apart(&reading, &writing, seed, "kafka", || server.restart());
    }
}

#[test]
fn lines_over_the_limit_are_in_a_topic_of_their_own() {
    if !able("kafka", missing().is_none()) {
        return;
    }
    let server = Server::start();
    let mut world = World::new();
    world.set("INPUT_PATH", world.folder.join("input.txt").display());
    world.set("TOWPATH_BACKENDS__LINES", server.url());
    world.set("TOWPATH_LINES__MAX_LINE", 1_024);
    let running = world.up();
    let long = "x".repeat(2_000);
    fs::write(input(&world), format!("one\n{long}\ntwo\n")).unwrap();
    wait_until("two lines", SOON, || output(&world) == b"one\ntwo\n");
    let tail = world.ok(&["stream", "tail", "line_stream.dead"]);
    assert!(tail.contains("xxx"), "{tail}");
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_whole_file_is_copied_through_kafka() {
    if !able("kafka", missing().is_none()) {
        return;
    }
    let (server, world) = (Server::start(), World::new());
    fs::write(world.folder.join("in"), real_text(2_000_000)).unwrap();
    let report = world.json(&["lines", "copy", "in", "out", "--via", &server.url()]);
    assert_eq!(report["equal"], true, "{report}");
}

#[test]
fn group_without_a_position_is_logged_with_its_start() {
    if !able("kafka", missing().is_none()) {
        return;
    }
    let (server, mut world) = (Server::start(), World::new());
    world.set("INPUT_PATH", world.folder.join("input.txt").display());
    world.set("TOWPATH_BACKENDS__LINES", server.url());
    let running = world.up();
    fs::write(input(&world), "one\ntwo\n").unwrap();
    wait_until("two lines", SOON, || output(&world) == b"one\ntwo\n");
    running.stop();
    // A position that is there needs no word.
    let running = world.up();
    fs::write(input(&world), "one\ntwo\nthree\n").unwrap();
    wait_until("three lines", SOON, || {
        output(&world) == b"one\ntwo\nthree\n"
    });
    let (_, log, _) = running.stop();
    assert!(!log.contains("no committed position"), "{log}");
    // To the broker another group is one that was deleted.
    world.set("TOWPATH_LINES__GROUP", "cg2");
    let running = world.up();
    wait_until("a log line", SOON, || {
        running.log().contains("no committed position")
    });
    let (_, log, _) = running.stop();
    let line = log
        .lines()
        .find(|line| line.contains("no committed position"));
    let line = line.unwrap();
    assert!(
        line.contains("cg2") && line.contains("creating the group"),
        "{line}"
    );
}
