//! Lines from file to file: every line once and in order, whatever is killed, rotated or truncated.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::proxy::{Fault, Proxy};
use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use crate::process::{Running, World, able, seeds, wait_until};

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A world whose input and output are in its folder.
fn world() -> World {
    let mut world = World::new();
    let input = world.folder.join("input.txt");
    world.set("INPUT_PATH", input.display());
    world.set("TOWPATH_LINES__POLL", "20ms");
    world
}

pub(crate) fn input(world: &World) -> PathBuf {
    world.folder.join("input.txt")
}

pub(crate) fn output(world: &World) -> Vec<u8> {
    fs::read(world.folder.join("output.txt")).unwrap_or_default()
}

/// Writes the input.
struct Source {
    path: PathBuf,
    rng: StdRng,
    /// Everything ever written.
    all: Vec<u8>,
    number: u64,
    rotations: u64,
}

impl Source {
    fn new(world: &World, seed: u64) -> Self {
        Self {
            path: input(world),
            rng: StdRng::seed_from_u64(seed),
            all: Vec::new(),
            number: 0,
            rotations: 0,
        }
    }

    fn write(&mut self, lines: u64) {
        let mut text = Vec::new();
        for _ in 0..lines {
            text.extend_from_slice(format!("{} ", self.number).as_bytes());
            let length = self.rng.random_range(0..60);
            // Any byte but a newline, and so often no UTF-8.
            text.extend((0..length).map(|_| self.rng.random_range(11..=255_u8)));
            text.push(b'\n');
            self.number += 1;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .unwrap();
        // In two pieces, so that a line is often seen half.
        let (one, two) = text.split_at(self.rng.random_range(0..=text.len()));
        file.write_all(one).unwrap();
        file.write_all(two).unwrap();
        self.all.extend(text);
    }

    /// Renames the file; the next write makes a new one.
    fn rotate(&mut self) {
        self.rotations += 1;
        let old = self.path.with_extension(format!("{}.old", self.rotations));
        fs::rename(&self.path, old).unwrap();
        // File systems know when a file was made to a few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        self.write(1);
    }

    /// Empties the file, which is right only when all of it was read.
    fn truncate(&mut self) {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.path)
            .unwrap();
    }

    fn check(&self, world: &World, story: &str) {
        wait_until(&format!("{story}: all lines"), SOON, || {
            let there = output(world);
            let same = there
                .iter()
                .zip(&self.all)
                .take_while(|(one, other)| one == other)
                .count();
            let near = |all: &[u8]| {
                let lines = String::from_utf8_lossy(&all[same.saturating_sub(80)..]).into_owned();
                lines
                    .lines()
                    .take(4)
                    .map(|l| l.chars().take(12).collect::<String>())
                    .collect::<Vec<_>>()
            };
            assert!(
                same == there.len(),
                "{story}: a line is missing, doubled or out of order at byte {same} of {}: {:?} instead of {:?}",
                self.all.len(),
                near(&there),
                near(&self.all)
            );
            there.len() == self.all.len()
        });
        assert!(
            output(world) == self.all,
            "{story}: the output differs from the input"
        );
    }
}

/// Random writes, rotations, truncations and kills; `fault` kills something and brings it back.
fn story(world: &World, seed: u64, what: &str, mut fault: impl FnMut(&mut StdRng)) {
    let mut source = Source::new(world, seed);
    let mut rng = StdRng::seed_from_u64(seed);
    // A file that is renamed before it was ever seen is not followed.
    source.write(1);
    source.check(world, what);
    for _ in 0..12 {
        let lines = rng.random_range(1..400);
        source.write(lines);
        match rng.random_range(0..5) {
            0 => source.rotate(),
            1 => {
                source.check(world, what);
                source.truncate();
            }
            2 | 3 => fault(&mut rng),
            _ => std::thread::sleep(Duration::from_millis(rng.random_range(0..60))),
        }
    }
    source.write(1);
    source.check(world, &format!("{what}, seed {seed}"));
}

#[test]
fn chaos_lines_come_out_as_they_went_in() {
    for seed in 0..seeds(3) {
        let world = world();
        let mut running = Some(world.up());
        story(&world, seed, "embedded", |rng| {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..150)));
            running.take().unwrap().kill();
            running = Some(world.up());
        });
        let (status, log, _) = running.take().unwrap().stop();
        assert!(status.success(), "{log}");
    }
}

fn start(world: &World, role: &str) -> Running {
    let running = world.spawn(&["run", role]);
    running.wait_ready(world);
    running
}

/// The story with reader and writer as processes: either is killed, or the server between them.
pub(crate) fn story_apart(
    reading: &World,
    writing: &World,
    seed: u64,
    what: &str,
    mut restart: impl FnMut(),
) {
    let mut reader = Some(start(reading, "reader"));
    let mut writer = Some(start(writing, "writer"));
    story(writing, seed, what, |rng| {
        std::thread::sleep(Duration::from_millis(rng.random_range(0..150)));
        match rng.random_range(0..3) {
            0 => {
                reader.take().unwrap().kill();
                reader = Some(start(reading, "reader"));
            }
            1 => {
                writer.take().unwrap().kill();
                writer = Some(start(writing, "writer"));
            }
            _ => restart(),
        }
    });
}

/// Two worlds, for reader and writer, that share a folder and a server behind this port.
fn apart(port: u16, folder: &tempfile::TempDir) -> [World; 2] {
    [(), ()].map(|()| {
        let mut world = World::at(folder.path());
        world.set("INPUT_PATH", folder.path().join("input.txt").display());
        world.set("REDIS_ADDR", format!("127.0.0.1:{port}"));
        world.set("TOWPATH_LINES__POLL", "20ms");
        world
    })
}

#[test]
fn chaos_lines_on_redis_come_out_as_they_went_in() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for seed in 0..seeds(2) {
        let mut server = Server::start(DURABLE);
        let proxy = runtime.block_on(Proxy::start(server.port()));
        let folder = tempfile::tempdir().unwrap();
        let [reading, writing] = apart(proxy.port(), &folder);
        let mut rng = StdRng::seed_from_u64(seed);
        story_apart(&reading, &writing, seed, "redis", || {
            let fault = match rng.random_range(0..5) {
                0 | 1 => return server.restart(),
                2 => Fault::CutAfter(rng.random_range(1..20_000)),
                3 => Fault::HalfOpen,
                _ => Fault::BlackHole,
            };
            proxy.set(fault);
            std::thread::sleep(Duration::from_millis(rng.random_range(50..500)));
            // Swallowed bytes are never followed by others.
            proxy.set(Fault::Reset);
            std::thread::sleep(Duration::from_millis(50));
            proxy.set(Fault::None);
        });
    }
}

#[test]
fn the_contract_of_reader_and_writer_holds() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let mut server = Server::start(DURABLE);
    let folder = tempfile::tempdir().unwrap();
    let [reading, writing] = apart(server.port(), &folder);
    // Written before the first process: it is not skipped.
    server.command(&["XADD", "line_stream", "*", "line", "from a bare reader"]);
    let reader = start(&reading, "reader");
    let writer = start(&writing, "writer");
    fs::write(input(&reading), "one\ntwo\n").unwrap();
    wait_until("three lines", SOON, || {
        output(&writing) == b"from a bare reader\none\ntwo\n"
    });
    for world in [&reading, &writing] {
        let answer = world.client().get("/healthz");
        assert_eq!((answer.status, answer.text().as_str()), (200, "OK"));
    }
    let metric = |world: &World, name: &str| {
        let text = world.client().get("/metrics").text();
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.map(|value| value.trim().parse::<f64>().unwrap())
    };
    assert_eq!(metric(&reading, "lines_read_total "), Some(2.0));
    let bytes = metric(&reading, "towpath_lines_read_bytes_total ");
    assert_eq!(bytes, Some(8.0));
    wait_until("the commit", SOON, || {
        metric(&writing, "lines_written_total ") == Some(3.0)
    });
    let bytes = metric(&writing, "towpath_lines_written_bytes_total ");
    assert_eq!(bytes, Some(output(&writing).len() as f64));
    let lag = r#"towpath_stream_lag_messages{stream="line_stream",group="cg1"} "#;
    assert_eq!(metric(&writing, lag), Some(0.0));
    // A bare writer in place of ours: the same stream, group and field.
    let (status, log, _) = writer.stop();
    assert!(status.success(), "{log}");
    let mut file = OpenOptions::new()
        .append(true)
        .open(input(&reading))
        .unwrap();
    file.write_all(b"three\n").unwrap();
    let mut got = String::new();
    wait_until("a line for the bare writer", SOON, || {
        let words = [
            "XREADGROUP",
            "GROUP",
            "cg1",
            "bare",
            "COUNT",
            "1",
            "STREAMS",
            "line_stream",
            ">",
        ];
        got = server.command(&words);
        got.contains("three")
    });
    assert!(got.contains("$4\r\nline\r\n$5\r\nthree\r\n"), "{got}");
    server.kill();
    wait_until("the reader to say so", SOON, || {
        let answer = reading.client().get("/healthz");
        (answer.status, answer.text().as_str()) == (503, "Redis not available")
    });
    let failures_of = |cause| format!("towpath_lines_read_failures_total{{cause=\"{cause}\"}} ");
    assert_eq!(metric(&reading, &failures_of("backend")), None);
    fs::write(input(&reading), "four\n").unwrap();
    wait_until("a line that is not taken", SOON, || {
        metric(&reading, &failures_of("backend")).is_some()
    });
    drop(reader);
}

#[test]
fn of_two_writers_one_claims_the_entries_of_the_other() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(DURABLE);
    let folder = tempfile::tempdir().unwrap();
    let [reading, mut one] = apart(server.port(), &folder);
    let [_, mut two] = apart(server.port(), &folder);
    let place = format!("redis://127.0.0.1:{}?consumer_timeout=1s", server.port());
    for (world, name) in [(&mut one, "one"), (&mut two, "two")] {
        world.set("TOWPATH_LINES__OUTPUT", folder.path().join(name).display());
        world.set("TOWPATH_LINES__CLAIM_AFTER", "2s");
        world.set("TOWPATH_BACKENDS__LINES", &place);
        world.set("TOWPATH_LINES__BATCH", "7");
    }
    let _reader = start(&reading, "reader");
    let (first, _second) = (start(&one, "writer"), start(&two, "writer"));
    let mut source = Source::new(&reading, 7);
    for _ in 0..20 {
        source.write(50);
        std::thread::sleep(Duration::from_millis(10));
    }
    first.kill();
    source.write(50);
    let lines = |name: &str| -> Vec<Vec<u8>> {
        let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect()
    };
    let expected: Vec<Vec<u8>> = source
        .all
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    wait_until("every line in one of the files", SOON, || {
        lines("one").len() + lines("two").len() >= expected.len()
    });
    let mut counts = BTreeMap::<Vec<u8>, i32>::new();
    for line in lines("one").into_iter().chain(lines("two")) {
        *counts.entry(line).or_default() += 1;
    }
    for line in expected {
        *counts.entry(line).or_default() -= 1;
    }
    counts.retain(|_, count| *count != 0);
    assert!(
        counts.is_empty(),
        "{} lines are missing or there twice",
        counts.len()
    );
}

#[test]
fn several_inputs_and_long_lines_and_a_last_line_without_newline() {
    let mut world = world();
    let pattern = world.folder.join("logs/*.log");
    fs::create_dir(world.folder.join("logs")).unwrap();
    world.set(
        "TOWPATH_LINES__INPUTS",
        format!("[{:?}]", pattern.display().to_string()),
    );
    world.set("TOWPATH_LINES__MAX_LINE", "1KiB");
    world.set("TOWPATH_LINES__QUIET", "1s");
    let _running = world.up();
    fs::write(input(&world), format!("a\n{}\nb", "x".repeat(5_000))).unwrap();
    fs::write(world.folder.join("logs/one.log"), "c\n").unwrap();
    let sorted = || {
        let text = String::from_utf8(output(&world)).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    wait_until("the lines of both", SOON, || sorted() == ["a", "b", "c"]);
    // Also one that comes later.
    fs::write(world.folder.join("logs/two.log"), "d\n").unwrap();
    wait_until("the later one", SOON, || sorted() == ["a", "b", "c", "d"]);
    let set_aside = world
        .json(&["queue", "peek", "line_stream.dead"])
        .to_string();
    assert!(set_aside.contains("the line has 5000 bytes"), "{set_aside}");
}

#[test]
fn a_change_of_the_input_wakes_the_reader() {
    let mut world = world();
    world.set("TOWPATH_LINES__POLL", "60s");
    let _running = world.up();
    // Made, written to, and put in the place of another.
    fs::write(input(&world), "one\n").unwrap();
    wait_until("the first line", SOON / 2, || output(&world) == b"one\n");
    let mut file = OpenOptions::new().append(true).open(input(&world)).unwrap();
    file.write_all(b"two\n").unwrap();
    wait_until("the second line", SOON / 2, || {
        output(&world) == b"one\ntwo\n"
    });
    fs::rename(input(&world), world.folder.join("input.1")).unwrap();
    fs::write(input(&world), "three\n").unwrap();
    wait_until("the third line", SOON / 2, || {
        output(&world) == b"one\ntwo\nthree\n"
    });
}

#[test]
fn a_reader_stays_near_a_writer_that_cannot_write() {
    let world = world();
    let blocked = world.folder.join("output.txt");
    fs::create_dir(&blocked).unwrap();
    let text: String = (0..250_000).map(|number| format!("{number}\n")).collect();
    fs::write(input(&world), &text).unwrap();
    // Not ready, because the writer fails.
    let running = world.spawn(&["up"]);
    let mut before = 0;
    wait_until("a reader that waits", SOON, || {
        let shown = world.run(&["stream", "show", "line_stream", "--output", "json"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        let now = shown["entries"].as_u64().unwrap_or_default();
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, now) == now && now > 0
    });
    assert!((50_000..=100_000).contains(&before), "{before} lines wait");
    fs::remove_dir(blocked).unwrap();
    wait_until("every line", SOON, || output(&world) == text.as_bytes());
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn an_unreadable_input_is_logged_counted_and_read_later() {
    let world = world();
    let _running = world.up();
    fs::create_dir(input(&world)).unwrap();
    wait_until("the failures", SOON, || {
        world.metric(r#"towpath_lines_read_failures_total{cause="input"}"#) > 2.0
    });
    let ready = world.admin_client().get("/readyz?verbose");
    assert!(ready.text().contains("cannot be read"), "{}", ready.text());
    fs::remove_dir(input(&world)).unwrap();
    fs::write(input(&world), "one\n").unwrap();
    wait_until("the line", SOON, || output(&world) == b"one\n");
    wait_until("all to be well", SOON, || {
        world.admin_client().get("/readyz").status == 200
    });
}

/// Delay of the last of five lines, written 50 ms apart, behind the first.
fn spread(linger: &str) -> Duration {
    let mut world = world();
    world.set("TOWPATH_LINES__POLL", "60s");
    world.set("TOWPATH_LINES__LINGER", linger);
    fs::write(input(&world), "").unwrap();
    let running = world.spawn(&["run", "lines.reader"]);
    running.wait_ready(&world);
    let mut file = OpenOptions::new().append(true).open(input(&world)).unwrap();
    for number in 0..5 {
        writeln!(file, "{number}").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut at: Vec<jiff::Timestamp> = Vec::new();
    wait_until("the lines", SOON, || {
        let shown = world.run(&["stream", "tail", "line_stream", "--output", "json"]);
        let entries: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        let entries = entries.as_array().into_iter().flatten();
        at = entries
            .map(|entry| entry["appended_at"].as_str().unwrap().parse().unwrap())
            .collect();
        at.len() == 5
    });
    at[4].duration_since(at[0]).unsigned_abs()
}

#[test]
fn lines_that_come_soon_after_one_another_are_batched_by_linger() {
    let least = Duration::from_millis(100);
    assert!(spread("0s") > least, "each is sent alone");
    assert!(spread("3s") < least, "all in one step");
}

/// Real text of this system: licences, again and again.
pub(crate) fn real_text(bytes: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let licence = fs::read("/usr/share/common-licenses/GPL-3")
        .unwrap_or_else(|_| include_bytes!("../../../../LICENSE-APACHE").to_vec());
    while text.len() < bytes {
        text.extend_from_slice(&licence);
    }
    text
}

#[test]
fn a_whole_file_is_copied_through_a_stream_and_compared() {
    let world = World::new();
    let mut text = real_text(2_000_000);
    // Without a newline at the end, and no UTF-8.
    text.extend_from_slice(b"\xff\xfe last");
    fs::write(world.folder.join("in"), &text).unwrap();
    let server = able("redis", missing().is_none()).then(|| Server::start(DURABLE));
    let redis = server.as_ref().map(Server::url);
    for (number, via) in [None, redis].into_iter().enumerate() {
        if number > 0 && via.is_none() {
            continue;
        }
        let out = format!("out-{number}");
        let mut args = vec!["lines", "copy", "in", out.as_str()];
        args.extend(via.iter().flat_map(|via| ["--via", via.as_str()]));
        let report = world.json(&args);
        assert_eq!(report["equal"], true, "{report}");
        text.push(b'\n');
        assert!(fs::read(world.folder.join(&out)).unwrap() == text);
        text.pop();
        // Nothing is left beside it, and nothing is overwritten.
        let left = fs::read_dir(&world.folder).unwrap().count();
        assert_eq!(left, 2 + number);
        assert_eq!(world.run(&args).status.code(), Some(2));
    }
}

#[test]
fn a_line_that_no_message_can_hold_is_named_before_a_copy_begins() {
    let world = World::new();
    let long = vec![b'x'; (16 << 20) + 1];
    let text = [b"short\n".as_slice(), &long, b"\nshort again".as_slice()].concat();
    fs::write(world.folder.join("in"), &text).unwrap();
    let refused = world.run(&["lines", "copy", "in", "out"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("a line of 16777217 bytes"), "{said}");
    assert!(!world.folder.join("out").exists());
}
