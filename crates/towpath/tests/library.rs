//! The library as a program uses it: results of handlers, concurrency, stop, groups; and the examples, each run once.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]
#![expect(clippy::disallowed_methods, reason = "tasks of tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towpath::{
    Engine, Job, JobError, NewMessage, Queue, Settings, Stats, Worker, WorkerBuilder, retry,
};
use towpath_testkit::servers::postgres;

const SOON: Duration = Duration::from_secs(20);

/// An embedded store in a folder of its own.
async fn engine() -> (Engine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("embedded:{}?durability=os", folder.path().display());
    (Engine::open(&url).await.unwrap(), folder)
}

/// A queue that tries three times without a pause.
async fn queue(engine: &Engine) -> Queue {
    let retry = retry::Policy {
        attempts: 3,
        first: Duration::from_millis(1),
        max: Duration::from_millis(1),
    };
    let settings = Settings {
        retry,
        ..Settings::default()
    };
    engine.queue_with("jobs", settings).await.unwrap()
}

/// Resolves when the counts of the queue are as expected.
async fn reached(queue: &Queue, is_over: impl Fn(&Stats) -> bool) {
    let all = async {
        while !is_over(&queue.stats().await.unwrap()) {
            // There is no event for a settlement.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(SOON, all).await;
    assert!(ended.is_ok(), "{:?}", queue.stats().await);
}

/// Deliveries of each payload.
type Attempts = Arc<Mutex<BTreeMap<String, u32>>>;

#[tokio::test(flavor = "multi_thread")]
async fn results_of_a_handler_decide_about_its_message() {
    let (engine, _folder) = engine().await;
    let queue = queue(&engine).await;
    let payloads = ["done", "broken", "refused", "away", "panics", "slow"];
    let messages = payloads.map(NewMessage::from);
    for outcome in queue.send_all(messages).await.unwrap() {
        outcome.unwrap();
    }
    let attempts = Attempts::default();
    let seen = Arc::clone(&attempts);
    let worker = Worker::builder(&queue)
        .timeout(Duration::from_millis(100))
        .handler(move |job: Job| {
            let mut seen = seen.lock().unwrap();
            let count = seen.entry(job.text().unwrap().to_owned()).or_default();
            *count += 1;
            let first = *count == 1;
            async move {
                match job.text()? {
                    "broken" => {
                        job.json::<u64>()?;
                    }
                    "refused" => return Err(JobError::dead_letter("not for us")),
                    "away" if first => {
                        return Err(JobError::unavailable(Duration::ZERO, "no answer"));
                    }
                    "panics" if first => panic!("at the first attempt"),
                    "slow" if first => std::future::pending().await,
                    _ => {}
                }
                if job.text()? == "away" {
                    // The first delivery did not count.
                    assert_eq!(job.attempt(), 1);
                }
                Ok(())
            }
        });
    let over = reached(&queue, |stats| (stats.acked, stats.dead) == (4, 2));
    let report = worker.unwrap().run_until(over).await;
    assert!(report.is_clean(), "{report:?}");
    let counts = attempts.lock().unwrap().clone();
    let expected = [
        ("away", 2),
        ("broken", 3),
        ("done", 1),
        ("panics", 2),
        ("refused", 1),
        ("slow", 2),
    ];
    assert_eq!(
        counts,
        expected
            .map(|(text, count)| (text.to_owned(), count))
            .into()
    );
    let mut dead = queue.dead_letters(10).await.unwrap();
    dead.sort_by_key(|dead| dead.attempts);
    let reasons: Vec<&str> = dead.iter().map(|dead| dead.reason.as_str()).collect();
    assert_eq!(reasons[0], "not for us");
    assert!(
        reasons[1].starts_with("expected value at line 1"),
        "{reasons:?}"
    );
    assert_eq!(queue.redrive(10).await.unwrap(), 2);
    engine.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_jobs_that_have_begun_and_begins_no_more() {
    let (engine, _folder) = engine().await;
    let queue = queue(&engine).await;
    for number in 0..10 {
        queue.send(number.to_string()).await.unwrap();
    }
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (now, highest, open) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
    let worker = Worker::builder(&queue)
        .concurrency(4)
        .handler(move |_: Job| {
            let (now, highest, open) = (Arc::clone(&now), Arc::clone(&highest), Arc::clone(&open));
            async move {
                let count = now.fetch_add(1, Ordering::SeqCst) + 1;
                highest.fetch_max(count, Ordering::SeqCst);
                let _permit = open.acquire().await?;
                Ok(())
            }
        });
    let stop = async {
        while running.load(Ordering::SeqCst) < 4 {
            // Four jobs wait at the gate before the stop.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            // The stop comes first, then the jobs may end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            gate.add_permits(10);
        });
    };
    let report = worker.unwrap().run_until(stop).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(most.load(Ordering::SeqCst), 4);
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.acked, stats.ready, stats.leased), (4, 6, 0));
    engine.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_group_reads_every_entry_and_keeps_its_dead_letters() {
    let (engine, _folder) = engine().await;
    let stream = engine.stream("changes").unwrap();
    for text in ["1", "two", "3"] {
        stream.append(text).await.unwrap();
    }
    for name in ["sums", "counts"] {
        let group = stream.group(name).await.unwrap();
        // Also when it is there already.
        stream.group(name).await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let texts = Arc::clone(&seen);
        let retry = retry::Policy {
            attempts: 2,
            first: Duration::ZERO,
            max: Duration::ZERO,
        };
        let worker = builder(&group, retry).handler(move |job: Job| {
            let texts = Arc::clone(&texts);
            async move {
                let text = job.text()?.to_owned();
                if name == "sums" {
                    text.parse::<u64>()?;
                }
                texts.lock().unwrap().push(text);
                Ok(())
            }
        });
        let finished = async {
            loop {
                let stats = stream.stats().await.unwrap();
                let group = stats
                    .groups
                    .iter()
                    .find(|group| group.group.as_str() == name);
                if group.is_some_and(|group| group.lag == 0 && group.pending == 0) {
                    break;
                }
                // There is no event for a commit.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let finished = async { tokio::time::timeout(SOON, finished).await.unwrap() };
        let report = worker.unwrap().run_until(finished).await;
        assert!(report.is_clean(), "{report:?}");
        let mut texts = seen.lock().unwrap().clone();
        texts.sort();
        let (expected, dead): (&[&str], u64) = match name {
            "sums" => (&["1", "3"], 1),
            _ => (&["1", "3", "two"], 0),
        };
        assert_eq!(texts, expected);
        let letters = engine.queue(&format!("changes.{name}.dead")).await.unwrap();
        assert_eq!(letters.stats().await.unwrap().ready, dead, "{name}");
    }
    engine.close().await.unwrap();
}

fn builder(group: &towpath::Group, retry: retry::Policy) -> WorkerBuilder {
    Worker::builder(group).retry(retry)
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    let (engine, _folder) = engine().await;
    let queue = queue(&engine).await;
    let none = Worker::builder(&queue)
        .concurrency(0)
        .handler(async |_: Job| Ok(()));
    assert_eq!(
        none.unwrap_err().to_string(),
        "`concurrency` is 0; it must be 1 or more"
    );
    let lease = Worker::builder(&queue).lease(Duration::ZERO);
    let error = lease.handler(async |_: Job| Ok(())).unwrap_err();
    assert!(error.to_string().contains("10ms to 12h"), "{error}");
    let url = "reddis://localhost";
    let error = Engine::open(url).await.unwrap_err();
    assert!(
        error.to_string().starts_with("unknown backend `reddis`"),
        "{error}"
    );
    engine.close().await.unwrap();
}

/// The output of an example; cargo builds examples with tests.
fn example(name: &str, arguments: &[&str]) -> String {
    let test = std::env::current_exe().unwrap();
    let path: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    let output = Command::new(&path).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of an output, in order of the alphabet.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn examples_print_their_results() {
    let expected = [
        "3 acked",
        "sending to: ada@example.com",
        "sending to: lin@example.com",
        "sending to: zoe@example.com",
    ];
    assert_eq!(sorted(&example("queue", &[])), expected);
    let retries = example("retries", &[]);
    let expected = [
        "2 redriven",
        "3 acked",
        "3000: attempt 3, the card was refused",
        "zero: attempt 1, `zero` is not an amount: invalid digit found in string",
    ];
    assert_eq!(sorted(&retries), expected);
    let delays = example("delays", &[]);
    let texts: Vec<&str> = delays
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(texts.len(), 4, "{delays}");
    assert_eq!(texts[3], "later", "{delays}");
    let of = |text: &str| texts.iter().position(|one| *one == text).unwrap();
    assert!(of("first of zoe") < of("second of zoe"), "{delays}");
    let expected = [
        "billing: row 1",
        "billing: row 2",
        "billing: row 3",
        "clean: true",
        "search: row 1",
        "search: row 2",
        "search: row 3",
    ];
    assert_eq!(sorted(&example("stream", &[])), expected);
    let limits = example("rate_limit", &[]);
    assert!(limits.starts_with("1: allowed, 4 left\n"), "{limits}");
    assert!(limits.ends_with("6: refused, wait 60s\n"), "{limits}");
    let outbox = example("outbox_sqlite", &[]);
    assert_eq!(sorted(&outbox), [r#"{"id":1}"#, r#"{"id":3}"#]);
    if postgres::missing().is_none() {
        let url = postgres::shared().create("example");
        let outbox = example("outbox_postgres", &[&url]);
        assert_eq!(sorted(&outbox), [r#"{"id":1}"#, r#"{"id":3}"#]);
        postgres::stop_shared();
    }
}
