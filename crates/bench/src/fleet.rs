//! Time until waiting agents have a configuration, and the controller's cost of an agent.
//!
//! The controller is a process of its own on a temporary database, so that its memory and CPU are its own; the agents
//! are connections of this process, which wait for a configuration and report that they applied it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use towpath_core::{Error, Result};

use super::measure::Latencies;
use crate::args::FleetArgs;

/// The key of the measured controller.
const KEY: &str = "a-key-of-the-bench";

/// Timeout of the controller's start, and of the distribution of a configuration.
const PATIENCE: Duration = Duration::from_secs(60);

/// Duration of each measurement of CPU, while agents wait or poll.
const IDLE: Duration = Duration::from_secs(5);

/// The measured figures.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct FleetFigures {
    /// Number of agents.
    pub(crate) agents: usize,
    /// From the request to publish until an agent has reported that it applied the configuration, in milliseconds.
    pub(crate) applied_p50_ms: f64,
    pub(crate) applied_p99_ms: f64,
    pub(crate) applied_max_ms: f64,
    /// Memory of the controller for each agent that waits.
    pub(crate) bytes_per_agent: u64,
    /// From killing the controller until every agent has the version published right after its restart, in seconds.
    pub(crate) restart_seconds: f64,
    /// Answers that were errors, once the controller was there again.
    pub(crate) errors: u64,
    /// CPU of the controller while agents wait, in percent of one core.
    pub(crate) waiting_cpu_percent: f64,
    /// The same while each agent asks once a second.
    pub(crate) polling_cpu_percent: f64,
}

/// Measures it.
pub(crate) async fn run(args: &FleetArgs) -> Result<FleetFigures> {
    let folder = tempfile::tempdir_in(&args.folder)
        .map_err(|error| Error::unavailable("no temporary folder").with_source(error))?;
    let address = free_address().await?;
    let mut controller = Controller::start(folder.path(), address).await?;
    // Connections, and the database's memory for agents, count as theirs.
    let before = controller.memory()?;
    let fleet = Fleet::register(address, args.agents).await?;
    fleet.publish(0).await?;
    fleet.hear(0).await?;
    let mut latencies = Latencies::default();
    let mut bytes_per_agent = 0;
    let mut version = 1;
    let mut waiting_cpu_percent = 0.0;
    for round in 1..=usize::from(args.rounds) {
        let waiting = fleet.wait(version);
        let published = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if round == 1 {
                bytes_per_agent = controller.memory()?.saturating_sub(before) / args.agents as u64;
                let cpu = controller.cpu()?;
                tokio::time::sleep(IDLE).await;
                waiting_cpu_percent = percent(controller.cpu()? - cpu, IDLE);
            }
            let began = Instant::now();
            fleet.publish(round).await.map(|()| began)
        };
        let (applied, began) = tokio::try_join!(waiting, published)?;
        for at in applied {
            latencies.push(at.saturating_duration_since(began));
        }
        version += 1;
    }
    latencies.sort();
    let (restart_seconds, errors) = restart(&mut controller, &fleet, version).await?;
    let cpu = controller.cpu()?;
    fleet.poll(version + 1).await?;
    let polling_cpu_percent = percent(controller.cpu()? - cpu, IDLE);
    Ok(FleetFigures {
        agents: args.agents,
        applied_p50_ms: latencies.at(0.5),
        applied_p99_ms: latencies.at(0.99),
        applied_max_ms: latencies.at(1.0),
        bytes_per_agent,
        restart_seconds,
        errors,
        waiting_cpu_percent,
        polling_cpu_percent,
    })
}

/// Kills the controller while agents wait, starts it again, publishes, and measures when every agent has that version.
async fn restart(controller: &mut Controller, fleet: &Fleet, version: u64) -> Result<(f64, u64)> {
    let began = Instant::now();
    let comeback = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        controller.restart().await?;
        fleet.publish(usize::MAX).await
    };
    let (errors, ()) = tokio::try_join!(fleet.catch_up(version), comeback)?;
    Ok((began.elapsed().as_secs_f64(), errors))
}

fn percent(cpu: Duration, time: Duration) -> f64 {
    cpu.as_secs_f64() / time.as_secs_f64() * 100.0
}

/// Agents as the controller knows them.
struct Fleet {
    http: Client,
    base: String,
    agents: Vec<(String, String)>,
}

impl Fleet {
    async fn register(address: SocketAddr, count: usize) -> Result<Self> {
        let http = towpath::net::client()
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .map_err(|error| Error::unavailable("no client").with_source(error))?;
        let mut fleet = Self {
            http,
            base: format!("http://{address}"),
            agents: Vec::with_capacity(count),
        };
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(50) {
            let (http, base) = (&fleet.http, &fleet.base);
            let registered = some.iter().map(|number| async move {
                let place = json!({ "hostname": format!("agent-{number}"), "ip_address": "127.0.0.1", "port": 1 });
                let url = format!("{base}/register");
                let answer = http.post(url).header("x-api-key", KEY).json(&place);
                let data = data(answer).await?.1;
                let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
                Ok::<_, Error>((text("agent_id"), text("agent_key")))
            });
            let registered = try_join_all(registered).await?;
            fleet.agents.extend(registered);
        }
        Ok(fleet)
    }

    async fn publish(&self, round: usize) -> Result<()> {
        let body = json!({ "data": { "round": round.to_string() }, "poll_interval_seconds": 60 });
        let url = format!("{}/config", self.base);
        let answer = self.http.post(url).header("x-api-key", KEY).json(&body);
        data(answer).await.map(drop)
    }

    /// Each agent waits for the version after `version` and reports that it applied it. Returns when it reported.
    async fn wait(&self, version: u64) -> Result<Vec<Instant>> {
        try_join_all(self.agents.iter().map(|agent| async move {
            let found = self.ask(agent, version, 60).await?;
            let Some(found) = found.1["version"].as_u64() else {
                return Err(Error::unavailable("an agent got no configuration"));
            };
            self.applied(agent, found).await?;
            Ok(Instant::now())
        }))
        .await
    }

    /// Each agent asks once.
    async fn hear(&self, version: u64) -> Result<()> {
        try_join_all(self.agents.iter().map(|agent| self.ask(agent, version, 0)))
            .await
            .map(drop)
    }

    /// Each agent asks once a second, for as long as CPU is measured.
    async fn poll(&self, version: u64) -> Result<()> {
        let until = Instant::now() + IDLE;
        let count = u32::try_from(self.agents.len()).unwrap_or(u32::MAX);
        let all = self
            .agents
            .iter()
            .zip(0..)
            .map(|(agent, number): (_, u32)| async move {
                tokio::time::sleep(Duration::from_secs(1) * number / count).await;
                while Instant::now() < until {
                    let next = tokio::time::Instant::now() + Duration::from_secs(1);
                    self.ask(agent, version, 0).await?;
                    tokio::time::sleep_until(next).await;
                }
                Ok::<_, Error>(())
            });
        try_join_all(all).await.map(drop)
    }

    /// Each agent waits on, whatever breaks off, until it has something behind `version`; how many answers were errors.
    async fn catch_up(&self, version: u64) -> Result<u64> {
        let until = Instant::now() + PATIENCE;
        let each = self.agents.iter().map(|agent| async move {
            let mut errors = 0;
            while Instant::now() < until {
                match self.ask(agent, version, 60).await {
                    Ok((status, found)) if status.is_success() && found["version"].is_u64() => {
                        return errors;
                    }
                    Ok((status, _)) if status != StatusCode::NOT_MODIFIED => errors += 1,
                    // The connection broke off, or the listener is not open yet: retry like an agent, up to a second later.
                    _ => {}
                }
                let pause = rand::Rng::random_range(&mut rand::rng(), 100..1_000);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            errors + 1
        });
        Ok(join_all(each).await.into_iter().sum())
    }

    async fn ask(
        &self,
        (_, key): &(String, String),
        version: u64,
        wait: u32,
    ) -> Result<(StatusCode, Value)> {
        let url = format!("{}/config?wait={wait}", self.base);
        let request = self.http.get(url).header("x-api-key", key);
        data(request.header("if-none-match", version.to_string())).await
    }

    async fn applied(&self, (id, key): &(String, String), version: u64) -> Result<()> {
        let url = format!("{}/agents/{id}/report", self.base);
        let body = json!({ "version": version, "status": "applied" });
        data(self.http.post(url).header("x-api-key", key).json(&body))
            .await
            .map(drop)
    }
}

async fn data(request: reqwest::RequestBuilder) -> Result<(StatusCode, Value)> {
    let away = |error: reqwest::Error| Error::unavailable("no answer").with_source(error);
    let answer = request.timeout(PATIENCE * 2).send().await.map_err(away)?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(away)?;
    let mut body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok((status, body["data"].take()))
}

async fn free_address() -> Result<SocketAddr> {
    let free = async { TcpListener::bind("127.0.0.1:0").await?.local_addr() };
    free.await
        .map_err(|error| Error::unavailable("no free port").with_source(error))
}

/// The measured process.
struct Controller {
    child: Child,
    folder: std::path::PathBuf,
    address: SocketAddr,
}

impl Controller {
    async fn start(folder: &Path, address: SocketAddr) -> Result<Self> {
        let started = Self {
            child: spawn(folder, address)?,
            folder: folder.to_owned(),
            address,
        };
        started.wait().await?;
        Ok(started)
    }

    async fn restart(&mut self) -> Result<()> {
        self.end();
        self.child = spawn(&self.folder, self.address)?;
        self.wait().await
    }

    async fn wait(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            if Instant::now() > until {
                return Err(Error::unavailable("the controller does not start"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Resident memory in bytes.
    fn memory(&self) -> Result<u64> {
        let kibibytes = self.proc("status", |text| {
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })?;
        Ok(kibibytes * 1024)
    }

    /// CPU used so far, user and system.
    fn cpu(&self) -> Result<Duration> {
        let ticks = self.proc("stat", |text| {
            // Behind the name, which may have anything in it.
            let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        })?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks * 1_000 / per_second))
    }

    fn proc<T>(&self, file: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        text.ok()
            .and_then(|text| read(&text))
            .ok_or_else(|| Error::unavailable("the controller's process cannot be looked at"))
    }

    fn end(&mut self) {
        // It may have exited already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(folder: &Path, address: SocketAddr) -> Result<Child> {
    let failed = |error: std::io::Error| {
        Error::unavailable("the controller cannot be started").with_source(error)
    };
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(["server", "run", "fleet.controller"])
        .current_dir(folder)
        .env("API_KEY", KEY)
        .env("TOWPATH_SERVER__ADMIN", "127.0.0.1:0")
        .env("TOWPATH_FLEET__CONTROLLER__LISTEN", address.to_string())
        .env("TOWPATH_LOG__LEVEL", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)
}
