//! The fleet app's roles, from their configuration.

use std::net::SocketAddr;
use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::{Result, retry};
use tracing::{info, warn};

use super::Role;
use super::backend_pool::BackendPool;
use super::migrated::Migrated;
use super::process::{ListenerSpec, Process, condition, sites};
use crate::apps::fleet::{
    Agent, AgentProfile, CALLBACK_QUEUE, Callbacks, Controller, Destinations, Entry, KEY_FILE,
    Keys, PublicKey, TASK_QUEUE, TaskRunner, Tasks, Worker, controller_queries, controller_routes,
    kept_key, worker_queries, worker_routes,
};
use crate::config::{self, Secret};
use crate::documents::{Part, document};
use crate::http::error::Form;
use crate::telemetry::{LastCall, Need};
use crate::token::Token;
use towpath::net::egress::EgressPolicy;
use towpath::pump::{Handler, Handling, Pump, Work};
use towpath::supervisor::{OnFailure, Stage};

/// The roles' names in health, metrics and the account.
const CONTROLLER: &str = "fleet.controller";
const AGENT: &str = "fleet.agent";
const WORKER: &str = "fleet.worker";

/// Default listen addresses. The ports are the reference system's.
const CONTROLLER_LISTEN: &str = ":6001";
const WORKER_LISTEN: &str = ":6002";

/// The controller's database in health.
const FLEET_DATABASE: &str = "fleet.database";

/// Files in the data folder: the state of an agent and of a worker.
const AGENT_FILE: &str = "fleet-agent.json";
const WORKER_FILE: &str = "fleet-worker.json";

/// The state of the worker.
struct Tools {
    worker: Worker,
    tasks: Tasks,
    egress: Arc<EgressPolicy>,
    backend: Backend,
}

/// The app on its stores.
pub(super) struct Fleet {
    keys: Keys,
    /// Of the controller, where it runs.
    database: Option<Migrated>,
    work: Option<Tools>,
    has_agent: bool,
}

impl Fleet {
    /// Opens the app's backends when one of its roles runs.
    pub(super) async fn open(
        process: &Process<'_>,
        pool: &mut BackendPool,
    ) -> Result<Option<Self>> {
        let roles = [Role::FleetController, Role::FleetAgent, Role::FleetWorker];
        let [controls, has_agent, works] = roles.map(|role| process.runs(role));
        if !(controls || has_agent || works) {
            return Ok(None);
        }
        let config = &process.config.fleet;
        // An agent with keys of its own needs none of the operators.
        let keys = match (&config.agent_key, controls || works) {
            (Some(_), false) => Keys::new(Vec::new()),
            _ => keys(process.config)?,
        };
        let database = match controls {
            true => Some(process.open_database(&config.database).await?),
            false => None,
        };
        let work = match works {
            true => {
                let backend = pool.open(&config.backend).await?;
                let egress = Arc::new(EgressPolicy::new(&config.allow, config.limits.timeout)?);
                let file = process.config.data_dir.join(WORKER_FILE);
                Some(Tools {
                    worker: Worker::open(file, Arc::clone(&egress), public_key(process.config))?,
                    tasks: Tasks::of(&backend, WORKER)?,
                    egress,
                    backend,
                })
            }
            false => None,
        };
        Ok(Some(Self {
            keys,
            database,
            work,
            has_agent,
        }))
    }

    /// Starts its tasks and its listeners.
    pub(super) async fn start(self, process: &mut Process<'_>) -> Result<()> {
        if let Some(migrated) = &self.database {
            migrated.wait(&process.health).await?;
            process.watch_database(FLEET_DATABASE, &migrated.database);
            process
                .health
                .needs(CONTROLLER, FLEET_DATABASE, Need::Accepts);
            let controller = controller(migrated, process, self.keys.clone()).await?;
            if let Some(key) = self.keys.first() {
                let routes = controller_routes(controller.clone());
                process.fleet_listeners.controller.open(routes, key.clone());
            }
            control(&controller, process).await?;
        }
        if let Some(work) = &self.work {
            self.work(work, process).await?;
        }
        if self.has_agent {
            self.agent(process);
        }
        Ok(())
    }

    async fn work(&self, tools: &Tools, process: &mut Process<'_>) -> Result<()> {
        let config = &process.config.fleet;
        let (worker, tasks) = (tools.worker.clone(), tools.tasks.clone());
        let calls = LastCall::default();
        process.health.watch_calls(WORKER, calls.clone());
        let entry = (config.entry, sites(process.config));
        let routes = worker_routes(worker, tasks, self.keys.clone(), entry, calls);
        let secrets = config
            .callback_secrets
            .iter()
            .map(|secret| towpath::sink::signing_key(secret.expose()));
        let (tasks, egress) = (&tools.tasks, &tools.egress);
        let clock = Arc::clone(&process.clock);
        // A URL of a task does not affect the role's readiness.
        let observer = process.counter(WORKER);
        let destinations = Destinations::new(config.limits.patience, clock, observer);
        let hits = TaskRunner::new(
            tasks.clone(),
            Arc::clone(egress),
            config.limits,
            Arc::clone(&destinations),
        );
        let callbacks = Callbacks::new(
            Arc::clone(egress),
            secrets.collect::<Result<_>>()?,
            destinations,
        );
        process.health.set(WORKER, None);
        process.needs(WORKER, &tools.backend, Need::Accepts);
        process.needs(CALLBACK_QUEUE, &tools.backend, Need::Answers);
        let (hits, callbacks) = (Arc::new(hits), Arc::new(callbacks));
        deliver(process, tasks, (TASK_QUEUE, WORKER, "hits"), hits);
        deliver(
            process,
            tasks,
            (CALLBACK_QUEUE, CALLBACK_QUEUE, "callbacks"),
            callbacks,
        );
        let spec = ListenerSpec {
            role: WORKER,
            key: "fleet.worker.listen",
            configured: config.worker_listen.as_deref(),
            default: WORKER_LISTEN,
            parts: &[Part::Worker],
        };
        let document = document("Towpath fleet worker", &[Part::Worker]);
        let edge = process.patient_edge().form(Form::Envelope);
        let edge = edge.queries(worker_queries()).document(&document);
        if let Some(key) = self.keys.first() {
            process
                .fleet_listeners
                .worker
                .open(routes.clone(), key.clone());
        }
        process.open(spec, routes, edge).await?;
        let mut listeners = process.listeners.iter();
        let address = listeners.find_map(|(role, at)| (*role == WORKER).then_some(*at));
        let reached = address.filter(|at| !at.ip().to_canonical().is_loopback());
        if let (Entry::Open, Some(address)) = (config.entry, reached) {
            let cause =
                "`fleet.worker.auth` is `off`: any client configures the worker and starts tasks";
            process
                .health
                .expose(format!("{WORKER} on {address}"), cause.to_owned());
        }
        Ok(())
    }

    fn agent(&self, process: &mut Process<'_>) {
        let config = &process.config.fleet;
        let here = |role: &str, default: &str| {
            // Behind a certificate it has a name that only the configuration knows.
            let is_plain = process.config.tls_certificate.is_none();
            let mut listeners = process.listeners.iter();
            match listeners.find(|(name, _)| is_plain && *name == role) {
                Some((_, address)) => Some(url(*address)),
                // `up` connects only to configured servers.
                None => (!process.is_everything()).then(|| format!("http://localhost{default}")),
            }
        };
        let controller = config
            .controller
            .clone()
            .or_else(|| here(CONTROLLER, CONTROLLER_LISTEN));
        let workers = match config.workers.is_empty() {
            true => here(WORKER, WORKER_LISTEN).into_iter().collect(),
            false => config.workers.clone(),
        };
        let configured = |key: &Option<Secret>| key.as_ref().map(|key| Token::new(key.expose()));
        let key = configured(&config.agent_key).or_else(|| self.keys.first().cloned());
        let worker_key = configured(&config.agent_worker_key);
        let worker_key = worker_key.or_else(|| self.keys.for_workers().cloned());
        let (Some(controller), Some(key)) = (controller, key) else {
            warn!("agent not started; set `fleet.agent.controller`");
            return;
        };
        let agent = Agent {
            controller,
            workers,
            place: AgentProfile {
                hostname: config.hostname.clone().unwrap_or_else(host_name),
                ip_address: config.ip_address.clone(),
                port: config.port,
                labels: config.labels.clone(),
            },
            key,
            worker_key,
            public_key: public_key(process.config),
            poll: config.poll,
            timeout: config.timeout,
            file: process.config.data_dir.join(AGENT_FILE),
            health: process.health.clone(),
        };
        process.health.set(AGENT, None);
        let supervisor = &mut process.supervisor;
        supervisor.start(AGENT, Stage::Accept, OnFailure::Restart, move |stop| {
            let agent = agent.clone();
            async move { agent.run(&stop).await }
        });
    }
}

/// The host name of the system.
fn host_name() -> String {
    let name = hostname::get().unwrap_or_default();
    match name.to_string_lossy().trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

/// The controller's key, by which configurations are verified.
fn public_key(config: &config::Config) -> Option<PublicKey> {
    PublicKey::parse(config.fleet.public_key.as_deref()?)
}

/// The keys that are configured, or the one of the data folder.
fn keys(config: &config::Config) -> Result<Keys> {
    let configured = &config.fleet.api_keys;
    if !configured.is_empty() {
        let keys = configured.iter().map(|key| Token::new(key.expose()));
        return Ok(Keys::new(keys.collect()));
    }
    let (key, is_new) = kept_key(&config.data_dir)?;
    if is_new {
        info!(
            file = %config.data_dir.join(KEY_FILE).display(),
            "`API_KEY` is not set; generated a fleet API key"
        );
    }
    Ok(Keys::new(vec![key]))
}

async fn controller(migrated: &Migrated, process: &Process<'_>, keys: Keys) -> Result<Controller> {
    Controller::open(
        Arc::clone(&migrated.database.fleet),
        keys,
        process.config.fleet.forget_after,
        process.health.clone(),
        process.metrics.clone(),
    )
    .await
}

async fn control(controller: &Controller, process: &mut Process<'_>) -> Result<()> {
    process.health.set(CONTROLLER, None);
    let task = controller.clone();
    let supervisor = &mut process.supervisor;
    supervisor.start(
        "fleet.versions",
        Stage::Accept,
        OnFailure::Restart,
        move |stop| {
            let controller = task.clone();
            async move { controller.run(&stop).await }
        },
    );
    let spec = ListenerSpec {
        role: CONTROLLER,
        key: "fleet.controller.listen",
        configured: process.config.fleet.controller_listen.as_deref(),
        default: CONTROLLER_LISTEN,
        parts: &[Part::Controller],
    };
    let document = document("Towpath fleet controller", &[Part::Controller]);
    let edge = process.patient_edge().form(Form::Envelope);
    let edge = edge.queries(controller_queries()).document(&document);
    process
        .open(spec, controller_routes(controller.clone()), edge)
        .await
}

/// The address by which this process reaches its own listener.
fn url(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    }
}

/// Starts the pump of one of the worker's queues; `names` are those of the queue, of its health, and of the handler.
fn deliver(
    process: &mut Process<'_>,
    tasks: &Tasks,
    names: (&'static str, &'static str, &'static str),
    handler: Arc<dyn Handler>,
) {
    let (queue, healthy, sink_name) = names;
    let handling = Handling {
        handler,
        in_flight: process.config.fleet.limits.concurrency,
        alone: process.alone.clone(),
    };
    process.health.works_on(healthy, queue);
    let metrics = process.metrics.pump(queue, Arc::clone(&process.clock));
    let (tasks, health) = (tasks.clone(), process.health.clone());
    let supervisor = &mut process.supervisor;
    supervisor.start(queue, Stage::Deliver, OnFailure::Restart, move |stop| {
        let (tasks, handling) = (tasks.clone(), handling.clone());
        let (metrics, health) = (metrics.clone(), health.clone());
        async move {
            let pump = Pump {
                consumer: Arc::new(tasks.consumer(queue).await?),
                work: Work::Messages(handling),
                sink_name,
                retry: retry::Policy::default(),
                pause: std::time::Duration::ZERO,
                metrics,
                condition: condition(&health, healthy, queue),
            };
            pump.run(&stop).await
        }
    });
}
