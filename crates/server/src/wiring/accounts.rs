//! The accounts app's roles, from their configuration.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with the database's wall-clock times"
)]

use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Backend;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::Backlog;
use towpath_core::port::stream::Trim;
use towpath_core::{ErrorKind, Result, StreamName};
use tracing::warn;

use super::Role;
use super::backend_pool::BackendPool;
use super::migrated::{DATABASE, Migrated};
use super::process::Process;
use super::public::Public;
use crate::apps::accounts::{
    HealthDeps, Limiter, RateLimitLayer, Rules, UserApi, health_routes, limit_queries,
    limit_routes, user_queries, user_routes,
};
use crate::documents::Part;
use crate::telemetry::{LastCall, Need};
use towpath::relay::{Filled, Relay, Target};
use towpath::supervisor::{OnFailure, Stage};

/// The roles' names in health, metrics and the account.
const API: &str = "accounts.api";
const RELAY: &str = "accounts.relay";
const LIMITS: &str = "accounts.limits";

/// Interval of counting the backlog.
const WATCH: Duration = Duration::from_secs(2);

/// Interval of trimming streams of events, and the number of events that they keep by default.
const TRIM: Duration = Duration::from_secs(5);
const KEPT_EVENTS: u64 = 1_000_000;

/// Interval and batch size of the removal of expired rows.
const TEND: Duration = Duration::from_secs(60);
const PURGE: usize = 1_000;

/// The app on its stores.
pub(super) struct Accounts {
    migrated: Migrated,
    /// The store of the limits, for the role that has them.
    limits: Option<Backend>,
    /// Where events go, for the role that hands them over.
    broker: Option<Backend>,
}

impl Accounts {
    /// Opens the app's backends when one of its roles runs.
    pub(super) async fn open(
        process: &Process<'_>,
        pool: &mut BackendPool,
    ) -> Result<Option<Self>> {
        let config = process.config;
        let (api, relay) = (
            process.runs(Role::AccountsApi),
            process.runs(Role::AccountsRelay),
        );
        if !api && !relay {
            return Ok(None);
        }
        let limits = match api {
            true => Some(pool.open(&config.limits_backend).await?),
            false => None,
        };
        let broker = match relay {
            true => Some(pool.open(&config.accounts.broker).await?),
            false => None,
        };
        let migrated = process.open_database(&config.accounts.database).await?;
        Ok(Some(Self {
            migrated,
            limits,
            broker,
        }))
    }

    /// Its events.
    pub(super) fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::clone(&self.migrated.database.outbox)
    }

    /// Starts its tasks, and adds its routes to the public listener.
    pub(super) fn start(self, process: &mut Process<'_>, public: &mut Public) -> Result<()> {
        if let Some(limits) = &self.limits {
            let config = &process.config.accounts;
            let store = limits.require_rate_limit(API)?;
            let rules = Rules::parse(&config.limits)?;
            let (clock, metrics) = (Arc::clone(&process.clock), process.metrics.clone());
            let limiter = Limiter::new(store, clock, rules, metrics);
            let users = UserApi {
                users: Arc::clone(&self.migrated.database.users),
                topic: config.topic.as_str().into(),
                crash_test: config.crash_test,
                calls: LastCall::default(),
            };
            let deps = HealthDeps {
                limiter: limiter.clone(),
                database: Arc::clone(&self.migrated.database.outbox),
                changes: users.calls.clone(),
            };
            process.health.watch_calls(API, users.calls.clone());
            process.health.watch_calls(LIMITS, limiter.calls.clone());
            process.needs(LIMITS, limits, Need::Answers);
            process.health.needs(API, LIMITS, Need::Answers);
            process.health.needs(API, DATABASE, Need::Accepts);
            let routes = limit_routes(limiter)
                .merge(user_routes(users))
                .merge(health_routes(deps));
            public.add(API, routes, &[Part::Accounts], &[]);
            public.asks(limit_queries().into_iter().chain(user_queries()));
        }
        process.watch_database(DATABASE, &self.migrated.database);
        if let Some(broker) = &self.broker {
            let filled = Filled::with(StreamName::new(&process.config.accounts.topic)?);
            process.needs(RELAY, broker, Need::Accepts);
            process.health.needs(RELAY, DATABASE, Need::Accepts);
            self.relay(process, Target::of(broker, RELAY)?, filled.clone());
            trim(process, broker, filled);
        }
        self.keep(process);
        self.maintain(process);
        Ok(())
    }

    /// Makes the tables of a database that answers late, and watches it.
    fn keep(&self, process: &mut Process<'_>) {
        let (migrated, health) = (self.migrated.clone(), process.health.clone());
        self.migrated.show(&health);
        let supervisor = &mut process.supervisor;
        supervisor.start(
            "accounts.database",
            Stage::Maintain,
            OnFailure::Restart,
            move |stop| {
                let (migrated, health) = (migrated.clone(), health.clone());
                async move { migrated.keep(&health, &stop).await }
            },
        );
    }

    fn relay(&self, process: &mut Process<'_>, target: Target, filled: Filled) {
        let config = &process.config.accounts;
        let relay = Relay {
            outbox: Arc::clone(&self.migrated.database.outbox),
            target,
            batch: config.batch,
            attempts: config.attempts,
            poll: config.poll,
            lease: config.lease,
            cloud_events: config.cloud_events,
            filled,
            condition: {
                let health = process.health.clone();
                Arc::new(move |error| health.set(RELAY, error))
            },
        };
        process.health.set(RELAY, None);
        let migrated = self.migrated.clone();
        let supervisor = &mut process.supervisor;
        supervisor.start(RELAY, Stage::Deliver, OnFailure::Restart, move |stop| {
            let (relay, migrated) = (relay.clone(), migrated.clone());
            async move {
                match migrated.ready_before(&stop).await {
                    true => relay.run(&stop).await,
                    false => Ok(()),
                }
            }
        });
        self.watch(process);
    }

    /// Tells how far behind the relay is.
    fn watch(&self, process: &mut Process<'_>) {
        let (migrated, metrics) = (self.migrated.clone(), process.metrics.clone());
        let supervisor = &mut process.supervisor;
        supervisor.start(
            "accounts.backlog",
            Stage::Maintain,
            OnFailure::Restart,
            move |stop| {
                let (migrated, metrics) = (migrated.clone(), metrics.clone());
                async move {
                    let mut before = Backlog::default();
                    while migrated.ready_before(&stop).await && !stop.is_requested() {
                        let backlog = migrated.database.outbox.backlog().await?;
                        metrics.outbox(&backlog);
                        warn_of(&before, &backlog);
                        before = backlog;
                        stop.sleep(WATCH).await;
                    }
                    Ok(())
                }
            },
        );
    }

    /// Removes expired rows.
    fn maintain(self, process: &mut Process<'_>) {
        let config = &process.config.accounts;
        let (retention, window) = (config.retention, config.idempotency_window);
        let migrated = self.migrated;
        let supervisor = &mut process.supervisor;
        supervisor.start(
            "accounts.tend",
            Stage::Maintain,
            OnFailure::Restart,
            move |stop| {
                let migrated = migrated.clone();
                async move {
                    let (outbox, users) = (&migrated.database.outbox, &migrated.database.users);
                    while migrated.ready_before(&stop).await && !stop.is_requested() {
                        let now = jiff::Timestamp::now();
                        let purged = outbox.purge(before(now, retention), PURGE).await?;
                        stop.account.add("purged", purged);
                        let forgotten = users.forget_requests(before(now, window), PURGE).await?;
                        if purged.max(forgotten) == PURGE as u64 {
                            continue;
                        }
                        stop.sleep(TEND).await;
                    }
                    Ok(())
                }
            },
        );
    }
}

/// Drops events of streams beyond those that are kept.
fn trim(process: &mut Process<'_>, broker: &Backend, filled: Filled) {
    let Some(stream) = broker.stream.clone() else {
        return;
    };
    let by_default = (broker.descriptor.name != "kafka").then_some(KEPT_EVENTS);
    let Some(keep) = process.config.accounts.keep.or(by_default) else {
        return;
    };
    let supervisor = &mut process.supervisor;
    supervisor.start(
        "accounts.trim",
        Stage::Maintain,
        OnFailure::Restart,
        move |stop| {
            let (stream, filled) = (Arc::clone(&stream), filled.clone());
            async move {
                while !stop.is_requested() {
                    for name in filled.all() {
                        match stream.trim(&name, Trim::KeepLast(keep)).await {
                            Ok(count) => stop.account.add("trimmed", count),
                            Err(error) if error.kind() == ErrorKind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                    stop.sleep(TRIM).await;
                }
                Ok(())
            }
        },
    );
}

/// The limits of the public routes, when there are any.
pub(super) async fn route_limits(
    process: &Process<'_>,
    pool: &mut BackendPool,
) -> Result<Option<RateLimitLayer>> {
    let config = process.config;
    if config.route_limits.is_empty() {
        return Ok(None);
    }
    let store = pool.open(&config.limits_backend).await?;
    let store = store.require_rate_limit("server.limits")?;
    let (clock, metrics) = (Arc::clone(&process.clock), process.metrics.clone());
    let limiter = Limiter::new(store, clock, Rules::parse(&[])?, metrics);
    RateLimitLayer::new(limiter, &config.route_limits, &config.trusted_proxies).map(Some)
}

/// Logs news about a backlog.
fn warn_of(before: &Backlog, now: &Backlog) {
    if now.failed > before.failed {
        let failed = now.failed;
        warn!(
            failed,
            "outbox events failed; list them with `towpath outbox ls --status FAILED`"
        );
    }
    if let Some(position) = now.ahead.filter(|_| before.ahead.is_none()) {
        warn!(position, "outbox sequence behind the relay's position");
    }
    for open in now.waits_for.iter().filter(|_| now.new > 0) {
        if !before.waits_for.iter().any(|known| known.id == open.id) {
            let (transaction, application) = (&open.id, &open.application);
            warn!(
                transaction,
                age_seconds = open.age_seconds,
                application,
                "relay waiting for an open transaction"
            );
        }
    }
}

/// So long before now, or the beginning of time.
fn before(now: jiff::Timestamp, span: Duration) -> jiff::Timestamp {
    now.checked_sub(span).unwrap_or(jiff::Timestamp::MIN)
}
