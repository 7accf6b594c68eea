//! The files of `deploy/`, by the tools that read them, and what autoscalers would do.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;
use towpath_testkit::servers::{free_port, redis};

use crate::client::Client;
use crate::process::{BINARY, World, able, wait_until};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Runs a program that must succeed.
fn ok(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    if !able("prometheus", is_there("promtool")) {
        return;
    }
    let folder = deploy().join("prometheus");
    let promtool = |words: &[&str]| ok(Command::new("promtool").args(words).current_dir(&folder));
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["check", "config", "prometheus.yaml"]);
    promtool(&["test", "rules", "alerts_test.yaml"]);
}

#[test]
fn compose_files_are_accepted() {
    if !able("docker-compose", is_there("docker-compose")) {
        return;
    }
    for file in deploy().join("compose").read_dir().unwrap() {
        let file = file.unwrap().path();
        let mut compose = Command::new("docker-compose");
        compose.env("API_KEY", "a-key-of-this-test");
        ok(compose.arg("-f").arg(&file).args(["config", "-q"]));
    }
}

#[test]
fn the_unit_is_accepted_and_its_process_tells_that_it_is_ready() {
    if !able("systemd", is_there("systemd-analyze")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(deploy().join("systemd/towpath.service")).unwrap();
    // The binary is where the test has it.
    let path = folder.path().join("towpath.service");
    std::fs::write(&path, unit.replace("/usr/bin/towpath", BINARY)).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("towpath.service"))
        .collect();
    assert!(about_it.is_empty(), "{said}");
    let socket = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let mut world = World::new();
    world.set("NOTIFY_SOCKET", folder.path().join("notify").display());
    let _running = world.up();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut told = [0; 64];
    let count = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..count], b"READY=1");
}

/// A Prometheus that ends with the test.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: towpath, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    fn query(&self, query: &str) -> Option<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut client = Client::new(([127, 0, 0, 1], self.port).into());
        let answer = client
            .send("GET", &format!("/api/v1/query?query={encoded}"), &[], b"")
            .ok()?;
        let answer: Value = serde_json::from_slice(&answer.body).ok()?;
        answer["data"]["result"][0]["value"][1]
            .as_str()?
            .parse()
            .ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn autoscalers_read_the_backlog_once_however_many_report_it() {
    if !able("prometheus", is_there("prometheus")) || !able("redis", redis::missing().is_none()) {
        return;
    }
    let server = redis::Server::start(redis::DURABLE);
    let mut worlds = [World::new(), World::new()];
    for world in &mut worlds {
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        // The listener would be the same for the two of them.
        world.set("TOWPATH_INGEST__WORKER__SINK", "stdout");
    }
    let _workers: Vec<_> = worlds
        .iter()
        .map(|world| {
            let running = world.spawn(&["run", "ingest.worker"]);
            running.wait_ready(world);
            running
        })
        .collect();
    worlds[0].ok(&["queue", "pause", "messages"]);
    let prometheus = Prometheus::start(&worlds.each_ref().map(|world| world.admin.to_string()));
    let manifest = std::fs::read_to_string(deploy().join("keda/worker.yaml")).unwrap();
    let value = |name: &str| {
        let line = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        line.unwrap().trim().trim_matches('"').to_owned()
    };
    let (query, target) = (value("query:"), value("threshold:").parse::<f64>().unwrap());
    let mut sent = 0;
    for backlog in [0, 1, 2_500] {
        let lines: String = (sent..backlog)
            .map(|number| format!("{number}\n"))
            .collect();
        if backlog > sent {
            let input = worlds[0].folder.join("lines");
            std::fs::write(&input, lines).unwrap();
            let mut send = worlds[0].command(&["send", "messages", "--lines"]);
            ok(send.stdin(std::fs::File::open(&input).unwrap()));
        }
        sent = backlog;
        wait_until(
            &format!("a backlog of {backlog}"),
            Duration::from_secs(30),
            || prometheus.query(&query) == Some(f64::from(backlog)),
        );
        // As the HorizontalPodAutoscaler has it for an average value.
        let replicas = (prometheus.query(&query).unwrap() / target).ceil().max(1.0);
        assert_eq!(
            replicas,
            [1.0, 1.0, 3.0][[0, 1, 2_500]
                .iter()
                .position(|one| *one == backlog)
                .unwrap()]
        );
    }
    assert_eq!(
        prometheus.query("count(towpath_queue_ready_messages{queue=\"messages\"})"),
        Some(2.0),
        "both report it"
    );
}
