//! Each script of ours happens whole or not at all, whatever fails in it.
//!
//! For every step that the ports offer: a database with everything in it is put back, one thing is broken (the type of
//! one key, the right to one command or one key, the memory, the replicas, a counter, the ids of a stream), the step
//! runs, and where it fails every key must be unchanged.

mod fixture;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Value};
use towpath_core::{Error, ErrorKind};
use towpath_testkit::Own;

use super::redis::{EPHEMERAL, Server};
use super::*;
use fixture::Fixture;
use steps::Step;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_queue_step_that_fails_changes_nothing,
        a_settling_step_that_fails_changes_nothing,
        an_operators_step_that_fails_changes_nothing,
        tending_that_fails_changes_nothing,
        a_stream_step_that_fails_changes_nothing,
        a_step_over_several_ports_that_fails_changes_nothing,
    ]
}

async fn a_queue_step_that_fails_changes_nothing() {
    run(steps::QUEUE).await;
}

async fn a_settling_step_that_fails_changes_nothing() {
    run(steps::SETTLE).await;
}

async fn an_operators_step_that_fails_changes_nothing() {
    run(steps::OPERATE).await;
}

async fn tending_that_fails_changes_nothing() {
    run(steps::MAINTAIN).await;
}

async fn a_stream_step_that_fails_changes_nothing() {
    run(steps::STREAM).await;
}

async fn a_step_over_several_ports_that_fails_changes_nothing() {
    run(steps::EFFECTS).await;
}

/// The fault to inject.
#[derive(Debug, Clone)]
enum Fault {
    /// The key holds another type of value.
    Type(String, &'static str),
    /// The user may not run the command.
    Command(String),
    /// The user may not touch the key, or only read it.
    Key(String, bool),
    Memory,
    Replicas,
    /// A field that is counted in holds text.
    Count(&'static str),
    /// The stream has given out its last id.
    Ids,
}

/// Keys with their types; with none for those that may be made.
type Keys = BTreeMap<String, String>;

/// Every key with its `DUMP`.
type Snapshot = BTreeMap<String, Vec<u8>>;

/// A server of the test's own, a bare connection to it, and the data restored before each run.
struct FaultRunner {
    server: Server,
    connection: MultiplexedConnection,
    fixture: Fixture,
    saved: Snapshot,
}

/// Longer than any step takes, and shorter than the pause before the first round of tending, which would change keys.
const QUIET: Duration = Duration::from_millis(900);

const COUNTS: &[&str] = &[
    "ticket",
    "attempts",
    "enqueued",
    "acked",
    "retried",
    "dropped",
    "duplicates",
];

async fn run(steps: &[Step]) {
    // `DUMP` of a small encoding does not depend on the order in which a table was filled.
    let small = [
        "--hash-max-listpack-value",
        "8192",
        "--zset-max-listpack-value",
        "8192",
    ];
    let server = Server::start(&[EPHEMERAL, &small].concat());
    let client = ::redis::Client::open(server.url()).expect("a URL");
    let connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("connects");
    let fixture = fixture::populate(&server).await;
    let mut bench = FaultRunner {
        server,
        connection,
        fixture,
        saved: Snapshot::new(),
    };
    bench.saved = bench.snapshot().await;
    for step in steps {
        bench.check(step).await;
    }
}

impl FaultRunner {
    async fn check(&mut self, step: &Step) {
        let touched = self.rehearse(step).await;
        let mut faults = vec![Fault::Memory, Fault::Replicas, Fault::Ids];
        faults.extend(COUNTS.iter().map(|field| Fault::Count(field)));
        for key in touched.keys.keys() {
            faults.extend(["string", "list"].map(|kind| Fault::Type(key.clone(), kind)));
            faults.extend([true, false].map(|reads| Fault::Key(key.clone(), reads)));
        }
        faults.extend(touched.commands.iter().cloned().map(Fault::Command));
        // Of steps over several scripts, or that take long, only the keys of the step under test.
        faults.retain(
            |fault| !matches!(fault, Fault::Type(key, _) | Fault::Key(key, _) if !step.touches(key)),
        );
        let mut failed = 0;
        for fault in &faults {
            failed += u32::from(self.try_fault(step, fault, &touched.keys).await);
        }
        assert!(
            failed >= step.at_least,
            "`{}` failed {failed} times only",
            step.name
        );
    }

    /// Runs the step unbroken: the keys and commands that it may use.
    async fn rehearse(&mut self, step: &Step) -> Touched {
        self.put_back().await;
        let mut keys = self.types().await;
        self.server.command(&["CONFIG", "RESETSTAT"]);
        let url = self.server.url();
        let outcome = (step.run)(
            open(&format!("{url}?{}", step.parameters)).await,
            self.fixture.clone(),
        )
        .await;
        outcome.unwrap_or_else(|error| panic!("`{}` unbroken: {error:?}", step.name));
        let commands = self
            .stats()
            .await
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next())
            .filter(|name| {
                !matches!(
                    *name,
                    "info"
                        | "evalsha"
                        | "script|load"
                        | "hello"
                        | "config|resetstat"
                        | "client|setinfo"
                )
            })
            .map(str::to_owned)
            .collect();
        keys.extend(self.types().await);
        for key in fixture::keys() {
            keys.entry(key).or_default();
        }
        Touched { keys, commands }
    }

    /// Whether the step failed; if so, nothing has changed.
    async fn try_fault(&mut self, step: &Step, fault: &Fault, keys: &Keys) -> bool {
        loop {
            self.put_back().await;
            if !self.break_it(fault, keys).await {
                return false;
            }
            let before = self.snapshot().await;
            let user = matches!(fault, Fault::Command(_) | Fault::Key(..));
            let account = if user { "user:secret@" } else { "" };
            let url = format!(
                "redis://{account}127.0.0.1:{}?{}",
                self.server.port(),
                step.parameters
            );
            self.server.command(&["CONFIG", "RESETSTAT"]);
            let began = Instant::now();
            let backend = open(&url).await;
            let outcome = (step.run)(backend, self.fixture.clone()).await;
            if !step.tends() && began.elapsed() > QUIET {
                continue;
            }
            let after = self.snapshot().await;
            self.mend().await;
            let error = match outcome {
                Err(error) => error,
                Ok(()) if step.tends() && self.scripts_failed().await => {
                    Error::unavailable("tending")
                }
                Ok(()) => return false,
            };
            assert_is_the_servers(step, fault, &error);
            for (key, was) in &before {
                assert!(
                    after.get(key) == Some(was),
                    "`{}` with {fault:?} changed `{key}` and failed: {error:?}",
                    step.name
                );
            }
            let made: Vec<_> = after
                .keys()
                .filter(|key| !before.contains_key(*key))
                .collect();
            assert!(
                made.is_empty(),
                "`{}` with {fault:?} made {made:?} and failed: {error:?}",
                step.name
            );
            return true;
        }
    }

    /// False when there is nothing to break.
    async fn break_it(&mut self, fault: &Fault, keys: &Keys) -> bool {
        match fault {
            Fault::Type(key, kind) => {
                // A value in place of an id is damage of another kind.
                let is_id = *kind == "string" && key.contains(":dedup:");
                if is_id || keys.get(key).is_some_and(|right| right == kind) {
                    return false;
                }
                self.query(::redis::cmd("DEL").arg(key)).await;
                let words: &[&str] = match *kind {
                    "string" => &["SET", key, "x"],
                    _ => &["LPUSH", key, "x"],
                };
                self.server.command(words);
            }
            Fault::Command(name) => {
                let without = format!("-{name}");
                self.user(&["~*", "+@all", &without]).await;
            }
            Fault::Key(key, reads) => {
                let mut rules = vec!["+@all".to_owned()];
                let others = keys.keys().filter(|one| *one != key);
                rules.extend(others.map(|one| format!("~{}", one.replace(['*', '?', '['], "?"))));
                if *reads {
                    rules.push(format!("%R~{key}"));
                }
                let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
                self.user(&rules).await;
            }
            Fault::Memory => drop(self.server.command(&["CONFIG", "SET", "maxmemory", "1"])),
            Fault::Replicas => {
                drop(
                    self.server
                        .command(&["CONFIG", "SET", "min-replicas-to-write", "1"]),
                );
            }
            Fault::Count(field) => {
                self.server
                    .command(&["HSET", "towpath:{messages}:queue", field, "x"]);
            }
            Fault::Ids => {
                self.server.command(&[
                    "XADD",
                    "lines",
                    "18446744073709551615-18446744073709551615",
                    "line",
                    "x",
                ]);
            }
        }
        true
    }

    async fn user(&mut self, rules: &[&str]) {
        let mut set = ::redis::cmd("ACL");
        set.arg("SETUSER")
            .arg("user")
            .arg("reset")
            .arg("on")
            .arg(">secret")
            .arg(rules);
        self.query(&set).await;
    }

    async fn mend(&mut self) {
        self.server.command(&["CONFIG", "SET", "maxmemory", "0"]);
        self.server
            .command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    }

    async fn put_back(&mut self) {
        self.mend().await;
        let mut all = ::redis::pipe();
        all.cmd("FLUSHALL").ignore();
        for (key, dump) in &self.saved {
            all.cmd("RESTORE").arg(key).arg(0).arg(dump).ignore();
        }
        all.query_async::<()>(&mut self.connection)
            .await
            .expect("restored");
    }

    async fn snapshot(&mut self) -> Snapshot {
        let Value::Array(keys) = self.query(::redis::cmd("KEYS").arg("*")).await else {
            panic!("keys")
        };
        let mut all = Snapshot::new();
        for key in keys {
            let Value::BulkString(key) = key else {
                panic!("a key")
            };
            let dump = self.query(::redis::cmd("DUMP").arg(&key)).await;
            // One that expires in between is gone.
            if let Value::BulkString(dump) = dump {
                all.insert(String::from_utf8(key).expect("text"), dump);
            }
        }
        all
    }

    async fn types(&mut self) -> Keys {
        let mut keys = Keys::new();
        for key in self.snapshot().await.into_keys() {
            let Value::SimpleString(kind) = self.query(::redis::cmd("TYPE").arg(&key)).await else {
                panic!("a type")
            };
            keys.insert(key, kind);
        }
        keys
    }

    async fn stats(&mut self) -> String {
        let stats = self.query(::redis::cmd("INFO").arg("commandstats")).await;
        let Value::BulkString(stats) = stats else {
            panic!("{stats:?}")
        };
        String::from_utf8_lossy(&stats).into_owned()
    }

    /// Since the counts were reset.
    async fn scripts_failed(&mut self) -> bool {
        let stats = self.stats().await;
        let line = stats
            .lines()
            .find(|line| line.starts_with("cmdstat_evalsha:"));
        line.is_some_and(|line| !line.contains("failed_calls=0"))
    }

    async fn query(&mut self, cmd: &Cmd) -> Value {
        cmd.query_async(&mut self.connection)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

struct Touched {
    keys: Keys,
    commands: BTreeSet<String>,
}

/// A refusal of the server is not the caller's mistake, and no text of a script gets out.
fn assert_is_the_servers(step: &Step, fault: &Fault, error: &Error) {
    let text = error.chain();
    // A caller of keys and values that took one for the other.
    let mixed_up = [" holds fields", " holds a value"];
    let mixed_up = mixed_up.iter().any(|words| text.contains(words));
    assert!(
        error.kind() == ErrorKind::Unavailable || mixed_up,
        "`{}` with {fault:?}: {error:?}",
        step.name
    );
    assert!(
        !text.contains("script:") && !text.contains("user_script"),
        "{text}"
    );
    assert!(!text.contains("bug:"), "{text}");
}
