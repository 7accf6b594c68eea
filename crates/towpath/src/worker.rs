//! A worker: the delivery loop around a function.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::queue::check_lease;
use towpath_core::port::sink::Outcome;
use towpath_core::{Clock, ConsumerId, Delivery, Error, Result, retry};
use tracing::warn;

use crate::consumer::{Consumer, GroupMember, QueueConsumer, StreamConsumer};
use crate::pump::{Alone, Counters, Destination, Handler, Handling, Pump, PumpMetrics, Side, Work};
use crate::supervisor::{OnFailure, Report, Stage, Supervisor};
use crate::{Group, Job, JobError, Queue};

/// Attempts at an entry of a group, within the default lease.
const GROUP_RETRY: retry::Policy = retry::Policy {
    attempts: 5,
    first: Duration::from_millis(100),
    max: Duration::from_secs(5),
};

/// Where a worker gets its messages: a [`Queue`] or a [`Group`] of a stream.
#[derive(Debug, Clone)]
pub enum Source {
    /// A queue.
    Queue(Queue),
    /// A group of a stream.
    Group(Group),
}

impl From<&Queue> for Source {
    fn from(queue: &Queue) -> Self {
        Self::Queue(queue.clone())
    }
}

impl From<&Group> for Source {
    fn from(group: &Group) -> Self {
        Self::Group(group.clone())
    }
}

/// Leases messages, hands each to a function, and settles it by the result: several at once, each on its own.
///
/// - The lease is renewed while the function runs; a worker that dies loses it, and another one gets the message.
/// - A message is acked after its function returned `Ok`: a crash in between delivers it again, with the same id.
/// - An error or a panic is a failed attempt, see [`JobError`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towpath::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let engine = towpath::Engine::open(&format!("embedded:{}", folder.path().display())).await?;
/// use towpath::{Job, JobError, Worker};
///
/// let emails = engine.queue("emails").await?;
/// emails.send("to: zoe@example.com").await?;
///
/// # let (done, all) = tokio::sync::oneshot::channel::<()>();
/// # let done = std::sync::Mutex::new(Some(done));
/// let worker = Worker::builder(&emails).concurrency(8).handler(move |job: Job| {
/// #   drop(done.lock().unwrap().take());
///     async move {
///         println!("sending {}", job.text()?);
///         Ok::<(), JobError>(())
///     }
/// })?;
/// // `worker.run()` runs until SIGINT or SIGTERM.
/// let report = worker.run_until(async { all.await.ok(); }).await;
/// assert!(report.is_clean());
/// assert_eq!(emails.stats().await?.acked, 1);
/// # engine.close().await
/// # }
/// ```
pub struct Worker {
    name: String,
    drain: Duration,
    make: Arc<dyn Fn() -> Result<Pump> + Send + Sync>,
}

/// Settings of a [`Worker`].
pub struct WorkerBuilder {
    source: Source,
    name: String,
    concurrency: usize,
    lease: Duration,
    drain: Duration,
    timeout: Option<Duration>,
    retry: retry::Policy,
    counters: Arc<dyn Counters>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("source", &self.source)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Settings of a worker on a queue or a group.
    pub fn builder(source: impl Into<Source>) -> WorkerBuilder {
        let source = source.into();
        let (name, retry) = match &source {
            Source::Queue(queue) => (queue.name().to_owned(), queue.settings.retry),
            Source::Group(group) => (group.name.as_str().to_owned(), GROUP_RETRY),
        };
        WorkerBuilder {
            source,
            name,
            concurrency: 16,
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            timeout: None,
            retry,
            counters: Arc::new(()),
        }
    }

    /// Runs until the process gets SIGINT or SIGTERM, then finishes the jobs that have begun.
    pub async fn run(self) -> Report {
        self.run_until(signal()).await
    }

    /// Runs until `stop` resolves, then finishes the jobs that have begun.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Report {
        let mut supervisor = Supervisor::new(self.drain);
        self.start(&mut supervisor);
        let stop = async {
            stop.await;
            "stop requested".to_owned()
        };
        supervisor.run(stop, std::future::pending(), || ()).await
    }

    /// Starts it beside others, in a supervisor of the program.
    pub fn start(self, supervisor: &mut Supervisor) {
        let make = self.make;
        supervisor.start(self.name, Stage::Deliver, OnFailure::Restart, move |stop| {
            let pump = make();
            async move { pump?.run(&stop).await }
        });
    }
}

impl WorkerBuilder {
    /// Its name in logs and in the report. Default: the queue's or group's.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Most jobs at once; 1 or more. Default: 16.
    #[must_use]
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// Time after which a job of a worker that died goes to another one; 10 ms to 12 h. Default: 30 s.
    ///
    /// The lease of a message of a queue is renewed while its handler runs. An entry of a group has no lease: one that is
    /// held for longer than this, all attempts together, goes to another worker too.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Longest time for the jobs that have begun when the worker stops; the rest goes back without a charged attempt. Default:
    /// 30 s.
    #[must_use]
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Longest time of a job, then its attempt has failed. Default: none.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Delays between the attempts at an entry of a group, and their number. Default: 5 attempts, 100 ms to 5 s. A queue
    /// has a policy of its own, see [`Engine::queue_with`](crate::Engine::queue_with).
    #[must_use]
    pub fn retry(mut self, retry: retry::Policy) -> Self {
        if matches!(self.source, Source::Group(_)) {
            self.retry = retry;
        }
        self
    }

    /// Where the worker counts its jobs.
    #[must_use]
    pub fn counters(mut self, counters: Arc<dyn Counters>) -> Self {
        self.counters = counters;
        self
    }

    /// A worker that calls this function for each message.
    ///
    /// # Errors
    /// `Invalid` for a setting out of its range.
    pub fn handler<F, R>(self, handler: F) -> Result<Worker>
    where
        F: Fn(Job) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<(), JobError>> + Send + 'static,
    {
        let handler = Function {
            call: Box::new(move |job| Box::pin(handler(job))),
            timeout: self.timeout,
        };
        self.handled_by(Arc::new(handler))
    }

    /// A worker that hands messages to a [`Handler`], which decides more than a function can.
    ///
    /// # Errors
    /// `Invalid` for a setting out of its range.
    pub fn handled_by(self, handler: Arc<dyn Handler>) -> Result<Worker> {
        check_lease(self.lease)?;
        if self.concurrency == 0 {
            return Err(Error::invalid("`concurrency` is 0; it must be 1 or more"));
        }
        let alone = Alone::default();
        let Self {
            source,
            name,
            concurrency,
            lease,
            drain,
            retry,
            counters,
            ..
        } = self;
        let role = name.clone();
        let make = move || {
            let (consumer, clock) = source.consumer(lease, retry.attempts)?;
            let (role, queue) = (role.clone(), source.name().to_owned());
            Ok(Pump {
                consumer,
                work: Work::Messages(Handling {
                    handler: Arc::clone(&handler),
                    in_flight: concurrency,
                    alone: alone.clone(),
                }),
                sink_name: "handler",
                retry,
                pause: Duration::ZERO,
                metrics: PumpMetrics::new(Arc::clone(&counters), &queue, clock),
                condition: Box::new(move |side, error| {
                    if let (Side::Consumer, Some(error)) = (side, error) {
                        warn!(worker = role, error, "worker cannot lease");
                    }
                }),
            })
        };
        Ok(Worker {
            name,
            drain,
            make: Arc::new(make),
        })
    }
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Queue(queue) => queue.name(),
            Self::Group(group) => group.stream_name.as_str(),
        }
    }

    fn consumer(
        &self,
        lease: Duration,
        attempts: u32,
    ) -> Result<(Arc<dyn Consumer>, Arc<dyn Clock>)> {
        let id = ConsumerId::unique("worker")?;
        Ok(match self {
            Self::Queue(queue) => {
                let (port, name) = (Arc::clone(&queue.port), queue.name.clone());
                let consumer = QueueConsumer::new(port, name, id, lease);
                (Arc::new(consumer), Arc::clone(&queue.clock))
            }
            Self::Group(group) => {
                let member = GroupMember {
                    stream: group.stream_name.clone(),
                    group: group.name.clone(),
                    consumer: id,
                    dead: group.dead.clone(),
                    attempts,
                    is_ordered: false,
                };
                let (stream, dead) = (Arc::clone(&group.stream), Arc::clone(&group.dead_letters));
                let consumer = StreamConsumer::new(stream, dead, member, lease, Box::new(|_| ()));
                (Arc::new(consumer), Arc::clone(&group.clock))
            }
        })
    }
}

type Call = dyn Fn(Job) -> Pin<Box<dyn Future<Output = std::result::Result<(), JobError>> + Send>>
    + Send
    + Sync;

/// A function as a handler.
struct Function {
    call: Box<Call>,
    timeout: Option<Duration>,
}

#[async_trait]
impl Handler for Function {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        let call = (self.call)(Job::new(delivery));
        let result = match self.timeout {
            None => call.await,
            Some(timeout) => match tokio::time::timeout(timeout, call).await {
                Ok(result) => result,
                Err(_) => Err(JobError::retry(format!("not done after {timeout:?}"))),
            },
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(error) => error.into_outcome(),
        }
    }

    fn destination(&self) -> Option<&Destination> {
        None
    }
}

/// Resolves with the first SIGINT or SIGTERM.
async fn signal() {
    let interrupted = tokio::signal::ctrl_c();
    let terminated = async {
        let kind = tokio::signal::unix::SignalKind::terminate();
        match tokio::signal::unix::signal(kind) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(error) => {
                warn!(%error, "SIGTERM cannot be caught");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        _ = interrupted => {}
        () = terminated => {}
    }
}
