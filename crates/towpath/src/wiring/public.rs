//! The public listener: every app's routes on one port.

use std::net::SocketAddr;

use axum::Router;
use towpath_core::backend::Backend;
use towpath_core::{ErrorKind, Result};
use tracing::{info, warn};

use super::ingest;
use super::listener::{Listener, bind, limits};
use crate::apps::ingest::bodies;
use crate::apps::orders::{Desk, Gateway, Topology, gateway_routes, stock_routes};
use crate::config::Config;
use crate::http::{self, Edge, wrap};
use crate::supervisor::{OnFailure, Stage, Stop, Supervisor};
use crate::telemetry::{Health, Metrics, RefusedConnections};

/// The gateway's name in health.
const GATEWAY: &str = "orders.gateway";

/// What the public listener carries.
pub(super) struct Public {
    pub(super) ingest: Option<Backend>,
    pub(super) desk: Option<Desk>,
    pub(super) edge: Edge,
    pub(super) connections: usize,
}

impl Public {
    /// Serves it. With a gateway the port opens once its broker has the queues that orders go to;
    /// while the broker is away that is tried on, and there is no address yet.
    pub(super) async fn start(
        self,
        config: &Config,
        metrics: &Metrics,
        health: &Health,
        supervisor: &mut Supervisor,
    ) -> Result<Option<SocketAddr>> {
        let name = match (&self.ingest, &self.desk) {
            (None, None) => return Ok(None),
            (Some(_), _) => "ingest.api",
            (None, Some(_)) => GATEWAY,
        };
        let mut router = Router::new();
        if let Some(backend) = &self.ingest {
            router = router.merge(ingest::api(config, backend)?);
        }
        if let Some(desk) = &self.desk {
            router = router
                .merge(gateway_routes(Gateway(desk.clone())))
                .merge(stock_routes(desk.clone()));
        }
        let router = wrap(router, self.edge.bodies(&bodies(ingest::limits(config))));
        if let Some(desk) = &self.desk {
            let declared = desk.topology.declare().await;
            match declared {
                Ok(()) => health.set(GATEWAY, None),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    warn!(
                        error = error.chain(),
                        "the broker is away, the public port opens when it is there"
                    );
                    health.set(GATEWAY, Some(error.chain()));
                    let late = Late {
                        router,
                        topology: desk.topology.clone(),
                        address: config.listen.clone(),
                        limits: limits(config, self.connections),
                        refused: metrics.refused_connections(name),
                        health: health.clone(),
                    };
                    supervisor.start(name, Stage::Accept, OnFailure::Restart, move |stop| {
                        let late = late.clone();
                        async move { late.serve(&stop).await }
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
            connections: self.connections,
        };
        listener
            .start(router, config, metrics, supervisor)
            .map(Some)
    }
}

/// The public listener of a gateway whose broker was away at the start.
#[derive(Clone)]
struct Late {
    router: Router,
    topology: Topology,
    address: String,
    limits: http::Limits,
    refused: RefusedConnections,
    health: Health,
}

impl Late {
    async fn serve(self, stop: &Stop) -> Result<()> {
        tokio::select! {
            declared = self.topology.declare() => declared?,
            () = stop.requested() => return Ok(()),
        }
        let socket = bind("server.listen", &self.address).await?;
        self.health.set(GATEWAY, None);
        info!(
            http = self.address,
            "the broker is there, the public port is open"
        );
        http::serve(&socket, self.router, self.limits, &self.refused, stop).await
    }
}
