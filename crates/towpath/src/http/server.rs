//! The accept loop: axum's own server sets no deadline for the head of a request and no bound on connections.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use towpath_core::Result;
use tracing::{debug, warn};

use crate::supervisor::Stop;

/// What a connection may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections; further ones wait in the backlog of the operating system.
    pub connections: usize,
    /// From the start of waiting for a request to the end of its head; also how long a kept connection may idle.
    pub head: Duration,
}

/// Largest head of a request in bytes, and its most headers.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 100;

/// How long to leave the listener alone when the process has no more descriptors.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// What is kept of the grace period for what comes after the listeners.
const MARGIN: Duration = Duration::from_secs(5);

/// Serves until the stop is requested, then finishes what is in hand.
///
/// # Errors
/// None so far: a failing `accept` is tried again, because the next one may work.
pub async fn serve(
    listener: &TcpListener,
    router: Router,
    limits: Limits,
    stop: &Stop,
) -> Result<()> {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .half_close(false);
    let connections = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(listener, &connections) => accepted,
            () = stop.requested() => break,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        stop.account.add("connections", 1);
        // Small answers must not wait for more to come.
        stream.set_nodelay(true).ok();
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        // Ends with its connection, watched by `graceful`.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = stop.nearly_over(MARGIN) => {
            stop.account.add("connections cut", (limits.connections - connections.available_permits()) as u64);
        }
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}
