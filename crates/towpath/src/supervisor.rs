//! Starts named tasks, watches them, and ends them in order and in time.
//!
//! ```text
//! running -> signal or failure -> stages stop one after the other, one grace period for all -> report
//! ```
//!
//! Every long-lived task of the process is started here and declares what its
//! failure means. The work of a task is counted in its [`Account`] as it goes, so the
//! report at the end is true also for a task that panicked or was cut short.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towpath_core::{Error, Result, retry};
use tracing::{error, info, warn};

/// Stage of the shutdown in which a task is stopped; earlier stages end before later ones start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Takes requests: stop accepting, complete those in progress.
    Accept,
    /// Reads an input: remember the position.
    Source,
    /// Leases and delivers: lease no more, finish or release.
    Deliver,
    /// Keeps things tidy: may be dropped at any point.
    Maintain,
    /// Answers probes and operators, also while the others drain.
    Observe,
}

const STAGES: [Stage; 5] = [
    Stage::Accept,
    Stage::Source,
    Stage::Deliver,
    Stage::Maintain,
    Stage::Observe,
];

/// The consequence of a task's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Start it again, after a delay that grows while it keeps failing.
    Restart,
    /// The process cannot do its job without it: drain and end.
    StopProcess,
    /// A drain would only wait for work that cannot finish any more: end at once.
    EndProcess,
}

/// Remaining grace period after a failure that ends the process at once: requests are answered that they failed.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Time for requests that wait for the failed part to answer.
const ANSWERS: Duration = Duration::from_millis(100);

/// Delay before a failed task is started again; a run of a minute counts as recovered.
const RESTART: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(10));
const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// Counts of a task's work.
#[derive(Debug, Clone, Default)]
pub struct Account(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Account {
    /// Adds to a count; the report prints this word: `acked`.
    pub fn add(&self, what: &'static str, count: u64) {
        if count > 0 {
            *self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(what)
                .or_default() += count;
        }
    }

    /// The counts, by word.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A task's view of the coming stop.
#[derive(Debug, Clone)]
pub struct Stop {
    token: CancellationToken,
    deadline: Arc<Mutex<Option<Instant>>>,
    /// Counters of the task.
    pub account: Account,
}

impl Stop {
    /// A stop that comes when `token` is cancelled, without a deadline. For tests and short programs.
    pub fn when(token: CancellationToken) -> Self {
        Self {
            token,
            deadline: Arc::default(),
            account: Account::default(),
        }
    }

    /// Resolves when the task should end.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Whether the task should end.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Sleeps for `time`. False when the stop came first, which ends the sleep.
    pub async fn sleep(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.requested() => false,
        }
    }

    /// The token behind [`Stop::requested`].
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Resolves `margin` before the process cuts the task off; pending while no stop is requested.
    pub async fn nearly_over(&self, margin: Duration) {
        self.requested().await;
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline - margin).await,
            None => std::future::pending().await,
        }
    }
}

type TaskFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

struct Task {
    name: String,
    stage: Stage,
    account: Account,
    handle: JoinHandle<Result<()>>,
}

/// Starts tasks and ends them.
#[derive(Debug)]
pub struct Supervisor {
    grace: Duration,
    stops: BTreeMap<Stage, CancellationToken>,
    deadline: Arc<Mutex<Option<Instant>>>,
    fatal: Fatal,
    tasks: Vec<Task>,
    restarts: Restarts,
}

/// Called with a task and the number of its restarts: none when it starts, then one for each.
#[derive(Clone)]
struct Restarts(Arc<CountRestarts>);

type CountRestarts = dyn Fn(&str, u64) + Send + Sync;

impl fmt::Debug for Restarts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Restarts")
    }
}

/// A failure that ends the process, and whether at once.
#[derive(Debug, Clone, Default)]
struct Fatal {
    token: CancellationToken,
    at_once: Arc<OnceLock<String>>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// The end of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskExit {
    /// Completed.
    Finished,
    /// Cut off when the grace period was over.
    Cut,
    /// With an error or a panic.
    Failed(String),
}

/// One line of the report.
#[derive(Debug, Clone)]
pub struct TaskReport {
    /// The task.
    pub name: String,
    /// Its end.
    pub ending: TaskExit,
    /// Counts since the process started.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Summary of the process's work, correct at the moment it ends.
#[derive(Debug, Clone)]
pub struct Report {
    /// Why it ended: `SIGTERM`, or the failure.
    pub reason: String,
    /// Duration of the drain.
    pub drained_in: Duration,
    /// Every task.
    pub tasks: Vec<TaskReport>,
    /// The close of the backends.
    pub closing: TaskExit,
    /// The failure that ended the process at once.
    pub failure: Option<String>,
}

impl Report {
    /// Whether every task completed without failure.
    pub fn is_clean(&self) -> bool {
        self.tasks
            .iter()
            .all(|task| task.ending == TaskExit::Finished)
            && self.closing == TaskExit::Finished
            && self.failure.is_none()
    }

    /// The backends were closed, or not, in this time.
    pub fn closed(&mut self, ending: TaskExit, took: Duration) {
        self.closing = ending;
        self.drained_in += took;
    }
}

impl Supervisor {
    /// A supervisor whose drain takes at most `grace`.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            stops: STAGES
                .into_iter()
                .map(|stage| (stage, CancellationToken::new()))
                .collect(),
            deadline: Arc::default(),
            fatal: Fatal::default(),
            tasks: Vec::new(),
            restarts: Restarts(Arc::new(|_, _| {})),
        }
    }

    /// Counts the restarts of the tasks that are started from now on.
    pub fn on_restart(&mut self, count: impl Fn(&str, u64) + Send + Sync + 'static) {
        self.restarts = Restarts(Arc::new(count));
    }

    /// Starts a task. `make` is called again for every restart.
    pub fn start<M, F>(
        &mut self,
        name: impl Into<String>,
        stage: Stage,
        on_failure: OnFailure,
        make: M,
    ) where
        M: Fn(Stop) -> F + Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let name = name.into();
        let stop = Stop {
            token: self.stops[&stage].clone(),
            deadline: Arc::clone(&self.deadline),
            account: Account::default(),
        };
        let account = stop.account.clone();
        let fatal = self.fatal.clone();
        let make = move |stop: Stop| -> TaskFuture { Box::pin(make(stop)) };
        let restarts = self.restarts.clone();
        (restarts.0)(&name, 0);
        let watched = watch(name.clone(), on_failure, stop, fatal, restarts, make);
        #[expect(
            clippy::disallowed_methods,
            reason = "the supervisor starts tasks here"
        )]
        let handle = tokio::spawn(watched);
        self.tasks.push(Task {
            name,
            stage,
            account,
            handle,
        });
    }

    /// Waits for `signal` or a fatal failure, then drains.
    ///
    /// `impatient` resolves when the drain itself should be cut short (a second signal).
    /// `before_drain` runs first: readiness goes false there.
    pub async fn run(
        self,
        signal: impl Future<Output = String>,
        impatient: impl Future<Output = ()>,
        before_drain: impl FnOnce(),
    ) -> Report {
        let reason = tokio::select! {
            reason = signal => reason,
            () = self.fatal.token.cancelled() => "a task failed".to_owned(),
        };
        info!(reason, "stopping");
        before_drain();
        let began = Instant::now();
        let failure = self.fatal.at_once.get().cloned();
        let grace = match failure {
            Some(_) => {
                tokio::time::sleep(ANSWERS).await;
                self.grace.min(AT_ONCE)
            }
            None => self.grace,
        };
        let deadline = began + grace;
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        let mut hurry = std::pin::pin!(async {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => {}
                () = impatient => {}
                // It may stop for good while it drains.
                () = self.fatal.ends_at_once() => {}
            }
        });
        let mut hurried = false;
        let mut tasks = Vec::new();
        let mut remaining = self.tasks;
        for stage in STAGES {
            self.stops[&stage].cancel();
            let (now, later): (Vec<Task>, Vec<Task>) =
                remaining.into_iter().partition(|task| task.stage == stage);
            remaining = later;
            for mut task in now {
                let ending = if hurried {
                    finish_now(&mut task.handle).await
                } else {
                    tokio::select! {
                        ended = &mut task.handle => ending(ended),
                        () = &mut hurry => {
                            hurried = true;
                            finish_now(&mut task.handle).await
                        }
                    }
                };
                tasks.push(TaskReport {
                    name: task.name,
                    ending,
                    counts: task.account.counts(),
                });
            }
        }
        Report {
            reason,
            drained_in: began.elapsed(),
            tasks,
            closing: TaskExit::Finished,
            failure: self.fatal.at_once.get().cloned(),
        }
    }
}

impl Fatal {
    /// Pending unless a failure ends the process at once.
    async fn ends_at_once(&self) {
        self.token.cancelled().await;
        if self.at_once.get().is_none() {
            std::future::pending().await
        }
    }
}

/// Runs one task, again and again as far as its failure policy says.
async fn watch(
    name: String,
    on_failure: OnFailure,
    stop: Stop,
    fatal: Fatal,
    restarts: Restarts,
    make: impl Fn(Stop) -> TaskFuture,
) -> Result<()> {
    let mut attempt = 0;
    loop {
        let began = Instant::now();
        // A task of its own, so that a panic is an outcome; aborted with this one by the guard.
        #[expect(
            clippy::disallowed_methods,
            reason = "the supervisor starts tasks here"
        )]
        let mut running = AbortOnDrop(tokio::spawn(make(stop.clone())));
        let failure = match (&mut running.0).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(join) => panic_error(&name, join),
        };
        if on_failure == OnFailure::EndProcess {
            let error = failure.chain();
            error!(
                task = name,
                error, "task failed; ending the process at once"
            );
            fatal.at_once.get_or_init(|| error);
            fatal.token.cancel();
            return Err(failure);
        }
        if stop.is_requested() {
            return Err(failure);
        }
        if on_failure == OnFailure::StopProcess {
            error!(
                task = name,
                error = failure.chain(),
                "task failed; stopping the process"
            );
            fatal.token.cancel();
            return Err(failure);
        }
        attempt = if began.elapsed() > RECOVERED_AFTER {
            1
        } else {
            attempt + 1
        };
        stop.account.add("restarts", 1);
        (restarts.0)(&name, 1);
        let delay = RESTART.next_delay(attempt, &mut rand::rng());
        warn!(
            task = name,
            error = failure.chain(),
            attempt,
            ?delay,
            "task failed; restarting it"
        );
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = stop.requested() => return Ok(()),
        }
    }
}

struct AbortOnDrop(JoinHandle<Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn panic_error(name: &str, join: tokio::task::JoinError) -> Error {
    let text = match join.try_into_panic() {
        Ok(payload) => panic_text(&*payload),
        Err(_) => "aborted".to_owned(),
    };
    Error::unavailable(format!("task `{name}` panicked: {text}"))
}

/// The message of a panic.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

/// Cuts a task off, unless it has ended already.
async fn finish_now(handle: &mut JoinHandle<Result<()>>) -> TaskExit {
    if !handle.is_finished() {
        handle.abort();
    }
    ending(handle.await)
}

fn ending(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> TaskExit {
    match ended {
        Ok(Ok(())) => TaskExit::Finished,
        Ok(Err(error)) => TaskExit::Failed(error.chain()),
        Err(join) if join.is_cancelled() => TaskExit::Cut,
        Err(join) => TaskExit::Failed(join.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn later(millis: u64) -> String {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        "test".to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::new(Duration::from_secs(5));
        for (name, stage) in [
            ("deliver", Stage::Deliver),
            ("observe", Stage::Observe),
            ("accept", Stage::Accept),
        ] {
            let order = Arc::clone(&order);
            supervisor.start(name, stage, OnFailure::StopProcess, move |stop| {
                let order = Arc::clone(&order);
                async move {
                    stop.requested().await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    order.lock().unwrap().push(name);
                    Ok(())
                }
            });
        }
        let report = supervisor
            .run(later(10), std::future::pending(), || {})
            .await;
        assert_eq!(*order.lock().unwrap(), ["accept", "deliver", "observe"]);
        assert!(report.is_clean());
        assert_eq!(report.drained_in, Duration::from_millis(300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_cut_and_named() {
        let mut supervisor = Supervisor::new(Duration::from_secs(2));
        supervisor.start(
            "stuck",
            Stage::Deliver,
            OnFailure::Restart,
            |stop| async move {
                stop.account.add("acked", 3);
                std::future::pending().await
            },
        );
        let report = supervisor
            .run(later(10), std::future::pending(), || {})
            .await;
        assert_eq!(report.tasks[0].ending, TaskExit::Cut);
        assert_eq!(report.tasks[0].counts["acked"], 3);
        assert_eq!(report.drained_in, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_is_started_again_and_counted() {
        let runs = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::new(Duration::from_secs(2));
        let seen = Arc::clone(&runs);
        supervisor.start("flaky", Stage::Deliver, OnFailure::Restart, move |stop| {
            let seen = Arc::clone(&seen);
            async move {
                assert!(seen.fetch_add(1, Ordering::SeqCst) >= 2, "not yet");
                stop.requested().await;
                Ok(())
            }
        });
        let report = supervisor
            .run(later(60_000), std::future::pending(), || {})
            .await;
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert_eq!(report.tasks[0].counts["restarts"], 2);
        assert!(report.is_clean());
    }

    #[tokio::test(start_paused = true)]
    async fn failure_that_ends_the_process_waits_for_no_drain() {
        let mut supervisor = Supervisor::new(Duration::from_secs(25));
        supervisor.start(
            "backend",
            Stage::Observe,
            OnFailure::EndProcess,
            |_| async { Err(Error::unavailable("sync failed")) },
        );
        supervisor.start("pump", Stage::Deliver, OnFailure::Restart, |_| async {
            std::future::pending().await
        });
        let report = supervisor
            .run(std::future::pending(), std::future::pending(), || {})
            .await;
        assert_eq!(report.failure.as_deref(), Some("sync failed"));
        assert!(report.drained_in <= AT_ONCE, "{report:?}");
        assert!(!report.is_clean());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fatal_failure_drains_the_others() {
        let mut supervisor = Supervisor::new(Duration::from_secs(2));
        supervisor.start("vital", Stage::Accept, OnFailure::StopProcess, |_| async {
            Err(Error::corrupt("broken"))
        });
        supervisor.start(
            "other",
            Stage::Deliver,
            OnFailure::Restart,
            |stop| async move {
                stop.requested().await;
                Ok(())
            },
        );
        let report = supervisor
            .run(std::future::pending(), std::future::pending(), || {})
            .await;
        assert_eq!(
            report.tasks[0].ending,
            TaskExit::Failed("broken".to_owned())
        );
        assert_eq!(report.tasks[1].ending, TaskExit::Finished);
    }
}
