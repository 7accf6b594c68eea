//! The client of the admin API.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client as Http, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_core::{Error, QueueName};

use super::{Failure, Global};
use crate::admin;

/// A process that answers at an address.
pub(super) struct Client {
    http: Http,
    base: String,
    token: Option<String>,
}

impl Client {
    /// The process that the options and the configuration lead to.
    pub(super) fn new(global: &Global) -> Result<Self, Failure> {
        let config = global.load()?.config;
        let address = config
            .admin
            .strip_prefix(':')
            .map_or_else(|| config.admin.clone(), |port| format!("127.0.0.1:{port}"));
        let base = global
            .url
            .clone()
            .unwrap_or_else(|| format!("http://{}", address.replace("0.0.0.0", "127.0.0.1")));
        let token = global
            .token
            .clone()
            .or_else(|| read_token(&config.data_dir));
        crate::http::tls::install_provider();
        let http = Http::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()
            .map_err(|error| Failure::failed(format!("the client cannot be made: {error}")))?;
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            token,
        })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, &[], Vec::new()).await
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
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                let base = &self.base;
                return Failure::unreachable(format!(
                    "no Towpath answers at {base}; start one with `towpath up`"
                ));
            }
            let error =
                Error::unavailable("the request was not answered").with_source(error.without_url());
            Failure::unreachable(error.chain())
        })?;
        let status = response.status();
        let bytes = response
            .bytes()
            .await
            .map_err(|error| Failure::unreachable(error.to_string()))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| {
                Failure::failed(format!(
                    "{} answered something else than Towpath's JSON: {error}",
                    self.base
                ))
            });
        }
        Err(refusal(status, &bytes))
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let detail = problem
        .as_ref()
        .and_then(|problem| problem["detail"].as_str());
    Failure::failed(detail.map_or_else(|| format!("answered {status}"), str::to_owned))
}

/// The path of a queue, whose name is checked and encoded: it must never lead to another route.
pub(super) fn queue_path(name: &str, rest: &str) -> Result<String, Failure> {
    let name = QueueName::new(name)?;
    let mut encoded = String::new();
    for byte in name.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(format!("/v1/queues/{encoded}{rest}"))
}

fn read_token(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(admin::TOKEN_FILE)).ok()?;
    Some(text.trim().to_owned())
}
