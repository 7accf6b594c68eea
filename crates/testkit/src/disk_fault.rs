//! Disk faults: the n-th write, sync, read or rename of a process returns an error, for n = 1, 2, 3…
//! until a run ends without reaching the fault.
//!
//! `strace` injects the errors between a child process and the kernel, so that nothing in the code under
//! test knows of it. The child works on the backend and reports the results over a socket; acknowledged
//! messages must be there once the disk works again. For backends with files of their own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use tokio::runtime::{Builder, Runtime};
use towpath_core::NewMessage;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};

use crate::world::{LEASE, consumer, jobs, lease_now, stats};
use crate::{REQUIRE, Subject, unable};

/// Makes the test binary the process whose disk fails: subject, address to report to, folder.
const ROLE: &str = "TOWPATH_TEST_FAULTED";

/// A system call that fails.
#[derive(Clone, Copy)]
struct Fault {
    call: &'static str,
    error: &'static str,
    /// Number of failing calls from the n-th on, counted by thread; `None` for all.
    calls: Option<u32>,
}

const fn fault(call: &'static str, error: &'static str, calls: Option<u32>) -> Fault {
    Fault { call, error, calls }
}

const FAULTS: &[Fault] = &[
    fault("pwrite64", "EIO", Some(1)),
    fault("pwrite64", "ENOSPC", None),
    fault("fdatasync", "EIO", Some(1)),
    fault("fsync", "EIO", Some(1)),
    fault("write", "ENOSPC", Some(1)),
    fault("write", "ENOSPC", None),
    fault("rename", "EIO", Some(1)),
    // A failed read is retried in another way and in smaller pieces; these fail too.
    fault("preadv2,pread64", "EIO", Some(3)),
];

impl Fault {
    fn name(&self) -> String {
        let calls = self
            .calls
            .map_or_else(|| "all".to_owned(), |calls| calls.to_string());
        let call = self.call.replace(',', "_");
        format!("{call}_{}_{calls}", self.error)
    }

    /// As `strace` takes it.
    fn inject(&self, n: u32) -> String {
        let until = self
            .calls
            .map_or_else(|| "+".to_owned(), |calls| format!("..{}", n + calls - 1));
        format!("inject={}:error={}:when={n}{until}", self.call, self.error)
    }
}

/// The last n, unless `TOWPATH_SEEDS` sets another.
const LAST: u32 = 30;

/// Each n has two runs: the second opens the store of the first, with the same fault.
const RUNS: usize = 2;

const MESSAGES: u8 = 12;
const PAYLOAD_BYTES: usize = 200_000;

/// Exit code of a program whose libraries cannot be read: those reads are not the backend's.
const NOT_STARTED: i32 = 127;

/// Longer than any run may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Name of these cases in `TOWPATH_TEST_REQUIRE`, and the program that they need.
pub(crate) const TOOL: &str = "strace";

/// One case for each fault; ignored where this machine has no `strace` that may trace.
pub fn trials(subject: &'static Subject) -> Vec<Trial> {
    let able = can_trace();
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let must_run = required.split(',').any(|name| name.trim() == TOOL);
    let case = |fault: &'static Fault| {
        let name = format!("{}::disk_fault::{}", subject.name, fault.name());
        if able {
            Trial::test(name, move || survives(subject, fault))
        } else {
            let reason = "`strace` is missing or may not trace; `make setup` installs it";
            unable(name, must_run, reason.to_owned())
        }
    };
    FAULTS.iter().map(case).collect()
}

fn can_trace() -> bool {
    let tried = Command::new(TOOL)
        .args(["-f", "-qq", "-e", "trace=none", "true"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// Runs the process whose disk fails, when this is it.
pub fn child_main(subjects: &'static [Subject]) -> bool {
    let Ok(role) = std::env::var(ROLE) else {
        return false;
    };
    let [name, address, folder] = role.splitn(3, '|').collect::<Vec<_>>()[..] else {
        return false;
    };
    let Some(subject) = subjects.iter().find(|subject| subject.name == name) else {
        return false;
    };
    let out = TcpStream::connect(address).expect("the parent listens");
    // A run that does not end is a failure that must not outlive the test.
    std::thread::spawn(|| {
        std::thread::sleep(DEADLINE);
        std::process::abort();
    });
    runtime().block_on(work(subject, PathBuf::from(folder), out));
    true
}

/// Without I/O of its own, so that only the backend's calls fail.
fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime")
}

/// Enqueues and acks, continues after refusals, and reports each result.
async fn work(subject: &Subject, folder: PathBuf, mut out: TcpStream) {
    let mut report = |line: String| writeln!(out, "{line}").expect("the parent reads");
    let backend = match (subject.open)(folder).await {
        Ok(backend) => backend,
        Err(error) => return report(format!("closed {}", error.chain())),
    };
    let queue = backend.require_queue("the suite").expect("queues");
    for number in 0..MESSAGES {
        let message = NewMessage::new(vec![number; PAYLOAD_BYTES]);
        report(match queue.enqueue(&jobs(), vec![message]).await {
            Ok(mut outcomes) => match outcomes.remove(0) {
                Ok(taken) => format!("there {}", taken.id()),
                Err(error) => format!("refused {}", error.chain()),
            },
            Err(error) => format!("refused {}", error.chain()),
        });
        if number % 3 != 2 {
            continue;
        }
        let request = LeaseRequest {
            queue: jobs(),
            consumer: consumer("one"),
            max: 2,
            in_flight: 2,
            lease: LEASE,
            wait: Duration::ZERO,
        };
        let held = match queue.lease(request).await {
            Ok(held) => held,
            Err(error) => {
                report(format!("refused {}", error.chain()));
                continue;
            }
        };
        for one in held {
            // Reported before the ack: from here on either outcome is correct.
            report(format!("maybe {}", one.message.id));
            let settlement = Settlement {
                receipt: one.receipt,
                disposition: Disposition::Ack,
            };
            report(match queue.settle(vec![settlement]).await {
                Ok(outcomes) if outcomes[0].is_ok() => format!("gone {}", one.message.id),
                _ => "refused settlement".to_owned(),
            });
        }
    }
    let stopped = tokio::time::timeout(Duration::from_millis(50), backend.lifecycle.failed());
    if let Ok(error) = stopped.await {
        report(format!("stopped {}", error.chain()));
    }
    if let Err(error) = backend.lifecycle.close().await {
        report(format!("unclean {}", error.chain()));
    }
    report("end".to_owned());
}

/// Output of a run, and whether its disk failed.
struct RunOutput {
    lines: Vec<String>,
    failed: bool,
}

impl RunOutput {
    fn ids(&self, what: &str) -> impl Iterator<Item = String> {
        self.lines
            .iter()
            .filter_map(move |line| Some(line.strip_prefix(what)?.strip_prefix(' ')?.to_owned()))
    }

    fn reported(&self, what: &str) -> bool {
        self.lines.iter().any(|line| line.starts_with(what))
    }
}

fn survives(subject: &'static Subject, fault: &Fault) -> Result<(), Failed> {
    let last = std::env::var("TOWPATH_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(LAST);
    for n in 1..=last {
        let folder = tempfile::tempdir()?;
        let store = folder.path().join("store");
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let run = run(subject, fault, n, folder.path(), &store)?;
            stops_after_a_failed_sync(fault.call, &run)
                .map_err(|reason| format!("n = {n}: {reason}: {:?}", run.lines))?;
            runs.push(run);
        }
        compare(subject, &store, &runs).map_err(|reason| {
            let output: Vec<_> = runs.iter().map(|run| &run.lines).collect();
            format!("n = {n}: {reason}: {output:#?}")
        })?;
        if runs.iter().all(|run| !run.failed) {
            return if n > 1 {
                Ok(())
            } else {
                Err(format!("`{}` was never called", fault.call).into())
            };
        }
    }
    Ok(())
}

fn run(
    subject: &Subject,
    fault: &Fault,
    n: u32,
    folder: &Path,
    store: &Path,
) -> Result<RunOutput, String> {
    let text = |error: std::io::Error| error.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    let trace = folder.join("trace");
    let child = Command::new(TOOL)
        .args(["-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o"])
        .arg(&trace)
        .args(["-e", &format!("trace={}", fault.call)])
        .args(["-e", &fault.inject(n)])
        .arg(std::env::current_exe().map_err(text)?)
        .env(
            ROLE,
            format!("{}|{address}|{}", subject.name, store.display()),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let reader = std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        BufReader::new(stream)
            .lines()
            .collect::<Result<Vec<_>, _>>()
    });
    let output = child.wait_with_output().map_err(text)?;
    if output.status.code() == Some(NOT_STARTED) {
        let (lines, failed) = (Vec::new(), true);
        return Ok(RunOutput { lines, failed });
    }
    if !output.status.success() {
        let noise = String::from_utf8_lossy(&output.stderr);
        // The reader may wait for a child that never came; it ends with the test.
        return Err(format!(
            "n = {n}: the process did not end in order ({}): {noise}",
            output.status
        ));
    }
    let lines = reader
        .join()
        .map_err(|_| "the reader panicked")?
        .map_err(text)?;
    let trace = std::fs::read_to_string(&trace).map_err(text)?;
    Ok(RunOutput {
        lines,
        failed: trace.contains("(INJECTED)"),
    })
}

/// After a failed sync nothing is acknowledged, and the backend reports that it stopped.
fn stops_after_a_failed_sync(call: &str, run: &RunOutput) -> Result<(), &'static str> {
    if call != "fdatasync" || !run.failed || run.reported("closed") {
        return Ok(());
    }
    if !run.reported("stopped") {
        return Err("the backend continued after a failed sync");
    }
    let behind = run
        .lines
        .iter()
        .skip_while(|line| !line.starts_with("refused"));
    if behind
        .into_iter()
        .any(|line| line.starts_with("there") || line.starts_with("gone"))
    {
        return Err("something was acknowledged behind a failed sync");
    }
    Ok(())
}

/// Opens the store on a working disk, and compares.
fn compare(subject: &Subject, store: &Path, runs: &[RunOutput]) -> Result<(), String> {
    let named =
        |what: &str| -> BTreeSet<String> { runs.iter().flat_map(|run| run.ids(what)).collect() };
    let (there, maybe, gone) = (named("there"), named("maybe"), named("gone"));
    let found: BTreeSet<String> = runtime().block_on(async {
        let backend = (subject.open)(store.to_owned())
            .await
            .map_err(|error| format!("it does not open any more: {}", error.chain()))?;
        let queue = backend.require_queue("the suite").expect("queues");
        let mut found = BTreeSet::new();
        loop {
            let held = lease_now(&queue, 500).await;
            if held.is_empty() {
                break;
            }
            for one in held {
                let payload = &one.message.payload;
                if payload.len() != PAYLOAD_BYTES || payload.iter().any(|byte| *byte != payload[0])
                {
                    return Err(format!("{} has another payload", one.message.id));
                }
                found.insert(one.message.id.to_string());
            }
        }
        let dead = stats(&queue).await.dead;
        backend
            .lifecycle
            .close()
            .await
            .map_err(|error| error.chain())?;
        if dead > 0 {
            return Err(format!("{dead} became dead letters"));
        }
        Ok(found)
    })?;
    if let Some(lost) = there
        .iter()
        .find(|id| !found.contains(*id) && !maybe.contains(*id))
    {
        return Err(format!("{lost} was acknowledged and is lost"));
    }
    if let Some(again) = gone.iter().find(|id| found.contains(*id)) {
        return Err(format!("{again} was acked and delivered again"));
    }
    Ok(())
}
