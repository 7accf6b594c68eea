//! The orders app's roles, from their configuration.

use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::port::Sink;
use towpath_core::{Clock, ConsumerId, QueueName, Result};

use crate::apps::orders::{
    Channel, Desk, Mailer, NOTIFICATIONS, Notifier, ORDERS, Processor, Topology,
};
use crate::config::{self, ChannelKind, Secret};
use crate::inlet::QueueInlet;
use crate::pump::Pump;
use crate::sink::WebhookSink;
use crate::supervisor::{OnFailure, Stage, Supervisor};
use crate::telemetry::{Health, Metrics, PumpMetrics};

/// The role's names in health, metrics and the account.
const PROCESSOR: &str = "orders.processor";
const NOTIFIER: &str = "orders.notifier";

/// The app's ports. Keys and queues change in one step when they are on one backend that can do so.
pub(super) fn desk(
    config: &config::Orders,
    broker: &Backend,
    kv: &Backend,
    clock: &Arc<dyn Clock>,
) -> Result<Desk> {
    let (queue, routes) = (
        broker.require_queue("orders")?,
        broker.require_routes("orders")?,
    );
    let shared = config.broker == config.kv;
    Ok(Desk {
        kv: kv.require_kv("orders")?,
        topology: Topology::new(
            Arc::clone(&queue),
            Arc::clone(&routes),
            config.queue_settings(),
        )?,
        queue,
        routes,
        effects: broker.effects.clone().filter(|_| shared),
        idempotency_window: config.idempotency_window,
        retention: config.retention,
        clock: Arc::clone(clock),
    })
}

/// What the pumps of the app share.
pub(super) struct Pumps<'a> {
    pub(super) config: &'a config::Orders,
    pub(super) desk: &'a Desk,
    pub(super) metrics: &'a Metrics,
    pub(super) health: &'a Health,
}

impl Pumps<'_> {
    /// Starts the pump of `orders.processor`.
    pub(super) fn processor(&self, supervisor: &mut Supervisor) -> Result<()> {
        let sink = Arc::new(Processor(self.desk.clone()));
        self.start(PROCESSOR, ORDERS, "processor", sink, supervisor)
    }

    /// Starts the pump of `orders.notifier`.
    pub(super) fn notifier(&self, supervisor: &mut Supervisor) -> Result<()> {
        let sink = Arc::new(Notifier {
            desk: self.desk.clone(),
            channel: Arc::new(self.channel()?),
            timeout: self.config.notify_timeout,
            attempts: self.config.retry.attempts,
        });
        self.start(NOTIFIER, NOTIFICATIONS, "notifier", sink, supervisor)
    }

    fn channel(&self) -> Result<Channel> {
        let config = self.config;
        Ok(match config.channel {
            ChannelKind::Log => Channel::Log,
            ChannelKind::Smtp => Channel::Mail(Mailer::new(
                config.smtp_url.as_ref().map_or("", Secret::expose),
                &config.smtp_from,
                config.smtp_to.as_deref(),
                config.notify_timeout,
            )?),
            ChannelKind::Webhook => {
                let secrets = config.webhook_secrets.iter().map(Secret::expose);
                let secrets: Vec<String> = secrets.map(str::to_owned).collect();
                Channel::Webhook(WebhookSink::new(
                    config.webhook_url.as_ref().map_or("", Secret::expose),
                    &secrets,
                    config.notify_timeout,
                    Arc::clone(&self.desk.clock),
                )?)
            }
        })
    }

    fn start(
        &self,
        role: &'static str,
        queue: &str,
        sink_name: &'static str,
        sink: Arc<dyn Sink>,
        supervisor: &mut Supervisor,
    ) -> Result<()> {
        self.health.set(role, None);
        let (desk, health, name) = (
            self.desk.clone(),
            self.health.clone(),
            QueueName::new(queue)?,
        );
        let (batch, lease, retry) = (self.config.batch, self.config.lease, self.config.retry);
        let metrics = PumpMetrics::new(self.metrics, queue, Arc::clone(&self.desk.clock));
        supervisor.start(role, Stage::Deliver, OnFailure::Restart, move |stop| {
            // A consumer of its own for each start, so that what a dead one held is told apart.
            let consumer = ConsumerId::unique(role);
            let (desk, health, name) = (desk.clone(), health.clone(), name.clone());
            let (sink, metrics) = (Arc::clone(&sink), metrics.clone());
            async move {
                // Whoever starts first makes the queues, so that nothing is lost before the others run.
                desk.topology.declare().await?;
                let queue = Arc::clone(&desk.queue);
                let pump = Pump {
                    inlet: Arc::new(QueueInlet::new(queue, name, consumer?, lease)),
                    sink,
                    sink_name,
                    batch,
                    retry,
                    pause: std::time::Duration::ZERO,
                    metrics,
                    condition: Box::new(move |problem| health.set(role, problem)),
                };
                pump.run(&stop).await
            }
        });
        Ok(())
    }
}
