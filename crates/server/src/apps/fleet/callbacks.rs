//! Callbacks: posts of results to where their clients want them.
//!
//! The message is written in the step that ends the task, and is delivered like any other: no answer and 429, 502, 503
//! and 504 wait for the receiver, refusals become dead letters.

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, ErrorKind};

use super::destinations::{Destinations, deferred};
use super::task::Task;
use towpath::net::egress::EgressPolicy;
use towpath::pump::{Destination, Handler};
use towpath::sink::{post, sign, unanswered};

/// The queue of callbacks.
pub const CALLBACK_QUEUE: &str = "fleet.callbacks";

/// Posts results.
pub struct Callbacks {
    egress: Arc<EgressPolicy>,
    keys: Arc<[hmac::Key]>,
    destinations: Arc<Destinations>,
}

impl Callbacks {
    /// Posts to destinations that the policy allows, signed with each key.
    pub fn new(
        egress: Arc<EgressPolicy>,
        keys: Vec<hmac::Key>,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            egress,
            keys: keys.into(),
            destinations,
        }
    }

    /// The headers of Standard Webhooks, with the task's id as the message's.
    fn headers(&self, id: &str, payload: &[u8]) -> Result<HeaderMap, http::Error> {
        let seconds = self.destinations.clock().now().as_millis() / 1000;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut add = |name, value: &str| -> Result<(), http::Error> {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
            Ok(())
        };
        add("webhook-id", id)?;
        add("webhook-timestamp", &seconds.to_string())?;
        if !self.keys.is_empty() {
            add("webhook-signature", &sign(&self.keys, id, seconds, payload))?;
        }
        Ok(headers)
    }
}

#[async_trait]
impl Handler for Callbacks {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        let payload = &delivery.message.payload;
        let reject = |reason: String| Outcome::Reject { reason };
        let (task, to) = match serde_json::from_slice::<Task>(payload) {
            Ok(task) => match task.callback_url.clone() {
                Some(url) => (task, url),
                None => return reject("the task has no `callback_url`".to_owned()),
            },
            Err(error) => return reject(format!("the message is not an ended task: {error}")),
        };
        let url = match self.egress.check(&to) {
            Ok(url) => url,
            Err(error) => return reject(error.chain()),
        };
        let headers = match self.headers(&task.task_id.to_string(), payload) {
            Ok(headers) => headers,
            Err(error) => return reject(error.to_string()),
        };
        let to = self.destinations.of(&to);
        let request = match to.begin() {
            Ok(request) => request,
            Err(after) => return deferred(after),
        };
        let clock = self.destinations.clock();
        let outcome = match post(&self.egress, &url, headers, payload.clone(), clock).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == ErrorKind::Invalid => reject(error.chain()),
            Err(error) => unanswered(&error),
        };
        request.end(delivery, outcome)
    }

    fn destination(&self) -> Option<&Destination> {
        None
    }
}
