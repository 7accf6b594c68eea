//! One connection: its phases, their deadlines, and its end.
//!
//! ```text
//! head -> busy -> answering -> idle -> head | closed        closing: unread bytes are discarded
//! ```
//!
//! hyper knows one deadline, from the end of an answer to the end of the next head.
//! Here each phase has its own, and none is a timer of its own: one alarm per connection
//! is set to the phase's deadline, and moved only when that comes nearer.
//!
//! With HTTP/2 a connection is busy while any request is open, and each answer has a
//! deadline of its own (`streams.rs`).

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, header};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::socket::Socket;
use super::streams::Streams;

/// Time for which bytes of a client are discarded after the last answer, so that it reads the answer and not a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Deadlines of the phases.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From a connection's first moment, or a request's first byte, to the end of its head.
    pub head: Duration,
    /// Between an answer and the next request.
    pub idle: Duration,
    /// Between two moments at which the client takes something of an answer.
    pub write: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    /// A handler has the request; it has deadlines of its own.
    Busy,
    Answering,
    Idle,
    Closing,
}

/// Where a connection is; shared by its socket, its requests and its alarm.
#[derive(Clone)]
pub(super) struct Deadlines(Arc<Mutex<State>>);

struct State {
    phase: Phase,
    /// Set when a deadline is first asked for: most phases end before that, and the clock costs more than they do.
    since: Option<Instant>,
    timeouts: Timeouts,
    /// Since when the client reads nothing.
    blocked_since: Option<Instant>,
    /// Something was sent of a head that is not complete.
    head_begun: bool,
    linger: bool,
    /// Its requests, when they share it.
    streams: Option<Streams>,
    /// No more requests are taken.
    draining: bool,
    /// Its place belongs to another connection.
    given_way: bool,
}

impl State {
    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, None);
    }

    /// Deadline of the phase.
    const fn timeouts(&self) -> Option<Duration> {
        match self.phase {
            Phase::Head => Some(self.timeouts.head),
            Phase::Busy => None,
            Phase::Answering => Some(self.timeouts.write),
            Phase::Idle => Some(self.timeouts.idle),
            Phase::Closing => Some(LINGER),
        }
    }

    fn idle_since(&mut self) -> Option<Instant> {
        let waits = self.phase == Phase::Idle || self.phase == Phase::Head && !self.head_begun;
        (waits && !self.given_way).then(|| *self.since.get_or_insert_with(Instant::now))
    }

    fn deadline(&mut self) -> Option<Instant> {
        let timeouts = self.timeouts();
        let mut since = || *self.since.get_or_insert_with(Instant::now);
        let phase = timeouts.map(|timeouts| since() + timeouts);
        let Some(streams) = &self.streams else {
            return phase;
        };
        if streams.is_flooded() {
            return Some(since());
        }
        let waits = [self.blocked_since, streams.waits_since()];
        let waits = waits.into_iter().flatten().min();
        let write = waits.map(|since| since + self.timeouts.write);
        [phase, write].into_iter().flatten().min()
    }
}

impl Deadlines {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: Phase::Head,
            since: Some(Instant::now()),
            timeouts,
            blocked_since: None,
            head_begun: false,
            linger: false,
            streams: None,
            draining: false,
            given_way: false,
        })))
    }

    /// Requests share the connection.
    pub(super) fn share(&self) {
        let mut state = self.lock();
        state.streams = Some(Streams::default());
        state.linger = true;
    }

    /// Works with the requests of a shared connection.
    pub(super) fn streams<T>(&self, work: impl FnOnce(&mut Streams) -> T) -> T {
        work(self.lock().streams.get_or_insert_default())
    }

    /// One of the requests that share the connection has ended.
    pub(super) fn stream_ended(&self) {
        let mut state = self.lock();
        if state.streams.as_ref().is_some_and(Streams::is_idle) {
            let next = match state.draining {
                true => Phase::Closing,
                false => Phase::Idle,
            };
            state.enter(next);
        }
    }

    /// No more requests are taken. A shared connection that is idle gets a moment to say so.
    fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        if state.streams.as_ref().is_some_and(Streams::is_idle) {
            state.enter(Phase::Closing);
        }
    }

    /// Whether the connection has only been idle for too long, so that its client should hear of its end.
    fn is_to_drain(&self) -> bool {
        let state = self.lock();
        state
            .streams
            .as_ref()
            .is_some_and(|streams| !streams.is_flooded())
            && state.phase == Phase::Idle
            && state.blocked_since.is_none()
            && !state.draining
    }

    /// The task of a shared connection, whose requests end in tasks of their own.
    fn watched_by(&self, task: &Context<'_>) {
        if let Some(streams) = &mut self.lock().streams {
            streams.watched_by(task.waker());
        }
    }

    /// A head is complete.
    pub(super) fn requested(&self) {
        let mut state = self.lock();
        state.enter(Phase::Busy);
        state.head_begun = false;
    }

    /// The answer with these headers is on its way.
    pub(super) fn answered(&self, headers: &HeaderMap) {
        let mut state = self.lock();
        state.enter(Phase::Answering);
        // Some of the body may be unread then.
        state.linger |= headers.contains_key(header::CONNECTION);
    }

    fn deadline(&self) -> Option<Instant> {
        self.lock().deadline()
    }

    /// Since when the connection waits for a request; absent while it has one, or a part of one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.lock().idle_since()
    }

    /// Ends the connection unless it has been used since. Bytes that come from now on are not read as a request.
    pub(super) fn give_way(&self, idle_since: Instant) -> bool {
        let mut state = self.lock();
        state.given_way |= state.idle_since() == Some(idle_since);
        state.given_way
    }

    #[cfg(test)]
    pub(super) fn has_given_way(&self) -> bool {
        self.lock().given_way
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a listener, as its connections see it.
#[derive(Default)]
pub(super) struct Drain {
    begun: AtomicBool,
    news: Notify,
}

impl Drain {
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.news.notify_waiters();
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Resolves when it has begun.
    pub(super) async fn begins(&self) {
        let news = self.news.notified();
        if !self.has_begun() {
            news.await;
        }
    }
}

/// Runs a connection to its end, or to the deadline of its phase; absent then.
pub(super) async fn run<C: GracefulConnection>(
    mut connection: Pin<&mut C>,
    deadlines: &Deadlines,
    drain: &Drain,
) -> Option<C::Output> {
    let mut alarm = pin!(sleep_until(Instant::now()));
    let mut news = pin!(drain.news.notified());
    let (mut listens, mut drained) = (false, false);
    std::future::poll_fn(|cx| {
        // Once is enough: all polls are those of one task.
        if !listens {
            listens = true;
            deadlines.watched_by(cx);
            news.as_mut().poll(cx).is_ready();
        }
        if !drained && drain.has_begun() {
            drained = true;
            deadlines.drain();
            connection.as_mut().graceful_shutdown();
        }
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            // Phases change inside that poll, or wake this task.
            loop {
                let Some(deadline) = deadlines.deadline() else {
                    return Poll::Pending;
                };
                if deadline < alarm.deadline() || alarm.is_elapsed() {
                    if deadline <= Instant::now() {
                        break;
                    }
                    alarm.as_mut().reset(deadline);
                }
                ready!(alarm.as_mut().poll(cx));
            }
            if !deadlines.is_to_drain() {
                return Poll::Ready(None);
            }
            drained = true;
            deadlines.drain();
            connection.as_mut().graceful_shutdown();
        }
    })
    .await
}

/// A socket that records its reads and writes.
pub(super) struct TimedStream {
    pub(super) stream: Socket,
    pub(super) deadlines: Deadlines,
    /// Bytes read to detect the client's protocol.
    pub(super) begun: Bytes,
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = match self.begun.is_empty() {
            true => Pin::new(&mut self.stream).poll_read(cx, buffer),
            false => {
                let count = self.begun.len().min(buffer.remaining());
                buffer.put_slice(&self.begun[..count]);
                self.begun.advance(count);
                Poll::Ready(Ok(()))
            }
        };
        let mut state = self.deadlines.lock();
        if state.given_way {
            // The end of the stream: late bytes do not begin a request.
            buffer.set_filled(filled);
            return Poll::Ready(Ok(()));
        }
        match state.phase {
            _ if state.streams.is_some() => {}
            Phase::Head if read.is_ready() => state.head_begun = true,
            Phase::Idle if read.is_ready() => {
                state.enter(Phase::Head);
                state.head_begun = true;
            }
            // All of the answer was taken, and nothing more has come.
            Phase::Answering if read.is_pending() && state.blocked_since.is_none() => {
                state.enter(Phase::Idle);
            }
            _ => {}
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our side. A client that was answered early is still sending, and closing on
    /// it would destroy the answer: its bytes are discarded first, for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut state = self.deadlines.lock();
        // A head that was refused is not read to its end either.
        let linger = state.linger || state.head_begun;
        if linger && state.phase != Phase::Closing {
            state.enter(Phase::Closing);
        }
        drop(state);
        if !linger {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 8 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for TimedStream {
    /// Bytes that a client did not read are dropped: the system would keep them for many minutes.
    fn drop(&mut self) {
        if self.deadlines.lock().blocked_since.is_some() {
            self.stream.tcp().set_zero_linger().ok();
        }
    }
}

impl TimedStream {
    fn wrote(&self, some: bool) {
        let mut state = self.deadlines.lock();
        match some {
            true => state.blocked_since = None,
            false => _ = state.blocked_since.get_or_insert_with(Instant::now),
        }
        if state.streams.is_some() {
            return;
        }
        if state.phase == Phase::Idle || some && state.phase == Phase::Answering {
            state.enter(Phase::Answering);
        }
    }
}
