//! Faults of a broker under running processes: deletes, cancels, limits, restarts. They continue or report the reason, and no log
//! shows a payload.

use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use towpath_testkit::servers::rabbitmq;

use crate::orders::{order, set_stock, show};
use crate::orders_rabbitmq::{Bare, Fixture, wait_notified};
use crate::process::{World, able, wait_until};

const SOON: Duration = Duration::from_secs(60);

fn control(fixture: &Fixture, words: &[&str]) -> String {
    let mut all = vec![words[0], "-p", &fixture.host];
    all.extend(&words[1..]);
    rabbitmq::shared().control(&all)
}

/// Runs an expression on the broker, to delete objects that its commands cannot delete.
fn evaluate(fixture: &Fixture, expression: &str) {
    let expression = expression.replace("VHOST", &format!("<<\"{}\">>", fixture.host));
    rabbitmq::shared().control(&["eval", &expression]);
}

#[test]
fn orders_continue_after_queues_and_exchanges_were_deleted() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, running) = fixture.start("gateway,processor,notifier");
    set_stock(&world, "a", 100);
    assert_eq!(order(&mut world.client(), "before", "a", 1).status, 202);
    wait_notified(&world, "before");
    let exchange = |name: &str| {
        format!(
            "rabbit_exchange:delete(rabbit_misc:r(VHOST, exchange, <<\"{name}\">>), false, <<\"test\">>)."
        )
    };
    let delete = |name: &str| match name {
        "orders.direct" | "orders.topic" => evaluate(&fixture, &exchange(name)),
        queue => drop(control(&fixture, &["delete_queue", queue])),
    };
    for name in [
        "orders.queue",
        "notifier.queue",
        "orders.direct",
        "orders.topic",
    ] {
        std::thread::sleep(Duration::from_millis(1_100));
        delete(name);
        let began = Instant::now();
        wait_until(&format!("an order after {name} was deleted"), SOON, || {
            order(&mut world.client(), name, "a", 1).status == 202
        });
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{name}: {:?}",
            began.elapsed()
        );
        wait_notified(&world, name);
    }
    let log = running.log();
    assert!(log.contains("declared again"), "{log}");
    assert!(!log.contains("Channel closed"), "{log}");
}

#[test]
fn the_reference_declares_its_queues_before_or_after_ours() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, _running) = fixture.start("gateway,processor,notifier");
    // A channel that is refused would end, and the panic would name the reason.
    let bare = Bare::new(&fixture);
    bare.declare("orders.direct", ExchangeKind::Direct, "orders.queue", "");
    bare.declare(
        "orders.topic",
        ExchangeKind::Topic,
        "notifier.queue",
        "order.created",
    );
    set_stock(&world, "a", 5);
    assert_eq!(order(&mut world.client(), "one", "a", 1).status, 202);
    wait_notified(&world, "one");
}

#[test]
fn probing_for_absent_queues_logs_no_errors() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, running) = fixture.start("gateway,processor,notifier");
    for _ in 0..3 {
        world.ok(&["queue", "ls"]);
        world.admin_client().get("/metrics").text();
    }
    let log = running.log();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(!log.contains("NOT_FOUND"), "{log}");
}

/// Something that is in messages and in nothing else.
const MARK: &str = "zq7payload7qz";

/// The mark in a log: as text, and as bytes.
fn assert_unseen(log: &str, when: &str) {
    let bytes: Vec<String> = MARK.bytes().map(|byte| byte.to_string()).collect();
    let hex: Vec<String> = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    for shown in [
        MARK.to_owned(),
        bytes.join(", "),
        bytes.join(","),
        hex.join(""),
        hex.join(" "),
    ] {
        let line = log.lines().find(|line| line.contains(&shown));
        assert!(line.is_none(), "{when}: {}", line.unwrap_or_default());
    }
}

#[test]
fn payloads_are_in_no_log_at_any_level() {
    let ways: [(&[&str], Option<&str>); 5] = [
        (&[], None),
        (&["-v"], None),
        (&["-vv"], None),
        (&[], Some("trace")),
        (
            &[],
            Some("info,lapin=trace,redis=trace,towpath=trace,lapin::returned_messages=trace"),
        ),
    ];
    for (flags, filter) in ways {
        let Some(fixture) = Fixture::new() else {
            return;
        };
        let mut world = fixture.world();
        world.set("TOWPATH_ORDERS__RETRY__ATTEMPTS", "2");
        if let Some(filter) = filter {
            world.set("RUST_LOG", filter);
        }
        let mut args = vec!["run", "gateway,processor,notifier"];
        args.extend(flags);
        let running = world.spawn(&args);
        running.wait_ready(&world);
        set_stock(&world, "a", 5);
        let post = |id: &str, sku: &str| {
            let body =
                format!(r#"{{"id":"{id}","sku":"{sku}","qty":1,"email":"{MARK}@example.com"}}"#);
            let answer = world
                .client()
                .send("POST", "/orders", &[], body.as_bytes())
                .unwrap();
            assert_eq!(answer.status, 202, "{}", answer.text());
        };
        // No queue is bound to the events of rejected orders.
        post("rejected", "none");
        post("good", "a");
        wait_notified(&world, "good");
        wait_until("the order to be rejected", SOON, || {
            show(&world, "rejected")["state"] == "rejected"
        });
        let bare = Bare::new(&fixture);
        bare.publish("orders.direct", "", format!("no order {MARK}").as_bytes());
        wait_until("the dead letter", SOON, || {
            world.json(&["queue", "show", "orders.queue"])["dead"] == 1
        });
        assert_unseen(&running.log(), &format!("{flags:?} {filter:?}"));
        // Messages to a deleted queue are returned.
        control(&fixture, &["delete_queue", "orders.queue"]);
        std::thread::sleep(Duration::from_millis(1_100));
        post("returned", "a");
        let refused = format!(r#"{{"id":"{MARK}","sku":1}}"#);
        let answer = world
            .client()
            .send("POST", "/orders", &[], refused.as_bytes());
        assert_eq!(answer.unwrap().status, 400);
        let (_, log, _) = running.stop();
        assert_unseen(&log, &format!("{flags:?} {filter:?}"));
    }
}

#[test]
fn a_policy_that_limits_deliveries_loses_nothing() {
    if !able("rabbitmq", rabbitmq::missing().is_none()) {
        return;
    }
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let policy = r#"{"delivery-limit":2}"#;
    let words = [
        "set_policy",
        "-p",
        &fixture.host,
        "--apply-to",
        "queues",
        "dl",
        "^messages",
        policy,
    ];
    rabbitmq::shared().control(&words);
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__INGEST", fixture.url());
    world.set("TOWPATH_INGEST__WORKER__SINK", "command");
    let program = r#"["sh","-c","cat >> ran; echo >> ran; sleep 60"]"#;
    world.set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", program);
    let running = world.up();
    world.ok(&["send", "messages", "job"]);
    let runs = || {
        let ran = std::fs::read_to_string(world.folder.join("ran")).unwrap_or_default();
        ran.lines().count()
    };
    let mut running = Some(running);
    for round in 1..=5 {
        let listed = || world.json(&["dlq", "ls", "messages"]);
        if round > 1 {
            running = Some(world.up());
        }
        wait_until("a run or a dead letter", SOON, || {
            runs() >= round || listed().to_string().contains("delivery limit")
        });
        if listed().to_string().contains("delivery limit") {
            // Looking at it does not lose it either.
            for _ in 0..5 {
                assert!(
                    listed().to_string().contains("delivery limit"),
                    "{}",
                    listed()
                );
            }
            return;
        }
        running.take().unwrap().kill();
    }
    panic!("neither a limit nor a dead letter after five runs");
}

#[test]
fn long_jobs_are_acked_within_the_consumer_timeout() {
    if !able("rabbitmq", rabbitmq::missing().is_none()) {
        return;
    }
    let server = rabbitmq::Server::start();
    // The broker ends a channel on which a delivery waits longer; it looks every tick.
    server.control(&[
        "eval",
        "application:set_env(rabbit, channel_tick_interval, 500).",
    ]);
    server.control(&[
        "eval",
        "application:set_env(rabbit, consumer_timeout, 15000).",
    ]);
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__INGEST", server.url());
    world.set("TOWPATH_INGEST__WORKER__SINK", "command");
    let program = r#"["sh","-c","read m; echo $m >> ran; sleep 6"]"#;
    world.set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", program);
    let running = world.up();
    let jobs: Vec<String> = (0..40).map(|number| format!("job-{number}")).collect();
    for job in &jobs {
        let answer = world.client().post("/enqueue", &[], job.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let show = || world.json(&["queue", "show", "messages"]);
    wait_until("all jobs to end", Duration::from_secs(120), || {
        let stats = show();
        stats["acked"].as_u64() >= Some(40) || stats["dead"].as_u64() > Some(0)
    });
    let stats = show();
    assert_eq!(
        (&stats["acked"], &stats["dead"]),
        (&40.into(), &0.into()),
        "{stats}"
    );
    let mut ran = crate::process::lines_of(&world.folder.join("ran"));
    ran.sort();
    let mut expected = jobs;
    expected.sort();
    assert_eq!(ran, expected, "each runs once: {}", running.log());
}

#[test]
fn doctor_and_readiness_name_a_queue_that_is_not_durable() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    Bare::new(&fixture).declare_transient("messages");
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__INGEST", fixture.url());
    let said = String::from_utf8(world.run(&["doctor"]).stdout).unwrap();
    assert!(said.contains("`messages` is not durable"), "{said}");
    let _running = world.up();
    let said = world.admin_client().get("/readyz?verbose").text();
    assert!(said.contains("`messages` is not durable"), "{said}");
}
