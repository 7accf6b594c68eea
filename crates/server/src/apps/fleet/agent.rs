//! The agent: brings the configuration from the controller to its workers.
//!
//! ```text
//! controller -- GET /config, waits --> Agent -- POST /config --> every worker
//!      ^                                 |
//!      +-- applied | failed -------------+-- on disk, once every worker has it
//! ```
//!
//! A version counts as applied when each worker has confirmed it, and is reported as applied when each worker was seen
//! to run it. A worker that runs another configuration and refuses this one makes the agent report a failure.
//! Whatever fails in between is tried again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::{HeaderValue, StatusCode, header};
use rand::Rng;
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towpath_core::{Error, ErrorKind, Result, ResultExt, retry};
use tracing::{info, warn};
use uuid::Uuid;

use super::agent_client::AgentClient;
use super::auth::API_KEY;
use super::config::{Config, follows};
use super::proof::PublicKey;
use crate::telemetry::{Health, log_failure};
use crate::token::Token;
use towpath::supervisor::Stop;

/// The role's name in health, metrics and the account.
const ROLE: &str = "fleet.agent";

/// First and longest wait before something is tried again. Source: the reference system.
const FIRST: Duration = Duration::from_secs(1);
const AGAIN: retry::Policy = retry::Policy::forever(FIRST, Duration::from_secs(30));

/// Longest that it asks the controller to wait. Source: the controller's bound.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The agent's registration.
#[derive(Debug, Clone)]
pub struct AgentProfile {
    /// Its machine.
    pub hostname: String,
    /// Its address; without it the one from which the controller is reached.
    pub ip_address: Option<String>,
    /// Its port.
    pub port: u16,
    /// Labels that rollouts select by.
    pub labels: BTreeMap<String, String>,
}

/// One agent.
#[derive(Clone)]
pub struct Agent {
    /// Where the controller is.
    pub controller: String,
    /// Where its workers are.
    pub workers: Vec<String>,
    /// Its registration.
    pub place: AgentProfile,
    /// The key that it registers with.
    pub key: Token,
    /// The key that it sends to workers.
    pub worker_key: Option<Token>,
    /// Of the controller, whose configurations alone are applied.
    pub public_key: Option<PublicKey>,
    /// Poll interval until a configuration sets one.
    pub poll: Duration,
    /// Timeout of a request, without the wait of a long poll.
    pub timeout: Duration,
    /// Path of its state file.
    pub file: PathBuf,
    /// Where it says how it is.
    pub health: Health,
}

/// The agent's stored state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Which controller this is about.
    controller: String,
    agent_id: Option<Uuid>,
    agent_key: Option<String>,
    /// The version that each worker confirmed.
    config: Option<Config>,
    /// This run of the agent has registered.
    #[serde(skip)]
    is_registered: bool,
    /// The controller knows that `config` is applied.
    #[serde(skip)]
    is_reported: bool,
}

/// The controller's answer.
enum ConfigAnswer {
    /// There is another configuration.
    Other(Box<Config>),
    /// There is none, or no other.
    Nothing,
    /// It does not know this agent.
    Stranger,
}

impl Agent {
    /// Works until asked to stop. Waits for unavailable servers.
    ///
    /// # Errors
    /// `Unavailable` when its file cannot be read, `Invalid` when the client cannot be made.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let client = AgentClient::new(self.timeout)?;
        let mut state = self.read()?;
        let mut backoff = retry::Backoff::new(AGAIN);
        while !stop.is_requested() {
            let turn = tokio::select! {
                turn = self.turn(&client, &mut state) => turn,
                () = stop.requested() => return Ok(()),
            };
            let pause = match turn {
                Ok(pause) => {
                    self.health.set(ROLE, None);
                    backoff.reset();
                    pause
                }
                Err(error) => {
                    let pause = backoff.next_delay();
                    let pause = pause.max(error.retry_after().unwrap_or_default());
                    log_failure("poll of the controller failed; retrying", &error);
                    self.health.set(ROLE, Some(error.chain()));
                    pause
                }
            };
            stop.sleep(pause).await;
        }
        Ok(())
    }

    /// Asks once, acts on the answer, and returns the pause before the next request.
    async fn turn(&self, client: &AgentClient, state: &mut State) -> Result<Duration> {
        // A worker that was started again may have lost it, or was given another one.
        let checked = match &state.config {
            Some(config) => self.forward(client, config, true).await,
            None => Ok(()),
        };
        // After the workers, which need no controller for their last configuration.
        if !state.is_registered {
            self.register(client, state).await?;
        }
        if checked.is_ok() && !state.is_reported {
            state.is_reported = self.report_applied(client, state).await;
        }
        let poll = match &state.config {
            Some(config) if config.poll_interval_seconds > 0 => {
                Duration::from_secs(config.poll_interval_seconds.into())
            }
            _ => self.poll,
        };
        let wait = match &checked {
            Ok(()) => poll.min(LONGEST_WAIT),
            Err(_) => Duration::ZERO,
        };
        let began = Instant::now();
        match self.poll(client, state, wait).await? {
            ConfigAnswer::Other(config) => match self.take(client, state, *config).await? {
                true => Ok(Duration::ZERO),
                false => Ok(poll),
            },
            ConfigAnswer::Stranger => {
                info!("the controller does not know this agent any more; registering again");
                (state.is_registered, state.agent_key) = (false, None);
                // Not at once: it may be wrong about that.
                Ok(FIRST)
            }
            ConfigAnswer::Nothing => {
                if let (Err(error), Some(config)) = (&checked, &state.config)
                    && error.kind() == ErrorKind::Conflict
                {
                    // A failed report is repeated by the next attempt.
                    self.report(client, state, config, Some(error)).await.ok();
                    state.is_reported = false;
                }
                checked?;
                // A controller that did not wait is left alone for the rest of the interval.
                let rest = poll.saturating_sub(began.elapsed());
                if rest < poll / 10 {
                    return Ok(Duration::ZERO);
                }
                Ok(rest.mul_f64(rand::rng().random_range(0.9..=1.0)))
            }
        }
    }

    async fn register(&self, client: &AgentClient, state: &mut State) -> Result<()> {
        let context = || "registering";
        let ip_address = match &self.place.ip_address {
            Some(address) => address.clone(),
            None => {
                let own = client.own_address(&self.controller).await;
                own.context(context)?.to_string()
            }
        };
        let mut body = json!({
            "hostname": self.place.hostname,
            "ip_address": ip_address,
            "port": self.place.port,
            "labels": self.place.labels,
        });
        if let Some(key) = &state.agent_key {
            body["agent_key"] = json!(key);
        }
        let url = format!("{}/register", self.controller);
        let request = client.request(Method::POST, &url);
        let request = request.header(API_KEY, self.key.expose()).json(&body);
        let answer = client
            .send(request, Duration::ZERO)
            .await
            .context(context)?;
        #[derive(Deserialize)]
        struct Registered {
            agent_id: Uuid,
            agent_key: Option<String>,
        }
        let registered: Registered = answer.data().context(context)?;
        let (agent, controller, hostname) =
            (registered.agent_id, &self.controller, &self.place.hostname);
        info!(%agent, controller, hostname, ip_address, "agent registered");
        state.agent_id = Some(registered.agent_id);
        state.agent_key = registered.agent_key;
        (state.is_registered, state.is_reported) = (true, false);
        self.write(state)
    }

    /// Asks for another configuration than the one that every worker has.
    async fn poll(
        &self,
        client: &AgentClient,
        state: &State,
        wait: Duration,
    ) -> Result<ConfigAnswer> {
        let url = format!("{}/config?wait={}", self.controller, wait.as_secs());
        let mut request = self.known(client, Method::GET, &url, state);
        // A controller that says so even to a version 0 has none, as existing ones do.
        // Without a proof its own counts as none: an agent of an earlier version stored it.
        let own = state.config.as_ref();
        let known = own.filter(|own| self.verify(own).is_ok()).map_or_else(
            || "0".to_owned(),
            |config| match &config.epoch {
                Some(_) => config.etag(),
                None => config.version.to_string(),
            },
        );
        if let Ok(known) = HeaderValue::from_str(&known) {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let answer = client
            .send(request, wait)
            .await
            .context(|| "asking the controller")?;
        match answer.status {
            StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND => Ok(ConfigAnswer::Nothing),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if state.agent_key.is_some() => {
                Ok(ConfigAnswer::Stranger)
            }
            _ => answer
                .data()
                .context(|| "asking the controller")
                .map(|config| ConfigAnswer::Other(Box::new(config))),
        }
    }

    /// Applies a configuration, unless it is older than the one that the workers have. Whether there is more to do now.
    async fn take(&self, client: &AgentClient, state: &mut State, config: Config) -> Result<bool> {
        if let Some(own) = state.config.as_ref().filter(|own| config.is_before(own)) {
            let (own_version, offered) = (own.version, config.version);
            warn!(
                own = own_version,
                offered, "the controller has an older configuration; giving it ours"
            );
            let url = format!("{}/config/restore", self.controller);
            let request = self.known(client, Method::POST, &url, state).json(own);
            let answer = client.send(request, Duration::ZERO).await?;
            let restored: Value = answer.data().context(|| "giving the configuration back")?;
            // A controller that lost nothing offers the older one on purpose, to an agent that a rollout left out.
            return Ok(restored["restored"] == true);
        }
        let follows = match &config.schema {
            Some(schema) => follows(&config.data, schema).map_err(Error::invalid),
            None => Ok(()),
        };
        let outcome = match self.verify(&config).and(follows) {
            Ok(()) => self.forward(client, &config, false).await,
            wrong => wrong,
        };
        if let Err(error) = outcome {
            // A failed report is repeated by the next attempt.
            self.report(client, state, &config, Some(&error)).await.ok();
            return Err(error);
        }
        info!(
            version = config.version,
            workers = self.workers.len(),
            "configuration applied"
        );
        state.config = Some(config);
        // The next turn checks the workers' versions, and reports them.
        state.is_reported = false;
        self.write(state)?;
        Ok(true)
    }

    /// Reports that the workers run the configuration. Whether the controller knows it now.
    async fn report_applied(&self, client: &AgentClient, state: &State) -> bool {
        let Some(config) = &state.config else {
            return true;
        };
        let reported = self.report(client, state, config, None).await;
        if let Err(error) = &reported {
            let (version, error) = (config.version, error.chain());
            warn!(version, error, "report to the controller failed; retrying");
        }
        reported.is_ok()
    }

    /// Gives a configuration to every worker, or only to those that do not run it.
    async fn forward(&self, client: &AgentClient, config: &Config, only_lost: bool) -> Result<()> {
        let each = self
            .workers
            .iter()
            .map(|worker| self.give(client, worker, config, only_lost));
        let failures: Vec<Error> = join_all(each)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        let is_refused = |error: &&Error| error.kind() == ErrorKind::Conflict;
        let Some(worst) = failures.iter().find(is_refused).or(failures.first()) else {
            return Ok(());
        };
        let all: Vec<String> = failures.iter().map(Error::chain).collect();
        match worst.retry_after() {
            Some(after) => Err(Error::overloaded(all.join("; "), after)),
            None => Err(Error::new(worst.kind(), all.join("; "))),
        }
    }

    async fn give(
        &self,
        client: &AgentClient,
        worker: &str,
        config: &Config,
        only_lost: bool,
    ) -> Result<()> {
        let about = || format!("worker {worker}");
        if only_lost {
            match self.runs(client, worker).await.context(about)? {
                Some(has) if config.is_kept_as(&has) => return Ok(()),
                // The controller may have it as well; if not, it is reported.
                Some(has) if config.is_before(&has) => {
                    return Err(refused(config, Some(&has))).context(about);
                }
                Some(has) => {
                    let (runs, given) = (has.title(), config.title());
                    info!(worker, runs, given, "worker runs another configuration");
                }
                None => {
                    let version = config.version;
                    info!(worker, version, "worker lost its configuration");
                }
            }
        }
        let request = client.request(Method::POST, &format!("{worker}/config"));
        let request = self.for_worker(request).json(config);
        let answer = client.send(request, Duration::ZERO).await.context(about)?;
        if answer.status == StatusCode::CONFLICT {
            return match self.runs(client, worker).await.context(about)? {
                Some(has) if config.is_kept_as(&has) => Ok(()),
                has => Err(refused(config, has.as_ref())).context(about),
            };
        }
        answer.data::<Value>().context(about).map(drop)
    }

    /// The version of a worker.
    async fn runs(&self, client: &AgentClient, worker: &str) -> Result<Option<Config>> {
        let request = client.request(Method::GET, &format!("{worker}/config"));
        let answer = client
            .send(self.for_worker(request), Duration::ZERO)
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            _ => answer.data().map(Some),
        }
    }

    fn for_worker(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.worker_key {
            Some(key) => request.header(API_KEY, key.expose()),
            None => request,
        }
    }

    /// Whether the controller with the configured key published it.
    fn verify(&self, config: &Config) -> Result<()> {
        match &self.public_key {
            Some(key) => config.verify(key),
            None => Ok(()),
        }
    }

    /// Reports the outcome of a configuration to the controller; a reference system has no route for it.
    async fn report(
        &self,
        client: &AgentClient,
        state: &State,
        config: &Config,
        error: Option<&Error>,
    ) -> Result<()> {
        let (Some(id), Some(_)) = (state.agent_id, &state.agent_key) else {
            return Ok(());
        };
        let status = match error {
            Some(_) => "failed",
            None if config.rolls_back_to.is_some() => "rolled_back",
            None => "applied",
        };
        let body = json!({ "version": config.version, "status": status, "error": error.map(Error::chain) });
        let url = format!("{}/agents/{id}/report", self.controller);
        let request = self.known(client, Method::POST, &url, state).json(&body);
        let answer = client.send(request, Duration::ZERO).await?;
        answer.data::<Value>().map(drop)
    }

    /// A request to the controller with the agent's own key, or the fleet's where it has none.
    fn known(
        &self,
        client: &AgentClient,
        method: Method,
        url: &str,
        state: &State,
    ) -> RequestBuilder {
        let key = state.agent_key.as_deref().unwrap_or(self.key.expose());
        client.request(method, url).header(API_KEY, key)
    }

    fn read(&self) -> Result<State> {
        let text = match std::fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(self.unusable(error)),
        };
        let known: State = match serde_json::from_slice(&text) {
            Ok(known) => known,
            Err(error) => {
                if !text.is_empty() {
                    warn!(file = %self.file.display(), %error, "agent state file unusable; starting without it");
                }
                State::default()
            }
        };
        // Answers of another controller do not apply here.
        if known.controller == self.controller {
            return Ok(known);
        }
        Ok(State {
            controller: self.controller.clone(),
            ..State::default()
        })
    }

    fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec_pretty(state).unwrap_or_default();
        towpath::disk::replace(&self.file, &text).map_err(|error| self.unusable(error))
    }

    fn unusable(&self, error: std::io::Error) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("`{}` cannot be used", self.file.display()),
        )
        .with_source(error)
    }
}

/// A worker answered that it does not apply a configuration.
fn refused(config: &Config, has: Option<&Config>) -> Error {
    let runs = has.map_or_else(|| "no configuration".to_owned(), Config::title);
    Error::conflict(format!("it runs {runs}, and refuses {}", config.title()))
}
