//! Each role with its backend unavailable, its database unavailable, its sink failing and its store full: exactly that
//! problem, exactly its own roles not ready, the others untouched.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use towpath_testkit::proxy::{Fault, Proxy};
use towpath_testkit::servers::{postgres, redis};

use crate::disk::SmallDisk;
use crate::orders::{order, set_stock};
use crate::process::{World, able, free_ports, wait_until};

/// A problem shows within this time, and goes within this time after its end; twice that on a machine that runs other
/// tests.
const SHOWN: Duration = Duration::from_secs(20);

/// A fault, and its consequences.
pub(crate) struct Row<'a> {
    pub(crate) what: &'static str,
    /// Breaks it, or repairs it.
    pub(crate) set: Box<dyn FnMut(bool) + 'a>,
    /// The one problem, and the beginning of its subject.
    pub(crate) problem: (&'static str, String),
    /// What its cause names.
    pub(crate) cause: &'static str,
    pub(crate) unready: &'static [&'static str],
}

/// Name, subject and cause of each problem.
fn problems(world: &World) -> Vec<(String, String, String)> {
    let bearer = world.bearer();
    let mut client = world.admin_client();
    let answer = client.send("GET", "/v1/problems", &[("authorization", &bearer)], b"");
    let answer = answer.unwrap().json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = answer.as_array().unwrap().iter();
    all.map(|one| {
        let [problem, subject, cause] = ["problem", "subject", "cause"].map(|key| text(&one[key]));
        (problem, subject, cause)
    })
    .collect()
}

/// The roles of the process, and those of them that are not ready.
fn unready(world: &World) -> (usize, BTreeSet<String>) {
    let mut client = world.admin_client();
    let unknown = client.get("/readyz/none").text();
    let (_, roles) = unknown.split_once("these do: ").unwrap();
    let roles: Vec<String> = roles.trim().split(", ").map(str::to_owned).collect();
    let count = roles.len();
    let is_down = |role: &String| client.get(&format!("/readyz/{role}")).status != 200;
    (count, roles.into_iter().filter(is_down).collect())
}

/// Breaks one after the other; the previous one is repaired in the same moment.
pub(crate) fn walk(world: &World, rows: Vec<Row<'_>>) {
    wait_until("no problems", SHOWN, || problems(world).is_empty());
    let (count, down) = unready(world);
    assert!(count >= 10 && down.is_empty(), "{down:?} of {count}");
    let mut before: Option<Row<'_>> = None;
    for mut row in rows {
        if let Some(mut mended) = before.take() {
            (mended.set)(false);
        }
        (row.set)(true);
        let (problem, subject) = &row.problem;
        let expected: BTreeSet<String> = row.unready.iter().map(ToString::to_string).collect();
        let began = Instant::now();
        loop {
            let (found, down) = (problems(world), unready(world).1);
            let is_it = |(one, of, cause): &(String, String, String)| {
                one == problem && of.starts_with(subject) && cause.contains(row.cause)
            };
            if found.len() == 1 && found.iter().all(is_it) && down == expected {
                break;
            }
            assert!(began.elapsed() < SHOWN, "{}: {found:?} {down:?}", row.what);
            std::thread::sleep(Duration::from_millis(100));
        }
        before = Some(row);
    }
    if let Some(mut last) = before {
        (last.set)(false);
    }
    wait_until("no problems", SHOWN, || problems(world).is_empty());
    assert_eq!(unready(world).1, BTreeSet::new());
    let queues = world.json(&["queue", "ls"]);
    let dead = queues.as_array().unwrap().iter().map(|one| &one["dead"]);
    assert!(dead.clone().all(|dead| dead == 0), "{queues}");
}

/// Backends of the apps, by the key that names them, and the roles that need them.
const BACKENDS: &[(&str, &[&str])] = &[
    ("INGEST", &["ingest.api", "ingest.worker"]),
    (
        "ORDERS",
        &[
            "orders.dashboard",
            "orders.gateway",
            "orders.notifier",
            "orders.notifier.rejected",
            "orders.processor",
        ],
    ),
    ("LIMITS", &["accounts.api", "accounts.limits"]),
    ("RELAY", &["accounts.relay"]),
    ("FLEET", &["fleet.callbacks", "fleet.worker"]),
];

#[test]
fn a_backend_or_a_full_store_is_the_problem_of_its_roles_alone() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    let settings = ["--appendonly", "yes", "--appendfsync", "always"];
    let server = redis::Server::start(&settings);
    let port: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), 96);
    let has_disk = able("tmpfs", disk.is_some());
    let mut world = match has_disk {
        true => World::at(&folder.path().join("disk")),
        false => World::new(),
    };
    world
        .set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB")
        .set("TOWPATH_EMBEDDED__DISK_RESERVE", "8MiB");
    let runtime = Runtime::new().unwrap();
    let proxies = BACKENDS
        .iter()
        .map(|_| runtime.block_on(Proxy::start(port)));
    let proxies: Vec<Proxy> = proxies.collect();
    for ((key, _), proxy) in BACKENDS.iter().zip(&proxies) {
        // The fleet is last: it is on the embedded store for the row of the full one.
        if *key != "FLEET" || !has_disk {
            let url = format!("redis://127.0.0.1:{}", proxy.port());
            world.set(&format!("TOWPATH_BACKENDS__{key}"), url);
        }
    }
    let _running = world.up();
    let mut rows: Vec<Row<'_>> = Vec::new();
    for ((key, unready), proxy) in BACKENDS.iter().zip(&proxies) {
        if *key == "FLEET" && has_disk {
            continue;
        }
        rows.push(Row {
            what: key,
            set: Box::new(|is_broken| {
                proxy.set(if is_broken { Fault::Reset } else { Fault::None });
            }),
            problem: (
                "backend_unreachable",
                format!("redis://127.0.0.1:{}", proxy.port()),
            ),
            cause: "",
            unready,
        });
    }
    if has_disk {
        let filler = folder.path().join("disk").join("filler");
        rows.push(Row {
            what: "full store",
            set: Box::new(move |is_broken| {
                if is_broken {
                    // Down to less than the reserve.
                    let disk = rustix::fs::statvfs(filler.parent().unwrap()).unwrap();
                    let free = disk.f_bavail * disk.f_frsize;
                    let size = usize::try_from(free.saturating_sub(4 << 20)).unwrap();
                    std::fs::write(&filler, vec![0; size]).unwrap();
                } else {
                    std::fs::remove_file(&filler).unwrap();
                }
            }),
            problem: ("store_refusing", String::new()),
            cause: "disk is low",
            // Callbacks are delivered all the same.
            unready: &["fleet.worker"],
        });
    }
    walk(&world, rows);
}

#[test]
fn a_database_or_a_sink_is_the_problem_of_its_roles_alone() {
    if !able("postgres", postgres::missing().is_none()) {
        return;
    }
    let server = postgres::Server::start();
    let (accounts, fleet) = (server.create("accounts"), server.create("fleet"));
    let port = |url: &str| -> u16 {
        let (_, place) = url.rsplit_once(':').unwrap();
        place.split('/').next().unwrap().parse().unwrap()
    };
    let runtime = Runtime::new().unwrap();
    let start = |url| runtime.block_on(Proxy::start(port(url)));
    let proxies = [start(&accounts), start(&fleet)];
    let through = |url: &str, proxy: &Proxy| {
        url.replace(&format!(":{}/", port(url)), &format!(":{}/", proxy.port()))
    };
    let (receiver, orders) = (free_ports().0, free_ports().1);
    let mut world = World::new();
    world
        .set(
            "TOWPATH_ACCOUNTS__DATABASE",
            through(&accounts, &proxies[0]),
        )
        .set(
            "TOWPATH_FLEET__CONTROLLER__DATABASE",
            through(&fleet, &proxies[1]),
        )
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{receiver}/"),
        )
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "webhook")
        .set(
            "TOWPATH_ORDERS__NOTIFY__WEBHOOK__URL",
            format!("http://{orders}/"),
        );
    let _running = world.up();
    let [accounts, fleet] = &proxies;
    let fault = |proxy: &Proxy, is_broken| {
        proxy.set(if is_broken { Fault::Reset } else { Fault::None });
    };
    let rows = vec![
        Row {
            what: "database of accounts",
            set: Box::new(|is_broken| fault(accounts, is_broken)),
            problem: ("database_unreachable", "database".to_owned()),
            cause: "",
            unready: &["accounts.api", "accounts.relay", "database"],
        },
        Row {
            what: "database of the fleet",
            set: Box::new(|is_broken| fault(fleet, is_broken)),
            problem: ("database_unreachable", "fleet.database".to_owned()),
            cause: "",
            unready: &["fleet.controller"],
        },
        Row {
            what: "receiver of messages",
            set: Box::new(|is_broken| match is_broken {
                true => {
                    let sent = world.client().post("/enqueue", &[], b"one");
                    assert_eq!(sent.status, 200, "{}", sent.text());
                }
                false => accept_all(receiver),
            }),
            problem: ("sink_failing", "ingest.worker".to_owned()),
            cause: "queue `messages`: destination `http://127.0.0.1:",
            unready: &["ingest.worker"],
        },
        Row {
            what: "receiver of notifications",
            set: Box::new(|is_broken| match is_broken {
                true => {
                    set_stock(&world, "case", 5);
                    let sent = order(&mut world.client(), "one", "case", 1);
                    assert_eq!(sent.status, 202, "{}", sent.text());
                }
                false => accept_all(orders),
            }),
            problem: ("sink_failing", "orders.notifier".to_owned()),
            cause: "queue `notifier.queue`: destination `http://127.0.0.1:",
            unready: &["orders.notifier"],
        },
    ];
    walk(&world, rows);
    // The breaker of a database shows as a destination does.
    for name in ["database", "fleet.database"] {
        let series = format!("towpath_destinations{{role=\"{name}\",state=\"paused\"}}");
        assert!(world.metric(&series).abs() < f64::EPSILON, "{series}");
    }
}

#[test]
fn lines_agents_and_mails_fail_alone() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    let server = redis::Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let port: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut world = World::new();
    let start = |port| runtime.block_on(Proxy::start(port));
    let [store, controller, worker] = [port, world.controller.port(), world.hits.port()].map(start);
    let at = |proxy: &Proxy| format!("127.0.0.1:{}", proxy.port());
    let (mail, nowhere) = free_ports();
    let (input, output) = (world.folder.join("input.txt"), world.folder.join("out.txt"));
    std::fs::write(&input, "").unwrap();
    world
        .set("TOWPATH_BACKENDS__LINES", format!("redis://{}", at(&store)))
        .set("TOWPATH_LINES__INPUT", input.display())
        .set("TOWPATH_LINES__OUTPUT", output.display())
        .set(
            "TOWPATH_FLEET__AGENT__CONTROLLER",
            format!("http://{}", at(&controller)),
        )
        .set(
            "TOWPATH_FLEET__AGENT__WORKERS",
            format!("http://{}", at(&worker)),
        )
        .set("TOWPATH_FLEET__AGENT__POLL", "1s")
        .set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1")
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "smtp")
        .set(
            "TOWPATH_ORDERS__NOTIFY__SMTP__URL",
            format!("smtp://{mail}"),
        )
        .set("TOWPATH_ORDERS__NOTIFY__SMTP__TO", "desk@example.org");
    let _running = world.up();
    let url = format!("url=http://{nowhere}/");
    world.ok(&["fleet", "config", "publish", &url, "--poll", "1", "--wait"]);
    let fault = |proxy: &Proxy, is_broken| {
        proxy.set(if is_broken { Fault::Reset } else { Fault::None });
    };
    let replace = |path: &std::path::Path, is_broken| {
        let aside = path.with_extension("aside");
        if is_broken {
            std::fs::rename(path, &aside).ok();
            std::fs::create_dir(path).unwrap();
        } else {
            std::fs::remove_dir(path).unwrap();
            std::fs::rename(&aside, path).ok();
        }
    };
    let agent = || ("role_failing", "fleet.agent".to_owned());
    let rows = vec![
        Row {
            what: "store of lines",
            set: Box::new(|is_broken| fault(&store, is_broken)),
            problem: ("backend_unreachable", format!("redis://{}", at(&store))),
            cause: "",
            unready: &["lines.reader", "lines.writer"],
        },
        Row {
            what: "output of lines",
            set: Box::new(|is_broken| {
                replace(&output, is_broken);
                std::fs::write(&input, "one\ntwo\n").unwrap();
            }),
            problem: ("sink_failing", "lines.writer".to_owned()),
            cause: "queue `line_stream`: ",
            unready: &["lines.writer"],
        },
        Row {
            what: "input of lines",
            set: Box::new(|is_broken| replace(&input, is_broken)),
            problem: ("role_failing", "lines.reader".to_owned()),
            cause: "input.txt",
            unready: &["lines.reader"],
        },
        Row {
            what: "controller of the agent",
            set: Box::new(|is_broken| fault(&controller, is_broken)),
            problem: agent(),
            cause: "",
            unready: &["fleet.agent"],
        },
        Row {
            what: "mail server",
            set: Box::new(|is_broken| match is_broken {
                true => {
                    set_stock(&world, "case", 5);
                    let sent = order(&mut world.client(), "one", "case", 1);
                    assert_eq!(sent.status, 202, "{}", sent.text());
                }
                false => drop(crate::mail::MailServer::start_at(mail)),
            }),
            problem: ("sink_failing", "orders.notifier".to_owned()),
            cause: "queue `notifier.queue`: destination `smtp://",
            unready: &["orders.notifier"],
        },
        Row {
            what: "worker of the agent",
            set: Box::new(|is_broken| fault(&worker, is_broken)),
            problem: agent(),
            cause: "",
            unready: &["fleet.agent"],
        },
    ];
    walk(&world, rows);
    // The URL of a task is a client's: it concerns its tasks, and the metric.
    world.ok(&["task", "start"]);
    let paused = "towpath_destinations{role=\"fleet.worker\",state=\"paused\"}";
    wait_until("the pause", SHOWN, || world.metric(paused) > 0.5);
    assert_eq!(problems(&world), []);
    assert_eq!(unready(&world).1, BTreeSet::new());
}

#[test]
fn a_paused_database_refuses_at_once_and_says_when_to_come_back() {
    if !able("postgres", postgres::missing().is_none()) {
        return;
    }
    let server = postgres::Server::start();
    let url = server.create("accounts");
    let (_, place) = url.rsplit_once(':').unwrap();
    let port: u16 = place.split('/').next().unwrap().parse().unwrap();
    let runtime = Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(port));
    let mut world = World::new();
    let through = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    world.set("TOWPATH_ACCOUNTS__DATABASE", through);
    let running = world.up();
    let paused = || world.metric("towpath_destinations{role=\"database\",state=\"paused\"}");
    assert!(paused() < 0.5);
    // Nothing arrives: without a pause each request waits for its deadline.
    proxy.set(Fault::BlackHole);
    wait_until("the pause", Duration::from_secs(60), || paused() > 0.5);
    let began = Instant::now();
    let refused: Vec<_> = (0..20)
        .map(|_| world.client().get("/api/users"))
        .filter(|answer| answer.status == 503)
        .collect();
    assert!(refused.len() >= 18, "{}", refused.len());
    assert!(began.elapsed() < Duration::from_secs(20));
    for answer in &refused {
        assert_eq!(answer.headers["retry-after"], "1", "{}", answer.text());
    }
    proxy.set(Fault::None);
    wait_until("the end of the pause", SHOWN, || paused() < 0.5);
    wait_until("an answer", SHOWN, || {
        world.client().get("/api/users").status == 200
    });
    let log = running.log();
    for line in ["database paused", "database resumed"] {
        assert_eq!(log.matches(line).count(), 1, "{line}: {log}");
    }
}

/// A receiver at this address, from now on.
fn accept_all(address: SocketAddr) {
    crate::web::serve_at((Ipv4Addr::LOCALHOST, address.port()), |_| {
        crate::web::Reply::text(200, "")
    });
}
