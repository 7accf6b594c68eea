//! `GET /metrics` of the dashboard: JSON as the contract has it, with additional fields.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use towpath_core::backend::Backend;
use towpath_core::{Error, ErrorKind, QueueName, Result};

use super::api::notification;
use super::reconciliation::{Reconciliation, Totals};
use super::store::{OrderStore, number, stock_key};
use super::topology::{NOTIFICATIONS, ORDERS, REJECTIONS};
use crate::http::error::Problem;
use crate::http::extract::{Json, Query};
use crate::http::{Asking, accept};
use crate::telemetry::{Metrics, log_failure};
use towpath::supervisor::Stop;

/// Rates are those of so long.
const WINDOW: Duration = Duration::from_secs(60);

/// Interval of samples of the counters.
const SAMPLE: Duration = Duration::from_secs(5);

/// Minimum time between two stored samples.
const FRESH: Duration = Duration::from_secs(1);

/// The numbers of the app.
#[derive(Clone)]
pub struct Dashboard {
    store: OrderStore,
    backends: Vec<Backend>,
    metrics: Metrics,
    samples: Arc<Mutex<VecDeque<(Instant, Totals)>>>,
}

impl Dashboard {
    /// A dashboard over this store; `backends` are those whose queues are exported to Prometheus.
    pub fn new(store: OrderStore, backends: Vec<Backend>, metrics: Metrics) -> Self {
        Self {
            store,
            backends,
            metrics,
            samples: Arc::default(),
        }
    }

    /// Looks at the counters every five seconds until the stop, for the rates.
    ///
    /// # Errors
    /// None: unavailable keys leave a gap.
    pub async fn watch(&self, stop: &Stop) -> Result<()> {
        loop {
            if let Err(error) = self.sample().await {
                log_failure("order counters not read", &error);
            }
            if !stop.sleep(SAMPLE).await {
                return Ok(());
            }
        }
    }

    async fn sample(&self) -> Result<Totals> {
        let totals = Reconciliation(self.store.clone()).totals().await?;
        let now = Instant::now();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        // However often the numbers are requested, few of them are kept.
        let fresh = |(at, _): &(Instant, Totals)| now.duration_since(*at) < FRESH;
        if !samples.back().is_some_and(fresh) {
            samples.push_back((now, totals));
        }
        while samples
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            samples.pop_front();
        }
        self.metrics.orders([
            ("accepted", totals.accepted),
            ("processed", totals.processed),
            ("rejected", totals.rejected),
            ("notified", totals.notified),
        ]);
        Ok(totals)
    }

    /// Orders a second, over the last minute.
    fn rates(&self) -> Value {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((began, first)), Some((ended, last))) = (samples.front(), samples.back()) else {
            return json!({});
        };
        let seconds = ended.duration_since(*began).as_secs_f64();
        let rate = |from: u64, to: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let count = to.saturating_sub(from) as f64;
            let rate = if seconds > 0.0 { count / seconds } else { 0.0 };
            (rate * 1_000.0).round() / 1_000.0
        };
        json!({
            "accepted_per_second": rate(first.accepted, last.accepted),
            "processed_per_second": rate(first.processed, last.processed),
            "notified_per_second": rate(first.notified, last.notified),
        })
    }

    async fn queues(&self) -> Result<(Map<String, Value>, u64)> {
        let (mut queues, mut dead) = (Map::new(), 0);
        for name in [ORDERS, NOTIFICATIONS, REJECTIONS] {
            let stats = match self.store.queue.stats(&QueueName::new(name)?).await {
                Ok(stats) => stats,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            dead += stats.dead;
            let numbers = json!({
                "ready": stats.ready,
                "delayed": stats.delayed,
                "leased": stats.leased,
            // The name of version 0.1.
            "in_hand": stats.leased,
                "dead": stats.dead,
            });
            queues.insert(name.to_owned(), numbers);
        }
        Ok((queues, dead))
    }

    async fn numbers(&self, filter: &Filter) -> Result<Map<String, Value>> {
        let totals = self.sample().await?;
        let (queues, dead) = self.queues().await?;
        let mut numbers = Map::new();
        numbers.insert("processed_orders_count".to_owned(), totals.processed.into());
        numbers.insert("accepted_orders_count".to_owned(), totals.accepted.into());
        numbers.insert("rejected_orders_count".to_owned(), totals.rejected.into());
        numbers.insert("notified_orders_count".to_owned(), totals.notified.into());
        numbers.insert("dead_letters_count".to_owned(), dead.into());
        numbers.insert("rates".to_owned(), self.rates());
        numbers.insert("queues".to_owned(), queues.into());
        if let Some(sku) = filter.sku.as_deref().filter(|sku| !sku.is_empty()) {
            let key = stock_key(sku);
            if let Some(value) = self.store.kv.get(&key).await? {
                numbers.insert("inventory_level".to_owned(), number(&key, &value)?.into());
            }
        }
        if let Some(id) = filter.order_id.as_deref().filter(|id| !id.is_empty()) {
            let status = notification(&self.store, id).await?;
            // The contract's field is a text; the rest is beside it.
            if let Some(text) = status.get("status") {
                numbers.insert("notification_status".to_owned(), text.clone());
                numbers.insert("notification".to_owned(), status.into());
            }
        }
        Ok(numbers)
    }
}

/// Queried values beside the totals.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    sku: Option<String>,
    order_id: Option<String>,
}

/// `GET /metrics`: JSON, or Prometheus' formats for those who accept them.
pub fn routes(dashboard: Dashboard) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(dashboard)
}

/// The requests of [`routes`] that have parameters.
pub fn queries() -> [Asking; 1] {
    [(Method::GET, "/metrics".into())]
}

async fn metrics(
    State(dashboard): State<Dashboard>,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Response {
    // JSON unless the client names a format of Prometheus and likes it better.
    let json = accept::weight(&headers, "application/json");
    let is_prometheus = ["text/plain", "application/openmetrics-text"]
        .iter()
        .any(|kind| accept::names(&headers, kind) && accept::weight(&headers, kind) > json);
    if is_prometheus {
        if let Err(error) = dashboard.sample().await {
            return unavailable(&error).into_response();
        }
        let (kind, text) = dashboard
            .metrics
            .render(&headers, &dashboard.backends)
            .await;
        return ([(header::CONTENT_TYPE, kind)], text).into_response();
    }
    match dashboard.numbers(&filter).await {
        Ok(numbers) => Json(numbers).into_response(),
        Err(error) => unavailable(&error).into_response(),
    }
}

fn unavailable(error: &Error) -> Problem {
    log_failure("dashboard figures unavailable", error);
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
