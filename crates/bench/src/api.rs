//! APIs without workers, and a hand-written ingest API for comparison.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use towpath_core::backend::Backend;
use towpath_core::{Error, QueueName, Result, SystemClock};

use towpath::supervisor::Stop;
use towpath_server::apps::accounts::{Limiter, Rules, limit_queries, limit_routes};
use towpath_server::apps::ingest::{Enqueue, Limits, router};
use towpath_server::http::{self, BodyLimit, BodyReader, RequestLayer, Timeouts, rlimit, wrap};
use towpath_server::telemetry::Metrics;

use crate::baseline::Baseline;

/// The queue that the API of a benchmark fills.
pub(crate) const BENCH_QUEUE: &str = "bench";

const LIMITS: Limits = Limits {
    message_bytes: 16 << 20,
    batch_bytes: 256 << 20,
};

/// A running API without a worker on its queue.
pub(crate) struct BenchApi {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

/// Starts the ingest API on a free loopback port, on this backend.
///
/// # Errors
/// Those of binding; `Unsupported` for a backend without queues.
pub(crate) async fn ingest(backend: &Backend) -> Result<BenchApi> {
    let queue = backend.require_queue("bench http")?;
    let enqueue = Enqueue::new(queue, QueueName::new(BENCH_QUEUE)?, LIMITS);
    serve(|edge| router(enqueue, backend.clone(), edge)).await
}

/// Starts the API of limits on a free loopback port, on this backend. Named limits are those of `rules`.
///
/// # Errors
/// Those of binding; `Unsupported` for a backend without limits; `Invalid` for a bad rule.
pub(crate) async fn limits(backend: &Backend, rules: &[String]) -> Result<BenchApi> {
    let store = backend.require_rate_limit("bench limits")?;
    let limiter = Limiter::new(
        store,
        Arc::new(SystemClock::new()),
        Rules::parse(rules)?,
        Metrics::new(),
    );
    serve(|edge| wrap(limit_routes(limiter), edge.queries(limit_queries()))).await
}

/// Starts an API that passes bodies on to a queue written by hand, behind the same edge.
///
/// # Errors
/// Those of binding.
pub(crate) async fn bare(baseline: Arc<dyn Baseline>) -> Result<BenchApi> {
    serve(|edge| {
        let limit = |route, bytes, what| BodyLimit { route, bytes, what };
        let edge = edge.bodies(&[
            limit("/enqueue", LIMITS.message_bytes, "message"),
            limit("/enqueue/batch", LIMITS.batch_bytes, "batch"),
        ]);
        let router = Router::new()
            .route("/enqueue", post(bare_one))
            .route("/enqueue/batch", post(bare_batch))
            .with_state(baseline);
        wrap(router, edge)
    })
    .await
}

async fn bare_one(State(baseline): State<Arc<dyn Baseline>>, body: Bytes) -> Response {
    let message = String::from_utf8_lossy(&body).into_owned();
    let reply = serde_json::json!({ "enqueued": true, "queue": BENCH_QUEUE, "message": message });
    bare_reply(baseline.publish(vec![body]).await, &reply)
}

async fn bare_batch(State(baseline): State<Arc<dyn Baseline>>, body: Bytes) -> Response {
    let lines = body.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let payloads = lines.map(|line| serde_json::from_slice::<String>(line).map(Bytes::from));
    match payloads.collect::<serde_json::Result<Vec<Bytes>>>() {
        Ok(payloads) => {
            let reply = serde_json::json!({ "enqueued": payloads.len(), "queue": BENCH_QUEUE });
            bare_reply(baseline.publish(payloads).await, &reply)
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

fn bare_reply(outcome: Result<()>, reply: &serde_json::Value) -> Response {
    match outcome {
        Ok(()) => axum::Json(reply).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.chain()).into_response(),
    }
}

async fn serve(router: impl FnOnce(RequestLayer) -> Router) -> Result<BenchApi> {
    let unbound = |error: std::io::Error| {
        Error::unavailable("no loopback port can be bound").with_source(error)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unbound)?;
    let address = listener.local_addr().map_err(unbound)?;
    let (metrics, minute) = (Metrics::new(), Duration::from_secs(60));
    let edge = RequestLayer::new(metrics.clone(), 100_000, BodyReader::new(minute, 1 << 30));
    let router = router(edge);
    let stop = CancellationToken::new();
    let stopping = Stop::when(stop.clone());
    let limits = http::Limits {
        connections: rlimit::raise(),
        client: None,
        timeouts: Timeouts {
            head: minute,
            idle: minute,
            write: minute,
        },
        reserve: Duration::ZERO,
        tls: None,
        plain_on_loopback: false,
        watches_clients: false,
    };
    let refused = metrics.refused_connections("bench");
    // Ends with the measurement, awaited in `stop`.
    #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
    let serving =
        tokio::spawn(
            async move { http::serve(&listener, router, limits, &refused, &stopping).await },
        );
    Ok(BenchApi {
        address,
        stop,
        serving,
    })
}

impl BenchApi {
    /// Ends the API.
    ///
    /// # Errors
    /// Those of serving.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.serving
            .await
            .map_err(|error| Error::unavailable("the API panicked").with_source(error))?
    }
}
