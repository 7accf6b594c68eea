//! The orders app's roles, from their configuration.

use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::{Clock, ConsumerId, ErrorKind, QueueName, Result};

use super::Role;
use super::backend_pool::BackendPool;
use super::process::{ListenerSpec, Process, condition};
use super::public::Public;
use crate::apps::orders::{
    Channel, Dashboard, Gateway, Mailer, NOTIFICATIONS, Notifier, ORDERS, OrderStore, Processor,
    REJECTIONS, Topology, dashboard_queries, dashboard_routes, gateway_routes, stock_queries,
    stock_routes,
};
use crate::config::{self, ChannelKind, Secret};
use crate::documents::{Part, document};
use crate::telemetry::{LastCall, Need};
use towpath::consumer::QueueConsumer;
use towpath::pump::{Handling, Pump, Work};
use towpath::sink::WebhookSink;
use towpath::supervisor::{OnFailure, Stage};

/// The roles' names in health, metrics and the account.
const GATEWAY: &str = "orders.gateway";
const PROCESSOR: &str = "orders.processor";
const NOTIFIER: &str = "orders.notifier";
const REJECTER: &str = "orders.notifier.rejected";
const DASHBOARD: &str = "orders.dashboard";

/// Default listen address of the dashboard. The port is the reference system's.
const DASHBOARD_LISTEN: &str = ":8081";
const DASHBOARD_PARTS: &[Part] = &[Part::Dashboard, Part::Stock];

const ROLES: [Role; 4] = [
    Role::OrdersGateway,
    Role::OrdersProcessor,
    Role::OrdersNotifier,
    Role::OrdersDashboard,
];

/// The app on its backends.
pub(super) struct Orders {
    store: OrderStore,
    /// Of the broker and the keys, for the dashboard.
    backends: Vec<Backend>,
}

impl Orders {
    /// Opens the app's backends when one of its roles runs.
    pub(super) async fn open(
        process: &Process<'_>,
        pool: &mut BackendPool,
    ) -> Result<Option<Self>> {
        if !ROLES.iter().any(|role| process.runs(*role)) {
            return Ok(None);
        }
        let config = &process.config.orders;
        let broker = pool.open(&config.broker).await?;
        let kv = pool.open(&config.kv).await?;
        let store = store(config, &broker, &kv, &process.clock)?;
        let backends = if config.broker == config.kv {
            vec![broker]
        } else {
            vec![broker, kv]
        };
        Ok(Some(Self { store, backends }))
    }

    /// The app's ports, for the admin API.
    pub(super) fn store(&self) -> OrderStore {
        self.store.clone()
    }

    /// Starts its tasks, and adds its routes to the public listener.
    pub(super) async fn start(self, process: &mut Process<'_>, public: &mut Public) -> Result<()> {
        if process.runs(Role::OrdersProcessor) {
            self.processor(process)?;
        }
        if process.runs(Role::OrdersNotifier) {
            self.bind_rejections().await?;
            self.notifier(process)?;
        }
        if process.runs(Role::OrdersGateway) {
            let calls = LastCall::default();
            process.health.watch_calls(GATEWAY, calls.clone());
            self.needs(GATEWAY, process, Need::Accepts);
            let routes = gateway_routes(Gateway(self.store.clone()), calls);
            let routes = routes.merge(stock_routes(self.store.clone()));
            public.add(GATEWAY, routes, &[Part::Orders, Part::Stock], &[]);
            public.asks(stock_queries());
            public.wait_for(GATEWAY, self.store.topology.clone());
        }
        if process.runs(Role::OrdersDashboard) {
            self.dashboard(process).await?;
        }
        Ok(())
    }

    /// Before the public port opens, so that no rejection of ours goes unheard. While the broker is unavailable it is left
    /// to the pump.
    async fn bind_rejections(&self) -> Result<()> {
        match self.store.topology.declare_rejections().await {
            Err(error) if error.kind() != ErrorKind::Unavailable => Err(error),
            _ => Ok(()),
        }
    }

    /// The role works only while the broker and the keys do.
    fn needs(&self, role: &str, process: &Process<'_>, need: Need) {
        for backend in &self.backends {
            process.needs(role, backend, need);
        }
    }

    async fn dashboard(self, process: &mut Process<'_>) -> Result<()> {
        process.health.set(DASHBOARD, None);
        self.needs(DASHBOARD, process, Need::Answers);
        let board = Dashboard::new(self.store.clone(), self.backends, process.metrics.clone());
        let router = dashboard_routes(board.clone()).merge(stock_routes(self.store));
        let supervisor = &mut process.supervisor;
        supervisor.start(
            "orders.rates",
            Stage::Maintain,
            OnFailure::Restart,
            move |stop| {
                let board = board.clone();
                async move { board.watch(&stop).await }
            },
        );
        let spec = ListenerSpec {
            role: DASHBOARD,
            key: "orders.dashboard.listen",
            configured: process.config.orders.dashboard_listen.as_deref(),
            default: DASHBOARD_LISTEN,
            parts: DASHBOARD_PARTS,
        };
        let queries = dashboard_queries().into_iter().chain(stock_queries());
        let edge = process
            .edge()
            .queries(queries)
            .document(&document("Towpath orders", DASHBOARD_PARTS));
        process.open(spec, router, edge).await
    }
}

/// The app's ports. Keys and queues change in one step when they are on one backend that can do so.
fn store(
    config: &config::Orders,
    broker: &Backend,
    kv: &Backend,
    clock: &Arc<dyn Clock>,
) -> Result<OrderStore> {
    let (queue, routes) = (
        broker.require_queue("orders")?,
        broker.require_routes("orders")?,
    );
    let shared = config.broker == config.kv;
    Ok(OrderStore {
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

impl Orders {
    /// Starts the pump of `orders.processor`.
    fn processor(&self, process: &mut Process<'_>) -> Result<()> {
        let handling = Handling {
            handler: Arc::new(Processor(self.store.clone())),
            in_flight: process.config.orders.batch,
            alone: process.alone.clone(),
        };
        self.pump(PROCESSOR, ORDERS, "processor", handling, process)
    }

    /// Starts the pump of `orders.notifier`.
    fn notifier(&self, process: &mut Process<'_>) -> Result<()> {
        let config = &process.config.orders;
        let notifier = Notifier {
            store: self.store.clone(),
            channel: Arc::new(self.channel(process)?),
            timeout: config.notify_timeout,
            attempts: config.retry.attempts,
        };
        let handling = Handling {
            handler: Arc::new(notifier),
            in_flight: config.notify_in_flight.min(config.batch),
            alone: process.alone.clone(),
        };
        let rejections = handling.clone();
        // The channel reports under this role for both queues.
        process.health.works_on(NOTIFIER, REJECTIONS);
        self.pump(NOTIFIER, NOTIFICATIONS, "notifier", handling, process)?;
        self.pump(REJECTER, REJECTIONS, "notifier", rejections, process)
    }

    fn channel(&self, process: &Process<'_>) -> Result<Channel> {
        let config = &process.config.orders;
        let destination = process.destination(NOTIFIER, config.retry);
        Ok(match config.channel {
            ChannelKind::Log => Channel::Log,
            ChannelKind::Smtp => Channel::Mail(Box::new(Mailer::new(
                config.smtp_url.as_ref().map_or("", Secret::expose),
                &config.smtp_from,
                config.smtp_to.as_deref(),
                config.notify_timeout,
                destination,
            )?)),
            ChannelKind::Webhook => {
                let secrets = config.webhook_secrets.iter().map(Secret::expose);
                let secrets: Vec<String> = secrets.map(str::to_owned).collect();
                Channel::Webhook(Box::new(WebhookSink::new(
                    config.webhook_url.as_ref().map_or("", Secret::expose),
                    &secrets,
                    config.webhook_allow.as_deref(),
                    config.notify_timeout,
                    config.webhook_ca.as_deref(),
                    Arc::clone(&self.store.clock),
                    destination,
                )?))
            }
        })
    }

    fn pump(
        &self,
        role: &'static str,
        queue: &str,
        sink_name: &'static str,
        handling: Handling,
        process: &mut Process<'_>,
    ) -> Result<()> {
        process.health.set(role, None);
        process.health.works_on(role, queue);
        self.needs(role, process, Need::Answers);
        let (store, health, name) = (
            self.store.clone(),
            process.health.clone(),
            QueueName::new(queue)?,
        );
        let (lease, retry) = (process.config.orders.lease, process.config.orders.retry);
        let metrics = process.metrics.pump(queue, Arc::clone(&self.store.clock));
        let supervisor = &mut process.supervisor;
        supervisor.start(role, Stage::Deliver, OnFailure::Restart, move |stop| {
            // A consumer of its own for each start, so that leases of a dead one are distinguished.
            let consumer = ConsumerId::unique(role);
            let (store, health, name) = (store.clone(), health.clone(), name.clone());
            let (handling, metrics) = (handling.clone(), metrics.clone());
            async move {
                // The role that starts first declares the queues, so that nothing is lost before the others run.
                store.topology.declare().await?;
                if name.as_str() == REJECTIONS {
                    store.topology.declare_rejections().await?;
                }
                let queue = Arc::clone(&store.queue);
                let pump = Pump {
                    consumer: Arc::new(QueueConsumer::new(queue, name, consumer?, lease)),
                    work: Work::Messages(handling),
                    sink_name,
                    retry,
                    pause: std::time::Duration::ZERO,
                    metrics,
                    condition: condition(&health, role, role),
                };
                pump.run(&stop).await
            }
        });
        Ok(())
    }
}
