//! The process under construction, which the wiring of every app works with.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use reqwest::Url;
use towpath_backends::embedded::{RESERVE, memory_limit};
use towpath_core::backend::Backend;
use towpath_core::database::Database;
use towpath_core::{Clock, Error, Result, retry};
use tracing::{info, warn};

use super::Role;
use super::listener::{Listener, bind};
use super::migrated::Migrated;
use super::run::closing_time;
use super::stalls::Stalls;
use crate::admin::{self, FleetListeners};
use crate::apps::accounts::{RateLimitLayer, limited};
use crate::auth::{
    Guard, Jwt, JwtSettings, KeyFile, Records, Table, Trail, collect_records, store_records,
};
use crate::config::{Config, Secret, on_loopback};
use crate::documents::Part;
use crate::http::{BodyReader, Cors, Hosts, RequestLayer, Sites, rlimit, wrap};
use crate::stores::open_database;
use crate::telemetry::{Health, Metrics, Need, Source};
use crate::token::Token;
use towpath::disk::{Floor, folder_of};
use towpath::net::cidr;
use towpath::pump::{Alone, Condition, Destination, Observer, PATIENCE, Side};
use towpath::supervisor::{OnFailure, Stage, Supervisor};

/// A process that is being started.
pub(super) struct Process<'a> {
    pub(super) config: &'a Config,
    roles: &'a [Role],
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) supervisor: Supervisor,
    /// For the pumps of every role.
    pub(super) alone: Alone,
    /// Open connections that each public listener may have.
    pub(super) connections: usize,
    /// Limits of routes that have a listener of their own.
    pub(super) limits: Option<RateLimitLayer>,
    /// Bounds of the bodies of all listeners.
    bodies: BodyReader,
    /// Calls that may wait for a disk.
    pub(super) stalls: Stalls,
    /// Checks the keys of every listener.
    pub(super) guard: Guard,
    /// Records for the audit trail.
    records: Records,
    /// The listeners of single roles.
    pub(super) listeners: Vec<(&'static str, SocketAddr)>,
    /// Routes of the fleet's roles for operators.
    pub(super) fleet_listeners: FleetListeners,
}

/// A listener that one role has to itself.
pub(super) struct ListenerSpec<'a> {
    /// The role's name.
    pub(super) role: &'static str,
    /// The key of its address.
    pub(super) key: &'static str,
    /// The configured address.
    pub(super) configured: Option<&'a str>,
    /// Default listen address of the role.
    pub(super) default: &'static str,
    /// The routes that it carries.
    pub(super) parts: &'static [Part],
}

impl<'a> Process<'a> {
    /// To be called before anything opens files: it raises their limit.
    ///
    /// # Errors
    /// `Invalid` or `Unavailable` when the key file or the token cannot be used.
    pub(super) fn new(
        config: &'a Config,
        roles: &'a [Role],
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let token = Token::kept_in(&config.data_dir, admin::TOKEN_FILE)?;
        let keys = KeyFile::open(config.key_file.clone())?;
        let (trail, records) = Trail::new();
        let mut supervisor = Supervisor::new(config.drain - closing_time(config.drain));
        let metrics = Metrics::new();
        let counter = metrics.clone();
        supervisor.on_restart(move |task, count| counter.task_restarts(task, count));
        let jwt = jwt(config, &mut supervisor)?;
        let guard = Guard::new(
            config.auth,
            (keys.clone(), token, jwt),
            sites(config),
            Arc::clone(&clock),
            trail.clone(),
        );
        let (folder, of_commands) = (config.data_dir.clone(), trail.clone());
        supervisor.start(
            "audit.commands",
            Stage::Observe,
            OnFailure::Restart,
            move |stop| collect_records(folder.clone(), of_commands.clone(), stop),
        );
        supervisor.start("keys", Stage::Observe, OnFailure::Restart, move |stop| {
            keys.clone().watch(trail.clone(), stop)
        });
        Ok(Self {
            config,
            roles,
            clock,
            metrics,
            health: Health::new(),
            supervisor,
            alone: Alone::default(),
            connections: max_connections(config),
            limits: None,
            bodies: BodyReader::new(config.body_timeout, body_memory(config)),
            stalls: Stalls::default(),
            guard,
            records,
            listeners: Vec::new(),
            fleet_listeners: FleetListeners::default(),
        })
    }

    /// Stores audit records in the first backend that has streams; without one they are in the log only.
    pub(super) fn store_audit(&mut self, backends: &[Backend]) {
        let Some(stream) = backends.iter().find_map(|backend| backend.stream.clone()) else {
            return;
        };
        let (records, keep) = (Arc::clone(&self.records), self.config.audit_keep);
        self.supervisor
            .start("audit", Stage::Observe, OnFailure::Restart, move |stop| {
                store_records(Arc::clone(&records), Arc::clone(&stream), keep, stop)
            });
    }

    /// The state of a destination that messages of `role` go to, as health and metrics show it.
    pub(super) fn destination(
        &self,
        role: &'static str,
        retry: retry::Policy,
    ) -> impl FnOnce(String) -> Destination + use<> {
        let (clock, observer) = (Arc::clone(&self.clock), self.observer(role));
        let patience = retry.span().max(PATIENCE);
        move |name| Destination::new(name, retry, patience, clock, observer)
    }

    /// Shows the changes of a destination.
    pub(super) fn observer(&self, role: &'static str) -> Observer {
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        Arc::new(move |change| {
            metrics.destination(role, change.from, change.to);
            health.report(role, Source::Destination(change.name), change.problem);
        })
    }

    /// Watches a database: whether it accepts changes, and whether calls are kept from it meanwhile.
    pub(super) fn watch_database(&self, name: &'static str, database: &Database) {
        let outbox = Arc::clone(&database.outbox);
        self.health.watch_check(name, move || {
            let outbox = Arc::clone(&outbox);
            Box::pin(async move { outbox.check().await })
        });
        let metrics = self.metrics.clone();
        // So that its series are there before it first opens.
        metrics.destination(name, Condition::Open, Condition::Open);
        database.breaker.observe(move |is_open, error| {
            if is_open {
                warn!(database = name, error, "database paused");
                metrics.destination(name, Condition::Open, Condition::Paused);
            } else {
                info!(database = name, "database resumed");
                metrics.destination(name, Condition::Paused, Condition::Open);
            }
        });
    }

    /// Counts the changes of many destinations.
    pub(super) fn counter(&self, role: &'static str) -> Observer {
        let metrics = self.metrics.clone();
        Arc::new(move |change| metrics.destination(role, change.from, change.to))
    }

    /// The role works only while the backend does.
    pub(super) fn needs(&self, role: &str, backend: &Backend, need: Need) {
        self.health.needs(role, &backend.url, need);
    }

    pub(super) fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether this is `up`, which runs every role.
    pub(super) fn is_everything(&self) -> bool {
        self.roles.len() == Role::all().count()
    }

    /// An edge with bounds of its own, so that a busy listener never makes a probe on another one fail.
    pub(super) fn edge(&self) -> RequestLayer {
        self.edge_of(self.config.max_in_flight)
    }

    /// The same for routes whose requests wait for news: as many may be in flight as there are connections.
    pub(super) fn patient_edge(&self) -> RequestLayer {
        self.edge_of(self.connections)
    }

    fn edge_of(&self, in_flight: usize) -> RequestLayer {
        let sites = sites(self.config);
        RequestLayer::new(self.metrics.clone(), in_flight, self.bodies.clone())
            .patience(self.config.disk_timeout)
            .secure(self.config.tls_certificate.is_some())
            .gate(move |head| sites.check(head))
    }

    /// Disk space that an output on the same disk leaves to this backend.
    pub(super) fn floor(&self, backend: &Backend) -> Option<Floor> {
        backend.lifecycle.folder().map(|folder| Floor {
            file: folder.join(RESERVE),
            reserve: self.config.disk_reserve,
        })
    }

    /// Opens a database, and makes its tables when it answers.
    pub(super) async fn open_database(&self, url: &Secret) -> Result<Migrated> {
        let database = open_database(url.expose()).await?;
        if let Some(file) = &database.file {
            self.metrics.watch_disk(folder_of(file));
            let waits = Arc::clone(&database.waits);
            self.stalls.add("database", file, waits);
        }
        Migrated::open(database).await
    }

    /// Reports a listener that clients of other machines use without a key.
    pub(super) fn expose(&self, listener: &str, table: &Table, address: &str) {
        if let Some(cause) = self.guard.exposure(table, address) {
            self.health
                .expose(format!("{listener} on {address}"), cause);
        }
    }

    /// Opens a role's own listener. `up` continues without it when the default port is in use.
    pub(super) async fn open(
        &mut self,
        spec: ListenerSpec<'_>,
        router: Router,
        edge: RequestLayer,
    ) -> Result<()> {
        // `up` opens only configured addresses to other machines.
        let default = match self.is_everything() {
            true => on_loopback(spec.default),
            false => spec.default.to_owned(),
        };
        let socket = match bind(spec.key, spec.configured.unwrap_or(&default)).await {
            Err(error) if spec.configured.is_none() && self.is_everything() => {
                warn!(
                    error = error.chain(),
                    role = spec.role,
                    "listener not started"
                );
                return Ok(());
            }
            bound => bound?,
        };
        let listener = Listener {
            name: spec.role,
            stage: Stage::Accept,
            socket,
            connections: self.connections,
        };
        let cors = Cors::new(&self.config.cors_origins, self.config.cors_max_age)?;
        let table = Table::of(spec.parts);
        let edge = edge.guard(self.guard.clone(), table.clone()).cors(cors);
        let router = match &self.limits {
            Some(limits) => limited(router, limits.clone()),
            None => router,
        };
        let router = wrap(router, edge);
        let address = listener.start(router, self.config, &self.metrics, &mut self.supervisor)?;
        self.expose(spec.role, &table, &address.to_string());
        self.listeners.push((spec.role, address));
        Ok(())
    }
}

/// Verifies JWTs of the configured identity provider, whose keys a task reads.
fn jwt(config: &Config, supervisor: &mut Supervisor) -> Result<Option<Jwt>> {
    let (Some(jwks), Some(issuer), Some(audience)) =
        (&config.jwks, &config.jwt_issuer, &config.jwt_audience)
    else {
        return Ok(None);
    };
    let url: Url = jwks
        .expose()
        .parse()
        .map_err(|error| Error::invalid("`server.jwt.jwks` is not a URL").with_source(error))?;
    let jwt = Jwt::new(JwtSettings {
        issuer: issuer.clone(),
        audience: audience.clone(),
        scope_claim: config.jwt_scope_claim.clone(),
    });
    let reading = jwt.clone();
    supervisor.start("jwks", Stage::Observe, OnFailure::Restart, move |stop| {
        reading.clone().refresh(url.clone(), stop)
    });
    Ok(Some(jwt))
}

/// Which requests of web pages and of this machine the listeners of roles serve.
pub(super) fn sites(config: &Config) -> Sites {
    let listens = [
        &config.orders.dashboard_listen,
        &config.fleet.controller_listen,
        &config.fleet.worker_listen,
    ];
    let named = listens.into_iter().flatten().chain(&config.hosts);
    let named: Vec<String> = named.cloned().collect();
    let hosts = Hosts::new(&config.listen, "server.hosts", &named);
    let proxies = config.trusted_proxies.iter();
    Sites::new(
        hosts.or_labels(),
        proxies.filter_map(|text| cidr::parse(text)).collect(),
    )
    .for_every_client(!config.hosts.is_empty())
    .allowing(&config.cors_origins)
}

/// Shows in health how the pump of a task works, on behalf of a role.
pub(super) fn condition(
    health: &Health,
    role: &'static str,
    task: impl Into<String>,
) -> Box<dyn Fn(Side, Option<String>) + Send + Sync> {
    let (health, task) = (health.clone(), task.into());
    Box::new(move |side, problem| {
        let source = match side {
            Side::Consumer => Source::Lease(task.clone()),
            Side::Sink => Source::Sink(task.clone()),
        };
        health.report(role, source, problem);
    })
}

/// The configured memory of bodies, or a part of the process's limit.
fn body_memory(config: &Config) -> usize {
    const MOST: u64 = 256 << 20;
    config.max_body_memory.unwrap_or_else(|| {
        let part = usize::try_from((memory_limit() / 8).min(MOST)).unwrap_or(usize::MAX);
        part.max(2 * config.max_body.max(config.max_batch_body))
    })
}

/// The configured number, or the system's limit.
fn max_connections(config: &Config) -> usize {
    let most = rlimit::raise();
    if most < config.max_connections {
        warn!(
            configured = config.max_connections,
            most,
            "the limit of open files allows fewer connections than `server.max_connections`; raise it (`ulimit -n`)"
        );
    }
    most.min(config.max_connections)
}
