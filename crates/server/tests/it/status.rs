//! The status of a process: its problems, and whether each role is ready.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use towpath_testkit::servers::{postgres, redis};

use crate::process::{World, able, free_ports, wait_until};
use crate::web::{Reply, serve, serve_at};

/// A problem shows within this time and goes within this time after its end.
const SHOWN: Duration = Duration::from_secs(10);

fn problems(world: &World) -> Vec<Value> {
    let bearer = world.bearer();
    let mut client = world.admin_client();
    let answer = client
        .send("GET", "/v1/problems", &[("authorization", &bearer)], b"")
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().unwrap().clone()
}

/// Name and subject of each problem.
fn named(world: &World) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let problems = problems(world);
    let problems = problems
        .iter()
        .map(|one| (text(&one["problem"]), text(&one["subject"])));
    problems.collect()
}

fn is_ready(world: &World, role: &str) -> bool {
    let answer = world.admin_client().get(&format!("/readyz/{role}"));
    assert_ne!(answer.status, 404, "{}", answer.text());
    answer.status == 200
}

/// Waits for the one problem of this name, and gives it.
fn wait_for(world: &World, problem: &str) -> Value {
    let mut found = None;
    wait_until(problem, SHOWN, || {
        let all = problems(world);
        found = all.into_iter().find(|one| one["problem"] == problem);
        found.is_some()
    });
    found.unwrap()
}

fn wait_for_none(world: &World) {
    wait_until("no problems", SHOWN, || named(world).is_empty());
}

#[test]
fn a_healthy_process_has_no_problems() {
    let world = World::new();
    let _running = world.up();
    assert_eq!(world.ok(&["status"]), "no problems\n");
    assert_eq!(world.ok(&["status", "--output", "json"]), "[]\n");
    // Delayed on purpose: no consumer waits for it.
    world.ok(&["send", "reports", "tomorrow", "--delay", "86400"]);
    let stats = world.json(&["queue", "show", "reports"]);
    assert_eq!(stats["delayed"], 1);
    assert_eq!(stats["oldest_ready_age_seconds"], Value::Null, "{stats}");
    assert_eq!(world.ok(&["status"]), "no problems\n");
    let unknown = world.admin_client().get("/readyz/worker");
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.text().contains("ingest.worker"),
        "{}",
        unknown.text()
    );
}

#[test]
fn a_receiver_that_is_down_is_the_problem_of_its_role_alone() {
    let (address, _) = free_ports();
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "webhook").set(
        "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
        format!("http://{address}/hook?token=se-cret"),
    );
    let running = world.up();
    assert_eq!(world.client().post("/enqueue", &[], b"one").status, 200);
    let problem = wait_for(&world, "sink_failing");
    assert_eq!(problem["subject"], "ingest.worker");
    assert_eq!(problem["severity"], "page");
    let cause = problem["cause"].as_str().unwrap();
    let named = format!("queue `messages`: destination `http://{address}");
    assert!(cause.starts_with(&named), "{cause}");
    let figure = problem["figure"].as_str().unwrap();
    assert!(
        figure.starts_with("100 % of ") && figure.ends_with(" attempts within 60 s failed"),
        "{figure}"
    );
    assert!(!cause.contains("se-cret"), "{cause}");
    let error = "is unavailable: no answer: Connection refused (os error 111)";
    assert!(cause.ends_with(error), "{cause}");
    let doctor = world.run(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.matches(error).count(), 1, "{doctor}");
    assert_eq!(self::named(&world).len(), 1);
    assert!(!is_ready(&world, "ingest.worker"));
    for role in [
        "ingest.api",
        "orders.processor",
        "accounts.api",
        "fleet.worker",
    ] {
        assert!(is_ready(&world, role), "{role}");
    }
    let output = world.run(&["status"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("sink_failing  ingest.worker  100 % of "),
        "{text}"
    );
    assert!(text.contains("\n  next   check the receiver"), "{text}");
    wait_until("the metric", SHOWN, || {
        let metrics = world.admin_client().get("/metrics").text();
        metrics.contains("towpath_problem{problem=\"sink_failing\",subject=\"ingest.worker\"} 1")
    });
    serve_at((Ipv4Addr::LOCALHOST, address.port()), |_| {
        Reply::text(200, "")
    });
    wait_for_none(&world);
    assert!(is_ready(&world, "ingest.worker"));
    assert_eq!(world.json(&["queue", "show", "messages"])["dead"], 0);
    let log = running.log();
    for line in ["problem began", "problem ended"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

#[test]
fn rejected_messages_are_problems_until_they_are_dealt_with() {
    let receiver = serve(|_| Reply::text(422, "customer_id is missing"));
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "webhook").set(
        "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
        format!("http://{receiver}/"),
    );
    let _running = world.up();
    let lines: Vec<String> = (0..30).map(|number| format!("\"{number}\"")).collect();
    let kind = [("content-type", "application/x-ndjson")];
    let sent = world
        .client()
        .post("/enqueue/batch", &kind, lines.join("\n").as_bytes());
    assert_eq!(sent.status, 200);
    let letters = wait_for(&world, "dead_letters");
    assert_eq!(letters["subject"], "messages");
    let next = letters["next_step"].as_str().unwrap();
    assert!(next.starts_with("`towpath dlq ls messages`"), "{next}");
    let dying = wait_for(&world, "messages_dying");
    assert_eq!(dying["severity"], "page");
    assert_eq!(dying["figure"], "100 %");
    wait_until("its line", SHOWN, || {
        let ready = world.admin_client().get("/readyz?verbose").text();
        ready.contains("[!]dead_letters messages: 30 dead letters: ")
    });
    // The receiver answers, so the role works.
    assert!(is_ready(&world, "ingest.worker"));
    world.ok(&["dlq", "drop", "messages", "--all", "--yes"]);
    wait_until("no dead letters", SHOWN, || {
        !named(&world)
            .iter()
            .any(|(problem, _)| problem == "dead_letters")
    });
}

#[test]
fn a_message_that_uses_up_its_attempts_counts_as_a_dead_letter() {
    let answer = "{\"error\":\"no\"}\n".to_owned() + &"x".repeat(5_000);
    let receiver = serve(move |_| Reply::text(500, &answer));
    let mut world = World::new();
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{receiver}/"),
        )
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 2)
        .set("TOWPATH_INGEST__WORKER__RETRY__FIRST", "50ms");
    let running = world.up();
    assert_eq!(world.client().post("/enqueue", &[], b"one").status, 200);
    wait_until("it to die", SHOWN, || {
        world.json(&["queue", "show", "messages"])["dead"] == 1
    });
    let outcome = |outcome| {
        let labels = format!("{{queue=\"messages\",outcome=\"{outcome}\"}}");
        world.metric(&format!("towpath_deliveries_total{labels}"))
    };
    wait_until("its metric", SHOWN, || outcome("reject") == 1.0);
    assert_eq!(outcome("retry"), 1.0);
    let letter = &world.json(&["dlq", "ls"])[0];
    assert_eq!(letter["queue"], "messages", "{letter}");
    let id = letter["id"].as_str().unwrap();
    let shown = world.json(&["dlq", "show", "messages", id]);
    let records = shown["records"].as_array().unwrap();
    assert_eq!(records.len(), 2, "{shown}");
    for record in records {
        let consumer = record["consumer"].as_str().unwrap();
        assert!(consumer.contains("ingest.worker"), "{record}");
        assert!(record["took_ms"].is_u64(), "{record}");
        assert!(record["ended_at"].as_str() > shown["enqueued_at"].as_str());
        let error = record["error"].as_str().unwrap();
        assert!(error.starts_with("HTTP 500"), "{record}");
    }
    let answer = records[1]["answer"].as_str().unwrap();
    assert!(answer.starts_with("{\"error\":\"no\"}\nx"), "{answer}");
    assert_eq!(answer.len(), 2_048);
    let text = world.ok(&["dlq", "show", "messages", id]);
    assert!(text.contains("| {\"error\":\"no\"}\n"), "{text}");
    let group = &world.json(&["dlq", "groups"])[0];
    assert_eq!(group["count"], 1, "{group}");
    let text = world.ok(&["dlq", "redrive", "messages", "--reason", "500", "--dry-run"]);
    assert_eq!(text, "1 found; nothing was changed\n");
    let none = ["dlq", "redrive", "messages", "--reason", "501"];
    assert_eq!(world.ok(&none), "0 redriven\n");
    let (_, log, _) = running.stop();
    // The account has the counts of the queue.
    let account = "ingest.worker-1: finished dead letters=1 leased=2 retried=1";
    assert!(log.contains(account), "{log}");
    let line = log
        .lines()
        .find(|line| line.contains("message became a dead letter"))
        .unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["id"], letter["id"]);
    assert_eq!(line["attempts"], 2, "{line}");
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("500") && !reason.contains("no"), "{reason}");
}

#[test]
fn a_server_that_is_down_is_the_problem_of_those_who_need_it() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    let mut server = redis::Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__INGEST", server.url());
    let running = world.up();
    wait_for_none(&world);
    world.ok(&["queue", "pause", "messages"]);
    for number in 0..20 {
        let text = format!("message {number}");
        let sent = world.client().post("/enqueue", &[], text.as_bytes());
        assert_eq!(sent.status, 200, "{}", sent.text());
    }
    server.kill();
    let problem = wait_for(&world, "backend_unreachable");
    assert!(
        problem["subject"].as_str().unwrap().starts_with("redis://"),
        "{problem}"
    );
    // One fact is one problem: the roles that need the server add none.
    assert_eq!(named(&world).len(), 1, "{:?}", named(&world));
    for role in ["ingest.api", "ingest.worker"] {
        assert!(!is_ready(&world, role), "{role}");
    }
    for role in [
        "orders.gateway",
        "accounts.api",
        "accounts.relay",
        "fleet.controller",
    ] {
        assert!(is_ready(&world, role), "{role}");
    }
    // Lists have the queues of the other backends, and name the missing one.
    let output = world.run(&["queue", "ls", "--output", "json"]);
    assert_eq!(output.status.code(), Some(4));
    let queues: Value = serde_json::from_slice(&output.stdout).unwrap();
    let queues = queues.as_array().unwrap();
    assert!(
        queues.iter().any(|one| one["queue"] == "orders.queue"),
        "{queues:?}"
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("the list is not complete: redis"), "{error}");
    world.ok(&["queue", "show", "orders.queue"]);
    let doctor = world.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(5));
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.contains("problem: backend_unreachable"), "{doctor}");
    for _ in 0..20 {
        let refused = world.client().post("/enqueue", &[], b"refused");
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.headers.contains_key("retry-after"));
    }
    // The connection, the problem, the audit log and the first of the refused requests.
    let log = running.log();
    let warnings = log.lines().filter(|line| line.contains(r#""WARN""#));
    let warnings: Vec<&str> = warnings.collect();
    assert!(warnings.len() <= 4, "{warnings:#?}");
    server.restart();
    wait_for_none(&world);
    assert!(is_ready(&world, "ingest.worker"));
    // Nothing that was acknowledged before is lost or dead.
    world.ok(&["queue", "resume", "messages"]);
    wait_until("every message", SHOWN, || world.messages().len() == 20);
    assert_eq!(world.json(&["queue", "show", "messages"])["dead"], 0);
    drop(running);
}

#[test]
fn a_database_that_is_down_is_the_problem_of_those_who_need_it() {
    if !able("postgres", postgres::missing().is_none()) {
        return;
    }
    let mut server = postgres::Server::start();
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__DATABASE", server.create("accounts"));
    let _running = world.up();
    wait_for_none(&world);
    server.kill();
    let problem = wait_for(&world, "database_unreachable");
    assert_eq!(problem["subject"], "database");
    assert_eq!(named(&world).len(), 1, "{:?}", named(&world));
    for role in ["accounts.api", "accounts.relay"] {
        assert!(!is_ready(&world, role), "{role}");
    }
    for role in ["ingest.api", "ingest.worker", "fleet.controller"] {
        assert!(is_ready(&world, role), "{role}");
    }
    server.restart();
    wait_for_none(&world);
}

#[test]
fn a_store_that_rejects_writes_keeps_only_those_from_working_that_write() {
    let mut world = World::new();
    // More than any disk has.
    world.set("TOWPATH_EMBEDDED__DISK_RESERVE", "1024GiB");
    let running = world.spawn(&["up"]);
    wait_until("the process to serve", SHOWN, || {
        running.log().contains(r#""message":"ready""#)
    });
    let problem = wait_for(&world, "store_refusing");
    let cause = problem["cause"].as_str().unwrap();
    assert_eq!(cause, "disk is low: new messages are rejected");
    let figure = problem["figure"].as_str().unwrap();
    assert!(figure.ends_with(" free, 1 TiB reserved"), "{figure}");
    assert_eq!(named(&world).len(), 1, "{:?}", named(&world));
    for (role, expected) in [
        ("ingest.api", false),
        ("orders.gateway", false),
        ("fleet.worker", false),
        ("accounts.relay", false),
        ("ingest.worker", true),
        ("orders.processor", true),
        ("orders.notifier", true),
        ("orders.dashboard", true),
        ("accounts.api", true),
        ("fleet.controller", true),
        ("fleet.agent", true),
    ] {
        assert_eq!(is_ready(&world, role), expected, "{role}");
    }
    let output = world.run(&["status"]);
    assert_eq!(output.status.code(), Some(5));
}
