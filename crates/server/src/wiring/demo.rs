//! A little traffic for every app, through the listeners as clients send it. Now and then something fails, so that dead
//! letters, refusals and retries have something to show.

#![expect(
    clippy::disallowed_methods,
    reason = "ids of demo messages have the machine's time"
)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::http::{Method, StatusCode};
use serde_json::{Value, json};
use towpath_core::{Error, Result};

use crate::token::Token;
use towpath::disk;
use towpath::net;
use towpath::supervisor::Stop;

/// Between two steps.
const PAUSE: Duration = Duration::from_millis(250);

/// Timeout of a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Steps between two lines of the log: a minute.
const REPORT_EVERY: u64 = 240;

/// The step of the first line.
const FIRST_REPORT: u64 = 39;

/// The SKU of the demo orders.
const SKU: &str = "demo-case";

/// Where the traffic goes to.
#[derive(Clone)]
pub(super) struct Demo {
    /// The public listener.
    pub(super) api: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) token: Token,
    /// The file that the lines app follows.
    pub(super) input: Option<PathBuf>,
}

impl Demo {
    /// Sends until the stop. Refused requests are counted and not repeated.
    pub(super) async fn run(self, stop: &Stop) -> Result<()> {
        let client = net::client().timeout(PATIENCE).build();
        let client = client.map_err(|error| Error::unavailable("no client").with_source(error))?;
        let asking = Asking { client, demo: self };
        // Ids of an earlier run are taken.
        let run = jiff::Timestamp::now().as_second();
        let (mut sent, mut refused) = (0_u64, 0_u64);
        for step in 0_u64.. {
            if !stop.sleep(PAUSE).await {
                break;
            }
            for outcome in asking.step(run, step).await {
                let what = if outcome.is_ok() {
                    &mut sent
                } else {
                    &mut refused
                };
                *what += 1;
                stop.account
                    .add(if outcome.is_ok() { "sent" } else { "refused" }, 1);
                if let Err(error) = outcome {
                    tracing::debug!(error = error.chain(), "demo request refused");
                }
            }
            if step == FIRST_REPORT || step % REPORT_EVERY == REPORT_EVERY - 1 {
                tracing::info!(sent, refused, "demo traffic");
            }
        }
        Ok(())
    }
}

/// Makes the file that the demo appends lines to.
///
/// # Errors
/// `Unavailable` when it cannot be made.
pub(super) fn make_input(path: &Path) -> Result<()> {
    let file = disk::private().create(true).append(true).open(path);
    let failed = |error| Error::unavailable("the demo input cannot be written").with_source(error);
    file.map(drop).map_err(failed)
}

struct Asking {
    client: reqwest::Client,
    demo: Demo,
}

impl Asking {
    /// The requests of a quarter of a second.
    async fn step(&self, run: i64, step: u64) -> Vec<Result<()>> {
        let mut outcomes = Vec::new();
        let message = format!("demo message {step}");
        outcomes.push(self.api(Method::POST, "/enqueue", Some(message)).await);
        if step == 0 {
            outcomes.push(
                self.admin("PUT", &format!("/v1/kv/inventory:{SKU}"), "1000")
                    .await,
            );
            outcomes.push(self.configure().await);
        }
        let is_due = |every: u64, at: u64| step % every == at;
        if is_due(4, 1) {
            let order = json!({ "id": format!("demo-{run}-{step}"), "sku": SKU, "qty": 1 });
            outcomes.push(
                self.api(Method::POST, "/orders", Some(order.to_string()))
                    .await,
            );
        }
        if is_due(8, 2) {
            let path = "/api/bucket/consume?key=demo&tokens=1";
            outcomes.push(self.api(Method::POST, path, None).await);
        }
        if is_due(8, 3) {
            outcomes.push(self.line(step));
        }
        if is_due(20, 6) {
            let email = format!("demo-{run}-{step}@example.com");
            let user = json!({ "email": email, "name": "Demo" });
            outcomes.push(
                self.api(Method::POST, "/api/users", Some(user.to_string()))
                    .await,
            );
        }
        if is_due(40, 10) {
            outcomes.push(self.admin("POST", "/v1/tasks", "{}").await);
        }
        if is_due(120, 20) {
            // Out of stock: the order is rejected.
            let order =
                json!({ "id": format!("demo-{run}-{step}"), "sku": "demo-sold-out", "qty": 1 });
            outcomes.push(
                self.api(Method::POST, "/orders", Some(order.to_string()))
                    .await,
            );
            // Not an order: it becomes a dead letter.
            let path = "/v1/queues/orders.queue/messages";
            outcomes.push(self.admin("POST", path, "demo: not an order").await);
        }
        outcomes
    }

    /// Gives the fleet a URL to ask, unless it has a configuration.
    async fn configure(&self) -> Result<()> {
        if self.admin("GET", "/v1/fleet/config", "").await.is_ok() {
            return Ok(());
        }
        let url = format!("http://{}/healthz", self.demo.api);
        let config = json!({ "data": { "url": url } }).to_string();
        self.admin("POST", "/v1/fleet/config", &config).await
    }

    fn line(&self, step: u64) -> Result<()> {
        let Some(path) = &self.demo.input else {
            return Ok(());
        };
        let failed =
            |error| Error::unavailable("the demo input cannot be written").with_source(error);
        let file = disk::private().create(true).append(true).open(path);
        writeln!(file.map_err(failed)?, "demo line {step}").map_err(failed)
    }

    async fn api(&self, method: Method, path: &str, body: Option<String>) -> Result<()> {
        let url = format!("http://{}{path}", self.demo.api);
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            let is_json = serde_json::from_str::<Value>(&body).is_ok();
            let kind = if is_json {
                "application/json"
            } else {
                "text/plain"
            };
            request = request.header("content-type", kind).body(body);
        }
        answered(request).await
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let url = format!("http://{}{path}", self.demo.admin);
        let method = method.parse().unwrap_or(Method::POST);
        let request = self.client.request(method, url);
        let request = request.bearer_auth(self.demo.token.expose());
        let request = match body.starts_with('{') {
            true => request.header("content-type", "application/json"),
            false => request,
        };
        answered(request.body(body.to_owned())).await
    }
}

async fn answered(request: reqwest::RequestBuilder) -> Result<()> {
    let answer = request.send().await;
    let answer = answer.map_err(|error| {
        Error::unavailable("the request was not answered").with_source(error.without_url())
    })?;
    match answer.status() {
        status if status.is_success() || status == StatusCode::NOT_MODIFIED => Ok(()),
        status => Err(Error::unavailable(format!("HTTP {status}"))),
    }
}
