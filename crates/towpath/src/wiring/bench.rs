//! The ingest API by itself, for `towpath bench http`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use towpath_core::backend::Backend;
use towpath_core::{Error, QueueName, Result};

use super::open;
use crate::apps::ingest::{Enqueue, Limits, router};
use crate::http::{self, Edge, Intake, Patience, descriptors};
use crate::supervisor::Stop;
use crate::telemetry::Metrics;

/// A running API with nobody who works on its queue.
pub struct BenchApi {
    /// Where it listens.
    pub address: SocketAddr,
    backend: Backend,
    stop: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

/// Starts the ingest API on a free loopback port, on the backend with this URL.
///
/// # Errors
/// Those of opening the backend and of binding.
pub async fn ingest_api_for_bench(url: &str) -> Result<BenchApi> {
    let backend = open(url).await?;
    let unbound = |error: std::io::Error| {
        Error::unavailable("no loopback port can be bound").with_source(error)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unbound)?;
    let address = listener.local_addr().map_err(unbound)?;
    let limits = Limits {
        message_bytes: 16 << 20,
        batch_bytes: 256 << 20,
    };
    let enqueue = Enqueue::new(
        backend.require_queue("bench http")?,
        QueueName::new("bench")?,
        limits,
    );
    let (metrics, minute) = (Metrics::new(), Duration::from_secs(60));
    let edge = Edge::new(metrics.clone(), 100_000, Intake::new(minute, 1 << 30));
    let router = router(enqueue, backend.clone(), edge);
    let stop = CancellationToken::new();
    let stopping = Stop::when(stop.clone());
    let limits = http::Limits {
        connections: descriptors::raise(),
        patience: Patience {
            head: minute,
            idle: minute,
            write: minute,
        },
        reserve: Duration::ZERO,
    };
    let refused = metrics.refused_connections("bench");
    // Ends with the measurement, awaited in `stop`.
    let serving =
        tokio::spawn(
            async move { http::serve(&listener, router, limits, &refused, &stopping).await },
        );
    Ok(BenchApi {
        address,
        backend,
        stop,
        serving,
    })
}

impl BenchApi {
    /// Ends the API and closes its backend.
    ///
    /// # Errors
    /// Those of closing.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.serving
            .await
            .map_err(|error| Error::unavailable("the API panicked").with_source(error))??;
        self.backend.lifecycle.close().await
    }
}
