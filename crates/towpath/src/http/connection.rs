//! One connection: what it may wait for, and how it ends.
//!
//! ```text
//! head -> busy -> answering -> idle -> head | closed        closing: what is unread is thrown away
//! ```
//!
//! hyper knows one deadline, from the end of an answer to the end of the next head.
//! Here each phase has its own, and none is a timer of its own: one alarm per connection
//! is set to the phase's deadline, and moved only when that comes nearer.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::socket::Socket;

/// How long what a client still sends is thrown away after the last answer, so that it reads that answer and no reset.
const LINGER: Duration = Duration::from_secs(2);

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
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
pub(super) struct Pace(Arc<Mutex<State>>);

struct State {
    phase: Phase,
    since: Instant,
    patience: Patience,
    write_blocked: bool,
    /// Something was sent of a head that is not complete.
    head_begun: bool,
    linger: bool,
}

impl State {
    fn enter(&mut self, phase: Phase) {
        (self.phase, self.since) = (phase, Instant::now());
    }
}

impl Pace {
    pub(super) fn new(patience: Patience) -> Self {
        Self(Arc::new(Mutex::new(State {
            phase: Phase::Head,
            since: Instant::now(),
            patience,
            write_blocked: false,
            head_begun: false,
            linger: false,
        })))
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
        let state = self.lock();
        let patience = match state.phase {
            Phase::Head => state.patience.head,
            Phase::Busy => return None,
            Phase::Answering => state.patience.write,
            Phase::Idle => state.patience.idle,
            Phase::Closing => LINGER,
        };
        Some(state.since + patience)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a connection to its end, or to the deadline of its phase; absent then.
pub(super) async fn run<T>(
    mut connection: Pin<&mut impl Future<Output = T>>,
    pace: &Pace,
) -> Option<T> {
    let mut alarm = pin!(sleep_until(Instant::now()));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        // Phases change inside that poll only, so this is the place to look.
        loop {
            let Some(deadline) = pace.deadline() else {
                return Poll::Pending;
            };
            if deadline < alarm.deadline() || alarm.is_elapsed() {
                if deadline <= Instant::now() {
                    return Poll::Ready(None);
                }
                alarm.as_mut().reset(deadline);
            }
            ready!(alarm.as_mut().poll(cx));
        }
    })
    .await
}

/// A socket that notes what happens on it.
pub(super) struct Paced {
    pub(super) stream: Socket,
    pub(super) pace: Pace,
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let mut state = self.pace.lock();
        match state.phase {
            Phase::Head if read.is_ready() => state.head_begun = true,
            Phase::Idle if read.is_ready() => {
                state.enter(Phase::Head);
                state.head_begun = true;
            }
            // All of the answer was taken, and nothing more has come.
            Phase::Answering if read.is_pending() && !state.write_blocked => {
                state.enter(Phase::Idle);
            }
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Paced {
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
    /// it would destroy the answer: what it sends is thrown away first, for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut state = self.pace.lock();
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

impl Drop for Paced {
    /// What a client did not take is not kept for it: the system would, for many minutes.
    fn drop(&mut self) {
        if self.pace.lock().write_blocked {
            self.stream.tcp().set_zero_linger().ok();
        }
    }
}

impl Paced {
    fn wrote(&self, some: bool) {
        let mut state = self.pace.lock();
        state.write_blocked = !some;
        if state.phase == Phase::Idle || some && state.phase == Phase::Answering {
            state.enter(Phase::Answering);
        }
    }
}
