//! The ingest API over real connections: each has one request in flight.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use towpath_core::{Error, Result};

use super::measure::{Latencies, Measurement};
use super::queue::panicked;
use super::{HttpArgs, Row, disk};
use crate::wiring;

/// Runs every measurement asked for and gives its rows.
///
/// CPU includes the client here, and the server too when it was started for the measurement.
///
/// # Errors
/// `Unavailable` when the target does not answer, or answers anything but 200.
pub(in crate::cli) async fn run(args: &HttpArgs) -> Result<Vec<Row>> {
    if let Some(target) = &args.target {
        let address = address(target)?;
        let mut rows = Vec::new();
        for connections in shapes(args) {
            rows.push(measure(address, "as configured", connections, args).await?);
        }
        return Ok(rows);
    }
    let folder = tempfile::Builder::new()
        .prefix("towpath-bench-")
        .tempdir_in(&args.folder)
        .map_err(|error| {
            Error::unavailable("the folder for the temporary store cannot be made")
                .with_source(error)
        })?;
    let (probe, limit) = (folder.path().to_owned(), args.limit());
    let row = tokio::task::spawn_blocking(move || disk::measure(&probe, &limit)).await;
    let mut rows =
        vec![row.map_err(panicked)?.map_err(|error| {
            Error::unavailable("the disk cannot be measured").with_source(error)
        })?];
    for durability in ["fsync", "os"] {
        let url = format!(
            "embedded:{}/{durability}?durability={durability}",
            folder.path().display()
        );
        let api = wiring::ingest_api_for_bench(&url).await?;
        for connections in shapes(args) {
            rows.push(measure(api.address, durability, connections, args).await?);
        }
        api.stop().await?;
    }
    Ok(rows)
}

fn shapes(args: &HttpArgs) -> Vec<usize> {
    args.connections
        .map_or_else(|| vec![1, 64], |one| vec![one])
}

fn address(target: &str) -> Result<SocketAddr> {
    let bare = target.trim_start_matches("http://").trim_end_matches('/');
    bare.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| {
            Error::invalid(format!(
                "`{target}` is no address; say for instance http://127.0.0.1:8080"
            ))
        })
}

async fn measure(
    address: SocketAddr,
    durability: &str,
    connections: usize,
    args: &HttpArgs,
) -> Result<Row> {
    let (path, body) = body(args);
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(connect(address).await?);
    }
    let measurement =
        Measurement::start("http enqueue", durability, connections, args.batch.max(1));
    let limit = args.limit();
    let mut tasks = JoinSet::new();
    for mut sender in senders {
        let (body, limit, batch) = (body.clone(), limit.clone(), args.batch.max(1));
        tasks.spawn(async move {
            let (mut count, mut latencies) = (0_u64, Latencies::default());
            while limit.take(batch) {
                let request = Request::builder()
                    .method(Method::POST)
                    .uri(path)
                    .header(header::HOST, address.to_string())
                    .body(Full::new(body.clone()))
                    .map_err(|error| {
                        Error::invalid("the request cannot be made").with_source(error)
                    })?;
                let call = Instant::now();
                exchange(&mut sender, request).await?;
                latencies.record(call);
                count += 1;
            }
            Ok::<_, Error>((count, latencies))
        });
    }
    let (mut requests, mut latencies) = (0, Latencies::default());
    while let Some(ended) = tasks.join_next().await {
        let (count, seen) = ended.map_err(panicked)??;
        requests += count;
        latencies.merge(seen);
    }
    Ok(measurement.finish(requests * args.batch.max(1) as u64, latencies))
}

fn body(args: &HttpArgs) -> (&'static str, Bytes) {
    let payload = "x".repeat(args.size.max(1));
    if args.batch <= 1 {
        return ("/enqueue", Bytes::from(payload));
    }
    let line = format!("\"{payload}\"\n");
    ("/enqueue/batch", Bytes::from(line.repeat(args.batch)))
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let away = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::unavailable(format!("no API answers at http://{address}")).with_source(error)
    };
    let stream = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(address))
        .await
        .map_err(|error| away(error.into()))?
        .map_err(|error| away(error.into()))?;
    stream
        .set_nodelay(true)
        .map_err(|error| away(error.into()))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| away(error.into()))?;
    // Drives the connection; ends with it.
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<()> {
    let broken =
        |error: hyper::Error| Error::unavailable("the connection broke").with_source(error);
    sender.ready().await.map_err(broken)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    if status.is_success() {
        Ok(())
    } else {
        Err(Error::unavailable(format!(
            "answered {status}: {}",
            String::from_utf8_lossy(&body).trim()
        )))
    }
}
