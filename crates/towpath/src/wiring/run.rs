//! Starting a process: what runs, on what, and where it listens.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use towpath_core::backend::Backend;
use towpath_core::{Error, QueueName, Result};

use super::backends::clock;
use super::{Role, demo, ingest};
use crate::admin;
use crate::config::Config;
use crate::http::{self, Edge};
use crate::supervisor::{OnFailure, Report, Stage, Supervisor};
use crate::telemetry::{Health, Metrics};

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
    let clock = clock();
    let backend =
        towpath_backends::open(config.ingest_backend.expose(), Arc::clone(&clock)).await?;
    let (metrics, health) = (Metrics::new(), Health::new());
    health.watch(backend.clone());
    let mut supervisor = Supervisor::new(config.drain);
    let token = admin::token(&config.data_dir)?;
    let admin_listener = bind("server.admin", &config.admin).await?;
    let edge = Edge::new(metrics.clone(), config.max_in_flight, config.body_timeout);
    // A bound of its own, so that a busy public interface never makes a probe fail.
    let admin_edge = Edge::new(metrics.clone(), config.max_in_flight, config.body_timeout);
    let admin = admin::router(admin::Admin::new(
        backend.clone(),
        token,
        health.clone(),
        metrics.clone(),
    ));
    let admin = listen(
        admin_listener,
        http::wrap(admin, admin_edge),
        Stage::Observe,
        "admin",
        config,
        &mut supervisor,
    )?;

    let queue = backend.require_queue("ingest")?;
    queue
        .declare(&QueueName::new(&config.queue)?, &config.queue_settings())
        .await?;
    watch_backend(&backend, &mut supervisor);
    if roles.contains(&Role::IngestWorker) {
        ingest::worker(config, &backend, &clock, &metrics, &health, &mut supervisor)?;
    }
    let mut public = None;
    if roles.contains(&Role::IngestApi) {
        let listener = bind("server.listen", &config.listen).await?;
        let router = http::wrap(ingest::api(config, &backend)?, edge);
        public = Some(listen(
            listener,
            router,
            Stage::Accept,
            "ingest.api",
            config,
            &mut supervisor,
        )?);
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
    TcpListener::bind(&full).await.map_err(|error| {
        Error::unavailable(format!(
            "`{key}` cannot listen on {full}; choose another address"
        ))
        .with_source(error)
    })
}

fn listen(
    listener: TcpListener,
    router: Router,
    stage: Stage,
    name: &str,
    config: &Config,
    supervisor: &mut Supervisor,
) -> Result<SocketAddr> {
    let address = listener
        .local_addr()
        .map_err(|error| Error::unavailable("a listener has no address").with_source(error))?;
    let limits = http::Limits {
        connections: config.max_connections,
        head: config.header_timeout,
    };
    let listener = Arc::new(listener);
    supervisor.start(name, stage, OnFailure::Restart, move |stop| {
        let (listener, router) = (Arc::clone(&listener), router.clone());
        async move { http::serve(&listener, router, limits, &stop).await }
    });
    Ok(address)
}
