//! `kill -9` of a process that uses the backend: acknowledged messages survive.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use rand::Rng;

use crate::Subject;
use crate::world::{ack, enqueue, lease, lease_as, payloads, stats};

/// Makes the test binary the process that is killed: subject and folder.
const ROLE: &str = "TOWPATH_TEST_KILLED";

/// Of the process that is killed; longer than it takes to ack.
const KILLED_LEASE: Duration = Duration::from_secs(5);

/// Longest time until it has done something.
const BEGIN: Duration = Duration::from_secs(60);

/// Runs the process to be killed, when this is it.
pub fn child_main(subjects: &'static [Subject]) -> bool {
    let Ok(role) = std::env::var(ROLE) else {
        return false;
    };
    let Some((name, folder)) = role.split_once('|') else {
        return false;
    };
    let Some(subject) = subjects.iter().find(|subject| subject.name == name) else {
        return false;
    };
    crate::runtime()
        .expect("a runtime")
        .block_on(work(subject, PathBuf::from(folder)));
    true
}

/// Enqueues and acks without end, and reports acknowledged messages.
async fn work(subject: &Subject, folder: PathBuf) {
    let backend = (subject.open)(folder).await.expect("open");
    let queue = backend.require_queue("the suite").expect("queues");
    let mut out = std::io::stdout();
    let mut report = |what: &str, payloads: &[String]| {
        for payload in payloads {
            writeln!(out, "{what} {payload}").expect("the parent reads");
        }
        out.flush().expect("the parent reads");
    };
    for number in 0_u64.. {
        let batch: Vec<String> = (0..3).map(|one| format!("{number}-{one}")).collect();
        enqueue(
            &queue,
            &batch.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
        report("there", &batch);
        if number.is_multiple_of(4) {
            let held = lease_as(&queue, "killed", 2, KILLED_LEASE, Duration::ZERO).await;
            let batch = payloads(&held);
            // Reported before the ack: from here on either outcome is correct.
            report("maybe", &batch);
            ack(&queue, &held).await;
            report("gone", &batch);
        }
    }
}

/// Kills it a few times at random moments, and compares.
pub(crate) fn survives(subject: &'static Subject) -> Result<(), Failed> {
    for _ in 0..3 {
        let folder = tempfile::tempdir()?;
        // Opened here first: a server that it needs is started by this process, and outlives the child.
        crate::runtime()?.block_on(async {
            let backend = (subject.open)(folder.path().to_owned())
                .await
                .expect("open");
            backend.lifecycle.close().await.expect("close");
        });
        let mut child = Command::new(std::env::current_exe()?)
            .env(
                ROLE,
                format!("{}|{}", subject.name, folder.path().display()),
            )
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = child.stdout.take().ok_or("no standard output")?;
        let (first, begun) = std::sync::mpsc::sync_channel(1);
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(lines).lines().map_while(Result::ok);
            // The first line is enough: later ones find the channel full.
            let lines = lines.inspect(|_| {
                first.try_send(()).ok();
            });
            lines.collect::<Vec<_>>()
        });
        begun.recv_timeout(BEGIN)?;
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(150..500)));
        child.kill()?;
        child.wait()?;
        let output = reader.join().map_err(|_| "the reader panicked")?;
        let named = |what: &str| -> BTreeSet<String> {
            output
                .iter()
                .filter_map(|line| Some(line.strip_prefix(what)?.strip_prefix(' ')?.to_owned()))
                .collect()
        };
        let (there, maybe, gone) = (named("there"), named("maybe"), named("gone"));
        if there.is_empty() {
            return Err("it was killed before it did anything".into());
        }
        let runtime = crate::runtime()?;
        let found: BTreeSet<String> = runtime.block_on(async {
            let backend = (subject.open)(folder.path().to_owned())
                .await
                .expect("open");
            let queue = backend.require_queue("the suite").expect("queues");
            let mut found = BTreeSet::new();
            loop {
                // A backend that outlives the process returns its deliveries when the lease expires.
                let held = lease(&queue, 500).await;
                found.extend(payloads(&held));
                ack(&queue, &held).await;
                let stats = stats(&queue).await;
                if stats.ready + stats.delayed + stats.leased == 0 {
                    break;
                }
            }
            backend.lifecycle.close().await.expect("close");
            found
        });
        if let Some(lost) = there
            .iter()
            .find(|id| !found.contains(*id) && !maybe.contains(*id))
        {
            return Err(format!("{lost} was acknowledged and lost").into());
        }
        if let Some(again) = gone.iter().find(|id| found.contains(*id)) {
            return Err(format!("{again} was acked and delivered again").into());
        }
    }
    Ok(())
}
