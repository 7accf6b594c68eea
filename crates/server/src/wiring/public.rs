//! The public listener: every app's routes on one port.

use std::net::SocketAddr;

use axum::Router;
use towpath_core::{ErrorKind, Result};
use tracing::{info, warn};

use super::listener::{Listener, bind, limits};
use super::process::Process;
use crate::apps::accounts::{LIMIT_FORMS, RateLimitLayer, limited};
use crate::apps::orders::Topology;
use crate::auth::Table;
use crate::documents::{Part, document};
use crate::http::{self, Asking, BodyLimit, Cors, wrap};
use crate::telemetry::{Health, RefusedConnections};
use towpath::supervisor::{OnFailure, Stage, Stop};

/// The routes of the public listener, as the apps add them.
#[derive(Default)]
pub(super) struct Public {
    /// The first role that has routes, which names the listener.
    name: Option<&'static str>,
    router: Router,
    bodies: Vec<BodyLimit>,
    queries: Vec<Asking>,
    parts: Vec<Part>,
    waits_for: Option<(&'static str, Topology)>,
    limits: Option<RateLimitLayer>,
}

impl Public {
    /// Adds the routes of a role with their documents, and with limits of bodies of its own.
    pub(super) fn add(
        &mut self,
        role: &'static str,
        routes: Router,
        parts: &[Part],
        bodies: &[BodyLimit],
    ) {
        self.name.get_or_insert(role);
        self.parts.extend_from_slice(parts);
        self.router = std::mem::take(&mut self.router).merge(routes);
        self.bodies.extend_from_slice(bodies);
    }

    /// These requests have parameters.
    pub(super) fn asks(&mut self, queries: impl IntoIterator<Item = Asking>) {
        self.queries.extend(queries);
    }

    /// Every route has these limits.
    pub(super) fn limit(&mut self, limits: RateLimitLayer) {
        self.limits = Some(limits);
    }

    /// The port opens once this role's broker has the queues that its messages go to.
    pub(super) fn wait_for(&mut self, role: &'static str, topology: Topology) {
        self.waits_for = Some((role, topology));
    }

    /// Serves the routes, if there are any. While a broker is unavailable this is retried, and there is no address yet.
    pub(super) async fn start(self, process: &mut Process<'_>) -> Result<Option<SocketAddr>> {
        let Some(name) = self.name else {
            return Ok(None);
        };
        let routes = match self.limits {
            Some(limits) => limited(self.router, limits),
            None => self.router,
        };
        let (config, connections) = (process.config, process.connections);
        let table = Table::of(&self.parts);
        process.expose("public", &table, &config.listen);
        let edge = process
            .edge()
            .bodies(&self.bodies)
            .queries(self.queries)
            .forms(LIMIT_FORMS)
            .document(&document("Towpath", &self.parts))
            .guard(process.guard.clone(), table.clone())
            .cors(Cors::new(&config.cors_origins, config.cors_max_age)?);
        let router = wrap(routes, edge);
        if let Some((role, topology)) = self.waits_for {
            match topology.declare().await {
                Ok(()) => process.health.set(role, None),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    warn!(
                        error = error.chain(),
                        "broker unreachable; the public listener opens once it responds"
                    );
                    process.health.set(role, Some(error.chain()));
                    let deferred = DeferredListener {
                        router,
                        role,
                        topology,
                        address: config.listen.clone(),
                        limits: limits(config, connections)?,
                        refused: process.metrics.refused_connections(name),
                        health: process.health.clone(),
                    };
                    let supervisor = &mut process.supervisor;
                    supervisor.start(name, Stage::Accept, OnFailure::Restart, move |stop| {
                        let deferred = deferred.clone();
                        async move { deferred.serve(&stop).await }
                    });
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let listener = Listener {
            name,
            stage: Stage::Accept,
            socket: bind("server.listen", &config.listen).await?,
            connections,
        };
        listener
            .start(router, config, &process.metrics, &mut process.supervisor)
            .map(Some)
    }
}

/// The public listener of a role whose broker was unavailable at the start.
#[derive(Clone)]
struct DeferredListener {
    router: Router,
    role: &'static str,
    topology: Topology,
    address: String,
    limits: http::Limits,
    refused: RefusedConnections,
    health: Health,
}

impl DeferredListener {
    async fn serve(self, stop: &Stop) -> Result<()> {
        tokio::select! {
            declared = self.topology.declare() => declared?,
            () = stop.requested() => return Ok(()),
        }
        let socket = bind("server.listen", &self.address).await?;
        self.health.set(self.role, None);
        info!(
            http = self.address,
            "broker available; public listener open"
        );
        http::serve(&socket, self.router, self.limits, &self.refused, stop).await
    }
}
