//! Queues for programs: the routes that create, send, lease, settle and extend, over the backends that have queues.

mod api;
mod command;
mod deaths;
mod python;
mod refusals;
mod waiting;

pub(crate) use python::python;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use towpath_testkit::servers::{kafka, rabbitmq, redis};

use crate::client::{Answer, Client};
use crate::process::{Running, World, able, wait_until};

/// A running process with an API, and the server behind it.
struct Site {
    name: &'static str,
    world: World,
    running: Option<Running>,
    _server: Option<Box<dyn std::any::Any>>,
}

impl Site {
    fn embedded() -> Self {
        Self::start("embedded", World::new(), None)
    }

    fn start(name: &'static str, world: World, server: Option<Box<dyn std::any::Any>>) -> Self {
        let running = world.spawn(&["run", "ingest.api"]);
        running.wait_ready(&world);
        Self {
            name,
            world,
            running: Some(running),
            _server: server,
        }
    }

    fn on(name: &'static str, url: &str, server: Option<Box<dyn std::any::Any>>) -> Self {
        let mut world = World::new();
        world.set("TOWPATH_BACKENDS__INGEST", url);
        Self::start(name, world, server)
    }

    /// One on each backend that this machine has.
    fn all() -> Vec<Self> {
        let mut sites = vec![Self::embedded()];
        sites.extend(Self::redis());
        if able("rabbitmq", rabbitmq::missing().is_none()) {
            let server = rabbitmq::shared();
            sites.push(Self::on("rabbitmq", &prefixed(&server.url()), None));
        }
        if able("kafka", kafka::missing().is_none()) {
            let server = kafka::shared();
            sites.push(Self::on("kafka", &prefixed(&server.url()), None));
        }
        sites
    }

    fn redis() -> Option<Self> {
        able("redis", redis::missing().is_none()).then(|| {
            let server = redis::Server::start(redis::DURABLE);
            let url = format!("redis://127.0.0.1:{}?consumer_timeout=1s", server.port());
            Self::on("redis", &url, Some(Box::new(server)))
        })
    }

    fn api(&self) -> Api {
        Api::new(self.world.admin, self.world.bearer())
    }

    fn restart(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
        }
        let running = self.world.spawn(&["run", "ingest.api"]);
        running.wait_ready(&self.world);
        self.running = Some(running);
    }
}

/// The URL with names of this test's own: a shared server has those of other tests.
fn prefixed(url: &str) -> String {
    let sign = if url.contains('?') { '&' } else { '?' };
    let name: u64 = rand::random();
    format!("{url}{sign}prefix=jobs{name:x}.")
}

/// A client of the routes.
struct Api {
    client: Client,
    bearer: String,
}

impl Api {
    fn new(admin: SocketAddr, bearer: String) -> Self {
        Self {
            client: Client::new(admin),
            bearer,
        }
    }

    fn call(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [
            ("authorization", self.bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let body = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        self.client.send(method, path, &headers, &body).unwrap()
    }

    fn ok(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.call(method, path, body);
        let status = answer.status;
        assert!((200..300).contains(&status), "{status} {}", answer.text());
        answer.json()
    }

    fn create(&mut self, queue: &str, settings: &Value) {
        self.ok("PUT", &format!("/v1/queues/{queue}"), settings);
    }

    fn send(&mut self, queue: &str, headers: &[(&str, &str)], payload: &str) -> Value {
        let mut all = vec![("authorization", self.bearer.as_str())];
        all.extend(headers);
        let path = format!("/v1/queues/{queue}/messages");
        let answer = { self.client.send("POST", &path, &all, payload.as_bytes()) }.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn lease(&mut self, queue: &str, options: &Value) -> Vec<Value> {
        let path = format!("/v1/queues/{queue}/lease");
        let leased = self.ok("POST", &path, options);
        leased["deliveries"].as_array().unwrap().clone()
    }

    /// The next message, which must come within 20 s.
    fn lease_one(&mut self, queue: &str, lease: &str) -> Value {
        let options = json!({"wait": "20s", "lease": lease});
        let mut deliveries = self.lease(queue, &options);
        assert_eq!(deliveries.len(), 1, "{queue}: {deliveries:?}");
        deliveries.remove(0)
    }

    fn settle(&mut self, queue: &str, settlements: &Value) -> Vec<Value> {
        let path = format!("/v1/queues/{queue}/settle");
        let settled = self.ok("POST", &path, &json!({"settlements": settlements}));
        settled["results"].as_array().unwrap().clone()
    }

    fn settle_one(&mut self, queue: &str, delivery: &Value, disposition: &str) -> String {
        let one = json!({"receipt": delivery["receipt"], "disposition": disposition});
        let results = self.settle(queue, &json!([one]));
        results[0]["outcome"].as_str().unwrap().to_owned()
    }

    fn ack(&mut self, queue: &str, delivery: &Value) {
        assert_eq!(self.settle_one(queue, delivery, "ack"), "ok");
    }

    fn extend(&mut self, queue: &str, delivery: &Value, lease: &str) -> String {
        let path = format!("/v1/queues/{queue}/extend");
        let body = json!({"receipts": [delivery["receipt"]], "lease": lease});
        let extended = self.ok("POST", &path, &body);
        extended["results"][0]["outcome"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn dead_letters(&mut self, queue: &str) -> Vec<Value> {
        let path = format!("/v1/queues/{queue}/dead-letters");
        self.ok("GET", &path, &Value::Null)
            .as_array()
            .unwrap()
            .clone()
    }

    fn stats(&mut self, queue: &str) -> Value {
        self.ok("GET", &format!("/v1/queues/{queue}"), &Value::Null)
    }
}
