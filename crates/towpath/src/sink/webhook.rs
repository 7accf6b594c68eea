//! A signed POST per message, as Standard Webhooks says.
//!
//! Source: <https://www.standardwebhooks.com>, version 1: headers `webhook-id`, `webhook-timestamp`, `webhook-signature`.

use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt};
use reqwest::redirect;
use reqwest::{Client, StatusCode, Url, header};
use towpath_core::message::header::{CONTENT_TYPE, TRACEPARENT};
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::{Clock, Delivery, Error, Message, Result};

/// Requests under way at once, of one batch.
const CONCURRENCY: usize = 16;

/// Posts each message. Done is any 2xx; 410 gives the message up; everything else is tried again, as the
/// standard asks, and `Retry-After` is heeded. At least once: the receiver recognises a repeat by `webhook-id`.
pub struct WebhookSink {
    client: Client,
    url: Url,
    keys: Vec<hmac::Key>,
    clock: std::sync::Arc<dyn Clock>,
}

impl WebhookSink {
    /// A sink that posts to `url`, signed with each secret (`whsec_` and base64), for at most `timeout`.
    ///
    /// # Errors
    /// `Invalid` for a wrong URL or secret.
    pub fn new(
        url: &str,
        secrets: &[String],
        timeout: Duration,
        clock: std::sync::Arc<dyn Clock>,
    ) -> Result<Self> {
        let url = Url::parse(url).map_err(|error| {
            Error::invalid("the URL of the webhook is not one").with_source(error)
        })?;
        crate::http::tls::install_provider();
        let client = Client::builder()
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| {
                Error::invalid("the webhook's client cannot be made").with_source(error)
            })?;
        let keys = secrets
            .iter()
            .map(|secret| key(secret))
            .collect::<Result<_>>()?;
        Ok(Self {
            client,
            url,
            keys,
            clock,
        })
    }

    async fn post(&self, message: &Message) -> Outcome {
        let (id, seconds) = (message.id.to_string(), self.clock.now().as_millis() / 1000);
        let mut request = self
            .client
            .post(self.url.clone())
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds)
            .header(
                header::CONTENT_TYPE,
                message
                    .headers
                    .get(CONTENT_TYPE)
                    .unwrap_or("application/octet-stream"),
            );
        if !self.keys.is_empty() {
            request = request.header(
                "webhook-signature",
                sign(&self.keys, &id, seconds, &message.payload),
            );
        }
        if let Some(traceparent) = message.headers.get(TRACEPARENT) {
            request = request.header(TRACEPARENT, traceparent);
        }
        match request.body(message.payload.clone()).send().await {
            Ok(response) => outcome(response.status(), response.headers()),
            Err(error) => {
                // The URL may hold a secret, and stands in the configuration anyway.
                let error = Error::unavailable("no answer").with_source(error.without_url());
                Outcome::Retry {
                    after: None,
                    error: error.chain(),
                }
            }
        }
    }
}

fn outcome(status: StatusCode, headers: &header::HeaderMap) -> Outcome {
    if status.is_success() {
        return Outcome::Done;
    }
    if status == StatusCode::GONE {
        return Outcome::Reject {
            reason: "answered 410 Gone".to_owned(),
        };
    }
    let after = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    Outcome::Retry {
        after: after.map(Duration::from_secs),
        error: format!("answered {status}"),
    }
}

fn key(secret: &str) -> Result<hmac::Key> {
    let bytes = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret));
    let bytes =
        bytes.map_err(|_| Error::invalid("a webhook secret must be `whsec_` and base64"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn sign(keys: &[hmac::Key], id: &str, seconds: u64, payload: &[u8]) -> String {
    let signatures = keys.iter().map(|key| {
        let mut context = hmac::Context::with_key(key);
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(payload);
        format!("v1,{}", STANDARD.encode(context.sign()))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let posts: Vec<_> = batch
            .iter()
            .map(|delivery| self.post(&delivery.message))
            .collect();
        Ok(stream::iter(posts).buffered(CONCURRENCY).collect().await)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_standard() {
        let keys = [key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()];
        let signature = sign(
            &keys,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(key("whsec_not base64").is_err());
    }

    #[test]
    fn answers_mean_what_the_standard_says() {
        let mut headers = header::HeaderMap::new();
        assert_eq!(outcome(StatusCode::NO_CONTENT, &headers), Outcome::Done);
        assert!(matches!(
            outcome(StatusCode::GONE, &headers),
            Outcome::Reject { .. }
        ));
        assert!(matches!(
            outcome(StatusCode::BAD_REQUEST, &headers),
            Outcome::Retry { after: None, .. }
        ));
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("7"));
        let Outcome::Retry { after, .. } = outcome(StatusCode::TOO_MANY_REQUESTS, &headers) else {
            panic!()
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
    }
}
