//! Sockets, and serving on them.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};
use towpath_core::{Error, Result};
use tracing::info;

use super::port_owner;
use crate::config::Config;
use crate::http;
use crate::http::tls::{Files, Tls};
use crate::telemetry::Metrics;
use towpath::net::cidr;
use towpath::supervisor::{OnFailure, Stage, Supervisor};

/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Ports behind the default one that the admin interface tries.
const NEXT_PORTS: u16 = 100;

/// A socket at the address that `key` says.
pub(super) async fn bind(key: &str, address: &str) -> Result<TcpListener> {
    let bound = match address.strip_prefix(':') {
        Some(port) => bind_all(port).await,
        None => TcpListener::bind(address).await,
    };
    let listener = bound.map_err(|error| refused(key, address, error))?;
    // Best effort: with the shorter default a burst of clients waits a second for their next try.
    rustix::net::listen(&listener, BACKLOG).ok();
    Ok(listener)
}

/// The error of a socket that cannot listen: the process that has the port, and the variable for another address.
fn refused(key: &str, address: &str, error: io::Error) -> Error {
    let port = address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    let owner = match error.kind() {
        io::ErrorKind::AddrInUse => port.and_then(port_owner::owner),
        _ => None,
    };
    let owner = owner.map_or_else(String::new, |owner| format!(", which is in use by {owner}"));
    let variable = key.to_uppercase().replace('.', "__");
    Error::unavailable(format!(
        "`{key}` cannot listen on {address}{owner}; choose another address, for example with `TOWPATH_{variable}`"
    ))
    .with_source(error)
}

/// The socket of the admin interface. Where no source says where it listens and another Towpath has the port, it is the
/// next free one: the command line finds every process.
pub(super) async fn bind_admin(config: &Config) -> Result<TcpListener> {
    let key = "server.admin";
    let bound = bind(key, &config.admin).await;
    let Err(error) = bound else { return bound };
    let Some((host, port)) = config.admin.rsplit_once(':') else {
        return Err(error);
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err(error);
    };
    if !(config.admin_is_default && port_owner::is_towpath(port).await) {
        return Err(error);
    }
    for next in (1..=NEXT_PORTS).filter_map(|step| port.checked_add(step)) {
        if let Ok(listener) = bind(key, &format!("{host}:{next}")).await {
            info!(
                address = format!("{host}:{next}"),
                default = config.admin,
                "default admin port used by another Towpath; listening on the next free one"
            );
            return Ok(listener);
        }
    }
    Err(error)
}

/// A socket at a port of every interface, for IPv6 and IPv4 where the system has both.
async fn bind_all(port: &str) -> std::io::Result<TcpListener> {
    let both = || {
        let number = port.parse().ok()?;
        let socket = TcpSocket::new_v6().ok()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, false).ok()?;
        socket.set_reuseaddr(true).ok()?;
        Some((socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, number))))
    };
    if let Some((socket, address)) = both() {
        match socket.bind(address) {
            // IPv6 is switched off.
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {}
            bound => return bound.and_then(|()| socket.listen(BACKLOG.unsigned_abs())),
        }
    }
    TcpListener::bind(format!("0.0.0.0:{port}")).await
}

fn proxies(config: &Config) -> Arc<[ipnet::IpNet]> {
    let proxies = config.trusted_proxies.iter();
    proxies.filter_map(|text| cidr::parse(text)).collect()
}

/// The bounds of a listener with this many connections, with the configured certificate if there is one.
pub(super) fn limits(config: &Config, connections: usize) -> Result<http::Limits> {
    let tls = match (&config.tls_certificate, &config.tls_key) {
        (Some(certificate), Some(key)) => Some(Arc::new(Tls::load(Files {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: config.tls_client_ca.clone(),
        })?)),
        _ => None,
    };
    Ok(http::Limits {
        connections,
        client: Some(http::ClientLimit {
            connections: config
                .max_connections_per_client
                .unwrap_or(connections.div_ceil(2)),
            proxies: proxies(config),
        }),
        timeouts: http::Timeouts {
            head: config.header_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
        },
        reserve: config.drain / 5,
        tls,
        plain_on_loopback: false,
        watches_clients: false,
    })
}

/// Those of the admin listener: operators and probes of this machine may always speak plain HTTP.
fn admin_limits(config: &Config, connections: usize) -> Result<http::Limits> {
    let limits = limits(config, connections)?;
    Ok(http::Limits {
        tls: limits.tls.filter(|_| config.tls_admin),
        plain_on_loopback: true,
        watches_clients: true,
        client: None,
        ..limits
    })
}

/// A bound socket, and its use.
pub(super) struct Listener {
    pub(super) name: &'static str,
    pub(super) stage: Stage,
    pub(super) socket: TcpListener,
    pub(super) connections: usize,
}

impl Listener {
    /// Serves these routes on it. Returns its address.
    pub(super) fn start(
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
        let limits = match self.stage {
            Stage::Observe => admin_limits(config, self.connections)?,
            _ => limits(config, self.connections)?,
        };
        let (socket, refused) = (
            Arc::new(self.socket),
            metrics.refused_connections(self.name),
        );
        supervisor.start(self.name, self.stage, OnFailure::Restart, move |stop| {
            let (socket, router, refused) = (Arc::clone(&socket), router.clone(), refused.clone());
            let limits = limits.clone();
            async move { http::serve(&socket, router, limits, &refused, &stop).await }
        });
        Ok(address)
    }
}
