//! The ingest API over real connections: each has one request in flight.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::HeaderValue;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use towpath_core::{Error, MessageId, Result};

use super::limit::Limit;
use super::line::Line;
use super::load::{Load, Outcome, join, panicked};
use super::measure::Measurement;
use super::payload::{Payloads, check};
use crate::api::{self, BENCH_QUEUE};
use crate::args::HttpArgs;
use crate::{Row, disk};
use towpath_server::wiring;

/// Runs every measurement asked for and gives its rows.
///
/// CPU includes the client here, and the server too when it was started for the measurement.
///
/// # Errors
/// `Unavailable` when the target does not answer, or answers anything but 200.
pub(crate) async fn run(args: &HttpArgs) -> Result<Vec<Row>> {
    let payloads = Arc::new(Payloads::new(args.size));
    let batch = args.batch.max(1);
    if let Some(target) = &args.target {
        let address = address(target)?;
        let mut rows = Vec::new();
        for connections in shapes(args) {
            let post = Post::connect(address, connections, batch, &payloads).await?;
            let post = post.paced(args);
            let measurement =
                Measurement::start("http enqueue", "as configured", connections, batch);
            let outcome = post.run(&args.bound.limit()).await?;
            let messages = outcome.messages();
            rows.push(measurement.finish(messages, outcome.latencies, None));
        }
        return Ok(rows);
    }
    let folder = super::temporary(&args.folder)?;
    let mut rows = Vec::new();
    if args.backend.is_none() {
        let (probe, limit) = (folder.path().to_owned(), args.bound.limit());
        let row =
            tokio::task::spawn_blocking(move || disk::measure(Duration::ZERO, &probe, &limit))
                .await;
        rows.push(row.map_err(panicked)?.map_err(|error| {
            Error::unavailable("the disk cannot be measured").with_source(error)
        })?);
    }
    let own = |durability| {
        let folder = folder.path().display();
        format!("embedded:{folder}/{durability}?durability={durability}")
    };
    let urls = match &args.backend {
        Some(url) => vec![url.clone()],
        None => ["fsync", "os"].into_iter().map(own).collect(),
    };
    for url in urls {
        let backend = wiring::open(&url).await?;
        let durability = super::durability(&backend).await?;
        let line = Arc::new(Line::open(&backend, BENCH_QUEUE).await?);
        let api = api::ingest(&backend).await?;
        for connections in shapes(args) {
            let post = Post::connect(api.address, connections, batch, &payloads).await?;
            let post = post.paced(args);
            let measurement = Measurement::start("http enqueue", &durability, connections, batch);
            let outcome = post.run(&args.bound.limit()).await?;
            let messages = outcome.messages();
            let mut row = measurement.finish(messages, outcome.latencies, None);
            let load = Load {
                line: Arc::clone(&line),
                payloads: Arc::clone(&payloads),
                callers: 1,
                batch,
            };
            (row.lost, row.duplicated) = check(&outcome.sent, load.drain().await?.seen);
            rows.push(row);
        }
        api.stop().await?;
        backend.lifecycle.close().await?;
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
                "invalid URL `{target}`; expected e.g. http://127.0.0.1:8080"
            ))
        })
}

/// Open connections to an API, ready to send.
pub(crate) struct Post {
    address: SocketAddr,
    senders: Vec<SendRequest<Full<Bytes>>>,
    batch: usize,
    payloads: Arc<Payloads>,
    rate: Option<u32>,
    is_keyed: bool,
}

impl Post {
    /// Opens the connections.
    pub(crate) async fn connect(
        address: SocketAddr,
        connections: usize,
        batch: usize,
        payloads: &Arc<Payloads>,
    ) -> Result<Self> {
        towpath_server::http::rlimit::raise();
        let mut senders = Vec::with_capacity(connections);
        for _ in 0..connections {
            senders.push(connect(address).await?);
        }
        Ok(Self {
            address,
            senders,
            batch,
            payloads: Arc::clone(payloads),
            rate: None,
            is_keyed: false,
        })
    }

    /// With the rate and the keys that were asked for.
    fn paced(mut self, args: &HttpArgs) -> Self {
        (self.rate, self.is_keyed) = (args.rate, args.keyed);
        self
    }

    /// Sends one request after the other over each connection, or at the rate.
    pub(crate) async fn run(self, limit: &Limit) -> Result<Outcome> {
        let mut tasks = JoinSet::new();
        let (host, batch) = (self.address.to_string(), self.batch);
        let keys = self.is_keyed.then(|| MessageId::new().to_string());
        let schedule = self.rate.map(|rate| Arc::new(Schedule::new(rate)));
        for mut sender in self.senders {
            let (host, limit, keys) = (host.clone(), limit.clone(), keys.clone());
            let schedule = schedule.clone();
            let payloads = Arc::clone(&self.payloads);
            tasks.spawn(async move {
                let mut outcome = Outcome::default();
                while limit.take(batch) {
                    let (numbers, made) = payloads.take(batch);
                    let (path, body) = body(made);
                    let mut request = request(&host, path, body)?;
                    if let Some(keys) = &keys {
                        let key = HeaderValue::try_from(format!("{keys}-{}", numbers.start));
                        let key = key.map_err(|error| {
                            Error::invalid("the key cannot be made").with_source(error)
                        })?;
                        request.headers_mut().insert("idempotency-key", key);
                    }
                    let due = match &schedule {
                        Some(schedule) => schedule.next().await,
                        None => Instant::now(),
                    };
                    exchange(&mut sender, request).await?;
                    outcome.latencies.record(due);
                    outcome.sent.push(numbers);
                }
                Ok(outcome)
            });
        }
        join(tasks).await
    }
}

/// When requests are due that do not wait for answers.
struct Schedule {
    began: Instant,
    between: Duration,
    next: AtomicU32,
}

impl Schedule {
    fn new(rate: u32) -> Self {
        Self {
            began: Instant::now(),
            between: Duration::from_secs(1) / rate,
            next: AtomicU32::new(0),
        }
    }

    /// Waits until the next request is due, unless it is already, and gives that moment.
    async fn next(&self) -> Instant {
        let due = self.began + self.between * self.next.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep_until(due.into()).await;
        due
    }
}

/// One payload as it is; several as lines of JSON.
fn body(mut payloads: Vec<Bytes>) -> (&'static str, Bytes) {
    if payloads.len() == 1 {
        return ("/enqueue", payloads.remove(0));
    }
    let bytes = payloads.iter().map(|payload| payload.len() + 3).sum();
    let mut lines = BytesMut::with_capacity(bytes);
    for payload in payloads {
        lines.put_u8(b'"');
        lines.extend_from_slice(&payload);
        lines.extend_from_slice(b"\"\n");
    }
    ("/enqueue/batch", lines.freeze())
}

/// A POST of this body.
///
/// # Errors
/// `Invalid` for an invalid path.
pub(crate) fn request(host: &str, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, host)
        .body(Full::new(body))
        .map_err(|error| Error::invalid("the request cannot be made").with_source(error))
}

/// One connection, ready to send.
///
/// # Errors
/// `Unavailable` when no process listens there.
pub(crate) async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
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
    #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one request and waits for its answer, which must be 200.
///
/// # Errors
/// `Unavailable` with the status of the answer, or without one when none came.
pub(crate) async fn exchange(
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
    // 207 says that some messages of a batch were not taken.
    if status == StatusCode::OK {
        Ok(())
    } else {
        Err(Error::unavailable(format!(
            "answered {status}: {}",
            String::from_utf8_lossy(&body).trim()
        )))
    }
}
