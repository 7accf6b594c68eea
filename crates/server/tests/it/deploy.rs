//! The files of `deploy/`, by the tools that read them, and processes that are replaced as a cluster does it.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use towpath_testkit::servers::{made, postgres, redis};

use crate::client::Client;
use crate::manifests;
use crate::process::{BINARY, World, able, wait_until};

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

pub(crate) fn is_there(program: &str) -> bool {
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
    let folder = tempfile::tempdir().unwrap();
    write_secrets(folder.path());
    let mut count = 0;
    for file in deploy().join("compose").read_dir().unwrap() {
        let file = file.unwrap().path();
        if file
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let file = without_name(&file, folder.path());
            let mut compose = Command::new("docker-compose");
            compose.current_dir(folder.path());
            ok(compose.arg("-f").arg(&file).args(["config", "-q"]));
            count += 1;
        }
    }
    assert_eq!(count, 6);
}

/// Makes the `.env` of the Compose files, as an operator does.
pub(crate) fn write_secrets(folder: &Path) {
    let script = folder.join("secrets.sh");
    std::fs::copy(deploy().join("compose/secrets.sh"), &script).unwrap();
    ok(Command::new("sh").arg(&script));
}

/// A copy without the name of the project, which the Compose 1.29 of Debian does not know.
pub(crate) fn without_name(file: &Path, folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(file).unwrap();
    let (name, rest) = text.split_once('\n').unwrap();
    assert!(name.starts_with("name: towpath"), "{name}");
    let copy = folder.join(file.file_name().unwrap());
    std::fs::write(&copy, rest).unwrap();
    copy
}

#[test]
fn the_dockerfile_has_no_known_faults() {
    let hadolint = made("hadolint/bin/hadolint");
    if !able("hadolint", hadolint.exists()) {
        return;
    }
    let file = deploy().join("docker/Dockerfile");
    ok(Command::new(&hadolint).arg(&file));
    let text = std::fs::read_to_string(&file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let careless = folder.path().join("Dockerfile");
    std::fs::write(&careless, text.replace("cmake=3.25.1-1", "cmake")).unwrap();
    let output = Command::new(&hadolint).arg(&careless).output().unwrap();
    assert!(!output.status.success(), "a version that is not said");
}

/// `helm` has no `--version`.
fn helm(words: &[&str]) -> Command {
    let mut helm = Command::new("helm");
    helm.args(words).current_dir(deploy().join("helm/towpath"));
    helm
}

#[test]
fn the_chart_is_accepted_and_a_slip_in_its_values_is_not() {
    let is_there = helm(&["version"]).output().is_ok();
    if !able("helm", is_there) {
        return;
    }
    let mut workloads = 0;
    let folder = tempfile::tempdir().unwrap();
    for app in ["ingest", "orders", "lines", "accounts", "fleet"] {
        let values = format!("values-{app}.yaml");
        ok(helm(&["lint", "--strict", "."]).args(["-f", &values]));
        for scaling in ["hpa", "keda", "none"] {
            let set = format!("autoscaling={scaling},serviceMonitor=true");
            let output = helm(&["template", "r", ".", "-f", &values, "--set", &set]).output();
            let rendered = String::from_utf8(output.unwrap().stdout).unwrap();
            let file = folder.path().join(format!("{app}-{scaling}.yaml"));
            std::fs::write(file, &rendered).unwrap();
            let count = |kind: &str| rendered.matches(&format!("\nkind: {kind}\n")).count();
            let sets = count("StatefulSet");
            assert!(sets > 0, "{values}");
            for kind in ["ConfigMap", "PodDisruptionBudget", "NetworkPolicy"] {
                assert_eq!(count(kind), sets, "{values}: {kind}");
            }
            let scaled = rendered.matches("scaleTargetRef").count();
            assert_eq!(
                count("HorizontalPodAutoscaler") + count("ScaledObject"),
                scaled
            );
            assert!(scaling != "none" || scaled == 0);
            workloads += sets;
        }
    }
    if able("kubectl-validate", manifests::can_validate()) {
        let refused = manifests::refused(folder.path());
        assert_eq!(refused, None);
    }
    assert_eq!(
        workloads,
        13 * 3,
        "as many as there are files of roles in k8s/"
    );
    let output = helm(&["template", "r", ".", "--set", "worklods.x=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("worklods"),
        "{said}"
    );
}

#[test]
fn charts_render_values_as_they_are() {
    if !able("helm", helm(&["version"]).output().is_ok()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.yaml");
    let scale =
        "{metric: towpath_queue_ready_messages, label: queue, value: m, target: 10000000, most: 8}";
    let text = format!(
        "env: {{RETRIES: 3, DEBUG: true, DEPTH: 10000000, TEXT: set, TOWPATH_LOG__FORMAT: pretty}}
workloads:
  off: {{roles: fleet.worker, replicas: 0, scale: {scale}, env: {{RETRIES: 0, DEBUG: false, TEXT: \"\", SMALL: 0.00001}}}}
  one: {{roles: fleet.worker, scale: {scale}, env: {{PEER: \"http://$(RELEASE)off:1\"}}}}
"
    );
    std::fs::write(&values, text).unwrap();
    let render = |release: &str, more: &str| {
        let mut command = helm(&["template", release, ".", "--set", more, "-f"]);
        let output = command.arg(&values).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let rendered = render("r", "autoscaling=hpa");
    for line in [
        "  RETRIES: \"0\"",
        "  RETRIES: \"3\"",
        "  DEBUG: \"false\"",
        "  DEPTH: \"10000000\"",
        "  TEXT: \"\"",
        "  SMALL: \"0.00001\"",
        "  TOWPATH_LOG__FORMAT: \"pretty\"",
        "  PEER: \"http://r-off:1\"",
        "  replicas: 0",
        "          averageValue: \"10000000\"",
    ] {
        assert!(
            rendered.contains(&format!("{line}\n")),
            "{line}: {rendered}"
        );
    }
    assert!(!rendered.contains("\"json\""), "{rendered}");
    let scalers = |kind: &str, rendered: &str| rendered.matches(&format!("kind: {kind}\n")).count();
    assert_eq!(scalers("HorizontalPodAutoscaler", &rendered), 1);
    let keda = render("r", "autoscaling=keda");
    assert_eq!(scalers("ScaledObject", &keda), 1);
    assert!(keda.contains("behavior: currentReplicasIfHigher"));
    // No object of one release has the name of one of another.
    let names = |rendered: &str| -> BTreeSet<String> {
        let lines = rendered.lines().filter(|line| line.starts_with("  name: "));
        lines.map(str::to_owned).collect()
    };
    let other = names(&render("s", "autoscaling=hpa"));
    assert!(names(&rendered).is_disjoint(&other), "{other:?}");
    assert!(names(&render("r", "prefix=")).contains("  name: one"));
    for slip in [
        "workloads.Bad_Name.roles=x",
        "workloads.w.roles=x,workloads.w.ports.admin=1",
        "env.a-b=1",
    ] {
        let output = helm(&["template", "r", ".", "--set", slip]).output();
        assert!(!output.unwrap().status.success(), "{slip}");
    }
}

#[test]
fn compose_keeps_dollars_and_gives_projects_names() {
    if !able("docker-compose", is_there("docker-compose")) {
        return;
    }
    let world = World::new();
    let program = r#"ingest.worker.command.program=["sh", "-c", "cat >> $OUT_DIR/log; cost=$5"]"#;
    let files = world.folder.join("files");
    let output = world.run(&[
        "init",
        "compose",
        "--dir",
        files.to_str().unwrap(),
        "--set",
        program,
    ]);
    assert!(output.status.success(), "{output:?}");
    let mut compose = Command::new("docker-compose");
    let file = without_name(&files.join("compose/ingest.yaml"), &world.folder);
    write_secrets(&world.folder);
    compose.current_dir(&world.folder).arg("-f").arg(file);
    let output = compose.arg("config").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    // Compose shows the values with their escapes.
    // It may break the line behind the semicolon.
    let has_both = shown.contains("$$OUT_DIR/log;") && shown.contains("cost=$$5");
    assert!(has_both, "{shown}");
}

#[test]
fn the_example_of_variables_can_be_copied() {
    let world = World::new();
    let example = deploy().join("../.env.example");
    let text = std::fs::read_to_string(example).unwrap();
    let every: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_uppercase()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    for text in [text, every] {
        std::fs::write(world.folder.join(".env"), text).unwrap();
        let output = world.run(&["config", "check"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !said.contains("sets nothing"),
            "{said}"
        );
    }
}

#[test]
fn make_lists_its_targets() {
    if !able("make", is_there("make")) {
        return;
    }
    let make = |words: &[&str]| {
        let mut make = Command::new("make");
        make.args(words).current_dir(deploy().join(".."));
        make.env_remove("MAKEFLAGS").env_remove("DB_HOST");
        let output = make.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let help = make(&["help"]);
    // Those of the reference systems' instructions.
    for target in "build run test unit-test integration-test test-all setup clean tidy fix unified-server relay
        dev-unified dev-relay migrate migrate-down backfill backfill-execute check-outbox status test-token-bucket
        test-user-api test-crash db-shell redis-shell run-all run-controller run-agent run-worker docker-up docker-down
        docker-logs restart logs-db docker-controller docker-agent-worker swagger"
        .split_whitespace()
    {
        assert!(help.contains(&format!("\n{target} ")) || help.starts_with(target), "{target}: {help}");
        make(&["-n", target]);
    }
    // A process that runs beside others takes the next free admin port.
    for target in ["relay", "run-controller", "run-agent", "run-worker"] {
        let shown = make(&["-n", target, "DB_HOST=db"]);
        assert!(!shown.contains("TOWPATH_SERVER__ADMIN"), "{shown}");
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
    let mut notification = [0; 64];
    let count = socket.recv(&mut notification).unwrap();
    assert_eq!(&notification[..count], b"READY=1");
}

/// Forwards connections in turn, as a service of a cluster does.
#[derive(Clone)]
struct Balancer {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    fn start(targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let balancer = Self {
            address: listener.local_addr().unwrap(),
            targets: Arc::new(Mutex::new(targets)),
        };
        let targets = Arc::clone(&balancer.targets);
        std::thread::spawn(move || {
            for (turn, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let target = {
                    let targets = targets.lock().unwrap();
                    targets[turn % targets.len()]
                };
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                for (mut from, mut to) in [
                    (stream.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, stream),
                ] {
                    std::thread::spawn(move || {
                        // Either side may end first.
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(Shutdown::Write).ok();
                    });
                }
            }
        });
        balancer
    }

    fn set(&self, targets: Vec<SocketAddr>) {
        *self.targets.lock().unwrap() = targets;
    }
}

#[test]
fn processes_are_replaced_one_at_a_time_without_a_failed_request() {
    const ROLES: &str = "ingest.api,ingest.worker,orders.gateway,orders.processor,orders.notifier,accounts.api,accounts.relay,lines.reader,lines.writer";
    if !able("redis", redis::missing().is_none())
        || !able("postgres", postgres::missing().is_none())
    {
        return;
    }
    let (keys, tables) = (
        redis::Server::start(redis::DURABLE),
        postgres::Server::start(),
    );
    let database = tables.create("rolling");
    let mut worlds = [World::new(), World::new()];
    // Both follow it, and one is ahead; each writes an output of its own.
    let input = worlds[0].folder.join("input.txt");
    std::fs::write(&input, "").unwrap();
    for world in &mut worlds {
        let output = world.folder.join("lines.txt");
        world.set("INPUT_PATH", input.display());
        world.set("TOWPATH_LINES__OUTPUT", output.display());
        world.set("TOWPATH_LINES__POLL", "20ms");
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", keys.port()));
        world.set("TOWPATH_BACKENDS__DEFAULT", keys.url());
        world.set("TOWPATH_ACCOUNTS__DATABASE", &database);
        world.set("TOWPATH_ACCOUNTS__RELAY__LEASE", "1s");
    }
    let start = |world: &World| {
        let running = world.spawn(&["run", ROLES]);
        running.wait_ready(world);
        running
    };
    let mut running = worlds.each_ref().map(|world| Some(start(world)));
    worlds[0].ok(&["kv", "set", "inventory:thing", "100000"]);
    let addresses = worlds.each_ref().map(|world| world.http);
    let balancer = Balancer::start(addresses.to_vec());
    let ends = Arc::new(AtomicBool::new(false));
    let load = {
        let (ends, balancer) = (Arc::clone(&ends), balancer.clone());
        let mut input = OpenOptions::new().append(true).open(input).unwrap();
        std::thread::spawn(move || {
            let mut number = 0;
            while !ends.load(Ordering::SeqCst) {
                let post = |path: &str, body: String| {
                    let headers = [("content-type", "application/json")];
                    let mut client = Client::new(balancer.address);
                    let answer = client.send("POST", path, &headers, body.as_bytes());
                    let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
                    assert!(
                        answer.status < 300,
                        "{path}: {} {}",
                        answer.status,
                        answer.text()
                    );
                };
                post("/enqueue", format!(r#"{{"message":"message-{number}"}}"#));
                post(
                    "/orders",
                    format!(r#"{{"id":"order-{number}","sku":"thing","qty":1}}"#),
                );
                post(
                    "/api/users",
                    format!(r#"{{"email":"user-{number}@example.org","name":"x"}}"#),
                );
                writeln!(input, "message-{number}").unwrap();
                number += 1;
            }
            number
        })
    };
    for _ in 0..2 {
        for one in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            // Taken out first, as a pod is before it gets the signal to end.
            balancer.set(vec![addresses[1 - one]]);
            std::thread::sleep(Duration::from_millis(200));
            let old = running[one].take().unwrap();
            let (status, log, _) = old.stop();
            assert!(status.success(), "{log}");
            running[one] = Some(start(&worlds[one]));
            balancer.set(addresses.to_vec());
        }
    }
    ends.store(true, Ordering::SeqCst);
    let count: usize = load.join().unwrap();
    assert!(count > 50, "{count}");
    wait_until("everything", Duration::from_secs(60), || {
        let lines: usize = worlds.iter().map(|world| world.messages().len()).sum();
        lines >= count && worlds[0].json_of(&["orders", "check"])["notified"] == count
    });
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let expected = sorted((0..count).map(|n| format!("message-{n}")).collect());
    let messages = sorted(worlds.iter().flat_map(World::messages).collect());
    assert_eq!(messages, expected);
    let mut lines = Vec::new();
    wait_until("every line", Duration::from_secs(60), || {
        let outputs = worlds.iter().map(|world| world.folder.join("lines.txt"));
        let texts = outputs.map(|file| std::fs::read_to_string(file).unwrap_or_default());
        lines = texts
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines.len() >= count
    });
    assert_eq!(sorted(lines), expected);
    let books = worlds[0].json(&["orders", "check"]);
    assert_eq!(
        (&books["accepted"], &books["processed"]),
        (&count.into(), &count.into()),
        "{books}"
    );
    wait_until("every event", Duration::from_secs(30), || {
        let shown = worlds[0]
            .run(&["stream", "show", "user-events", "--output", "json"])
            .stdout;
        serde_json::from_slice(&shown).is_ok_and(|shown: Value| shown["entries"] == count)
    });
}
