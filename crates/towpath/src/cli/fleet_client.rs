//! The client of controller and worker, whose answers have the reference system's envelope.

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::client::Client;
use super::{Exit, Failure, Global};
use crate::apps::fleet::KEY_FILE;
use crate::config::Config;

/// A controller or a worker.
pub(super) struct FleetClient(Client);

impl FleetClient {
    /// The controller that the configuration leads to.
    pub(super) fn controller(global: &Global) -> Result<Self, Failure> {
        let config = global.load()?.config;
        let fleet = &config.fleet;
        let listen = fleet.controller_listen.as_deref().unwrap_or(":6001");
        let url = fleet.controller.clone().unwrap_or_else(|| local(listen));
        Self::at(global, &config, url)
    }

    /// The worker that the configuration leads to, the first one if there are several.
    pub(super) fn worker(global: &Global) -> Result<Self, Failure> {
        let config = global.load()?.config;
        let fleet = &config.fleet;
        let listen = fleet.worker_listen.as_deref().unwrap_or(":6002");
        let url = fleet
            .workers
            .first()
            .cloned()
            .unwrap_or_else(|| local(listen));
        Self::at(global, &config, url)
    }

    fn at(global: &Global, config: &Config, url: String) -> Result<Self, Failure> {
        let configured = config
            .fleet
            .api_keys
            .first()
            .map(|key| key.expose().to_owned());
        let kept = || std::fs::read_to_string(config.data_dir.join(KEY_FILE)).ok();
        let key = configured.or_else(kept).map(|key| key.trim().to_owned());
        Ok(Self(Client::at(global, url, key)?))
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
        let (status, bytes) = self.0.exchange(method, path, headers, body).await?;
        let mut answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(answer["data"].take());
        }
        let said = answer["message"]
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
        Err(Failure::new(exit, format!("{said}{hint}")))
    }
}

fn local(listen: &str) -> String {
    let address = listen.replace("0.0.0.0", "127.0.0.1");
    match address.strip_prefix(':') {
        Some(port) => format!("http://127.0.0.1:{port}"),
        None => format!("http://{address}"),
    }
}
