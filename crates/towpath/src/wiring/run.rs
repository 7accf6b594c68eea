//! Starting a process: what runs, on what, and where it listens.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::{Error, ErrorKind, QueueName, Result};
use tracing::warn;

use super::backends::clock;
use super::{Role, demo, ingest};
use crate::admin;
use crate::config::Config;
use crate::http::{self, Edge, Intake, descriptors};
use crate::supervisor::{OnFailure, Report, Stage, Supervisor};
use crate::telemetry::{Health, Metrics};

/// Open connections of the admin interface: operators, a scraper, probes.
const ADMIN_CONNECTIONS: usize = 128;

/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A process that is up.
pub struct Started {
    /// The public interface, when a role has one.
    pub http: Option<SocketAddr>,
    /// The admin interface.
    pub admin: SocketAddr,
    /// The backend of the ingest app.
    pub backend: Backend,
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
    let backend =
        towpath_backends::open(config.ingest_backend.expose(), Arc::clone(&clock)).await?;
    let (metrics, health) = (Metrics::new(), Health::new());
    health.watch(backend.clone());
    let mut supervisor = Supervisor::new(config.drain);
    let token = admin::token(&config.data_dir)?;
    let admin_listener = bind("server.admin", &config.admin).await?;
    // Each listener has bounds of its own, so that a busy public interface never makes a probe fail.
    let edge = || {
        let intake = Intake::new(config.body_timeout, config.max_body_memory);
        Edge::new(metrics.clone(), config.max_in_flight, intake)
    };
    let admin = admin::router(
        admin::Admin::new(backend.clone(), token, health.clone(), metrics.clone()),
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

    let queue = backend.require_queue("ingest")?;
    declare(config, &queue, &mut supervisor).await?;
    watch_backend(&backend, &mut supervisor);
    if roles.contains(&Role::IngestWorker) {
        ingest::worker(config, &backend, &clock, &metrics, &health, &mut supervisor)?;
    }
    let mut public = None;
    if roles.contains(&Role::IngestApi) {
        let listener = Listener {
            name: "ingest.api",
            stage: Stage::Accept,
            socket: bind("server.listen", &config.listen).await?,
            connections: max_connections,
        };
        let router = ingest::api(config, &backend, edge())?;
        public = Some(listener.start(router, config, &metrics, &mut supervisor)?);
    }
    if with_demo {
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
        backend,
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
        self.backend.lifecycle.close().await?;
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

async fn bind(key: &str, address: &str) -> Result<TcpListener> {
    let full = if address.starts_with(':') {
        format!("0.0.0.0{address}")
    } else {
        address.to_owned()
    };
    let listener = TcpListener::bind(&full).await.map_err(|error| {
        Error::unavailable(format!(
            "`{key}` cannot listen on {full}; choose another address"
        ))
        .with_source(error)
    })?;
    // Best effort: with the shorter default a burst of clients waits a second for their next try.
    rustix::net::listen(&listener, BACKLOG).ok();
    Ok(listener)
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

/// A bound socket, and what becomes of it.
struct Listener {
    name: &'static str,
    stage: Stage,
    socket: TcpListener,
    connections: usize,
}

impl Listener {
    /// Serves these routes on it. Returns its address.
    fn start(
        self,
        router: Router,
        config: &Config,
        metrics: &Metrics,
        supervisor: &mut Supervisor,
    ) -> Result<SocketAddr> {
        let address = self
            .socket
            .local_addr()
            .map_err(|error| Error::unavailable("a listener has no address").with_source(error))?;
        let limits = http::Limits {
            connections: self.connections,
            patience: http::Patience {
                head: config.header_timeout,
                idle: config.idle_timeout,
                write: config.write_timeout,
            },
            reserve: config.drain / 5,
        };
        let (socket, refused) = (
            Arc::new(self.socket),
            metrics.refused_connections(self.name),
        );
        supervisor.start(self.name, self.stage, OnFailure::Restart, move |stop| {
            let (socket, router, refused) = (Arc::clone(&socket), router.clone(), refused.clone());
            async move { http::serve(&socket, router, limits, &refused, &stop).await }
        });
        Ok(address)
    }
}
