//! The HTTP side of orders and stock: responses, as the contract has them where there is one.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use towpath_core::port::kv::{Committed, Op};
use towpath_core::{Error, Headers, Result};
use tracing::debug;

use super::INVENTORY;
use super::gateway::{Accepted, Failure, Gateway};
use super::notifier::notification_key;
use super::order::{Order, Refusal, fits};
use super::record::{State as Stage, Step};
use super::store::{OrderStore, number, stock_key};
use crate::http::error::Problem;
use crate::http::extract::{Json, Query};
use crate::http::json;
use crate::http::{Asking, Segment};
use crate::telemetry::{LastCall, log_failure};
use towpath::traces::TraceContext;

type Answer<T> = std::result::Result<Json<T>, Problem>;

/// `POST /orders`.
pub fn gateway_routes(gateway: Gateway, calls: LastCall) -> Router {
    let other = || async { Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed") };
    Router::new()
        .route("/orders", post(accept).fallback(other))
        .with_state((gateway, calls))
}

/// `GET /orders/{id}`, `GET /inventory`, and `GET`, `PUT` and `PATCH /inventory/{sku}`.
pub fn stock_routes(store: OrderStore) -> Router {
    Router::new()
        .route("/orders/{id}", get(show))
        .route("/inventory", get(list))
        .route("/inventory/{sku}", get(stock).put(set).patch(change))
        .with_state(store)
}

/// The requests of [`stock_routes`] that have parameters.
pub fn stock_queries() -> [Asking; 1] {
    [(Method::GET, "/inventory".into())]
}

async fn accept(
    State((gateway, calls)): State<(Gateway, LastCall)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let parsed = Order::parse(&body).and_then(|order| match order.is_clean() {
        true => Ok(order),
        false => Err(Refusal::Fields),
    });
    let order = match parsed {
        Ok(order) => order,
        Err(refusal) => {
            return Problem::new(StatusCode::BAD_REQUEST, refusal.as_str()).into_response();
        }
    };
    let outcome = gateway.accept(&order, trace(&headers)).await;
    calls.note_error(match &outcome {
        Ok(_) => None,
        Err(Failure::Keys(error) | Failure::Publish(error)) => Some(error),
    });
    match outcome {
        Ok(Accepted::New) => {
            debug!(order = order.id, "order accepted");
            (
                StatusCode::ACCEPTED,
                format!("Order received: {}", order.id),
            )
                .into_response()
        }
        Ok(Accepted::Duplicate) => {
            Problem::new(StatusCode::CONFLICT, "Duplicate order").into_response()
        }
        Ok(Accepted::Taken) => {
            let reason = "Order id already used for another order";
            Problem::new(StatusCode::CONFLICT, reason).into_response()
        }
        Err(Failure::Keys(error)) => failed(&error, "Redis error").into_response(),
        Err(Failure::Publish(error)) => failed(&error, "Failed to publish order").into_response(),
    }
}

/// The contract's text; the cause goes to the log.
fn failed(error: &Error, text: &'static str) -> Problem {
    log_failure("order not accepted", error);
    match error.retry_after() {
        Some(after) => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(after.as_secs().max(1))
        }
        None => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.unknown_or(text)).retry_after(1)
        }
    }
}

fn trace(headers: &HeaderMap) -> Headers {
    let mut trace = Headers::new();
    if let Some(context) = TraceContext::from_headers(headers) {
        context.write(&mut trace);
    }
    trace
}

/// The state of an order.
#[derive(Serialize)]
struct OrderView {
    id: String,
    sku: String,
    qty: i64,
    state: Stage,
    reason: Option<String>,
    notified: bool,
    /// Deliveries to a processor.
    attempts: u32,
    notification: serde_json::Map<String, serde_json::Value>,
    history: Vec<Step>,
}

async fn show(State(store): State<OrderStore>, Segment(id): Segment) -> Answer<OrderView> {
    let absent = || Problem::new(StatusCode::NOT_FOUND, format!("there is no order `{id}`"));
    if !fits(&id) {
        return Err(absent());
    }
    let stored = store.find(&id).await?.ok_or_else(absent)?;
    let record = stored.record;
    let notification = notification(&store, &id).await?;
    let notified = notification
        .get("status")
        .is_some_and(|status| status == "sent");
    let mut history = record.history;
    if let (true, Some(at)) = (notified, notification.get("at")) {
        history.push(Step {
            at: at.as_str().unwrap_or_default().to_owned(),
            what: "notified".to_owned(),
        });
    }
    Ok(Json(OrderView {
        id,
        sku: record.order.sku,
        qty: record.order.qty,
        state: record.state,
        reason: record.reason,
        notified,
        attempts: record.attempts,
        notification,
        history,
    }))
}

/// The fields of `notifications:<id>`, those that say nothing left out.
pub(super) async fn notification(
    store: &OrderStore,
    id: &str,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let fields = store.kv.fields(&notification_key(id)).await?;
    let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name, text(value).into()))
        .collect())
}

/// Stock of a SKU.
#[derive(Serialize)]
struct Stock {
    sku: String,
    quantity: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default = "hundred")]
    max: usize,
    after: Option<String>,
}

const fn hundred() -> usize {
    100
}

async fn list(State(store): State<OrderStore>, Query(page): Query<Page>) -> Answer<Vec<Stock>> {
    let after = page.after.filter(|sku| fits(sku));
    let after = after.map(|sku| stock_key(&sku));
    let keys = store
        .kv
        .keys(INVENTORY, after.as_deref(), page.max.clamp(1, 1000))
        .await?;
    let mut stocks = Vec::with_capacity(keys.len());
    for key in keys {
        let sku = key.strip_prefix(INVENTORY).unwrap_or_default().to_owned();
        if let Some(value) = store.kv.get(&key).await? {
            let quantity = number(&key, &value)?;
            stocks.push(Stock { sku, quantity });
        }
    }
    Ok(Json(stocks))
}

async fn stock(State(store): State<OrderStore>, Segment(sku): Segment) -> Answer<Stock> {
    let key = stock_key(&sku);
    let value = match fits(&sku) {
        true => store.kv.get(&key).await?,
        false => None,
    };
    match value {
        Some(value) => {
            let quantity = number(&key, &value)?;
            Ok(Json(Stock { sku, quantity }))
        }
        None => {
            let reason = format!("unknown sku `{sku}`");
            Err(Problem::new(StatusCode::NOT_FOUND, reason))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    quantity: i64,
}

async fn set(State(store): State<OrderStore>, Segment(sku): Segment, body: Bytes) -> Answer<Stock> {
    let Set { quantity } = read(&body, r#"{"quantity": 100}"#)?;
    if quantity < 0 {
        let reason = "`quantity` must be 0 or more";
        return Err(Problem::new(StatusCode::BAD_REQUEST, reason));
    }
    check_sku(&sku)?;
    store.set_stock(&sku, quantity).await?;
    Ok(Json(Stock { sku, quantity }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    delta: i64,
}

async fn change(
    State(store): State<OrderStore>,
    Segment(sku): Segment,
    body: Bytes,
) -> Answer<Stock> {
    let Change { delta } = read(&body, r#"{"delta": -3}"#)?;
    check_sku(&sku)?;
    let key = stock_key(&sku);
    let op = Op::Add {
        key: key.clone(),
        delta,
        min: 0,
        max: i64::MAX,
    };
    match store.kv.commit(vec![op]).await? {
        Committed::Applied(values) => {
            let value = values.into_iter().next().flatten().unwrap_or_default();
            let quantity = number(&key, &value)?;
            Ok(Json(Stock { sku, quantity }))
        }
        Committed::Refused { current, .. } => {
            let left = String::from_utf8_lossy(current.as_deref().unwrap_or(b"0")).into_owned();
            let reason = format!("there are {left} of `{sku}`, and stock is never less than 0");
            Err(Problem::new(StatusCode::CONFLICT, reason))
        }
    }
}

fn check_sku(sku: &str) -> std::result::Result<(), Problem> {
    match fits(sku) {
        true => Ok(()),
        false => {
            let reason = "a sku must have 1 to 256 bytes";
            Err(Problem::new(StatusCode::BAD_REQUEST, reason))
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8], example: &str) -> std::result::Result<T, Problem> {
    json::object(body).map_err(|refusal| {
        let reason = format!("the body must be like {example}: {}", refusal.reason);
        Problem::new(StatusCode::BAD_REQUEST, reason)
    })
}
