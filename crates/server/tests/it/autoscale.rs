//! Queries of the Kubernetes autoscalers to a real Prometheus, and the resulting number of pods.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use towpath_testkit::servers::{free_port, redis};

use crate::client::Client;
use crate::deploy::{deploy, is_there};
use crate::manifests::documents;
use crate::process::{Running, World, able, wait_until};

/// A role, and the series that its scalers go by.
const WORKER: (&str, &str) = (
    "worker",
    r#"towpath_queue_ready_messages{queue="messages"}"#,
);
const PROCESSOR: (&str, &str) = (
    "processor",
    r#"towpath_queue_ready_messages{queue="orders.queue"}"#,
);
const WRITER: (&str, &str) = (
    "writer",
    r#"towpath_stream_lag_messages{stream="line_stream"}"#,
);

/// A Prometheus that ends with the test.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, data) = (
            folder.path().join("prometheus.yml"),
            folder.path().join("data"),
        );
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: towpath, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        fs::write(&config, text).unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    /// The one number that a query gives. KEDA refuses several, and for several an adapter gives their sum.
    fn query(&self, query: &str) -> Option<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut client = Client::new(([127, 0, 0, 1], self.port).into());
        let path = format!("/api/v1/query?query={encoded}");
        let answer = client.send("GET", &path, &[], b"").ok()?;
        let answer: Value = serde_json::from_slice(&answer.body).ok()?;
        match answer["data"]["result"].as_array()?.as_slice() {
            [only] => only["value"][1].as_str()?.parse().ok(),
            none_or_several => {
                assert!(none_or_several.len() < 2, "{query}: {answer}");
                None
            }
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The scaler of a role.
struct Scaler {
    query: String,
    /// The backlog for one pod.
    target: f64,
    least: f64,
    most: f64,
}

impl Scaler {
    /// The HorizontalPodAutoscaler of a role, with the query that the adapter makes of its metric.
    fn horizontal(role: &str) -> Self {
        let read = |file: &str| fs::read_to_string(deploy().join("k8s").join(file)).unwrap();
        let role = documents(&read(&format!("{role}.yaml")));
        let is_it = |one: &&Value| one["kind"] == "HorizontalPodAutoscaler";
        let spec = &role.iter().find(is_it).unwrap()["spec"];
        let external = &spec["metrics"][0]["external"];
        let metric = &external["metric"];
        let adapter = documents(&read("../prometheus/adapter.yaml")).remove(0);
        let rules = adapter["rules"]["external"].as_array().unwrap();
        let rule = rules
            .iter()
            .find(|rule| rule["name"]["as"] == metric["name"]);
        let rule = rule.unwrap();
        // Source: Prometheus Adapter, "External metrics": the series of the rule, and the selector as matchers.
        let labels = metric["selector"]["matchLabels"].as_object().unwrap();
        let matchers: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}={value}"))
            .collect();
        let query = rule["metricsQuery"].as_str().unwrap();
        let series = rule["seriesQuery"].as_str().unwrap();
        let average = &external["target"]["averageValue"];
        Self {
            query: query
                .replace("<<.Series>>", series)
                .replace("<<.LabelMatchers>>", &matchers.join(",")),
            target: average.as_str().unwrap().parse().unwrap(),
            least: spec["minReplicas"].as_f64().unwrap(),
            most: spec["maxReplicas"].as_f64().unwrap(),
        }
    }

    /// The same of KEDA.
    fn keda(role: &str) -> Self {
        let file = deploy().join("keda").join(format!("{role}.yaml"));
        let spec = &documents(&fs::read_to_string(file).unwrap())[0]["spec"];
        let trigger = &spec["triggers"][0]["metadata"];
        Self {
            query: trigger["query"].as_str().unwrap().to_owned(),
            target: trigger["threshold"].as_str().unwrap().parse().unwrap(),
            least: spec["minReplicaCount"].as_f64().unwrap(),
            most: spec["maxReplicaCount"].as_f64().unwrap(),
        }
    }

    /// As Kubernetes reckons for an average value, from one pod on.
    fn replicas(&self, backlog: f64) -> f64 {
        (backlog / self.target).ceil().clamp(self.least, self.most)
    }
}

#[test]
fn every_scaler_reads_only_recorded_series() {
    if !able("prometheus", is_there("promtool")) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (role, series) in [WORKER, PROCESSOR, WRITER] {
        let report = |labels: &str, values: &str| {
            let series = series.replace('}', &format!(", {labels}}}"));
            format!("      - {{series: '{series}', values: '{values}'}}\n")
        };
        let (name, _) = series.split_once('{').unwrap();
        // Two pods report the same backlog, and one of another installation has a larger one.
        let input = [
            report("instance=\"a\"", "0 2500 2500"),
            report("instance=\"b\"", "0 2500 2500"),
            format!("      - {{series: '{name}{{queue=\"other\", stream=\"other\"}}', values: '9999x3'}}\n"),
        ]
        .concat();
        for scaler in [Scaler::horizontal(role), Scaler::keda(role)] {
            let query = &scaler.query;
            let file = folder.path().join("scaler.yaml");
            let judge = |value: u32| {
                let text = format!(
                    "tests:\n  - interval: 1m\n    input_series:\n{input}    promql_expr_test:\n      - {{expr: 'sum({query})', eval_time: 2m, exp_samples: [{{labels: '{{}}', value: {value}}}]}}\n      - {{expr: 'count({query})', eval_time: 2m, exp_samples: [{{labels: '{{}}', value: 1}}]}}\n"
                );
                fs::write(&file, text).unwrap();
                let mut promtool = Command::new("promtool");
                promtool
                    .args(["test", "rules"])
                    .arg(&file)
                    .output()
                    .unwrap()
            };
            let right = judge(2_500);
            let said = String::from_utf8_lossy(&right.stdout);
            assert!(right.status.success(), "{role}: {query}: {said}");
            assert!(!judge(5_000).status.success(), "{role}: {query}");
        }
    }
}

/// Both processes report this backlog, and both scalers of the role see it once and want this many pods.
fn wants(prometheus: &Prometheus, (role, series): (&str, &str), backlog: f64, replicas: f64) {
    let reports = format!("count({series} == {backlog})");
    wait_until(&reports, Duration::from_secs(60), || {
        prometheus.query(&reports) == Some(2.0)
    });
    for scaler in [Scaler::horizontal(role), Scaler::keda(role)] {
        let seen = prometheus.query(&scaler.query);
        assert_eq!(seen, Some(backlog), "{role}: {}", scaler.query);
        assert_eq!(scaler.replicas(backlog), replicas, "{role}");
    }
}

fn can_run() -> bool {
    able("prometheus", is_there("prometheus")) && able("redis", redis::missing().is_none())
}

/// Two processes on one Redis, and a Prometheus that asks both.
fn two(worlds: &[World; 2], role: &str) -> (Prometheus, [Running; 2]) {
    let running = worlds.each_ref().map(|world| {
        let running = world.spawn(&["run", role]);
        running.wait_ready(world);
        running
    });
    let targets = worlds.each_ref().map(|world| world.admin.to_string());
    (Prometheus::start(&targets), running)
}

#[test]
fn autoscalers_read_the_backlog_of_a_queue_once_however_many_report_it() {
    if !can_run() {
        return;
    }
    let server = redis::Server::start(redis::DURABLE);
    let mut worlds = [World::new(), World::new()];
    for world in &mut worlds {
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        // The listener would be the same for the two of them.
        world.set("TOWPATH_INGEST__WORKER__SINK", "stdout");
    }
    let (prometheus, _workers) = two(&worlds, "ingest.worker");
    worlds[0].ok(&["queue", "pause", "messages"]);
    let send = |lines: std::ops::Range<u32>| {
        let input = worlds[0].folder.join("lines");
        let lines: String = lines.map(|number| format!("{number}\n")).collect();
        fs::write(&input, lines).unwrap();
        let mut send = worlds[0].command(&["send", "messages", "--lines"]);
        let input = fs::File::open(&input).unwrap();
        assert!(send.stdin(input).status().unwrap().success());
    };
    wants(&prometheus, WORKER, 0.0, 1.0);
    send(0..1);
    wants(&prometheus, WORKER, 1.0, 1.0);
    send(1..2_500);
    wants(&prometheus, WORKER, 2_500.0, 3.0);
    send(2_500..10_000);
    wants(&prometheus, WORKER, 10_000.0, 8.0);
    worlds[0].ok(&["queue", "resume", "messages"]);
    wants(&prometheus, WORKER, 0.0, 1.0);
}

#[test]
fn autoscalers_read_the_backlog_of_two_writers() {
    if !can_run() {
        return;
    }
    let server = redis::Server::start(redis::DURABLE);
    let mut worlds = [World::new(), World::new()];
    for world in &mut worlds {
        let input = world.folder.join("input.txt");
        world.set("INPUT_PATH", input.display());
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        // Nothing can be written there for now.
        fs::create_dir(world.folder.join("output.txt")).unwrap();
    }
    let (prometheus, _both) = two(&worlds, "lines.reader,lines.writer");
    let lines: String = (0..25_000).map(|number| format!("{number}\n")).collect();
    fs::write(worlds[0].folder.join("input.txt"), lines).unwrap();
    // Also the entries that both of them hold.
    wants(&prometheus, WRITER, 25_000.0, 3.0);
    for world in &worlds {
        fs::remove_dir(world.folder.join("output.txt")).unwrap();
    }
    wants(&prometheus, WRITER, 0.0, 2.0);
}
