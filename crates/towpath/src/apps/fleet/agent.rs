//! The agent: brings the configuration from the controller to its workers.
//!
//! ```text
//! controller -- GET /config, waits --> Agent -- POST /config --> every worker
//!      ^                                 |
//!      +-- applied | failed -------------+-- on disk, once every worker has it
//! ```
//!
//! A version counts as applied when each worker has confirmed it, and only then is it what the agent says it knows:
//! whatever fails in between is tried again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::{HeaderValue, StatusCode, header};
use rand::Rng;
use reqwest::{Client, Method, RequestBuilder};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towpath_core::{Error, ErrorKind, Result, ResultExt};
use tracing::{info, warn};
use uuid::Uuid;

use super::auth::API_KEY;
use super::config::{Config, follows};
use super::envelope::data;
use crate::supervisor::Stop;
use crate::telemetry::Health;
use crate::token::Token;

/// The role's name in health, metrics and the account.
const ROLE: &str = "fleet.agent";

/// First and longest wait before something is tried again. Source: the reference system.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Longest that it asks the controller to wait. Source: the controller's bound.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Most bytes of an answer.
const ANSWER_BYTES: usize = 4 << 20;

/// What the agent says about itself.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its machine.
    pub hostname: String,
    /// Its address.
    pub ip_address: String,
    /// Its port.
    pub port: u16,
    /// What rollouts choose by.
    pub labels: BTreeMap<String, String>,
}

/// One agent.
#[derive(Clone)]
pub struct Agent {
    /// Where the controller is.
    pub controller: String,
    /// Where its workers are.
    pub workers: Vec<String>,
    /// What it says about itself.
    pub place: Place,
    /// The key of the fleet.
    pub key: Token,
    /// How often it asks until a configuration says.
    pub poll: Duration,
    /// How long a request may take, the waiting of the controller aside.
    pub timeout: Duration,
    /// Where it keeps what it knows.
    pub file: PathBuf,
    /// Where it says how it is.
    pub health: Health,
}

/// What an agent keeps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Which controller this is about.
    controller: String,
    agent_id: Option<Uuid>,
    agent_key: Option<String>,
    /// What every worker has.
    config: Option<Config>,
}

/// What the controller said.
enum Said {
    /// There is another configuration.
    Other(Box<Config>),
    /// There is none, or no other.
    Nothing,
    /// It does not know this agent.
    Stranger,
}

/// Waits longer each time, by chance up to all of it.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    fn next(&mut self) -> Duration {
        let most = FIRST.saturating_mul(1 << self.0.min(10)).min(LONGEST);
        self.0 += 1;
        rand::rng().random_range(FIRST / 10..=most)
    }
}

impl Agent {
    /// Works until asked to stop. Whatever is away is waited for.
    ///
    /// # Errors
    /// `Unavailable` when its file cannot be read, `Invalid` when the client cannot be made.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let client = crate::http::client()
            .connect_timeout(self.timeout)
            .build()
            .map_err(|error| {
                Error::invalid("the agent's client cannot be made").with_source(error)
            })?;
        let mut state = self.read()?;
        let mut backoff = Backoff::default();
        while !stop.is_requested() {
            let turn = tokio::select! {
                turn = self.turn(&client, &mut state) => turn,
                () = stop.requested() => return Ok(()),
            };
            let pause = match turn {
                Ok(pause) => {
                    self.health.set(ROLE, None);
                    backoff = Backoff::default();
                    pause
                }
                Err(error) => {
                    let pause = backoff.next();
                    warn!(error = error.chain(), ?pause, "trying again");
                    self.health.set(ROLE, Some(error.chain()));
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.requested() => {}
            }
        }
        Ok(())
    }

    /// Asks once, does what follows, and says how long to pause.
    async fn turn(&self, client: &Client, state: &mut State) -> Result<Duration> {
        if state.agent_id.is_none() {
            self.register(client, state).await?;
        }
        let mut lost = Ok(());
        if let Some(config) = &state.config {
            // A worker that was started anew may have lost it.
            lost = self.forward(client, config, true).await;
        }
        let poll = match &state.config {
            Some(config) if config.poll_interval_seconds > 0 => {
                Duration::from_secs(config.poll_interval_seconds.into())
            }
            _ => self.poll,
        };
        let wait = match &lost {
            Ok(()) => poll.min(LONGEST_WAIT),
            Err(_) => Duration::ZERO,
        };
        let began = Instant::now();
        match self.ask(client, state, wait).await? {
            Said::Other(config) => {
                self.take(client, state, *config).await?;
                Ok(Duration::ZERO)
            }
            Said::Stranger => {
                info!("the controller does not know this agent any more; registering again");
                (state.agent_id, state.agent_key) = (None, None);
                // Not at once: it may be wrong about that.
                Ok(FIRST)
            }
            Said::Nothing => {
                lost?;
                // A controller that did not wait is left alone for the rest of the interval.
                let rest = poll.saturating_sub(began.elapsed());
                if rest < poll / 10 {
                    return Ok(Duration::ZERO);
                }
                Ok(rest.mul_f64(rand::rng().random_range(0.9..=1.0)))
            }
        }
    }

    async fn register(&self, client: &Client, state: &mut State) -> Result<()> {
        let body = json!({
            "hostname": self.place.hostname,
            "ip_address": self.place.ip_address,
            "port": self.place.port,
            "labels": self.place.labels,
        });
        let url = format!("{}/register", self.controller);
        let request = client
            .post(url)
            .header(API_KEY, self.key.expose())
            .json(&body);
        let (status, answer) = self
            .send(request, Duration::ZERO)
            .await
            .context(|| "registering")?;
        #[derive(Deserialize)]
        struct Registered {
            agent_id: Uuid,
            agent_key: Option<String>,
        }
        let registered: Registered = data(status, &answer).context(|| "registering")?;
        info!(agent = %registered.agent_id, controller = self.controller, "registered");
        state.agent_id = Some(registered.agent_id);
        state.agent_key = registered.agent_key;
        self.write(state)
    }

    /// Asks for another configuration than the one that every worker has.
    async fn ask(&self, client: &Client, state: &State, wait: Duration) -> Result<Said> {
        let url = format!("{}/config?wait={}", self.controller, wait.as_secs());
        let mut request = self.known(client, Method::GET, url, state);
        // A controller that says so even to a version 0 has none, as existing ones do.
        let known = state.config.as_ref().map_or_else(
            || "0".to_owned(),
            |config| match &config.epoch {
                Some(_) => config.etag(),
                None => config.version.to_string(),
            },
        );
        if let Ok(known) = HeaderValue::from_str(&known) {
            request = request.header(header::IF_NONE_MATCH, known);
        }
        let (status, answer) = self
            .send(request, wait)
            .await
            .context(|| "asking the controller")?;
        match status {
            StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND => Ok(Said::Nothing),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if state.agent_key.is_some() => {
                Ok(Said::Stranger)
            }
            _ => data(status, &answer)
                .context(|| "asking the controller")
                .map(|config| Said::Other(Box::new(config))),
        }
    }

    /// Takes a configuration over, unless it is older than the one that the workers have.
    async fn take(&self, client: &Client, state: &mut State, config: Config) -> Result<()> {
        if let Some(own) = state.config.as_ref().filter(|own| config.is_before(own)) {
            warn!(
                own = own.version,
                offered = config.version,
                "the controller has an older configuration; giving it ours"
            );
            let url = format!("{}/config/restore", self.controller);
            let request = self.known(client, Method::POST, url, state).json(own);
            let (status, answer) = self.send(request, Duration::ZERO).await?;
            data::<Value>(status, &answer).context(|| "giving the configuration back")?;
            return Ok(());
        }
        let follows = match &config.schema {
            Some(schema) => follows(&config.data, schema).map_err(Error::invalid),
            None => Ok(()),
        };
        let outcome = match follows {
            Ok(()) => self.forward(client, &config, false).await,
            wrong => wrong,
        };
        if let Err(error) = outcome {
            // What cannot be told now is told by the next try.
            self.tell(client, state, &config, Some(&error)).await.ok();
            return Err(error);
        }
        let version = config.version;
        info!(version, workers = self.workers.len(), "applied");
        state.config = Some(config.clone());
        self.write(state)?;
        if let Err(error) = self.tell(client, state, &config, None).await {
            warn!(
                version,
                error = error.chain(),
                "the controller was not told"
            );
        }
        Ok(())
    }

    /// Gives a configuration to every worker, or only to those that do not have it.
    async fn forward(&self, client: &Client, config: &Config, only_lost: bool) -> Result<()> {
        let each = self
            .workers
            .iter()
            .map(|worker| self.give(client, worker, config, only_lost));
        let failures: Vec<Error> = join_all(each)
            .await
            .into_iter()
            .filter_map(Result::err)
            .collect();
        let Some(first) = failures.first() else {
            return Ok(());
        };
        let all: Vec<String> = failures.iter().map(Error::chain).collect();
        Err(Error::new(first.kind(), all.join("; ")))
    }

    async fn give(
        &self,
        client: &Client,
        worker: &str,
        config: &Config,
        only_lost: bool,
    ) -> Result<()> {
        let url = format!("{worker}/config");
        let about = || format!("worker {worker}");
        if only_lost {
            let request = client.get(&url).header(API_KEY, self.key.expose());
            let (status, answer) = self.send(request, Duration::ZERO).await.context(about)?;
            if status != StatusCode::NOT_FOUND {
                let has: Config = data(status, &answer).context(about)?;
                if has == *config
                    || config.is_before(&has)
                    || config.epoch.is_none() && has.version == config.version
                {
                    return Ok(());
                }
            }
            info!(
                worker,
                version = config.version,
                "the worker lost its configuration"
            );
        }
        let request = client
            .post(&url)
            .header(API_KEY, self.key.expose())
            .json(config);
        let (status, answer) = self.send(request, Duration::ZERO).await.context(about)?;
        if status == StatusCode::CONFLICT {
            // It has a newer one.
            return Ok(());
        }
        data::<Value>(status, &answer).context(about).map(drop)
    }

    /// Tells the controller what became of a configuration; a reference system does not want to know.
    async fn tell(
        &self,
        client: &Client,
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
        let request = self.known(client, Method::POST, url, state).json(&body);
        let (status, answer) = self.send(request, Duration::ZERO).await?;
        data::<Value>(status, &answer).map(drop)
    }

    /// A request to the controller with the agent's own key, or the fleet's where it has none.
    fn known(&self, client: &Client, method: Method, url: String, state: &State) -> RequestBuilder {
        let key = state.agent_key.as_deref().unwrap_or(self.key.expose());
        client.request(method, url).header(API_KEY, key)
    }

    async fn send(&self, request: RequestBuilder, wait: Duration) -> Result<(StatusCode, Vec<u8>)> {
        let away = |error: reqwest::Error| {
            Error::unavailable("no answer").with_source(error.without_url())
        };
        let mut response = request
            .timeout(self.timeout + wait)
            .send()
            .await
            .map_err(away)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(Error::unavailable(format!(
                    "an answer of over {ANSWER_BYTES} bytes"
                )));
            }
        }
        Ok((status, body))
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
                    warn!(file = %self.file.display(), %error, "the agent's file cannot be used; beginning anew");
                }
                State::default()
            }
        };
        // What another controller said means nothing here.
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
        crate::disk::replace(&self.file, &text).map_err(|error| self.unusable(error))
    }

    fn unusable(&self, error: std::io::Error) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("`{}` cannot be used", self.file.display()),
        )
        .with_source(error)
    }
}
