//! The ingest app's roles, from their configuration.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use towpath_core::backend::Backend;
use towpath_core::port::Sink;
use towpath_core::{Clock, ConsumerId, QueueName, Result};

use crate::apps::ingest::{Enqueue, Limits, routes};
use crate::config::{Config, Secret, SinkKind};
use crate::inlet::QueueInlet;
use crate::pump::Pump;
use crate::sink::{CommandSink, FileSink, LineSink, WebhookSink};
use crate::supervisor::{OnFailure, Stage, Supervisor};
use crate::telemetry::{Health, Metrics, PumpMetrics};

/// The role's name in health, metrics and the account.
const WORKER: &str = "ingest.worker";

/// The routes of `ingest.api`.
pub(super) fn api(config: &Config, backend: &Backend) -> Result<Router> {
    let queue = backend.require_queue("ingest.api")?;
    let enqueue = Enqueue::new(queue, QueueName::new(&config.queue)?, limits(config));
    Ok(routes(enqueue, backend.clone()))
}

/// What a client may send at most.
pub(super) const fn limits(config: &Config) -> Limits {
    Limits {
        message_bytes: config.max_body,
        batch_bytes: config.max_batch_body,
    }
}

/// Starts the pumps of `ingest.worker`.
pub(super) fn worker(
    config: &Config,
    backend: &Backend,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    health: &Health,
    supervisor: &mut Supervisor,
) -> Result<()> {
    let (name, sink) = (QueueName::new(&config.queue)?, sink(config, clock)?);
    health.set(WORKER, None);
    for number in 1..=config.concurrency {
        let queue = backend.require_queue(WORKER)?;
        let (name, sink, health) = (name.clone(), Arc::clone(&sink), health.clone());
        let metrics = PumpMetrics::new(metrics, name.as_str(), Arc::clone(clock));
        // With a pause before each message a batch would wait for the sum of them.
        let batch = if config.processing_delay.is_zero() {
            config.batch
        } else {
            1
        };
        let (lease, retry, pause) = (config.lease, config.retry, config.processing_delay);
        let sink_name = config.sink.as_str();
        supervisor.start(
            format!("{WORKER}-{number}"),
            Stage::Deliver,
            OnFailure::Restart,
            move |stop| {
                // A consumer of its own for each start, so that what a dead one held is told apart.
                let consumer = ConsumerId::unique(WORKER);
                let (queue, name, sink, metrics, health) = (
                    Arc::clone(&queue),
                    name.clone(),
                    Arc::clone(&sink),
                    metrics.clone(),
                    health.clone(),
                );
                async move {
                    let inlet = Arc::new(QueueInlet::new(queue, name, consumer?, lease));
                    let condition = Box::new(move |problem| health.set(WORKER, problem));
                    let pump = Pump {
                        inlet,
                        sink: Arc::clone(&sink),
                        sink_name,
                        batch,
                        retry,
                        pause,
                        metrics,
                        condition,
                    };
                    pump.run(&stop).await?;
                    sink.close().await
                }
            },
        );
    }
    Ok(())
}

fn secrets(config: &Config) -> Vec<String> {
    let exposed = config.webhook_secrets.iter().map(Secret::expose);
    exposed.map(str::to_owned).collect()
}

fn sink(config: &Config, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Sink>> {
    Ok(match config.sink {
        SinkKind::File => Arc::new(FileSink::new(config.output_path(), config.format)),
        SinkKind::Stdout => Arc::new(LineSink::new(std::io::stdout(), config.format)),
        SinkKind::Command => Arc::new(CommandSink::new(
            config.command.clone(),
            config.command_timeout,
        )?),
        SinkKind::Webhook => Arc::new(WebhookSink::new(
            config.webhook_url.as_ref().map_or("", Secret::expose),
            &secrets(config),
            config.webhook_timeout.max(Duration::from_millis(1)),
            Arc::clone(clock),
        )?),
    })
}
