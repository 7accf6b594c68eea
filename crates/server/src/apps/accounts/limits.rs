//! The HTTP side of limits: the reference system's paths, fields and codes, with its roundings and dead ends fixed.

#![expect(
    clippy::disallowed_methods,
    reason = "the machine's time is shown to people"
)]

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use towpath_core::limiter::{Amount, Decision, Policy};
use towpath_core::{Error, ErrorKind};

use super::limiter::{KEY_BYTES, LimitRequest, Limiter};
use super::rule::Rule;
use crate::http::Asking;
use crate::http::error::{Form, Problem};
use crate::http::extract::{Json, Query};
use crate::http::json::{self, Object};
use crate::telemetry::log_failure;

/// Takes of one bulk request.
const MOST_TAKES: usize = 1_000;

/// `/api/bucket/…`.
pub fn limit_routes(limiter: Limiter) -> Router {
    Router::new()
        .route("/api/bucket/check", get(check))
        .route("/api/bucket/consume", post(consume))
        .route("/api/bucket/reset", post(reset))
        .route("/api/bucket/bulk-consume", post(bulk))
        .with_state(limiter)
}

/// Form of the problems of these routes, whichever layer finds them.
pub const LIMIT_FORMS: &[(&str, Form)] = &[("/api/bucket/", Form::Coded)];

/// The requests of [`limit_routes`] that have parameters.
pub fn limit_queries() -> [Asking; 4] {
    [
        (Method::GET, "/api/bucket/check".into()),
        (Method::POST, "/api/bucket/consume".into()),
        (Method::POST, "/api/bucket/reset".into()),
        (Method::POST, "/api/bucket/bulk-consume".into()),
    ]
}

/// The parameters, as text, so that error messages are our own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitParams {
    #[serde(default)]
    key: String,
    tokens: Option<String>,
    policy: Option<String>,
}

/// One take of a bulk request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    key: Option<String>,
    tokens: Option<f64>,
    policy: Option<String>,
}

/// A bulk request with its mode; a list alone is all or nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bulk {
    takes: Vec<Object<One>>,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    All,
    Each,
}

type Answer = Result<Response, Problem>;

/// A refusal under the reference system's word.
fn bad(word: &'static str, message: impl Into<String>) -> Problem {
    Problem::invalid(message).code(word)
}

/// The answer when the store decided nothing.
fn undecided(error: &Error) -> Problem {
    if error.kind() == ErrorKind::Invalid {
        return bad("invalid_tokens", error.to_string());
    }
    log_failure("rate limit decision failed", error);
    let text = error.unknown_or("rate-limit store unavailable; retry later");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, text)
        .code("bucket_error")
        .retry_after(1)
}

async fn check(State(limiter): State<Limiter>, Query(params): Query<LimitParams>) -> Answer {
    let (key, rule) = (key(&params.key)?, rule(&limiter, params.policy.as_deref())?);
    let decision = limiter.peek(key, rule).await;
    let decision = decision.map_err(|error| undecided(&error))?;
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let body = json!({
        "key": key,
        "current_tokens": decision.remaining.as_f64(),
        "capacity": number(rule.policy.capacity().as_f64()),
        "refill_rate": per_second(&rule.policy),
        "last_refill_time": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "ttl_seconds": seconds(decision.reset_after),
        "success": true,
    });
    Ok(answer(StatusCode::OK, body, rule, &decision))
}

async fn consume(
    State(limiter): State<Limiter>,
    Query(params): Query<LimitParams>,
    _: Bytes,
) -> Answer {
    let (key, rule) = (key(&params.key)?, rule(&limiter, params.policy.as_deref())?);
    let tokens = match params.tokens.as_deref() {
        None => 1.0,
        Some(text) => text.trim().parse().map_err(|_| {
            bad(
                "invalid_tokens",
                format!("`tokens` is `{text}`; it must be a number over zero"),
            )
        })?,
    };
    let amount = amount(tokens)?;
    let decision = one(take(&limiter, &[LimitRequest { key, rule, amount }]).await?)?;
    let remaining = decision.remaining.as_f64();
    if decision.allowed {
        let body = json!({
            "allowed": true, "remaining_tokens": remaining, "success": true,
            "message": format!("Successfully consumed {tokens:.1} tokens"),
        });
        return Ok(answer(StatusCode::OK, body, rule, &decision));
    }
    let body = json!({
        "allowed": false, "remaining_tokens": remaining, "success": false,
        "retry_after_seconds": decision.retry_after.as_secs_f64(),
        "message": "Rate limit exceeded",
    });
    Ok(answer(StatusCode::TOO_MANY_REQUESTS, body, rule, &decision))
}

async fn reset(
    State(limiter): State<Limiter>,
    Query(params): Query<LimitParams>,
    _: Bytes,
) -> Answer {
    let key = key(&params.key)?;
    let reset = limiter.reset(key).await;
    reset.map_err(|error| undecided(&error))?;
    let body = json!({
        "success": true, "key": key,
        "message": format!("Bucket '{key}' has been reset to full capacity"),
    });
    Ok(Json(body).into_response())
}

async fn bulk(
    State(limiter): State<Limiter>,
    Query(params): Query<LimitParams>,
    body: Bytes,
) -> Answer {
    if body.iter().all(u8::is_ascii_whitespace) {
        return ten(&limiter, &params).await;
    }
    let is_list = body.trim_ascii_start().starts_with(b"[");
    let parsed = match is_list {
        true => json::value(&body).map(|takes| (takes, Mode::All)),
        false => json::object(&body).map(|bulk: Bulk| (bulk.takes, bulk.mode)),
    };
    let (takes, mode): (Vec<Object<One>>, Mode) = parsed.map_err(|refusal| {
        let text = format!(
            "the body is neither a list of takes nor `takes` with a `mode` of `all` or `each`: {}",
            refusal.reason
        );
        bad("parse_error", text)
    })?;
    if takes.is_empty() || takes.len() > MOST_TAKES {
        let text = format!("{} takes; there must be 1 to {MOST_TAKES}", takes.len());
        return Err(bad("parse_error", text));
    }
    let mut requests = Vec::with_capacity(takes.len());
    for Object(take) in &takes {
        let name = take.policy.as_deref().or(params.policy.as_deref());
        requests.push(LimitRequest {
            key: key(take.key.as_deref().unwrap_or(&params.key))?,
            rule: rule(&limiter, name)?,
            amount: amount(take.tokens.unwrap_or(1.0))?,
        });
    }
    let decisions = match mode {
        Mode::All => take(&limiter, &requests).await?,
        Mode::Each => {
            let mut decisions = Vec::with_capacity(requests.len());
            for one in &requests {
                decisions.extend(take(&limiter, std::slice::from_ref(one)).await?);
            }
            decisions
        }
    };
    let all = decisions.iter().all(|decision| decision.allowed);
    let results = requests
        .iter()
        .zip(&decisions)
        .enumerate()
        .map(|(at, (request, decision))| {
            let mut result = result_of(at + 1, decision);
            result["key"] = json!(request.key);
            // Of a refused whole nothing was taken, whatever each would have allowed.
            result["allowed"] = json!(decision.allowed && (all || mode == Mode::Each));
            result
        });
    let body = json!({
        "success": all || mode == Mode::Each,
        "message": if all || mode == Mode::Each { "Bulk consumption completed" } else { "Rate limit exceeded" },
        "results": results.collect::<Vec<Value>>(),
    });
    if all || mode == Mode::Each {
        return Ok(Json(body).into_response());
    }
    let longest = decisions.iter().map(|decision| decision.retry_after).max();
    let mut response = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    insert(
        response.headers_mut(),
        header::RETRY_AFTER,
        seconds(longest.unwrap_or_default()).max(1),
    );
    Ok(response)
}

/// Without a body, as in the reference system: ten takes of one token.
async fn ten(limiter: &Limiter, params: &LimitParams) -> Answer {
    let (key, rule) = (key(&params.key)?, rule(limiter, params.policy.as_deref())?);
    let mut results = Vec::with_capacity(10);
    for attempt in 1..=10 {
        let amount = Amount::whole(1);
        let taken = take(limiter, &[LimitRequest { key, rule, amount }]).await;
        results.push(match taken {
            Ok(decisions) => result_of(attempt, &one(decisions)?),
            Err(problem) => json!({ "attempt": attempt, "error": problem.detail() }),
        });
    }
    let body = json!({
        "success": true, "message": "Bulk consumption test completed", "key": key,
        "results": results,
    });
    Ok(Json(body).into_response())
}

fn result_of(attempt: usize, decision: &Decision) -> Value {
    json!({
        "attempt": attempt,
        "allowed": decision.allowed,
        "remaining_tokens": decision.remaining.as_f64(),
        "retry_after": decision.retry_after.as_secs_f64(),
    })
}

async fn take(limiter: &Limiter, requests: &[LimitRequest<'_>]) -> Result<Vec<Decision>, Problem> {
    let taken = limiter.take(requests).await;
    taken.map_err(|error| undecided(&error))
}

/// The capacity as the reference system writes it: without a fraction when it is whole, which typed clients read as an
/// integer.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "used when it is whole")]
    let whole = value as i64;
    match value.fract().abs() < f64::EPSILON && value.abs() < 1e15 {
        true => json!(whole),
        false => json!(value),
    }
}

fn key(key: &str) -> Result<&str, Problem> {
    match key.trim() {
        "" => Err(bad("missing_key", "query parameter `key` is required")),
        key if key.len() > KEY_BYTES || key.contains(char::is_control) => {
            let text =
                format!("`key` must have at most {KEY_BYTES} bytes and no control characters");
            Err(bad("invalid_key", text))
        }
        key => Ok(key),
    }
}

fn rule<'a>(limiter: &'a Limiter, name: Option<&str>) -> Result<&'a Rule, Problem> {
    limiter.rules.find(name).ok_or_else(|| {
        let known: Vec<&str> = limiter.rules.names().collect();
        let name = name.unwrap_or_default();
        bad(
            "unknown_policy",
            format!(
                "there is no policy `{name}`; there are: {}",
                known.join(", ")
            ),
        )
    })
}

fn amount(tokens: f64) -> Result<Amount, Problem> {
    let amount = Amount::from_f64(tokens).unwrap_or_default();
    if amount == Amount::default() {
        let text = format!("`tokens` is {tokens}; it must be a number from 0.000001 to 10^12");
        return Err(bad("invalid_tokens", text));
    }
    Ok(amount)
}

fn one(decisions: Vec<Decision>) -> Result<Decision, Problem> {
    let first = decisions.into_iter().next();
    first.ok_or_else(|| undecided(&Error::unavailable("the store gave no decision")))
}

/// The body with the headers of the limit.
fn answer(status: StatusCode, body: Value, rule: &Rule, decision: &Decision) -> Response {
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    rate_headers(headers, rule, decision);
    if status == StatusCode::TOO_MANY_REQUESTS {
        insert(
            headers,
            header::RETRY_AFTER,
            seconds(decision.retry_after).max(1),
        );
    }
    response
}

/// State of a limit in headers. Source: IETF draft "RateLimit header fields for HTTP", version 06.
pub(super) fn rate_headers(headers: &mut HeaderMap, rule: &Rule, decision: &Decision) {
    let whole = |amount: Amount| amount.as_micros() / 1_000_000;
    let name = header::HeaderName::from_static;
    insert(
        headers,
        name("ratelimit-limit"),
        whole(rule.policy.capacity()),
    );
    insert(
        headers,
        name("ratelimit-remaining"),
        whole(decision.remaining),
    );
    insert(
        headers,
        name("ratelimit-reset"),
        seconds(decision.reset_after),
    );
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: u64) {
    headers.insert(name, HeaderValue::from(value));
}

/// Whole seconds, rounded up: never too early.
pub(super) fn seconds(duration: std::time::Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn per_second(policy: &Policy) -> f64 {
    let (amount, span) = match policy {
        Policy::TokenBucket { refill, period, .. } => (refill, period),
        Policy::SlidingWindow { limit, window } => (limit, window),
    };
    amount.as_f64() / span.as_secs_f64()
}
