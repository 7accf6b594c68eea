//! Two processes on Redis, in place of the reference system's and beside them, one at a time.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_testkit::servers::redis::{DURABLE, EPHEMERAL, Server, missing};

use crate::process::{Running, World, able, seeds, wait_until};

fn redis(settings: &[&str]) -> Option<Server> {
    able("redis", missing().is_none()).then(|| Server::start(settings))
}

/// The variables of the reference system, and nothing else but where the probes are.
fn process(server: &Server) -> World {
    let mut world = World::new();
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
    world.set("QUEUE_NAME", "messages");
    let output = world.folder.join("out.log");
    world.set("OUTPUT_PATH", output.display());
    world
}

fn start(world: &World, role: &str) -> Running {
    let running = world.spawn(&["run", role]);
    running.wait_ready(world);
    running
}

fn written(world: &World) -> Vec<String> {
    crate::process::lines_of(&world.folder.join("out.log"))
        .into_iter()
        .map(|line| line.split_once(" | ").unwrap().1.to_owned())
        .collect()
}

/// A client as small as the contract: words in, one bulk string or nothing out.
struct Bare(BufReader<TcpStream>);

impl Bare {
    fn new(port: u16) -> Self {
        Self(BufReader::new(
            TcpStream::connect(("127.0.0.1", port)).unwrap(),
        ))
    }

    fn send(&mut self, words: &[&str]) {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The reference api: one push per request.
    fn enqueue(&mut self, text: &str) {
        self.send(&["LPUSH", "messages", text]);
        assert!(self.line().starts_with(':'));
    }

    /// The reference worker: one pop, at most a second of waiting.
    fn dequeue(&mut self) -> Option<String> {
        self.send(&["BRPOP", "messages", "1"]);
        if self.line() != "*2" {
            return None;
        }
        let mut last = String::new();
        for _ in 0..2 {
            let length: usize = self.line()[1..].parse().unwrap();
            let mut bytes = vec![0; length + 2];
            self.0.read_exact(&mut bytes).unwrap();
            last = String::from_utf8(bytes[..length].to_vec()).unwrap();
        }
        Some(last)
    }
}

/// The reference worker as a thread, and its output.
struct BareWorker {
    got: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BareWorker {
    fn start(port: u16) -> Self {
        let (got, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (got, stop): (Arc<Mutex<Vec<String>>>, _) = (Arc::clone(&got), Arc::clone(&stop));
            move || {
                let mut bare = Bare::new(port);
                while !stop.load(Ordering::Relaxed) {
                    if let Some(text) = bare.dequeue() {
                        got.lock().unwrap().push(text);
                    }
                }
            }
        });
        Self {
            got,
            stop,
            thread: Some(thread),
        }
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().unwrap().clone()
    }
}

impl Drop for BareWorker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn texts(name: &str) -> Vec<String> {
    (0..20).map(|number| format!("{name} {number}")).collect()
}

#[test]
fn reference_processes_and_ours_replace_each_other_on_one_queue() {
    let Some(server) = redis(EPHEMERAL) else {
        return;
    };
    let mut reference_api = Bare::new(server.port());
    let (api, worker) = (process(&server), process(&server));

    // Their api, our worker.
    let ours = start(&worker, "ingest.worker");
    let first = texts("their api");
    first.iter().for_each(|text| reference_api.enqueue(text));
    wait_until("our worker", Duration::from_secs(20), || {
        written(&worker) == first
    });

    // Our api beside theirs, our worker.
    let our_api = start(&api, "api");
    let mut client = api.client();
    assert_eq!(client.get("/healthz").text(), "ok");
    let second = texts("our api");
    for text in &second {
        let answer = client.post("/enqueue", &[], text.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["queue"], "messages");
        reference_api.enqueue(&format!("beside {text}"));
    }
    let beside: Vec<String> = second.iter().map(|text| format!("beside {text}")).collect();
    wait_until("our worker", Duration::from_secs(20), || {
        written(&worker).len() == 60
    });
    let found: BTreeSet<String> = written(&worker).into_iter().collect();
    assert!(
        [&first, &second, &beside]
            .iter()
            .all(|sent| sent.iter().all(|text| found.contains(text)))
    );

    // Our api, their worker in the place of ours.
    let (status, log, _) = ours.stop();
    assert!(status.success(), "{log}");
    let theirs = BareWorker::start(server.port());
    let third = texts("our api again");
    for text in &third {
        assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
    }
    wait_until("their worker", Duration::from_secs(20), || {
        theirs.got() == third
    });
    assert_eq!(written(&worker).len(), 60, "ours is gone");

    // Both workers at once: each message to one of them.
    let ours = start(&worker, "ingest.worker");
    let fourth = texts("shared");
    for (at, text) in fourth.iter().enumerate() {
        if at % 2 == 0 {
            reference_api.enqueue(text);
        } else {
            assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
        }
    }
    let both = || [&written(&worker)[60..], &theirs.got()[20..]].concat();
    wait_until("both workers", Duration::from_secs(20), || {
        both().len() >= 20
    });
    let mut all = both();
    all.sort();
    let mut expected = fourth;
    expected.sort();
    assert_eq!(all, expected);

    // The counts are right also with items that other programs pushed and popped.
    wait_until("the books to balance", Duration::from_secs(10), || {
        let stats = api.json(&["queue", "show", "messages"]);
        stats["ready"] == 0 && stats["leased"] == 0 && stats["enqueued"] == stats["acked"]
    });
    drop((ours, our_api));
}

#[test]
fn a_killed_workers_messages_reach_another_worker_in_time() {
    let Some(server) = redis(EPHEMERAL) else {
        return;
    };
    let place = format!("redis://127.0.0.1:{}?consumer_timeout=2s", server.port());
    let (mut first, mut second) = (process(&server), process(&server));
    for world in [&mut first, &mut second] {
        world.set("TOWPATH_BACKENDS__INGEST", &place);
        world.set("TOWPATH_INGEST__WORKER__LEASE", "10m");
    }
    first.set("TOWPATH_INGEST__WORKER__SINK", "command");
    first.set(
        "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
        r#"["sleep", "600"]"#,
    );
    let mut api = Bare::new(server.port());
    let stuck = start(&first, "ingest.worker");
    api.enqueue("one");
    wait_until("it to be leased", Duration::from_secs(10), || {
        first.json(&["queue", "show", "messages"])["leased"] == 1
    });
    let other = start(&second, "ingest.worker");
    stuck.kill();
    let began = Instant::now();
    wait_until("the other worker", Duration::from_secs(30), || {
        written(&second) == ["one"]
    });
    // The timeout, and rounds of tending on a busy machine; the lease had ten minutes.
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    drop(other);
}

#[test]
fn an_api_without_its_redis_says_so_and_recovers() {
    let Some(mut server) = redis(EPHEMERAL) else {
        return;
    };
    server.kill();
    let world = process(&server);
    let running = world.spawn(&["run", "ingest.api"]);
    let mut client = world.client();
    wait_until("it to listen", Duration::from_secs(20), || {
        client.send("GET", "/healthz", &[], b"").is_ok()
    });
    assert_eq!(client.get("/healthz").status, 503);
    let refused = client.post("/enqueue", &[], b"x");
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (503, "enqueue failed\n")
    );
    server.restart();
    running.wait_ready(&world);
    wait_until("it to take messages", Duration::from_secs(10), || {
        client.post("/enqueue", &[], b"x").status == 200
    });
    assert_eq!(Bare::new(server.port()).dequeue().as_deref(), Some("x"));
}

#[test]
fn doctor_and_the_dead_letter_commands_work_on_redis() {
    let Some(server) = redis(EPHEMERAL) else {
        return;
    };
    let mut world = process(&server);
    let report = String::from_utf8(world.run(&["doctor"]).stdout).unwrap();
    assert!(report.contains("`appendonly` is off"), "{report}");
    world.set("TOWPATH_INGEST__WORKER__SINK", "command");
    world.set(
        "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
        r#"["sh", "-c", "exit 65"]"#,
    );
    let running = start(&world, "ingest.worker");
    Bare::new(server.port()).enqueue("poison");
    wait_until("it to die", Duration::from_secs(20), || {
        world.json(&["queue", "show", "messages"])["dead"] == 1
    });
    let dead = world.json(&["dlq", "ls", "messages"]);
    assert_eq!(dead[0]["payload"], "poison", "{dead}");
    world.ok(&["queue", "pause", "messages"]);
    world.ok(&["dlq", "redrive", "messages", "--all"]);
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&stats["ready"], &stats["dead"]),
        (&1.into(), &0.into()),
        "{stats}"
    );
    drop(running);
    let mut elsewhere = World::new();
    elsewhere.set("REDIS_ADDR", "127.0.0.1:1");
    let output = elsewhere.run(&["doctor"]);
    assert!(!output.status.success());
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.contains("FAIL  backend: backends.ingest: redis at `127.0.0.1:1`"),
        "{report}"
    );
}

/// Kills the api, the worker and the server at random moments under load: each message answered with 200 is in the file,
/// once.
#[test]
fn chaos_on_redis() {
    for seed in 0..seeds(2) {
        let Some(mut server) = redis(DURABLE) else {
            return;
        };
        let place = format!("redis://127.0.0.1:{}?consumer_timeout=1s", server.port());
        let (mut api, mut worker) = (process(&server), process(&server));
        for world in [&mut api, &mut worker] {
            world.set("TOWPATH_BACKENDS__INGEST", &place);
        }
        let mut running = (start(&api, "ingest.api"), start(&worker, "ingest.worker"));
        let (stop, accepted) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(BTreeSet::new())),
        );
        let address = api.http;
        let clients: Vec<JoinHandle<()>> = (0..4)
            .map(|number| {
                let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
                std::thread::spawn(move || {
                    let mut client = crate::client::Client::new(address);
                    for at in 0_u32.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let text = format!("{seed}-{number}-{at}");
                        let key = [("Idempotency-Key", text.as_str())];
                        match client.send("POST", "/enqueue", &key, text.as_bytes()) {
                            Ok(answer) if answer.status == 200 => {
                                accepted.lock().unwrap().insert(text);
                            }
                            // Refused or unknown: it may be in the file, or not.
                            _ => std::thread::sleep(Duration::from_millis(20)),
                        }
                    }
                })
            })
            .collect();
        for victim in 0..6_u64 {
            // Drawn from the seed.
            let pause = (seed * 7_919 + victim * 104_729) % 500 + 100;
            std::thread::sleep(Duration::from_millis(pause));
            match (seed + victim) % 3 {
                0 => {
                    running.0.kill();
                    running.0 = api.spawn(&["run", "ingest.api"]);
                }
                1 => {
                    running.1.kill();
                    running.1 = worker.spawn(&["run", "ingest.worker"]);
                }
                _ => server.restart(),
            }
        }
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        running.1.wait_ready(&worker);
        wait_until("the queue to be empty", Duration::from_secs(60), || {
            let stats = worker.run(&["queue", "show", "messages", "--output", "json"]);
            serde_json::from_slice::<serde_json::Value>(&stats.stdout).is_ok_and(|stats| {
                ["ready", "delayed", "leased"]
                    .iter()
                    .all(|place| stats[*place] == 0)
            })
        });
        let found = written(&worker);
        let unique: BTreeSet<&String> = found.iter().collect();
        assert_eq!(
            unique.len(),
            found.len(),
            "seed {seed}: something is there twice"
        );
        let accepted = accepted.lock().unwrap();
        assert!(
            accepted.len() > 20,
            "seed {seed}: {} are too few messages",
            accepted.len()
        );
        let lost: Vec<&String> = accepted
            .iter()
            .filter(|text| !unique.contains(text))
            .collect();
        assert!(lost.is_empty(), "seed {seed}: lost {lost:?}");
    }
}

#[test]
fn a_dead_workers_messages_are_released_without_a_worker() {
    let Some(server) = redis(DURABLE) else { return };
    let mut world = process(&server);
    let url = format!("redis://127.0.0.1:{}/0?consumer_timeout=1s", server.port());
    world.set("TOWPATH_BACKENDS__INGEST", url);
    world.set("PROCESSING_DELAY_MS", "60000");
    let mut bare = Bare::new(server.port());
    for number in 0..20 {
        bare.enqueue(&format!("job-{number}"));
    }
    let worker = start(&world, "ingest.worker");
    wait_until("the worker to lease", Duration::from_secs(20), || {
        let left = server.command(&["LLEN", "messages"]);
        left.trim() == ":19"
    });
    worker.kill();
    let said = world.ok(&["queue", "recover", "messages"]);
    assert_eq!(said, "1 released\n");
    let mut got = BTreeSet::new();
    while let Some(text) = bare.dequeue() {
        got.insert(text);
    }
    assert_eq!(got.len(), 20);
}
