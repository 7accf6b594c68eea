//! The client of the admin API.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::Stream;
use reqwest::{Client as Http, Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_core::address::shown;
use towpath_core::{Error, QueueName};

use super::credentials::{self, Credential};
use super::processes::{self, Choice, Process};
use super::{Exit, Failure, Global, output, token_file};
use crate::admin;
use crate::config::{Config, Setting, load};
use crate::http::segment;
use towpath::net;

/// Timeout of answers that need no backend: a process that takes longer is stopped or hangs.
const PROMPT: Duration = Duration::from_secs(5);

/// A process that answers at an address.
pub(super) struct Client {
    http: Http,
    base: String,
    token: Option<String>,
    verbose: bool,
    /// Timeout of an answer.
    timeout: Duration,
    /// The process at the address, where it is known.
    process: Option<Process>,
}

/// A process that a command asks.
pub(super) struct Endpoint {
    pub(super) client: Client,
    /// Where it was found among the running ones.
    pub(super) process: Option<Process>,
}

/// The entries of a list, and the exit code: 4 when a part of it is missing.
pub(super) struct Listed<T> {
    pub(super) items: Vec<T>,
    pub(super) exit: Exit,
}

impl Client {
    /// The process that the options, the configuration and the running processes lead to.
    pub(super) fn new(global: &Global) -> Result<Self, Failure> {
        Self::of(global, &[])
    }

    /// As [`Self::new`]; of several processes the one that runs a role of the first of these apps.
    pub(super) fn of(global: &Global, apps: &[&str]) -> Result<Self, Failure> {
        let mut all = Self::each(global, apps)?;
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Ok(one.client),
            (last, _) => {
                let all: Vec<_> = all.into_iter().chain(last).collect();
                let processes = all.iter().filter_map(|one| one.process.as_ref());
                Err(processes::ambiguous(&processes.collect::<Vec<_>>()))
            }
        }
    }

    /// As [`Self::of`], with each of several processes that fit.
    pub(super) fn each(global: &Global, apps: &[&str]) -> Result<Vec<Endpoint>, Failure> {
        let mut sources = global.sources()?;
        // Only the address and the folder count here.
        sources.apps = Some(BTreeSet::new());
        let loaded = load(&sources)?;
        let config = &loaded.config;
        // The environment is behind the options already; a file `.env` is not.
        let variable = |name: &str| {
            let value = sources.env.get(name).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty())
        };
        let option = |option: &Option<String>| option.clone().filter(|value| !value.is_empty());
        let url = match option(&global.url) {
            Some(url) => Some((url, false)),
            None => variable("TOWPATH_URL").map(|url| (url, sources.folder.has("TOWPATH_URL"))),
        };
        let (bases, is_of_folder) = match url {
            Some((url, is_of_folder)) if url.contains("://") => (vec![(url, None)], is_of_folder),
            Some((address, is_of_folder)) => {
                let base = format!("http://{}", address_of(&address));
                (vec![(base, None)], is_of_folder)
            }
            None => {
                let setting = loaded.settings.get("server.admin");
                let is_said = |setting: &Setting| sources.folder.says(&setting.origin);
                let bases = listeners(config, apps, global.data.is_some());
                (bases, setting.is_some_and(is_said))
            }
        };
        let token = match (option(&global.token), variable("TOWPATH_TOKEN")) {
            (Some(token), _) => Some(Credential::own(token)),
            (None, Some(secret)) => Some(Credential {
                secret,
                is_of_folder: sources.folder.has("TOWPATH_TOKEN"),
            }),
            (None, None) => {
                let from_file = |path: String| {
                    let secret = token_of(&path)?;
                    Ok::<_, Failure>(Credential::of_file(secret, Path::new(&path)))
                };
                let path = variable("TOWPATH_TOKEN_FILE");
                path.map(from_file).transpose()?
            }
        };
        let endpoints = bases.into_iter().map(|(base, process)| {
            let listener = base.split_once("://").map_or("", |(_, rest)| rest);
            // A process of this user left it for its own address.
            let left = || {
                let secret = token_file::find(listener.trim_end_matches('/'))?;
                let is_of_folder = true;
                Some(Credential {
                    secret,
                    is_of_folder,
                })
            };
            let kept = || {
                let path = config.data_dir.join(admin::TOKEN_FILE);
                Some(Credential::of_file(read_token(&config.data_dir)?, &path))
            };
            let token = token.clone().or_else(left).or_else(kept);
            let mut client = Self::at(global, base, is_of_folder, token)?;
            client.process.clone_from(&process);
            Ok(Endpoint { client, process })
        });
        endpoints.collect()
    }

    /// The server at this address, and whether only the working folder names it.
    ///
    /// # Errors
    /// `Denied` when the token must not be sent there.
    pub(super) fn at(
        global: &Global,
        base: String,
        is_of_folder: bool,
        token: Option<Credential>,
    ) -> Result<Self, Failure> {
        let base = base.trim_end_matches('/').to_owned();
        if !Url::parse(&base).is_ok_and(|url| url.has_host()) {
            let base = shown(&base);
            let text =
                format!("`{base}` is not a URL; expected e.g. `--url http://127.0.0.1:7070`");
            return Err(Failure::new(Exit::Usage, text));
        }
        credentials::check(&base, is_of_folder, token.as_ref(), global.insecure)?;
        let http = net::client()
            .build()
            .map_err(|error| Failure::failed(format!("the client cannot be made: {error}")))?;
        Ok(Self {
            http,
            base,
            token: token.map(|token| token.secret),
            verbose: global.verbose > 0,
            timeout: Duration::from_secs(30),
            process: None,
        })
    }

    /// The same, for requests that may take a day.
    pub(super) const fn patient(mut self) -> Self {
        self.timeout = Duration::from_secs(24 * 60 * 60);
        self
    }

    /// The same, for requests that a process answers at once unless it is stopped or hangs.
    pub(super) const fn prompt(mut self) -> Self {
        self.timeout = PROMPT;
        self
    }

    /// Checks that the process answers at all.
    ///
    /// # Errors
    /// `Unanswered` when it accepts the connection and then does not answer.
    pub(super) async fn check(self) -> Result<Self, Failure> {
        let timeout = self.timeout;
        let prompt = self.prompt();
        prompt
            .exchange(Method::GET, "/livez", &[], Vec::new())
            .await?;
        Ok(Self { timeout, ..prompt })
    }

    /// The URL that is asked.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Host and port of the process that is asked.
    pub(super) fn address(&self) -> &str {
        self.base
            .split_once("://")
            .map_or(&*self.base, |(_, rest)| rest)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, &[], Vec::new()).await
    }

    /// A list over several backends; names on standard error those that are missing.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Listed<T>, Failure> {
        let response = self.send(Method::GET, path, &[], Vec::new()).await?;
        let status = response.status();
        let missing = response.headers().get(admin::UNAVAILABLE);
        let missing = missing.and_then(|value| value.to_str().ok().map(str::to_owned));
        let bytes = response.bytes().await;
        let bytes = bytes.map_err(|error| Failure::unreachable(error.to_string()))?;
        let items = self.answer(status, &bytes)?;
        if let Some(missing) = &missing {
            output::error(format!("the list is not complete: {missing}"));
        }
        let exit = match missing {
            Some(_) => Exit::Unreachable,
            None => Exit::Ok,
        };
        Ok(Listed { items, exit })
    }

    /// The resource, or `None` when the server answers that it does not exist.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let (status, bytes) = self.exchange(Method::GET, path, &[], Vec::new()).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.answer(status, &bytes).map(Some)
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::failed(error.to_string()))?;
        self.call(
            Method::POST,
            path,
            &[("content-type", "application/json".to_owned())],
            body,
        )
        .await
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let (status, bytes) = self.exchange(method, path, headers, body).await?;
        self.answer(status, &bytes)
    }

    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<(StatusCode, bytes::Bytes), Failure> {
        let response = self.send(method, path, headers, body).await?;
        let status = response.status();
        let bytes = response
            .bytes()
            .await
            .map_err(|error| Failure::unreachable(error.to_string()))?;
        Ok((status, bytes))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<reqwest::Response, Failure> {
        let (began, asked) = (
            Instant::now(),
            format!("{method} {}{path}", shown(&self.base)),
        );
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .timeout(self.timeout)
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                let base = shown(&self.base);
                return Failure::unreachable(format!(
                    "no Towpath answers at {base}; start one with `towpath up`"
                ));
            }
            if error.is_timeout() {
                return self.unanswered();
            }
            let error =
                Error::unavailable("the request was not answered").with_source(error.without_url());
            Failure::unreachable(error.chain())
        })?;
        let status = response.status();
        if self.verbose {
            let elapsed = began.elapsed();
            output::note(format!("{asked}: {status} after {elapsed:.1?}"));
        }
        Ok(response)
    }

    fn unanswered(&self) -> Failure {
        let (base, seconds) = (shown(&self.base), self.timeout.as_secs());
        let (process, next) = match &self.process {
            Some(Process { pid, roles, .. }) => (
                format!(" (pid {pid}, {})", processes::in_words(roles)),
                format!("see its log, and its state with `ps -o stat,wchan,cmd -p {pid}`"),
            ),
            None => (String::new(), "see its log and its state".to_owned()),
        };
        Failure::Unanswered(format!(
            "the process at {base}{process} did not answer within {seconds} s: it is stopped, hangs or is overloaded; {next}"
        ))
    }

    /// The answer of a route, as it comes.
    pub(super) async fn stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = reqwest::Result<bytes::Bytes>> + Send + 'static, Failure> {
        let response = self.send(Method::POST, path, &[], Vec::new()).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.bytes_stream());
        }
        let bytes = response.bytes().await;
        let bytes = bytes.map_err(|error| Failure::unreachable(error.to_string()))?;
        Err(refusal(&shown(&self.base), status, &bytes))
    }

    fn answer<T: DeserializeOwned>(&self, status: StatusCode, bytes: &[u8]) -> Result<T, Failure> {
        if status.is_success() {
            return serde_json::from_slice(bytes).map_err(|error| {
                Failure::failed(format!(
                    "{} answered something else than Towpath's JSON: {error}",
                    shown(&self.base)
                ))
            });
        }
        Err(refusal(&shown(&self.base), status, bytes))
    }
}

/// Maps a refusal: the exit code follows the status, the text is the server's.
fn refusal(base: &str, status: StatusCode, body: &[u8]) -> Failure {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let detail = problem
        .as_ref()
        .and_then(|problem| problem["detail"].as_str());
    let text = detail.map_or_else(|| format!("{base} answered {status}"), str::to_owned);
    let exit = match status.as_u16() {
        401 => {
            return Failure::new(
                Exit::Denied,
                format!(
                    "the process at {base} refused the token; pass `--data` with its data folder, or `--token` with the contents of `admin.token` there"
                ),
            );
        }
        403 => Exit::Denied,
        400 | 405 | 415 | 422 | 501 => Exit::Usage,
        502..=504 => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure::new(exit, text)
}

/// The URL of the configured listener, or of the running processes that fit where none is configured.
fn listeners(config: &Config, apps: &[&str], is_asked: bool) -> Vec<(String, Option<Process>)> {
    let url = |listen: &str| format!("http://{}", address_of(listen));
    if config.admin_is_default {
        let all = processes::running();
        let found = match processes::choose(&all, apps, &config.data_dir, is_asked) {
            Choice::One(process) => vec![process],
            Choice::Several(several) => several,
            Choice::None => Vec::new(),
        };
        if !found.is_empty() {
            let found = found.into_iter().cloned();
            return found.map(|one| (url(&one.admin), Some(one))).collect();
        }
    }
    vec![(url(&config.admin), None)]
}

/// An address to connect to: `7070`, `:7070` and every interface are this machine.
fn address_of(listen: &str) -> String {
    let local = |port: &str| format!("127.0.0.1:{port}");
    let port = listen.strip_prefix(':').unwrap_or(listen);
    match port.parse::<u16>() {
        Ok(_) => local(port),
        Err(_) => listen
            .replace("0.0.0.0", "127.0.0.1")
            .replace("[::]:", "127.0.0.1:"),
    }
}

/// The path of a queue, whose name is checked and encoded: it must never lead to another route.
pub(super) fn queue_path(name: &str, rest: &str) -> Result<String, Failure> {
    let name = QueueName::new(name)?;
    Ok(format!("/v1/queues/{}{rest}", segment(name.as_str())))
}

/// The token in the file that a variable names.
fn token_of(path: &str) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let text = format!("variable TOWPATH_TOKEN_FILE: `{path}` cannot be read: {error}");
        Failure::new(Exit::Config, text)
    })?;
    Ok(text.trim().to_owned())
}

pub(super) fn read_token(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(admin::TOKEN_FILE)).ok()?;
    Some(text.trim().to_owned())
}
