//! Requests that share a connection of HTTP/2: their waiting, and the bounds of a client.
//!
//! A connection of HTTP/1 has one request at a time, so its phase determines its deadline.
//! Here each answer has the write timeout for itself, since a client may leave a single
//! stream unread while it continues with others.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::Deadlines;

/// Requests that a client may have open on one connection.
pub(super) const MAX_STREAMS: u32 = 128;

/// Requests that a client may reset before they were answered, while these are more than the answered ones.
/// Source: CVE-2023-44487; Envoy's `premature_reset_total_stream_count` is 500, of at least one half.
const MAX_RESETS: u64 = 200;

/// The requests of one connection.
#[derive(Default)]
pub(super) struct Streams {
    open: HashMap<u64, Progress>,
    newest: u64,
    answered: u64,
    reset: u64,
    /// The connection's task, which looks at deadlines.
    task: Option<Waker>,
}

/// One open request.
#[derive(Default)]
struct Progress {
    /// When the client last took something of the answer, or could have begun to.
    moved: Option<Instant>,
    /// Parts of the answer that are not sent.
    unsent: usize,
    /// The handler has nothing more to send yet.
    at_source: bool,
    /// A part of the answer was sent, or it has none. A reset makes handlers answer too, and that is not sent.
    sent: bool,
}

impl Streams {
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether the client resets requests rather than having them answered.
    pub(super) const fn is_flooded(&self) -> bool {
        self.reset > MAX_RESETS && self.reset > self.answered
    }

    /// The longest ago that an answer moved which waits for the client.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let waiting = |progress: &&Progress| progress.unsent > 0 || !progress.at_source;
        let open = self.open.values().filter(waiting);
        open.filter_map(|progress| progress.moved).min()
    }

    pub(super) fn watched_by(&mut self, task: &Waker) {
        match &mut self.task {
            Some(known) => known.clone_from(task),
            None => self.task = Some(task.clone()),
        }
    }
}

/// An open request; dropped when all of its answer was sent, or its client reset it.
pub(super) struct Open {
    deadlines: Deadlines,
    number: u64,
    place: Option<OwnedSemaphorePermit>,
}

impl Open {
    /// The request, and whether there is a place for it.
    ///
    /// - `places`: for requests beyond the first of a connection, so that connections bound the open requests of a listener.
    pub(super) fn new(deadlines: &Deadlines, places: &Arc<Semaphore>) -> (bool, Self) {
        let is_first = deadlines.streams(|streams| streams.is_idle());
        let place = match is_first {
            true => None,
            false => Arc::clone(places).try_acquire_owned().ok(),
        };
        deadlines.requested();
        let number = deadlines.streams(|streams| {
            streams.newest += 1;
            streams.open.insert(streams.newest, Progress::default());
            streams.newest
        });
        let open = Self {
            deadlines: deadlines.clone(),
            number,
            place,
        };
        (is_first || open.place.is_some(), open)
    }

    /// The answer begins.
    pub(super) fn answered(&self) {
        self.progress(|progress| progress.moved = Some(Instant::now()));
    }

    fn progress(&self, change: impl FnOnce(&mut Progress)) {
        self.deadlines.streams(|streams| {
            if let Some(progress) = streams.open.get_mut(&self.number) {
                change(progress);
            }
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let task = self.deadlines.streams(|streams| {
            let progress = streams.open.remove(&self.number);
            match progress.is_some_and(|progress| progress.sent) {
                true => streams.answered += 1,
                false => streams.reset += 1,
            }
            // It has a deadline now that it had not.
            let is_due = streams.open.is_empty() || streams.is_flooded();
            is_due.then(|| streams.task.clone()).flatten()
        });
        self.deadlines.stream_ended();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// The body of an answer, whose parts are followed until they are sent.
pub(super) struct Answer {
    body: Body,
    open: Arc<Open>,
}

impl Answer {
    pub(super) fn new(body: Body, open: Open) -> Self {
        let open = Arc::new(open);
        if http_body::Body::is_end_stream(&body) {
            open.progress(|progress| progress.sent = true);
        }
        Self { body, open }
    }
}

impl http_body::Body for Answer {
    type Data = Part;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Part>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.open.progress(|progress| {
            // It is asked for more only when the client has made room.
            if polled.is_ready() {
                progress.moved = Some(Instant::now());
            }
            progress.at_source = polled.is_pending();
        });
        let frame = match ready!(polled) {
            None => return Poll::Ready(None),
            Some(frame) => frame?,
        };
        let part = |bytes| Part::new(bytes, Arc::clone(&self.open));
        Poll::Ready(Some(Ok(frame.map_data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A part of an answer; dropped when it was sent.
pub(super) struct Part {
    bytes: Bytes,
    open: Arc<Open>,
}

impl Part {
    fn new(bytes: Bytes, open: Arc<Open>) -> Self {
        open.progress(|progress| progress.unsent += 1);
        Self { bytes, open }
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.open
            .progress(|progress| progress.moved = Some(Instant::now()));
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        let bytes = self.bytes.copy_to_bytes(count);
        self.open
            .progress(|progress| progress.moved = Some(Instant::now()));
        bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let is_sent = self.bytes.is_empty();
        self.open.progress(|progress| {
            progress.unsent = progress.unsent.saturating_sub(1);
            progress.sent |= is_sent;
        });
    }
}

/// Runs the requests of one connection.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(request);
    }
}

/// Ends the requests of a connection with it; each of them holds the set that it is in.
pub(super) struct Together(pub(super) Tasks);

impl Drop for Together {
    fn drop(&mut self) {
        self.0.lock().abort_all();
    }
}
