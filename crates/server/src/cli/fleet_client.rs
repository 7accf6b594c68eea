//! The client of controller and worker: by the admin API of the process that runs them, or at the URL that the
//! configuration names, whose answers have the reference system's envelope.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::client::Client;
use super::credentials::Credential;
use super::{Exit, Failure, Global};
use crate::apps::fleet::KEY_FILE;
use crate::config::{Loaded, Setting, Sources, load};

/// A controller or a worker.
pub(super) struct FleetClient {
    client: Client,
    /// Before the path of a route, at the admin API.
    prefix: &'static str,
    is_admin: bool,
}

impl FleetClient {
    /// The configured controller, or the one of the process on this machine.
    pub(super) fn controller(global: &Global) -> Result<Self, Failure> {
        let sources = global.sources()?;
        let loaded = load(&sources)?;
        match loaded.config.fleet.controller.clone() {
            Some(url) => Self::at(global, &sources, &loaded, ("fleet.agent.controller", url)),
            None => Self::admin(global, "fleet.controller", "/v1/fleet"),
        }
    }

    /// The first configured worker, or the one of the process on this machine.
    pub(super) fn worker(global: &Global) -> Result<Self, Failure> {
        let sources = global.sources()?;
        let loaded = load(&sources)?;
        match loaded.config.fleet.workers.first().cloned() {
            Some(url) => Self::at(global, &sources, &loaded, ("fleet.agent.workers", url)),
            None => Self::admin(global, "fleet.worker", "/v1"),
        }
    }

    fn admin(global: &Global, role: &str, prefix: &'static str) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::of(global, &[role])?,
            prefix,
            is_admin: true,
        })
    }

    fn at(
        global: &Global,
        sources: &Sources,
        loaded: &Loaded,
        (key, url): (&str, String),
    ) -> Result<Self, Failure> {
        let config = &loaded.config;
        let setting_of = |key: &str| loaded.settings.get(key);
        let is_of_folder = |setting: &Setting| sources.folder.says(&setting.origin);
        let configured = config.fleet.api_keys.first().map(|secret| Credential {
            secret: secret.expose().trim().to_owned(),
            is_of_folder: setting_of("fleet.api_keys")
                .is_some_and(|setting| !setting.is_path && is_of_folder(setting)),
        });
        let kept = || {
            let path = config.data_dir.join(KEY_FILE);
            let secret = std::fs::read_to_string(&path).ok()?;
            Some(Credential::of_file(secret.trim().to_owned(), &path))
        };
        let is_named_by_folder = setting_of(key).is_some_and(is_of_folder);
        Ok(Self {
            client: Client::at(global, url, is_named_by_folder, configured.or_else(kept))?,
            prefix: "",
            is_admin: false,
        })
    }

    /// The route of one of the two places.
    pub(super) const fn path<'a>(&self, admin: &'a str, own: &'a str) -> &'a str {
        if self.is_admin { admin } else { own }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, &[], Vec::new()).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, &[], Vec::new()).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, String)],
    ) -> Result<Value, Failure> {
        let mut all = vec![("content-type", "application/json".to_owned())];
        all.extend_from_slice(headers);
        self.call(Method::POST, path, &all, body.to_string().into_bytes())
            .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<Value, Failure> {
        let path = format!("{}{path}", self.prefix);
        if self.is_admin {
            return self.client.call(method, &path, headers, body).await;
        }
        let (status, bytes) = self.client.exchange(method, &path, headers, body).await?;
        let mut answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(answer.get_mut("data").map_or(Value::Null, Value::take));
        }
        let message = answer["message"]
            .as_str()
            .map_or_else(|| status.to_string(), str::to_owned);
        let exit = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::Denied,
            StatusCode::BAD_REQUEST => Exit::Usage,
            StatusCode::SERVICE_UNAVAILABLE => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let hint = if exit == Exit::Denied {
            "; the key is that of `fleet.api_keys` (`API_KEY`), or in `fleet.key` in the data folder"
        } else {
            ""
        };
        Err(Failure::new(exit, format!("{message}{hint}")))
    }
}
