//! Starts a process: its roles, backends and listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use towpath_core::Result;
use towpath_core::backend::Backend;

use super::Role;
use super::accounts::Accounts;
use super::backend_pool::BackendPool;
use super::demo::{Demo, make_input};
use super::fleet::Fleet;
use super::ingest::Ingest;
use super::lines::Lines;
use super::listener::{Listener, bind, bind_admin};
use super::orders::Orders;
use super::process::Process;
use super::public::Public;
use super::queues;
use crate::admin;
use crate::auth::{Actor, Guard};
use crate::config::{Config, Loaded};
use crate::doctor::Doctor;
use crate::http::Hosts;
use crate::problems::{Limits, Problems};
use crate::stores::{clock, is_in_use, refuse_restoring};
use crate::telemetry::Health;
use crate::token::Token;
use towpath::supervisor::{OnFailure, Report, Stage, Supervisor, TaskExit};

/// Open connections of the admin interface beside those that wait for messages: operators, a scraper, probes, workers.
const ADMIN_CONNECTIONS: usize = 1024;

/// A process that is up.
pub struct Started {
    /// The public interface, when a role has one.
    pub http: Option<SocketAddr>,
    /// The admin interface.
    pub admin: SocketAddr,
    /// The listeners that single roles have to themselves, by role.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// The backends of its roles, the first one of ingest when it runs.
    pub backends: Vec<Backend>,
    supervisor: Supervisor,
    health: Health,
    guard: Guard,
    drain: Duration,
}

/// Starts the roles.
///
/// # Errors
/// `Unavailable` when the backend cannot be opened or a port is taken; `Invalid` for errors that only the backend can find.
pub async fn start(loaded: &Loaded, roles: &[Role], with_demo: bool) -> Result<Started> {
    let config = &loaded.config;
    // Before anything in it is trusted.
    towpath_backends::private::check_folder(&config.data_dir)?;
    // Databases too belong to a restore.
    refuse_restoring(&config.data_dir)?;
    // Before anything is made or migrated. A process that has the folder open says more than its port.
    let admin_socket = match take_ports(config, roles).await {
        Err(error) if !is_in_use(&config.data_dir) => return Err(error),
        taken => taken,
    };
    let mut process = Process::new(config, roles, clock())?;
    let mut pool = BackendPool::new(Arc::clone(&process.clock));
    let ingest = Ingest::open(&process, &mut pool).await?;
    let orders = Orders::open(&process, &mut pool).await?;
    let lines = Lines::open(&process, &mut pool).await?;
    let accounts = Accounts::open(&process, &mut pool).await?;
    let fleet = Fleet::open(&process, &mut pool).await?;
    let limits = super::accounts::route_limits(&process, &mut pool).await?;
    let admin_socket = admin_socket?;
    let backends = pool.backends();
    for backend in &backends {
        process.health.watch(backend.clone());
        if let Some(folder) = backend.lifecycle.folder() {
            process.metrics.watch_disk(folder);
        }
    }
    let limits_of_rules = Limits {
        disk_reserve: config.disk_reserve,
    };
    let problems = Problems::new(
        process.health.clone(),
        process.metrics.clone(),
        limits_of_rules,
    );
    // The admin side first: it answers while an app still waits for its backend.
    let admin = admin::Admin {
        backends: backends.clone(),
        orders: orders.as_ref().map(Orders::store),
        outbox: accounts.as_ref().map(Accounts::outbox),
        guard: process.guard.clone(),
        health: process.health.clone(),
        metrics: process.metrics.clone(),
        problems: problems.clone(),
        doctor: Doctor::new(config, loaded.warnings.clone()),
        jobs: admin::Jobs::new(config.max_waiting, queues::declared(config)?)?,
        roles: roles.iter().map(|role| role.as_str()).collect(),
        fleet_listeners: process.fleet_listeners.clone(),
    };
    let admin = serve_admin(admin, admin_socket, &mut process)?;
    process.store_audit(&backends);
    for backend in &backends {
        watch_backend(backend, &mut process.supervisor);
    }
    queues::declare(&mut process, &backends).await?;
    let mut public = Public::default();
    if let Some(limits) = limits {
        process.limits = Some(limits.clone().named_only());
        public.limit(limits);
    }
    if let Some(ingest) = ingest {
        ingest.start(&mut process, &mut public).await?;
    }
    if let Some(orders) = orders {
        orders.start(&mut process, &mut public).await?;
    }
    if with_demo && let Some(input) = &config.lines.input {
        // Otherwise its reader begins with a warning.
        make_input(input)?;
    }
    if let Some(lines) = lines {
        lines.start(&mut process, &mut public)?;
    }
    if let Some(accounts) = accounts {
        accounts.start(&mut process, &mut public)?;
    }
    if let Some(fleet) = fleet {
        fleet.start(&mut process).await?;
    }
    let http = public.start(&mut process).await?;
    if let Some(api) = http.filter(|_| with_demo) {
        let demo = Demo {
            api: local(api),
            admin: local(admin),
            token: Token::kept_in(&config.data_dir, admin::TOKEN_FILE)?,
            input: config.lines.input.clone(),
        };
        let supervisor = &mut process.supervisor;
        supervisor.start("demo", Stage::Source, OnFailure::Restart, move |stop| {
            let demo = demo.clone();
            async move { demo.run(&stop).await }
        });
    }
    process.watch_stalls(&backends);
    process.supervisor.start(
        "problems",
        Stage::Observe,
        OnFailure::Restart,
        move |stop| {
            let problems = problems.clone();
            async move { problems.run(&stop).await }
        },
    );
    process.health.serving();
    Ok(Started {
        http,
        admin,
        listeners: process.listeners,
        backends,
        supervisor: process.supervisor,
        health: process.health,
        guard: process.guard,
        drain: config.drain,
    })
}

/// Where this process reaches a listener of its own.
fn local(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], address.port())),
        false => address,
    }
}

impl Started {
    /// A code that signs a browser in once, as an operator.
    pub fn sign_in_code(&self) -> Option<String> {
        self.guard.code(&Actor::Token).ok()
    }

    /// Runs until `signal`, drains, closes the backends, and reports. Ends within `server.drain` of the signal, whatever
    /// the disks do.
    pub async fn run(
        self,
        signal: impl Future<Output = String>,
        impatient: impl Future<Output = ()>,
    ) -> Report {
        let health = self.health;
        let mut report = self
            .supervisor
            .run(signal, impatient, || health.draining())
            .await;
        let left = self
            .drain
            .saturating_sub(report.drained_in + last_moment(self.drain));
        let closing = async {
            let mut outcomes = Vec::new();
            for backend in &self.backends {
                outcomes.push(backend.lifecycle.close().await);
            }
            outcomes.into_iter().collect::<Result<()>>()
        };
        let began = Instant::now();
        let ending = match tokio::time::timeout(left, closing).await {
            Ok(Ok(())) => TaskExit::Finished,
            Ok(Err(error)) => TaskExit::Failed(error.chain()),
            Err(_) => TaskExit::Cut,
        };
        report.closed(ending, began.elapsed());
        report
    }
}

/// Part of the drain that is reserved for closing the backends.
pub(super) fn closing_time(drain: Duration) -> Duration {
    (drain / 10).min(Duration::from_secs(2))
}

/// Part of the drain that is reserved for the summary.
fn last_moment(drain: Duration) -> Duration {
    (drain / 20).min(Duration::from_millis(500))
}

/// The socket of the admin interface, when the configured ports are free. Other ports that are not configured may be
/// taken: `up` continues without those listeners.
async fn take_ports(config: &Config, roles: &[Role]) -> Result<TcpListener> {
    let admin = bind_admin(config).await?;
    let runs = |role: &Role| roles.contains(role);
    if Role::PUBLIC.iter().any(runs) {
        bind("server.listen", &config.listen).await?;
    }
    for (role, key, address) in [
        (
            Role::OrdersDashboard,
            "orders.dashboard.listen",
            &config.orders.dashboard_listen,
        ),
        (
            Role::FleetController,
            "fleet.controller.listen",
            &config.fleet.controller_listen,
        ),
        (
            Role::FleetWorker,
            "fleet.worker.listen",
            &config.fleet.worker_listen,
        ),
    ] {
        if let Some(address) = address.as_deref().filter(|_| runs(&role)) {
            bind(key, address).await?;
        }
    }
    Ok(admin)
}

fn serve_admin(
    admin: admin::Admin,
    socket: TcpListener,
    process: &mut Process<'_>,
) -> Result<SocketAddr> {
    let config = process.config;
    let listener = Listener {
        name: "admin",
        stage: Stage::Observe,
        socket,
        connections: (config.max_waiting + ADMIN_CONNECTIONS).min(process.connections),
    };
    let hosts = Hosts::new(&config.admin, "server.admin_hosts", &config.admin_hosts);
    let edge = process.edge().secure(process.config.tls_admin);
    let router = admin::router(admin, hosts, edge);
    listener.start(router, config, &process.metrics, &mut process.supervisor)
}

/// A backend that stops for good takes the process with it, at once: nothing could be acknowledged any more, and the
/// next start repairs it.
fn watch_backend(backend: &Backend, supervisor: &mut Supervisor) {
    let lifecycle = Arc::clone(&backend.lifecycle);
    supervisor.start(
        "backend",
        Stage::Observe,
        OnFailure::EndProcess,
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
