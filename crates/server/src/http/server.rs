//! The accept loop: axum's own server sets no deadlines and no bound on connections.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::client_certificate::ClientCertificate;
use super::connection::{self, Deadlines, Drain, TimedStream};
use super::crowd::{ClientLimit, Crowd};
use super::error::plain;
use super::hangup::Hangup;
use super::socket::Socket;
use super::streams::{Answer, MAX_STREAMS, Open, Tasks, Together};
use super::tls::Tls;
use crate::telemetry::RefusedConnections;
use towpath::supervisor::Stop;

pub use super::connection::Timeouts;

/// Bounds of connections.
#[derive(Clone)]
pub struct Limits {
    /// Open connections; then idle ones give way, and without one a further connection is answered 503 and closed.
    pub connections: usize,
    /// The part of one client; without it a client may have them all.
    pub client: Option<ClientLimit>,
    /// Deadlines of the phases of a connection.
    pub timeouts: Timeouts,
    /// Part of the grace period that is reserved for later stages of the shutdown.
    pub reserve: Duration,
    /// Speaks TLS; plain without.
    pub tls: Option<Arc<Tls>>,
    /// Whether clients of this machine may speak plain HTTP beside TLS.
    pub plain_on_loopback: bool,
    /// Whether requests that wait learn that their client left, at the price of a second file descriptor per connection.
    pub watches_clients: bool,
}

/// The peer of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The client of a connection, as its requests show it to handlers.
#[derive(Clone)]
struct Client {
    peer: SocketAddr,
    certificate: Option<ClientCertificate>,
}

impl Client {
    fn mark(&self, request: &mut http::Request<Incoming>) {
        let extensions = request.extensions_mut();
        extensions.insert(Peer(self.peer));
        if let Some(certificate) = &self.certificate {
            extensions.insert(certificate.clone());
        }
    }
}

/// Largest head of a request in bytes; hyper bounds the number of its headers at 100 in HTTP/1.
const HEAD_BYTES: u16 = 16 * 1024;

/// Flow-control windows of HTTP/2: of one body, and of all bodies of a connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Buffered part of a response that an HTTP/2 client does not read yet.
const SEND_BUFFER: usize = 64 * 1024;

/// The preface of an HTTP/2 client. Source: RFC 9113, 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause of the listener when the process has no more descriptors; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Failing accepts are logged once in this time; the metric counts them all.
const QUIET: Duration = Duration::from_secs(60);

/// The answer to a connection over the limit.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 32\r\n\r\ntoo many connections, try again\n";

/// Serves until the stop is requested, then accepts no more connections and completes requests in progress.
///
/// When it returns every connection has ended: on its own, or cut and counted as such.
///
/// # Errors
/// None so far: a failing `accept` is tried again, because the next one may work.
pub async fn serve(
    listener: &TcpListener,
    router: Router,
    limits: Limits,
    refused: &RefusedConnections,
    stop: &Stop,
) -> towpath_core::Result<()> {
    let protocols = Protocols::new(router, limits.connections, limits.watches_clients);
    let drain = Arc::<Drain>::default();
    let mut connections = JoinSet::new();
    let mut crowd = Crowd::new(limits.client);
    let mut failures = Failures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                crowd.left(id_of(&ended));
                continue;
            }
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
        while let Some(ended) = connections.try_join_next_with_id() {
            crowd.left(id_of(&ended));
        }
        let over = if !crowd.admits(peer.ip()) {
            Some(&refused.over_client_limit)
        } else if crowd.len() < limits.connections {
            None
        } else if crowd.give_way() {
            refused.gave_way.inc();
            None
        } else {
            Some(&refused.over_limit)
        };
        if let Some(counter) = over {
            counter.inc();
            // Best effort, and never waits; closing says the same.
            stream.try_write(REFUSAL).ok();
            continue;
        }
        stop.account.add("connections", 1);
        let deadlines = Deadlines::new(limits.timeouts);
        let (protocols, drain) = (protocols.clone(), Arc::clone(&drain));
        let acceptor = limits.tls.as_ref().map(|tls| tls.acceptor());
        let may_be_plain = limits.plain_on_loopback && peer.ip().to_canonical().is_loopback();
        let timeouts = limits.timeouts.head;
        let shown = deadlines.clone();
        let task = connections.spawn(async move {
            // Small answers must not wait for more to come.
            stream.set_nodelay(true).ok();
            // Apart, so that a connection that waits holds no room for it.
            let beginning = Box::pin(begin(stream, acceptor, may_be_plain, &drain));
            let Ok(Some(begun)) = tokio::time::timeout(timeouts, beginning).await else {
                return;
            };
            match protocols.run(begun, peer, deadlines, &drain).await {
                Some(Ok(())) => {}
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => debug!("connection ended at its deadline"),
            }
        });
        crowd.joined(peer.ip(), shown, task);
    }
    // The listener itself lives as long as its task may be started again; a new client should be refused at once.
    rustix::net::shutdown(listener, rustix::net::Shutdown::Read).ok();
    drain.begin();
    let finished = async { while connections.join_next().await.is_some() {} };
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

/// The task of a connection that ended.
fn id_of(ended: &Result<(Id, ()), JoinError>) -> Id {
    match ended {
        Ok((id, ())) => *id,
        Err(error) => error.id(),
    }
}

/// First byte of a TLS connection: a record of the handshake. Source: RFC 8446, 5.1.
const HANDSHAKE: u8 = 22;

/// A connection whose protocol is known.
struct Begun {
    socket: Socket,
    /// Bytes that were already read.
    bytes: Bytes,
    is_http2: bool,
}

/// Agrees on TLS, and finds out which protocol the client speaks. Absent for a client that does not.
async fn begin(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    may_be_plain: bool,
    drain: &Drain,
) -> Option<Begun> {
    let mut socket = match acceptor {
        None => Socket::Plain(stream),
        Some(acceptor) => shake_hands(stream, acceptor, may_be_plain).await?,
    };
    if let Socket::Tls(_) = socket {
        return Some(Begun {
            is_http2: socket.agreed() == Some(b"h2"),
            bytes: Bytes::new(),
            socket,
        });
    }
    let (mut bytes, mut count) = ([0; PREFACE.len()], 0);
    while count < bytes.len() && PREFACE.starts_with(&bytes[..count]) {
        let read = tokio::select! {
            read = socket.read(&mut bytes[count..]) => read.ok()?,
            // Without a request it ends at once.
            () = drain.begins() => 0,
        };
        if read == 0 {
            break;
        }
        count += read;
    }
    Some(Begun {
        is_http2: bytes == *PREFACE,
        bytes: Bytes::copy_from_slice(&bytes[..count]),
        socket,
    })
}

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
            debug!(%error, "TLS handshake failed");
            None
        }
    }
}

/// The protocols of a listener.
#[derive(Clone)]
struct Protocols {
    router: Router,
    http1: http1::Builder,
    /// For requests beyond the first of a connection.
    places: Arc<Semaphore>,
    watches_clients: bool,
}

impl Protocols {
    fn new(router: Router, connections: usize, watches_clients: bool) -> Self {
        let mut http1 = http1::Builder::new();
        // A client that has ended its side still reads the answer.
        http1
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES.into())
            .half_close(true);
        let places = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Self {
            router,
            http1,
            places,
            watches_clients,
        }
    }

    /// Runs a connection to its end, or to the deadline of its phase; absent then.
    async fn run(
        &self,
        begun: Begun,
        peer: SocketAddr,
        deadlines: Deadlines,
        drain: &Drain,
    ) -> Option<hyper::Result<()>> {
        let hangup = match self.watches_clients && !begun.is_http2 {
            true => Hangup::of(begun.socket.tcp()),
            false => None,
        };
        let client = Client {
            peer,
            certificate: begun.socket.certificate(),
        };
        let io = TokioIo::new(TimedStream {
            stream: begun.socket,
            deadlines: deadlines.clone(),
            begun: begun.bytes,
        });
        if begun.is_http2 {
            deadlines.share();
            let tasks = Tasks::default();
            let _together = Together(tasks.clone());
            let service = self.shared(client, deadlines.clone());
            let connection = http2_builder(tasks).serve_connection(io, service);
            // Apart, so that connections of HTTP/1 hold no room for it.
            return connection::run(Box::pin(connection).as_mut(), &deadlines, drain).await;
        }
        let service = self.alone(client, deadlines.clone(), hangup);
        let connection = pin!(self.http1.serve_connection(io, service));
        connection::run(connection, &deadlines, drain).await
    }

    /// Answers the requests of a connection that has one at a time.
    fn alone(
        &self,
        client: Client,
        deadlines: Deadlines,
        hangup: Option<Hangup>,
    ) -> impl HttpService<Incoming, ResBody = axum::body::Body, Error = Infallible, Future: Send>
    + Send
    + use<> {
        let router = TowerToHyperService::new(self.router.clone());
        service_fn(move |mut request: http::Request<Incoming>| {
            client.mark(&mut request);
            if let Some(hangup) = &hangup {
                request.extensions_mut().insert(hangup.clone());
            }
            deadlines.requested();
            let (answer, deadlines) = (router.call(request), deadlines.clone());
            async move {
                let answer = answer.await?;
                deadlines.answered(answer.headers());
                Ok(answer)
            }
        })
    }

    /// Answers the requests that share a connection.
    fn shared(
        &self,
        client: Client,
        deadlines: Deadlines,
    ) -> impl HttpService<Incoming, ResBody = Answer, Error = Infallible, Future: Send + 'static>
    + Send
    + use<> {
        let router = TowerToHyperService::new(self.router.clone());
        let places = Arc::clone(&self.places);
        service_fn(move |mut request: http::Request<Incoming>| {
            client.mark(&mut request);
            let (place, open) = Open::new(&deadlines, &places);
            let refused = match place {
                true => named_host(&mut request).err().map(misnamed),
                false => Some(crowded()),
            };
            let answer = match refused {
                None => Ok(router.call(request)),
                Some(refused) => Err(refused),
            };
            async move {
                let answer = match answer {
                    Ok(answer) => answer.await?,
                    Err(refused) => refused,
                };
                open.answered();
                Ok(answer.map(|body| Answer::new(body, open)))
            }
        })
    }
}

fn http2_builder(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEAD_BYTES.into())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Makes a request of HTTP/2 look like one of HTTP/1, whose `Host` handlers read.
///
/// Source: RFC 9113, 8.3.1.
///
/// # Errors
/// The problem of the name.
fn named_host(request: &mut http::Request<Incoming>) -> Result<(), &'static str> {
    let Some(authority) = request.uri().authority() else {
        return Ok(());
    };
    let named = HeaderValue::from_str(authority.as_str()).ok();
    let named = named.ok_or("`:authority` cannot be read")?;
    let hosts = request.headers().get_all(header::HOST);
    if hosts
        .iter()
        .any(|host| !host.as_bytes().eq_ignore_ascii_case(named.as_bytes()))
    {
        return Err("`Host` differs from `:authority`");
    }
    request.headers_mut().insert(header::HOST, named);
    if let Some(path) = request.uri().path_and_query() {
        *request.uri_mut() = Uri::from(path.clone());
    }
    Ok(())
}

fn misnamed(reason: &str) -> Response {
    plain(StatusCode::BAD_REQUEST, reason)
}

/// The answer to a request of a connection that has others open, when those of the listener take all the places.
fn crowded() -> Response {
    let text = "too many requests share their connections; try again";
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    let after = HeaderValue::from_static("1");
    answer.headers_mut().insert(header::RETRY_AFTER, after);
    answer
}

/// Accepts that failed, one after the other.
#[derive(Default)]
struct Failures {
    pause: Option<Duration>,
    logged: Option<Instant>,
}

impl Failures {
    /// Pause before the next accept; logs now and then.
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
