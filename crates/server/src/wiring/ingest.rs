//! The ingest app's roles, from their configuration.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::MAX_BATCH;
use towpath_core::{ConsumerId, ErrorKind, QueueName, Result};
use tracing::warn;

use super::Role;
use super::backend_pool::BackendPool;
use super::process::{Process, condition};
use super::public::Public;
use crate::apps::ingest::{Enqueue, Limits, bodies, routes};
use crate::config::{Config, Secret, SinkKind};
use crate::documents::Part;
use crate::telemetry::Need;
use towpath::consumer::QueueConsumer;
use towpath::disk::{Floor, folder_of};
use towpath::pump::{BatchSize, Handler, Handling, Pump, Work};
use towpath::sink::{CommandSink, FileSink, LineSink, WebhookSink};
use towpath::supervisor::{OnFailure, Stage};

/// The roles' names in health, metrics and the account.
const API: &str = "ingest.api";
const WORKER: &str = "ingest.worker";

/// The app on its backend.
pub(super) struct Ingest {
    backend: Backend,
    queue: Arc<dyn Queue>,
    name: QueueName,
}

impl Ingest {
    /// Opens the app's backends when one of its roles runs.
    pub(super) async fn open(
        process: &Process<'_>,
        pool: &mut BackendPool,
    ) -> Result<Option<Self>> {
        if ![Role::IngestApi, Role::IngestWorker]
            .iter()
            .any(|role| process.runs(*role))
        {
            return Ok(None);
        }
        let backend = pool.open(&process.config.ingest_backend).await?;
        Ok(Some(Self {
            queue: backend.require_queue("ingest")?,
            name: QueueName::new(&process.config.queue)?,
            backend,
        }))
    }

    /// Starts its tasks, and adds its routes to the public listener.
    pub(super) async fn start(self, process: &mut Process<'_>, public: &mut Public) -> Result<()> {
        self.declare(process).await?;
        if process.runs(Role::IngestWorker) {
            self.worker(process)?;
        }
        if process.runs(Role::IngestApi) {
            let limits = limits(process.config);
            let enqueue = Enqueue::new(Arc::clone(&self.queue), self.name.clone(), limits);
            process.health.watch_calls(API, enqueue.calls.clone());
            process.needs(API, &self.backend, Need::Accepts);
            let routes = routes(enqueue, self.backend.clone());
            public.add(API, routes, &[Part::Ingest], &bodies(limits));
        }
        Ok(())
    }

    /// Declares the queue with its settings, as soon as the backend is available.
    async fn declare(&self, process: &mut Process<'_>) -> Result<()> {
        let settings = process.config.queue_settings();
        match self.queue.declare(&self.name, &settings).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                warn!(error = error.chain(), "backend unreachable");
                let (queue, name) = (Arc::clone(&self.queue), self.name.clone());
                let supervisor = &mut process.supervisor;
                supervisor.start("declare", Stage::Maintain, OnFailure::Restart, move |_| {
                    let (queue, name, settings) =
                        (Arc::clone(&queue), name.clone(), settings.clone());
                    async move { queue.declare(&name, &settings).await }
                });
                Ok(())
            }
            declared => declared,
        }
    }

    /// Starts the pumps of `ingest.worker`.
    fn worker(&self, process: &mut Process<'_>) -> Result<()> {
        let config = process.config;
        let work = work(process, process.floor(&self.backend))?;
        process.health.set(WORKER, None);
        process.health.works_on(WORKER, self.name.as_str());
        process.needs(WORKER, &self.backend, Need::Answers);
        for number in 1..=config.concurrency {
            let (queue, name) = (Arc::clone(&self.queue), self.name.clone());
            let (work, health) = (work.clone(), process.health.clone());
            let clock = Arc::clone(&process.clock);
            let metrics = process.metrics.pump(name.as_str(), clock);
            let (lease, retry, pause) = (config.lease, config.retry, config.processing_delay);
            let sink_name = config.sink.as_str();
            process.supervisor.start(
                format!("{WORKER}-{number}"),
                Stage::Deliver,
                OnFailure::Restart,
                move |stop| {
                    // A consumer of its own for each start, so that leases of a dead one are distinguished.
                    let consumer = ConsumerId::unique(WORKER);
                    let (queue, name, work, metrics, health) = (
                        Arc::clone(&queue),
                        name.clone(),
                        work.clone(),
                        metrics.clone(),
                        health.clone(),
                    );
                    async move {
                        let consumer = Arc::new(QueueConsumer::new(queue, name, consumer?, lease));
                        let condition = condition(&health, WORKER, format!("{WORKER}-{number}"));
                        let pump = Pump {
                            consumer,
                            work: work.clone(),
                            sink_name,
                            retry,
                            pause,
                            metrics,
                            condition,
                        };
                        pump.run(&stop).await?;
                        work.close().await
                    }
                },
            );
        }
        Ok(())
    }
}

/// The limits of a client's request.
const fn limits(config: &Config) -> Limits {
    Limits {
        message_bytes: config.max_body,
        batch_bytes: config.max_batch_body,
    }
}

fn secrets(config: &Config) -> Vec<String> {
    let exposed = config.webhook_secrets.iter().map(Secret::expose);
    exposed.map(str::to_owned).collect()
}

fn work(process: &Process<'_>, floor: Option<Floor>) -> Result<Work> {
    let config = process.config;
    // With a pause before each message a batch would wait for the sum of them.
    let (batch, size) = if config.processing_delay.is_zero() {
        (config.batch, BatchSize::growing(config.batch, MAX_BATCH))
    } else {
        (1, BatchSize::fixed(1))
    };
    let messages = |handler: Arc<dyn Handler>| {
        Work::Messages(Handling {
            handler,
            in_flight: config.worker_in_flight.min(batch),
            alone: process.alone.clone(),
        })
    };
    let destination = process.destination(WORKER, config.retry);
    Ok(match config.sink {
        SinkKind::File => {
            process.metrics.watch_disk(folder_of(&config.output_path()));
            let sink = FileSink::new(config.output_path(), config.format).above(floor);
            let output = config.output_path();
            process.stalls.add("output", &output, sink.waits());
            let sink = sink.rotating(config.rotation);
            Work::Batches(Arc::new(sink.with_mode(config.output_mode)), size)
        }
        SinkKind::Stdout => {
            let sink = LineSink::new(std::io::stdout(), config.format);
            Work::Batches(Arc::new(sink), size)
        }
        SinkKind::Command => {
            let sink =
                CommandSink::new(config.command.clone(), config.command_timeout, destination)?;
            messages(Arc::new(sink.passing(&config.command_environment)))
        }
        SinkKind::Webhook => messages(Arc::new(WebhookSink::new(
            config.webhook_url.as_ref().map_or("", Secret::expose),
            &secrets(config),
            config.webhook_allow.as_deref(),
            config.webhook_timeout.max(Duration::from_millis(1)),
            config.webhook_ca.as_deref(),
            Arc::clone(&process.clock),
            destination,
        )?)),
    })
}
