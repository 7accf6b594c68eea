//! Several processes on one machine: each takes an admin port of its own, and the command line finds the one it needs.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Running, World, able, wait_until};

/// A network of its own, where the default ports are free.
struct Network(Child);

impl Network {
    fn new() -> Option<Self> {
        let script = "ip link set lo up && echo up && exec sleep 600";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take()?);
        std::io::BufRead::read_line(&mut out, &mut line).ok()?;
        let network = Self(child);
        able("network-namespace", line == "up\n").then_some(network)
    }

    /// A folder whose processes are in it, without configured admin address; they share the folder of processes with
    /// `first`.
    fn world(&self, first: Option<&World>) -> World {
        let mut world = World::new();
        world.join_network(self.0.id());
        world.set("TOWPATH_SERVER__ADMIN", "");
        if let Some(first) = first {
            world.set("XDG_RUNTIME_DIR", first.runtime.path().display());
        }
        world
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn started(world: &World, roles: &str, count: usize) -> Running {
    let running = world.spawn(&["run", roles]);
    wait_until("the process", Duration::from_secs(30), || {
        world.json(&["ps"]).as_array().unwrap().len() == count
    });
    running
}

#[test]
fn each_takes_an_admin_port_and_is_found_by_its_roles() {
    let Some(network) = Network::new() else {
        return;
    };
    let ingest = network.world(None);
    let accounts = network.world(Some(&ingest));
    let mut fleet = network.world(Some(&ingest));
    // More than any disk has.
    fleet.set("TOWPATH_EMBEDDED__DISK_RESERVE", "1024GiB");
    let elsewhere = network.world(Some(&ingest));
    let first = started(&ingest, "ingest.api", 1);
    let second = started(&accounts, "accounts.api,accounts.relay", 2);
    let third = started(&fleet, "fleet.controller,fleet.worker", 3);

    let all = elsewhere.json(&["ps"]);
    let of = |running: &Running| {
        let mut found = all.as_array().unwrap().iter();
        found
            .find(|one| one["pid"] == running.id())
            .unwrap()
            .clone()
    };
    let admins: Vec<Value> = [&first, &second, &third]
        .map(|one| of(one)["admin"].clone())
        .into();
    assert_eq!(
        admins,
        ["127.0.0.1:7070", "127.0.0.1:7071", "127.0.0.1:7072"]
    );
    assert_eq!(of(&second)["roles"][1], "accounts.relay");

    // Each command asks the process that has the role.
    elsewhere.ok(&["outbox", "stats"]);
    elsewhere.ok(&["fleet", "agents"]);
    elsewhere.ok(&["task", "ls"]);
    // The folder of a process leads to it.
    ingest.ok(&["queue", "ls"]);
    // Elsewhere one has to be chosen, and the error names them.
    let output = elsewhere.run(&["queue", "ls"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for expected in [
        "3 Towpath processes",
        "--admin",
        "127.0.0.1:7071",
        "accounts.relay",
    ] {
        assert!(
            said(&output).contains(expected),
            "{expected}: {}",
            said(&output)
        );
    }
    // `status` covers all of them, each under its own title.
    let problem = || {
        let output = elsewhere.run(&["status"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    wait_until("the problem", Duration::from_secs(20), || {
        problem().0 == Some(5)
    });
    let (_, text) = problem();
    let (pid, admin) = (second.id(), "127.0.0.1:7071");
    let healthy = format!("{admin}  pid {pid}  accounts.api,accounts.relay: no problems\n");
    let full = format!(
        "127.0.0.1:7072  pid {}  fleet.controller,fleet.worker: 1 problem\nstore_refusing  ",
        third.id()
    );
    assert!(text.contains(&healthy) && text.contains(&full), "{text}");
    let rows = elsewhere.json_of(&["status"]);
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert_eq!(rows[0]["process"], "127.0.0.1:7072");
    assert_eq!(rows[0]["problem"], "store_refusing");
    // The folder of a process leads to it here too.
    assert_eq!(ingest.ok(&["status"]), "no problems\n");
    let health = elsewhere.json_of(&["health", "--admin", "7072"]);
    assert!(
        health["checks"].to_string().contains("fleet.worker"),
        "{health}"
    );
    assert_eq!(std::fs::read_dir(&elsewhere.folder).unwrap().count(), 0);

    // A killed process is not listed, and its port is free for the next one.
    first.kill();
    assert_eq!(elsewhere.json(&["ps"]).as_array().unwrap().len(), 2);
    let again = started(&ingest, "ingest.api", 3);
    assert_eq!(elsewhere.json(&["ps"])[0]["admin"], "127.0.0.1:7070");
    for running in [again, second, third] {
        assert!(running.stop().0.success());
    }
    let text = String::from_utf8(elsewhere.run(&["ps"]).stderr).unwrap();
    assert!(text.contains("no Towpath process"), "{text}");
}

#[test]
fn a_process_that_hangs_is_named_within_seconds() {
    let Some(network) = Network::new() else {
        return;
    };
    let one = network.world(None);
    let two = network.world(Some(&one));
    let elsewhere = network.world(Some(&one));
    let healthy = started(&one, "ingest.api", 1);
    let hung = started(&two, "orders.dashboard", 2);
    hung.signal("-STOP");
    let named = format!(
        "the process at http://127.0.0.1:7071 (pid {}, orders.dashboard) did not answer within 5 s",
        hung.id()
    );
    let began = Instant::now();
    let output = elsewhere.run(&["status"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains(&named), "{}", said(&output));
    // The other one is reported all the same.
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let title = format!(
        "127.0.0.1:7070  pid {}  ingest.api: no problems\n",
        healthy.id()
    );
    assert_eq!(shown, title);
    let output = two.run(&["health"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains(&named), "{}", said(&output));
    // It does not take the process for one that is not running.
    let output = two.run(&["doctor"]);
    assert_eq!(output.status.code(), Some(5));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains(&format!("FAIL  process: {named}")),
        "{shown}"
    );
    assert!(!shown.contains("is in use by"), "{shown}");
    assert!(began.elapsed() < Duration::from_secs(25));
    hung.signal("-CONT");
    assert_eq!(two.ok(&["status"]), "no problems\n");
}

#[test]
fn a_configured_admin_address_never_moves() {
    let Some(network) = Network::new() else {
        return;
    };
    let first = network.world(None);
    let running = started(&first, "ingest.api", 1);
    let mut second = network.world(Some(&first));
    second.set("TOWPATH_SERVER__ADMIN", "127.0.0.1:7070");
    let output = second.run(&["run", "fleet.controller"]);
    assert_eq!(output.status.code(), Some(4));
    let owner = format!("in use by towpath (pid {})", running.id());
    for expected in ["`server.admin`", "TOWPATH_SERVER__ADMIN", &owner] {
        assert!(
            said(&output).contains(expected),
            "{expected}: {}",
            said(&output)
        );
    }
    // Nothing was made before that was known.
    assert_eq!(std::fs::read_dir(&second.folder).unwrap().count(), 0);
}

#[test]
fn the_default_admin_address_is_not_left_to_another_program() {
    let Some(network) = Network::new() else {
        return;
    };
    let world = network.world(None);
    let listen = "use IO::Socket::INET; $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => 7070) or die; $| = 1; print \"up\\n\"; sleep 600";
    let mut other = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", network.0.id()))
        .args(["perl", "-e", listen])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(other.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let output = world.run(&["run", "ingest.api"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(
        said(&output).contains("in use by perl (pid "),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read_dir(&world.folder).unwrap().count(), 0);
}
