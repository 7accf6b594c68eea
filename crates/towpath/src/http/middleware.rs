//! What every request passes: an id, a bound on how many are in hand, a measure, and a net for panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;
use tracing::{Instrument, debug, error, info_span};
use uuid::Uuid;

use super::body::Deadline;
use super::error::plain;
use crate::telemetry::Metrics;

const REQUEST_ID: &str = "x-request-id";

/// What a listener puts around its routes.
#[derive(Clone)]
pub struct Edge {
    metrics: Metrics,
    in_hand: Arc<Semaphore>,
    body_deadline: Duration,
}

impl Edge {
    /// At most `max_in_flight` requests in hand; more are answered 503 at once.
    pub fn new(metrics: Metrics, max_in_flight: usize, body_deadline: Duration) -> Self {
        Self {
            metrics,
            in_hand: Arc::new(Semaphore::new(max_in_flight)),
            body_deadline,
        }
    }
}

/// Puts the edge around the routes.
pub fn wrap(router: Router, edge: Edge) -> Router {
    router
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "not found") })
        .method_not_allowed_fallback(|| async {
            plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(from_fn_with_state(edge, pass))
}

async fn pass(State(edge): State<Edge>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    // The template, never the path itself: labels come from the program only.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched".to_owned(), |path| path.as_str().to_owned());
    request
        .extensions_mut()
        .insert(Deadline(edge.body_deadline));
    let span = info_span!("request", id = id.to_str().unwrap_or_default(), %method, route);
    let mut response = match edge.in_hand.try_acquire() {
        Ok(_permit) => {
            let handled = AssertUnwindSafe(next.run(request))
                .catch_unwind()
                .instrument(span.clone())
                .await;
            handled.unwrap_or_else(|_| {
                span.in_scope(|| error!("a handler panicked"));
                plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
            })
        }
        Err(_) => {
            let mut busy = plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests in hand, try again",
            );
            busy.headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            busy
        }
    };
    span.in_scope(
        || debug!(status = response.status().as_u16(), elapsed = ?began.elapsed(), "answered"),
    );
    edge.metrics.http_request(
        &route,
        method.as_str(),
        response.status().as_u16(),
        began.elapsed(),
    );
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's id when it is usable, a fresh one otherwise.
fn request_id(request: &Request) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    request
        .headers()
        .get(REQUEST_ID)
        .filter(usable)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&Uuid::now_v7().to_string())
                .unwrap_or(HeaderValue::from_static("unknown"))
        })
}
