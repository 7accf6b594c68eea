//! `towpath-bench` on the embedded store, a real Redis and a real RabbitMQ.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::process::{Command, Output};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use towpath_testkit::servers::rabbitmq;
use towpath_testkit::servers::redis::{DURABLE, EPHEMERAL, Server, missing};

const BINARY: &str = env!("CARGO_BIN_EXE_towpath-bench");

fn main() {
    let redis = || missing().map(|reason| ("redis", reason));
    let rabbitmq = || rabbitmq::missing().map(|reason| ("rabbitmq", reason));
    let never = || None;
    let trials = vec![
        trial(
            "stores_are_compared_and_state_their_durability",
            never(),
            stores_are_compared_and_state_their_durability,
        ),
        trial(
            "a_server_is_compared_with_a_queue_written_by_hand_and_says_its_own_cpu",
            redis(),
            a_server_is_compared_with_a_queue_written_by_hand_and_says_its_own_cpu,
        ),
        trial(
            "a_broker_is_compared_with_a_confirm_loop_written_by_hand",
            rabbitmq(),
            a_broker_is_compared_with_a_confirm_loop_written_by_hand,
        ),
        trial(
            "orders_are_compared_with_the_queue_below_them",
            never(),
            orders_are_compared_with_the_queue_below_them,
        ),
        trial(
            "orders_on_a_broker_need_keys_and_an_empty_queue",
            redis().or_else(rabbitmq),
            orders_on_a_broker_need_keys_and_an_empty_queue,
        ),
        trial(
            "targets_that_cannot_be_compared_are_refused_with_the_reason",
            never(),
            targets_that_cannot_be_compared_are_refused_with_the_reason,
        ),
    ];
    let commands = ["queue", "http", "compare", "limits", "outbox", "fleet"];
    let examples = commands.map(|command| {
        Trial::test(format!("examples_of_{command}_run"), move || {
            examples_run(command);
            Ok(())
        })
    });
    libtest_mimic::run(
        &Arguments::from_args(),
        trials.into_iter().chain(examples).collect(),
    )
    .exit();
}

/// A test, ignored with the reason where this machine lacks a server, and failed where `TOWPATH_TEST_REQUIRE` names it.
fn trial(name: &str, missing: Option<(&str, String)>, body: fn()) -> Trial {
    let Some((ability, reason)) = missing else {
        return Trial::test(name, move || {
            body();
            Ok(())
        });
    };
    let required = std::env::var("TOWPATH_TEST_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| name == ability);
    Trial::test(format!("{name} ({reason})"), move || Err(reason.into()))
        .with_ignored_flag(!is_required)
}

/// The examples of a command's help, with fewer messages.
fn examples_run(command: &str) {
    let help = Command::new(BINARY).args([command, "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let (_, examples) = help.split_once("\nExamples:\n").unwrap();
    let examples = examples.lines().filter_map(|line| {
        let arguments = line.trim().strip_prefix("towpath-bench ")?;
        Some(arguments.replace(" --messages 1000", ""))
    });
    // That of `fleet` names its own, smaller size.
    let few = match command {
        "fleet" => "",
        _ => " --messages 200",
    };
    for example in examples {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("sh")
            .args(["-ec", &format!("{BINARY} {example}{few}")])
            .current_dir(&folder)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{example}: {error}");
    }
}

fn compare(targets: &[&str], more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(BINARY)
        .args(["compare", "--messages", "300", "--size", "64"])
        .args(targets)
        .args(more)
        .current_dir(&folder)
        .output()
        .unwrap()
}

fn report(targets: &[&str], workloads: &str) -> Value {
    let output = compare(targets, &["--workload", workloads, "--output", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every target of every workload did its messages, lost none, doubled none, and is compared with the first.
fn check(report: &Value, workloads: usize, servers: &[bool]) {
    let compared = report["workloads"].as_array().unwrap();
    assert_eq!(compared.len(), workloads);
    for one in compared {
        let targets = one["targets"].as_array().unwrap();
        assert_eq!(targets.len(), servers.len(), "{one}");
        for (number, (target, has_server)) in targets.iter().zip(servers).enumerate() {
            // A busy machine does fewer than it is asked for.
            let least = 5 * 100;
            assert!(target["messages"].as_u64().unwrap() >= least, "{target}");
            assert_eq!(target["lost"], 0, "{target}");
            assert_eq!(target["duplicated"], 0, "{target}");
            assert_eq!(target["server_cpu_us"].is_null(), !has_server, "{target}");
            let ratios = &target["first_by_this"];
            assert_eq!(ratios.is_null(), number == 0, "{target}");
            if number > 0 {
                assert!(ratios["per_second"]["median"].as_f64().unwrap() > 0.0);
            }
        }
    }
}

fn stores_are_compared_and_state_their_durability() {
    let targets = ["embedded:", "embedded:?durability=os"];
    let found = report(
        &targets,
        "publish-64,batch-16,cycle-64,end-to-end,http-64,http-batch",
    );
    check(&found, 6, &[false, false]);
    assert_eq!(found["targets"][0]["durability"], "fsync");
    assert_eq!(found["targets"][1]["durability"], "os");
    let found = report(&["embedded:", "disk"], "publish-1");
    assert!(found["workloads"][0]["targets"][1]["per_second"]["median"].as_f64() > Some(0.0));
}

fn a_server_is_compared_with_a_queue_written_by_hand_and_says_its_own_cpu() {
    let (durable, ephemeral) = (Server::start(DURABLE), Server::start(EPHEMERAL));
    let bare = format!("bare:{}", durable.url());
    let targets = ["embedded:", &durable.url(), &bare, &ephemeral.url()];
    let found = report(&targets, "publish-64,cycle-64,end-to-end,http-batch");
    check(&found, 4, &[false, true, true, true]);
    let durability = |number: usize| found["targets"][number]["durability"].as_str().unwrap();
    assert_eq!(durability(1), "fsync before acknowledgement");
    assert_eq!(durability(2), durability(1));
    assert!(durability(3).starts_with("none"), "{}", durability(3));
    // The queue written by hand leaves nothing behind.
    assert!(
        durable
            .command(&["EXISTS", "bench-bare", "bench-bare-in-hand"])
            .starts_with(":0")
    );
}

fn a_broker_is_compared_with_a_confirm_loop_written_by_hand() {
    let url = rabbitmq::shared().url();
    let bare = format!("bare:{url}");
    let found = report(&[&url, &bare], "publish-64,batch-16,end-to-end");
    // It does not say how much CPU it used.
    check(&found, 3, &[false, false]);
    let durability = |number: usize| found["targets"][number]["durability"].as_str();
    assert!(durability(0).is_some_and(|text| !text.is_empty()));
    assert_eq!(durability(1), durability(0));
}

fn orders_are_compared_with_the_queue_below_them() {
    let targets = ["orders:embedded:", "embedded:"];
    let found = report(&targets, "publish-64,end-to-end,http-64");
    let workloads = found["workloads"].as_array().unwrap();
    // Orders are measured without HTTP.
    assert_eq!(workloads[2]["targets"].as_array().unwrap().len(), 1);
    let found = report(&targets, "publish-64,end-to-end");
    check(&found, 2, &[false, false]);
}

fn orders_on_a_broker_need_keys_and_an_empty_queue() {
    // Servers of its own: orders stay behind.
    let (broker, keys) = (rabbitmq::Server::start(), Server::start(DURABLE));
    let orders = format!("orders:{}", broker.url());
    let bare = format!("bare:{}", broker.url());
    let output = compare(&[&orders, &bare], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--keys"), "{stderr}");
    let pid = std::process::id().to_string();
    let more = ["--keys", &keys.url(), "--server-pid", &pid];
    let workload = ["--workload", "publish-64,end-to-end", "--output", "json"];
    let output = compare(&[&orders, &bare], &[&more[..], &workload].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&found, 2, &[true, true]);
    let stated = found["targets"][0]["durability"].as_str().unwrap();
    assert!(stated.contains("keys: fsync"), "{stated}");
}

fn targets_that_cannot_be_compared_are_refused_with_the_reason() {
    for (targets, more, reason) in [
        (&["embedded:"][..], &[][..], "2 values required"),
        (
            &["embedded:", "disk"],
            &["--rounds", "4"],
            "5 rounds or more",
        ),
        (
            &["embedded:", "disk"],
            &["--seconds", "0"],
            "expected e.g. 0.5",
        ),
        (
            &["embedded:", "bare:embedded:x"],
            &[],
            "no baseline for `embedded`; available: redis",
        ),
        (
            &["embedded:", "reddis://x"],
            &[],
            "unknown backend `reddis`",
        ),
    ] {
        let output = compare(targets, more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
    }
}
