//! A signed POST per message, as Standard Webhooks says.
//!
//! Source: <https://www.standardwebhooks.com>, version 1: headers `webhook-id`, `webhook-timestamp`, `webhook-signature`.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use towpath_core::message::header::{CONTENT_TYPE, TRACEPARENT, TRACESTATE};
use towpath_core::port::sink::Outcome;
use towpath_core::{Clock, Delivery, Error, Message, Result, attempt};

use crate::net::answer::{cause_of, retry_after, server_shown, unavailable};
use crate::net::egress::EgressPolicy;
use crate::net::trusting_also;
use crate::pump::{Destination, Handler, note_answer};

/// Maximum read length of an answer, so that its connection can be used again.
const ANSWER_BYTES: usize = 64 * 1024;

/// Part of an answer's body that is added to the reason.
const REASON_BYTES: usize = 200;

/// Answers of 4xx that say something about the endpoint or the moment, and nothing about the message.
const NOT_THE_MESSAGE: [StatusCode; 7] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::CONFLICT,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_EARLY,
];

/// Posts each message. Done is any 2xx. No answer, 429, 502, 503 and 504 are conditions of the receiver, and its
/// `Retry-After` is obeyed; a 4xx that is about the message makes it a dead letter; everything else is tried again.
/// Redirects are not followed. At least once: the receiver recognises a repeat by `webhook-id`.
pub struct WebhookSink {
    egress: EgressPolicy,
    url: Url,
    keys: Vec<hmac::Key>,
    clock: std::sync::Arc<dyn Clock>,
    destination: Destination,
}

impl WebhookSink {
    /// A sink that posts to `url`, signed with each secret (`whsec_` and base64), for at most `timeout`; to public
    /// addresses and the places of `allow` only, or without it wherever the host of `url` leads. The authorities in the
    /// file `ca` are trusted beside those of the system. `destination` makes the receiver's state of the name that may
    /// be shown.
    ///
    /// # Errors
    /// `Invalid` for a wrong URL, secret or file, and a URL that leads to a place that is not allowed.
    pub fn new(
        url: &str,
        secrets: &[String],
        allow: Option<&[String]>,
        timeout: Duration,
        ca: Option<&Path>,
        clock: std::sync::Arc<dyn Clock>,
        destination: impl FnOnce(String) -> Destination,
    ) -> Result<Self> {
        let url = Url::parse(url).map_err(|error| {
            Error::invalid("the URL of the webhook is not one").with_source(error)
        })?;
        let egress = match allow {
            Some(allow) => EgressPolicy::new(allow, timeout)?,
            None => EgressPolicy::of_own(&url, timeout)?,
        };
        let egress = egress.trusting(ca.map(trusting_also).transpose()?);
        egress.check_place(&url).map_err(|error| {
            Error::invalid("the webhook cannot be posted to").with_source(error)
        })?;
        let keys = secrets
            .iter()
            .map(|secret| key(secret))
            .collect::<Result<_>>()?;
        Ok(Self {
            destination: destination(server_shown(&url)),
            egress,
            url,
            keys,
            clock,
        })
    }

    /// Posts one message.
    pub async fn post(&self, message: &Message) -> Outcome {
        let headers = match self.headers(message) {
            Ok(headers) => headers,
            Err(reason) => return Outcome::Reject { reason },
        };
        let payload = message.payload.clone();
        let posted = post(&self.egress, &self.url, headers, payload, &*self.clock).await;
        posted.unwrap_or_else(|error| unanswered(&error))
    }

    /// The receiver.
    pub const fn receiver(&self) -> &Destination {
        &self.destination
    }

    /// The headers of a message's post, or why there are none.
    fn headers(&self, message: &Message) -> Result<HeaderMap, String> {
        let (id, seconds) = (message.id.to_string(), self.clock.now().as_millis() / 1000);
        let content_type = message.headers.get(CONTENT_TYPE);
        let mut all = vec![
            ("webhook-timestamp", seconds.to_string()),
            (
                CONTENT_TYPE,
                content_type
                    .unwrap_or("application/octet-stream")
                    .to_owned(),
            ),
        ];
        if !self.keys.is_empty() {
            let signature = sign(&self.keys, &id, seconds, &message.payload);
            all.push(("webhook-signature", signature));
        }
        for name in [TRACEPARENT, TRACESTATE] {
            if let Some(value) = message.headers.get(name) {
                all.push((name, value.to_owned()));
            }
        }
        all.push(("webhook-id", id));
        let headers = all.into_iter().map(|(name, value)| {
            let wrong = |_| format!("cannot be sent: its `{name}` is not a valid header value");
            let value = HeaderValue::try_from(value).map_err(wrong)?;
            Ok((HeaderName::from_static(name), value))
        });
        headers.collect()
    }
}

/// Posts once; returns the answer's meaning for the message and for its receiver.
///
/// # Errors
/// Without an answer: `Invalid` when the policy refuses the destination, otherwise `Unavailable`.
pub async fn post(
    egress: &EgressPolicy,
    url: &Url,
    headers: HeaderMap,
    payload: Bytes,
    clock: &dyn Clock,
) -> Result<Outcome> {
    let request = |client: &Client, url| client.post(url).headers(headers).body(payload);
    let mut response = egress.send(url, request).await?;
    let mut body = Vec::new();
    let mut room = ANSWER_BYTES;
    // Whether the body ends well does not matter.
    while let Ok(Some(chunk)) = response.chunk().await {
        let kept = attempt::ANSWER_BYTES.saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(kept)]);
        room = room.saturating_sub(chunk.len());
        if room == 0 {
            break;
        }
    }
    if !body.is_empty() && !response.status().is_success() {
        note_answer(&body);
    }
    Ok(outcome(response.status(), response.headers(), &body, clock))
}

/// The meaning of a post without an answer for the receiver's condition.
pub fn unanswered(error: &Error) -> Outcome {
    Outcome::Unavailable {
        cause: cause_of(error),
        after: None,
        error: error.chain(),
    }
}

fn outcome(status: StatusCode, headers: &HeaderMap, body: &[u8], clock: &dyn Clock) -> Outcome {
    if status.is_success() {
        return Outcome::Done;
    }
    let mut reason = format!("HTTP {status}");
    if status.is_redirection() {
        reason.push_str("; redirects are not followed, set the URL it leads to");
    }
    let after = retry_after(headers, clock);
    if let Some(cause) = unavailable(status) {
        // Without the body: it goes to the log, and may repeat the message.
        return Outcome::Unavailable {
            cause,
            after,
            error: reason,
        };
    }
    let body = String::from_utf8_lossy(&body[..body.len().min(REASON_BYTES)]);
    let words: Vec<&str> = body.split_whitespace().collect();
    if !words.is_empty() {
        reason.push_str(": ");
        reason.push_str(&words.join(" "));
    }
    if status.is_client_error() && !NOT_THE_MESSAGE.contains(&status) {
        return Outcome::Reject { reason };
    }
    Outcome::Retry {
        after,
        error: reason,
    }
}

/// Whether a text can sign: `whsec_` and base64 of at least one byte.
pub fn is_signing_secret(secret: &str) -> bool {
    secret != "whsec_" && key(secret).is_ok()
}

/// The key of a secret.
///
/// # Errors
/// `Invalid` when it is not `whsec_` and base64.
pub fn key(secret: &str) -> Result<hmac::Key> {
    let bytes = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret));
    let bytes =
        bytes.map_err(|_| Error::invalid("a webhook secret must be `whsec_` and base64"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The value of the header `webhook-signature`, one signature for each key. Source: Standard Webhooks.
pub fn sign(keys: &[hmac::Key], id: &str, seconds: u64, payload: &[u8]) -> String {
    let signatures = keys.iter().map(|key| {
        let mut context = hmac::Context::with_key(key);
        context.update(format!("{id}.{seconds}.").as_bytes());
        context.update(payload);
        format!("v1,{}", STANDARD.encode(context.sign()))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Handler for WebhookSink {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.post(&delivery.message).await
    }

    fn destination(&self) -> Option<&Destination> {
        Some(&self.destination)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use towpath_core::{ManualClock, Timestamp};

    use super::*;
    use towpath_core::port::sink::Cause;

    use crate::sink::testing::{delivery, destination};

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

    fn clock() -> std::sync::Arc<dyn Clock> {
        std::sync::Arc::new(ManualClock::at(Timestamp::from_millis(1_790_000_000_000)))
    }

    #[test]
    fn answers_have_their_documented_meaning() {
        let headers = HeaderMap::new();
        for (statuses, expected) in [
            (&[200, 201, 202, 204][..], "done"),
            (&[400, 405, 410, 413, 415, 422, 451], "reject"),
            (&[401, 403, 404, 408, 409, 421, 425], "retry"),
            (&[301, 302, 307, 308, 500, 501, 505], "retry"),
            (&[429, 502, 503, 504], "unavailable"),
        ] {
            for status in statuses {
                let status = StatusCode::from_u16(*status).unwrap();
                let outcome = match outcome(status, &headers, b"", &*clock()) {
                    Outcome::Done | Outcome::Settled => "done",
                    Outcome::Retry { after: None, .. } => "retry",
                    Outcome::Reject { .. } => "reject",
                    Outcome::Retry { .. } => "later",
                    Outcome::Unavailable { .. } => "unavailable",
                };
                assert_eq!(outcome, expected, "{status}");
            }
        }
    }

    #[test]
    fn the_answer_is_part_of_the_reason_unless_it_may_be_logged() {
        let said = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            match outcome(
                status,
                &HeaderMap::new(),
                b" no\n such\tfield \xff",
                &*clock(),
            ) {
                Outcome::Reject { reason: said }
                | Outcome::Retry { error: said, .. }
                | Outcome::Unavailable { error: said, .. } => said,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            said(422),
            "HTTP 422 Unprocessable Entity: no such field \u{fffd}"
        );
        assert_eq!(
            said(500),
            "HTTP 500 Internal Server Error: no such field \u{fffd}"
        );
        assert_eq!(said(503), "HTTP 503 Service Unavailable");
    }

    #[test]
    fn retry_after_is_heeded_in_every_form() {
        // The clock says Mon, 21 Sep 2026 14:13:20 GMT.
        for (value, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Mon, 21 Sep 2026 14:14:20 GMT", Some(60)),
            ("Monday, 21-Sep-26 14:14:20 GMT", Some(60)),
            ("Mon Sep 21 14:14:20 2026", Some(60)),
            ("Mon, 21 Sep 2026 14:12:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, value.parse().unwrap());
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let Outcome::Unavailable { after, .. } = outcome(status, &headers, b"", &*clock())
            else {
                panic!("503 is a condition of the receiver")
            };
            assert_eq!(after, seconds.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn only_the_web_is_posted_to() {
        for (url, reason) in [
            (
                "ftp://host/x",
                "the webhook cannot be posted to: the URL is `ftp:…`; it must be http or https",
            ),
            (
                "no url",
                "the URL of the webhook is not one: relative URL without a base",
            ),
        ] {
            let error = new(url, None, Duration::from_secs(1)).err().unwrap();
            assert_eq!(error.chain(), reason);
        }
    }

    fn new(url: &str, allow: Option<&[String]>, timeout: Duration) -> Result<WebhookSink> {
        WebhookSink::new(url, &[], allow, timeout, None, clock(), destination)
    }

    /// Answers every request on every connection with this, and counts the connections.
    #[expect(clippy::disallowed_methods, reason = "tests have no supervisor")]
    async fn server(answer: String) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                tokio::spawn(async move {
                    let (mut got, mut buffer) = (Vec::new(), [0; 1024]);
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        got.extend_from_slice(&buffer[..read]);
                        if got.ends_with(b"the end") {
                            got.clear();
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (url, connections)
    }

    async fn post(url: &str, times: usize) -> Vec<Outcome> {
        let sink = new(url, None, Duration::from_millis(500)).unwrap();
        let mut outcomes = Vec::new();
        for _ in 0..times {
            outcomes.push(sink.handle(&delivery("the end")).await);
        }
        outcomes
    }

    #[tokio::test]
    async fn connections_are_used_again_also_after_an_answer_with_a_body() {
        let body = "x".repeat(10_000);
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        let (url, connections) = server(answer).await;
        assert_eq!(post(&url, 5).await, vec![Outcome::Done; 5]);
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let (target, followed) =
            server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        let answer = format!(
            "HTTP/1.1 308 Permanent Redirect\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
        );
        let (url, _) = server(answer).await;
        let outcomes = post(&url, 1).await;
        assert!(
            matches!(&outcomes[0], Outcome::Retry { error, .. } if error.contains("redirects are not followed")),
            "{outcomes:?}"
        );
        assert_eq!(followed.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn with_a_list_of_allowed_places_no_other_inside_is_posted_to() {
        let (url, connections) =
            server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        let sink = |url: &str, allow: &[&str]| {
            let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
            new(url, Some(&allow), Duration::from_secs(1))
        };
        let refused = sink(&url, &["public"]).err().unwrap();
        assert!(refused.chain().contains("not allowed"), "{refused:?}");
        // Where a name leads is known when it is connected to.
        let named = url.replace("127.0.0.1", "localhost");
        let sunk = sink(&named, &["public"]).unwrap();
        let outcome = sunk.handle(&delivery("the end")).await;
        assert!(
            matches!(&outcome, Outcome::Unavailable { cause: Cause::Unreachable, error, .. } if error.contains("not allowed")),
            "{outcome:?}"
        );
        assert_eq!(connections.load(Ordering::SeqCst), 0);
        for (url, allow) in [(&url, "127.0.0.0/8"), (&named, "localhost")] {
            let sink = sink(url, &[allow]).unwrap();
            let outcome = sink.handle(&delivery("the end")).await;
            assert_eq!(outcome, Outcome::Done);
        }
    }

    #[tokio::test]
    async fn no_answer_is_a_condition_of_the_receiver_and_names_no_url() {
        let (silent, _) = server(String::new()).await;
        let refusing = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://user:geheim@{}/hook", listener.local_addr().unwrap())
        };
        for (url, expected) in [(silent, Cause::Failed), (refusing, Cause::Unreachable)] {
            let outcome = post(&url, 1).await.remove(0);
            let Outcome::Unavailable { cause, error, .. } = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(cause, expected);
            assert!(
                error.starts_with("no answer") && !error.contains("geheim"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_sent_is_abandoned() {
        let (url, _) = server(String::new()).await;
        let sink = new(&url, None, Duration::from_secs(1)).unwrap();
        let mut broken = delivery("x");
        broken.message.headers.set("content-type", "a\nb");
        let outcome = sink.handle(&broken).await;
        assert!(
            matches!(&outcome, Outcome::Reject { reason } if reason.starts_with("cannot be sent")),
            "{outcome:?}"
        );
    }
}
