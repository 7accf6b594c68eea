//! Starting a process: what runs, on what, and where it listens.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::{Clock, ErrorKind, QueueName, Result};
use tracing::warn;

use super::backends::clock;
use super::listener::{Listener, bind};
use super::public::Public;
use super::{Role, demo, ingest, orders};
use crate::admin;
use crate::apps::orders::{Dashboard, dashboard_routes, stock_routes};
use crate::config::{Config, Secret};
use crate::http::{Edge, Intake, descriptors, wrap};
use crate::supervisor::{OnFailure, Report, Stage, Supervisor};
use crate::telemetry::{Health, Metrics};

/// Open connections of the admin interface: operators, a scraper, probes.
const ADMIN_CONNECTIONS: usize = 128;

/// Where the dashboard listens when nobody says where. The port is the reference system's.
const DASHBOARD: &str = ":8081";

/// A process that is up.
pub struct Started {
    /// The public interface, when a role has one.
    pub http: Option<SocketAddr>,
    /// The admin interface.
    pub admin: SocketAddr,
    /// The dashboard of the orders app.
    pub dashboard: Option<SocketAddr>,
    /// The backends of its roles, the first one of ingest when it runs.
    pub backends: Vec<Backend>,
    supervisor: Supervisor,
    health: Health,
}

/// Starts the roles.
///
/// # Errors
/// `Unavailable` when the backend cannot be opened or a port is taken; `Invalid` for what only the backend could find wrong.
pub async fn start(config: &Config, roles: &[Role], with_demo: bool) -> Result<Started> {
    // Before anything that opens files.
    let max_connections = max_connections(config);
    let clock = clock();
    let mut opened = Opened::new(Arc::clone(&clock));
    let ingest = if roles.iter().any(|role| role.is_ingest()) {
        Some(opened.open(&config.ingest_backend).await?)
    } else {
        None
    };
    let desk = if roles.iter().all(|role| role.is_ingest()) {
        None
    } else {
        let broker = opened.open(&config.orders.broker).await?;
        let kv = opened.open(&config.orders.kv).await?;
        Some(orders::desk(&config.orders, &broker, &kv, &clock)?)
    };
    let backends = opened.backends();
    let (metrics, health) = (Metrics::new(), Health::new());
    for backend in &backends {
        health.watch(backend.clone());
    }
    let mut supervisor = Supervisor::new(config.drain);
    let token = admin::token(&config.data_dir)?;
    let admin_listener = bind("server.admin", &config.admin).await?;
    // Each listener has bounds of its own, so that a busy public interface never makes a probe fail.
    let edge = || {
        let intake = Intake::new(config.body_timeout, config.max_body_memory);
        Edge::new(metrics.clone(), config.max_in_flight, intake)
    };
    let admin = admin::router(
        admin::Admin::new(
            backends.clone(),
            desk.clone(),
            token,
            health.clone(),
            metrics.clone(),
        ),
        admin::Hosts::new(&config.admin, &config.admin_hosts),
        edge(),
    );
    let admin = Listener {
        name: "admin",
        stage: Stage::Observe,
        socket: admin_listener,
        connections: max_connections.min(ADMIN_CONNECTIONS),
    }
    .start(admin, config, &metrics, &mut supervisor)?;

    for backend in &backends {
        watch_backend(backend, &mut supervisor);
    }
    if let Some(backend) = &ingest {
        let queue = backend.require_queue("ingest")?;
        declare(config, &queue, &mut supervisor).await?;
        if roles.contains(&Role::IngestWorker) {
            ingest::worker(config, backend, &clock, &metrics, &health, &mut supervisor)?;
        }
    }
    let mut dashboard = None;
    if let Some(desk) = &desk {
        let pumps = orders::Pumps {
            config: &config.orders,
            desk,
            metrics: &metrics,
            health: &health,
        };
        if roles.contains(&Role::OrdersProcessor) {
            pumps.processor(&mut supervisor)?;
        }
        if roles.contains(&Role::OrdersNotifier) {
            pumps.notifier(&mut supervisor)?;
        }
        if roles.contains(&Role::OrdersDashboard)
            && let Some(socket) = dashboard_socket(config, roles).await?
        {
            let board = Dashboard::new(desk.clone(), backends.clone(), metrics.clone());
            let router = dashboard_routes(board.clone()).merge(stock_routes(desk.clone()));
            supervisor.start("orders.rates", Stage::Maintain, OnFailure::Restart, {
                move |stop| {
                    let board = board.clone();
                    async move { board.watch(&stop).await }
                }
            });
            let listener = Listener {
                name: "orders.dashboard",
                stage: Stage::Accept,
                socket,
                connections: max_connections,
            };
            let router = wrap(router, edge());
            dashboard = Some(listener.start(router, config, &metrics, &mut supervisor)?);
        }
    }
    let public = Public {
        ingest: ingest.clone().filter(|_| roles.contains(&Role::IngestApi)),
        desk: desk.filter(|_| roles.contains(&Role::OrdersGateway)),
        edge: edge(),
        connections: max_connections,
    };
    let public = public
        .start(config, &metrics, &health, &mut supervisor)
        .await?;
    if with_demo && let Some(backend) = &ingest {
        let queue = backend.require_queue("demo")?;
        let name = QueueName::new(&config.queue)?;
        supervisor.start("demo", Stage::Source, OnFailure::Restart, move |stop| {
            let (queue, name) = (Arc::clone(&queue), name.clone());
            async move { demo::run(&*queue, &name, &stop).await }
        });
    }
    health.serving();
    Ok(Started {
        http: public,
        admin,
        dashboard,
        backends,
        supervisor,
        health,
    })
}

impl Started {
    /// Runs until `signal`, drains, closes the backend, and reports.
    ///
    /// # Errors
    /// `Unavailable` when something acknowledged as "not yet durable" could not be made so.
    pub async fn run(
        self,
        signal: impl Future<Output = String>,
        impatient: impl Future<Output = ()>,
    ) -> Result<Report> {
        let health = self.health;
        let report = self
            .supervisor
            .run(signal, impatient, || health.draining())
            .await;
        for backend in self.backends {
            backend.lifecycle.close().await?;
        }
        Ok(report)
    }
}

/// Tells the queue its settings; when the backend is away, as soon as it is back.
async fn declare(
    config: &Config,
    queue: &Arc<dyn Queue>,
    supervisor: &mut Supervisor,
) -> Result<()> {
    let (name, settings) = (QueueName::new(&config.queue)?, config.queue_settings());
    match queue.declare(&name, &settings).await {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            warn!(error = error.chain(), "the backend is away");
            let queue = Arc::clone(queue);
            supervisor.start("declare", Stage::Maintain, OnFailure::Restart, move |_| {
                let (queue, name, settings) = (Arc::clone(&queue), name.clone(), settings.clone());
                async move { queue.declare(&name, &settings).await }
            });
            Ok(())
        }
        declared => declared,
    }
}

/// The backends of a process: one for each URL, whoever names it.
struct Opened {
    clock: Arc<dyn Clock>,
    backends: Vec<(Secret, Backend)>,
}

impl Opened {
    const fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            backends: Vec::new(),
        }
    }

    async fn open(&mut self, url: &Secret) -> Result<Backend> {
        if let Some((_, backend)) = self.backends.iter().find(|(known, _)| known == url) {
            return Ok(backend.clone());
        }
        let backend = towpath_backends::open(url.expose(), Arc::clone(&self.clock)).await?;
        self.backends.push((url.clone(), backend.clone()));
        Ok(backend)
    }

    fn backends(self) -> Vec<Backend> {
        self.backends
            .into_iter()
            .map(|(_, backend)| backend)
            .collect()
    }
}

/// The dashboard's socket. `up` goes on without it when nobody asked for the port and it is taken.
async fn dashboard_socket(config: &Config, roles: &[Role]) -> Result<Option<TcpListener>> {
    let asked = config.orders.dashboard_listen.as_deref();
    match bind("orders.dashboard.listen", asked.unwrap_or(DASHBOARD)).await {
        Err(error) if asked.is_none() && roles.len() == Role::all().count() => {
            warn!(error = error.chain(), "there is no dashboard");
            Ok(None)
        }
        bound => bound.map(Some),
    }
}

/// A backend that stops for good takes the process with it: nothing could be acknowledged any more.
fn watch_backend(backend: &Backend, supervisor: &mut Supervisor) {
    let lifecycle = Arc::clone(&backend.lifecycle);
    supervisor.start(
        "backend",
        Stage::Observe,
        OnFailure::StopProcess,
        move |stop| {
            let lifecycle = Arc::clone(&lifecycle);
            async move {
                tokio::select! {
                    error = lifecycle.failed() => Err(error),
                    () = stop.requested() => Ok(()),
                }
            }
        },
    );
}

/// The configured number, or what the system allows.
fn max_connections(config: &Config) -> usize {
    let most = descriptors::raise();
    if most < config.max_connections {
        warn!(
            configured = config.max_connections,
            most,
            "the limit of open files allows fewer connections than `server.max_connections`; raise it (`ulimit -n`)"
        );
    }
    most.min(config.max_connections)
}
