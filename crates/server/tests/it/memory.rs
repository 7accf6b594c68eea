//! Memory: stored data takes little more than its size, and intake ends before the memory does.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::client::{Answer, Client};
use crate::process::{Running, World, able, wait_until};

/// Memory of a process that is not a file's.
fn resident(running: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn a_key_costs_no_more_than_its_bytes_and_its_place() {
    const KEYS: u64 = 10_000;
    let world = World::new();
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let (mut client, bearer) = (world.admin_client(), world.bearer());
    let token = ("authorization", bearer.as_str());
    let mut put = |number: u64| {
        let path = format!("/v1/kv/key:{number}");
        let answer = client.send("PUT", &path, &[token], &[b'x'; 20]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    (0..1_000).for_each(&mut put);
    let before = resident(&running);
    (1_000..1_000 + KEYS).for_each(&mut put);
    let each = resident(&running).saturating_sub(before) / KEYS;
    assert!(each < 1_000, "{each} bytes for a value of 20");
}

/// Every way in that makes the store grow.
fn all_ways_in(world: &World) -> Vec<(&'static str, Answer)> {
    let bearer = world.bearer();
    let token = ("authorization", bearer.as_str());
    let (mut public, mut admin) = (world.client(), world.admin_client());
    let json = ("content-type", "application/json");
    let order = br#"{"id":"o-1","sku":"ABC","qty":1,"email":"a@example.com"}"#;
    vec![
        ("enqueue", public.post("/enqueue", &[], b"one")),
        (
            "batch",
            public.post("/enqueue/batch", &[], b"\"one\"\n\"two\"\n"),
        ),
        (
            "send",
            admin.post("/v1/queues/other/messages", &[token], b"one"),
        ),
        (
            "kv put",
            admin.send("PUT", "/v1/kv/key", &[token], b"one").unwrap(),
        ),
        (
            "kv add",
            admin.post("/v1/kv/count/add", &[token, json], br#"{"by":1}"#),
        ),
        ("order", public.post("/orders", &[json], order)),
    ]
}

#[test]
fn every_intake_is_refused_while_memory_is_low() {
    let mut world = World::new();
    let input = world.folder.join("input.txt");
    fs::write(&input, "a line\n").unwrap();
    world.set("INPUT_PATH", input.display());
    world.set("TOWPATH_LINES__POLL", "20ms");
    world.set("TOWPATH_EMBEDDED__MEMORY", "1MiB");
    // Its reader waits, and so it is not ready; it answers all the same.
    let running = world.spawn(&["up"]);
    wait_until("the process to serve", Duration::from_secs(30), || {
        running.log().contains(r#""message":"ready""#)
    });
    for (way, answer) in all_ways_in(&world) {
        assert_eq!(answer.status, 429, "{way}: {}", answer.text());
        let wait: u64 = answer.headers["retry-after"].parse().unwrap();
        assert!((1..=10).contains(&wait), "{way}: {wait}");
        // The text for a refused order is the reference system's.
        let text = answer.text();
        assert!(
            way == "order" || text.contains("memory is low"),
            "{way}: {text}"
        );
    }
    // Users are in a database of their own: they are taken, and their events wait in the outbox.
    let user = br#"{"name":"one","email":"one@example.com"}"#;
    let json = ("content-type", "application/json");
    let created = world.client().post("/api/users", &[json], user);
    assert_eq!(created.status, 201, "{}", created.text());
    let ready = world.admin_client().get("/readyz?verbose").text();
    assert!(ready.contains("[!]embedded: memory is low"), "{ready}");
    let refusing = |reason| {
        let labels = format!(r#"{{backend="embedded",reason="{reason}"}}"#);
        world.metric(&format!("towpath_backend_refusing{labels}"))
    };
    assert_eq!((refusing("memory"), refusing("disk")), (1.0, 0.0));
    std::thread::sleep(Duration::from_secs(1));
    let stats = world.json(&["outbox", "stats"]);
    assert_eq!(stats["new"], 1, "{stats}");
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    assert_eq!(
        log.matches("memory is low; intake refused").count(),
        1,
        "{log}"
    );

    world.set("TOWPATH_EMBEDDED__MEMORY", "90%");
    let _running = world.up();
    for (way, answer) in all_ways_in(&world) {
        assert!(answer.status < 300, "{way}: {}", answer.text());
    }
    wait_until("the event and the line", Duration::from_secs(20), || {
        world.json(&["outbox", "stats"])["new"] == 0
            && fs::read_to_string(input.with_file_name("output.txt"))
                .is_ok_and(|text| text.contains("a line"))
    });
}

/// A control group with a limit of its own.
struct Group {
    folder: PathBuf,
    version: u8,
}

impl Group {
    fn new(mebibytes: u64) -> Option<Self> {
        let name = format!("towpath-test-{}-{mebibytes}", std::process::id());
        let one = PathBuf::from("/sys/fs/cgroup/memory").join(&name);
        let two = PathBuf::from("/sys/fs/cgroup").join(&name);
        let bytes = (mebibytes << 20).to_string();
        for (version, folder, file) in [(1, one, "memory.limit_in_bytes"), (2, two, "memory.max")] {
            let is_there = folder.parent().unwrap().join("cgroup.procs").exists();
            if is_there && fs::create_dir(&folder).is_ok() {
                let group = Self { folder, version };
                // Without the controller the file is not there.
                if group.folder.join(file).exists()
                    && fs::write(group.folder.join(file), &bytes).is_ok()
                {
                    return Some(group);
                }
            }
        }
        None
    }

    /// Number of processes that the kernel ended for their memory.
    fn kills(&self) -> u64 {
        let file = match self.version {
            1 => "memory.oom_control",
            _ => "memory.events",
        };
        let text = fs::read_to_string(self.folder.join(file)).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Sends batches until one is refused, or `most` messages are taken. Gives how many were acknowledged.
fn fill(client: &mut Client, story: &str, keyed: bool, most: u64) -> u64 {
    const BATCH: u64 = 5_000;
    let mut taken = 0;
    while taken < most {
        let message = |number: u64| format!("\"{story} {number:092}\"\n");
        let body: String = (taken..taken + BATCH).map(message).collect();
        let key = format!("{story} {taken}");
        let ndjson = ("content-type", "application/x-ndjson");
        let headers = [ndjson, ("idempotency-key", key.as_str())];
        let headers = &headers[..1 + usize::from(keyed)];
        let answer = client.post("/enqueue/batch", headers, body.as_bytes());
        match answer.status {
            429 => {
                assert!(answer.headers.contains_key("retry-after"));
                return taken;
            }
            // The first message of a keyed batch goes ahead of the others.
            207 => return taken + answer.json()["enqueued"].as_u64().unwrap(),
            _ => {}
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        taken += BATCH;
    }
    taken
}

#[test]
fn a_full_control_group_refuses_starts_and_takes_again_after_its_queue_is_deleted() {
    let group = Group::new(128);
    if !able("cgroup", group.is_some()) {
        return;
    }
    let group = group.unwrap();
    let mut world = World::new();
    world.join_group(&group.folder);
    world.set("TOWPATH_EMBEDDED__DURABILITY", "os");
    let start = || {
        let running = world.spawn(&["run", "ingest.api"]);
        // A build without optimisation replays half a million records.
        wait_until("the store to be open", Duration::from_secs(120), || {
            running.log().contains(r#""message":"ready""#)
        });
        running
    };
    let running = start();
    let mut taken = fill(&mut world.client(), "unkeyed", false, 50_000);
    assert_eq!(taken, 50_000);
    // Keys fill the memory: tens of millions of messages without keys fit into it.
    taken += fill(&mut world.client(), "keyed", true, u64::MAX);
    running.kill();
    for round in 0..2 {
        let running = start();
        taken += fill(
            &mut world.client(),
            &format!("round {round}"),
            true,
            u64::MAX,
        );
        let waiting = &world.json(&["queue", "show", "messages"])["ready"];
        assert_eq!(
            waiting.as_u64(),
            Some(taken),
            "everything acknowledged is there"
        );
        running.kill();
    }
    let running = start();
    fill(&mut world.client(), "last", true, u64::MAX);
    world.ok(&["queue", "delete", "messages", "--force", "--yes"]);
    // The allocator gives pages back within ten seconds.
    wait_until("intake to resume", Duration::from_secs(60), || {
        world.client().post("/enqueue", &[], b"more").status == 200
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    assert_eq!(group.kills(), 0);
}

#[test]
fn keys_of_batches_take_memory_for_a_digest_each_whatever_their_length() {
    let world = World::new();
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let mut client = world.client();
    let body = "\"x\"\n".repeat(2_000);
    let mut send = |number: usize, length: usize| {
        let key = format!("{number:0length$}");
        let headers = [
            ("content-type", "application/x-ndjson"),
            ("idempotency-key", key.as_str()),
        ];
        client
            .post("/enqueue/batch", &headers, body.as_bytes())
            .status
    };
    // The first batch makes buffers and pools.
    assert_eq!(send(0, 255), 200);
    let before = resident(&running);
    for number in 0..30 {
        assert_eq!(send(number, 1_000), 400);
    }
    let grown = resident(&running).saturating_sub(before);
    assert!(grown < 10 << 20, "{grown} bytes for keys that are refused");
    for number in 1..=30 {
        assert_eq!(send(number, 255), 200);
    }
    // The allocator gives unused pages back within ten seconds.
    wait_until("little memory", Duration::from_secs(30), || {
        resident(&running).saturating_sub(before) < 10 << 20
    });
}

#[test]
fn large_batches_at_once_stay_below_the_memory_limit_of_a_pod() {
    // `resources.limits.memory` of the manifests.
    let group = Group::new(512);
    if !able("cgroup", group.is_some()) {
        return;
    }
    let group = group.unwrap();
    let mut world = World::new();
    world.join_group(&group.folder);
    world.set("TOWPATH_EMBEDDED__DURABILITY", "os");
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let line = format!("\"{}\"\n", "x".repeat(1_500));
    let body = line.repeat(10_000);
    let (statuses, peak) = std::thread::scope(|scope| {
        let send = || {
            let sent = world
                .client()
                .send("POST", "/enqueue/batch", &[], body.as_bytes());
            // One that is refused early may see a reset.
            sent.map_or(503, |answer| answer.status)
        };
        let senders: Vec<_> = (0..32).map(|_| scope.spawn(send)).collect();
        let mut peak = 0;
        while !senders
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            peak = peak.max(resident(&running));
            // Often enough to see a body that is held.
            std::thread::sleep(Duration::from_millis(10));
        }
        let statuses = senders.into_iter().map(|sender| sender.join().unwrap());
        (statuses.collect::<Vec<u16>>(), peak)
    });
    assert!(peak < 300 << 20, "{} MiB", peak >> 20);
    let taken = statuses.iter().filter(|status| **status == 200).count();
    assert!(taken > 0, "{statuses:?}");
    let others = statuses
        .iter()
        .all(|status| [200, 429, 503].contains(status));
    assert!(others, "{statuses:?}");
    let waiting = &world.json(&["queue", "show", "messages"])["ready"];
    assert_eq!(waiting.as_u64(), Some(10_000 * taken as u64));
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    assert_eq!(group.kills(), 0);
}
