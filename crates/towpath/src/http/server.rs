//! The accept loop: axum's own server sets no deadlines and no bound on connections.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use towpath_core::Result;
use tracing::{debug, warn};

use super::connection::{self, Pace, Paced};
use super::socket::Socket;
use super::tls::Tls;
use crate::supervisor::Stop;
use crate::telemetry::RefusedConnections;

pub use super::connection::Patience;

/// What connections may cost.
#[derive(Clone)]
pub struct Limits {
    /// Open connections; further ones are answered 503 and closed.
    pub connections: usize,
    /// How long each phase of a connection may last.
    pub patience: Patience,
    /// How much of the grace period is kept for what stops later.
    pub reserve: Duration,
    /// Speaks TLS; plain without.
    pub tls: Option<Arc<Tls>>,
    /// Whether clients of this machine may speak plain HTTP beside TLS.
    pub plain_on_loopback: bool,
}

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Largest head of a request in bytes; hyper bounds the number of its headers at 100.
const HEAD_BYTES: usize = 16 * 1024;

/// How long to leave the listener alone when the process has no more descriptors; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Failing accepts are logged once in this time; the metric counts them all.
const QUIET: Duration = Duration::from_secs(60);

/// What a connection over the limit reads, if it reads.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 32\r\n\r\ntoo many connections, try again\n";

/// Serves until the stop is requested, then takes no more connections and finishes the requests in hand.
///
/// When it returns every connection has ended: by itself, or cut off and counted so.
///
/// # Errors
/// None so far: a failing `accept` is tried again, because the next one may work.
pub async fn serve(
    listener: &TcpListener,
    router: Router,
    limits: Limits,
    refused: &RefusedConnections,
    stop: &Stop,
) -> Result<()> {
    let mut builder = http1::Builder::new();
    // A client that has ended its side still reads the answer.
    builder
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .half_close(true);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut failures = Failures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.requested() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // That client has gone; the next one may be waiting.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                refused.failed.inc();
                tokio::select! {
                    () = tokio::time::sleep(failures.pause(&error)) => continue,
                    () = stop.requested() => break,
                }
            }
        };
        failures.pause = None;
        while connections.try_join_next().is_some() {}
        if connections.len() >= limits.connections {
            refused.over_limit.inc();
            // Best effort, and never waits; closing says the same.
            stream.try_write(REFUSAL).ok();
            continue;
        }
        stop.account.add("connections", 1);
        let pace = Pace::new(limits.patience);
        let (builder, router, watcher) = (builder.clone(), router.clone(), graceful.watcher());
        let acceptor = limits.tls.as_ref().map(|tls| tls.acceptor());
        let may_be_plain = limits.plain_on_loopback && peer.ip().to_canonical().is_loopback();
        let patience = limits.patience.head;
        connections.spawn(async move {
            // Small answers must not wait for more to come.
            stream.set_nodelay(true).ok();
            let socket = match acceptor {
                None => Socket::Plain(stream),
                Some(acceptor) => {
                    // Apart, so that a connection that waits holds no room for it.
                    let hands = Box::pin(shake_hands(stream, acceptor, may_be_plain));
                    match tokio::time::timeout(patience, hands).await {
                        Ok(Some(socket)) => socket,
                        _ => return,
                    }
                }
            };
            let connection = converse(&builder, (socket, peer), router, pace.clone());
            let connection = pin!(watcher.watch(connection));
            match connection::run(connection, &pace).await {
                Some(Ok(())) => {}
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => debug!("connection ended at its deadline"),
            }
        });
    }
    // The listener itself lives as long as its task may be started again; a new client should hear at once that nobody comes.
    rustix::net::shutdown(listener, rustix::net::Shutdown::Read).ok();
    let finished = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finished => {}
        () = stop.nearly_over(limits.reserve) => {}
    }
    while connections.try_join_next().is_some() {}
    stop.account
        .add("connections cut", connections.len() as u64);
    connections.shutdown().await;
    Ok(())
}

/// First byte of a TLS connection: a record of the handshake. Source: RFC 8446, 5.1.
const HANDSHAKE: u8 = 22;

/// The socket, once TLS is agreed upon; absent for a client that does not.
async fn shake_hands(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    may_be_plain: bool,
) -> Option<Socket> {
    if may_be_plain {
        let mut first = [0];
        stream.peek(&mut first).await.ok()?;
        if first != [HANDSHAKE] {
            return Some(Socket::Plain(stream));
        }
    }
    match acceptor.accept(stream).await {
        Ok(stream) => Some(Socket::Tls(Box::new(stream))),
        Err(error) => {
            debug!(%error, "a client does not speak our TLS");
            None
        }
    }
}

type Conversation<S> = http1::Connection<TokioIo<Paced>, S>;

fn converse(
    builder: &http1::Builder,
    (stream, peer): (Socket, SocketAddr),
    router: Router,
    pace: Pace,
) -> Conversation<
    impl hyper::service::HttpService<
        hyper::body::Incoming,
        ResBody = axum::body::Body,
        Error = Infallible,
        Future: Send,
    > + Send
    + use<>,
> {
    let router = TowerToHyperService::new(router);
    let io = TokioIo::new(Paced {
        stream,
        pace: pace.clone(),
    });
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        pace.requested();
        let (answer, pace) = (router.call(request), pace.clone());
        async move {
            let answer = answer.await?;
            pace.answered(answer.headers());
            Ok(answer)
        }
    });
    builder.serve_connection(io, service)
}

/// Accepts that failed, one after the other.
#[derive(Default)]
struct Failures {
    pause: Option<Duration>,
    logged: Option<Instant>,
}

impl Failures {
    /// How long to wait before the next accept; logs now and then.
    fn pause(&mut self, error: &std::io::Error) -> Duration {
        if self.logged.is_none_or(|at| at.elapsed() > QUIET) {
            self.logged = Some(Instant::now());
            warn!(%error, "connections cannot be accepted; trying again, and counting in `towpath_http_connections_refused_total`");
        }
        let pause = self
            .pause
            .map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.pause = Some(pause);
        pause
    }
}
