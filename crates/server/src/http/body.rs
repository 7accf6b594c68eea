//! Request bodies, bounded in size, in time, and in their memory together.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// A body that brings less than [`LEAST_PROGRESS`] within this times out.
const WINDOW: Duration = Duration::from_secs(5);

/// In bytes, about 200 a second. Source: Kestrel's `MinRequestBodyDataRate` is 240 a second.
const LEAST_PROGRESS: usize = 1024;

/// The part of each body that is not charged, in bytes: connections bound it,
/// and so large bodies that hold all the memory never refuse a small one.
const FREE: usize = 16 * 1024;

/// Why a body was not read. Nothing of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is over the limit of this many bytes: 413.
    TooLarge(usize),
    /// It was not complete in time, or hardly moved: 408.
    TooSlow,
    /// Other bodies hold all the memory there is for them: 503.
    NoRoom,
    /// The connection broke or the encoding is wrong: 400.
    Broken,
}

/// Bounds of reading bodies, shared by all requests of a listener.
#[derive(Debug, Clone)]
pub struct BodyReader {
    deadline: Duration,
    memory: Arc<Semaphore>,
}

/// Memory that a body holds; released when dropped.
pub type MemoryPermit = OwnedSemaphorePermit;

impl BodyReader {
    /// Each body may take `deadline`, and all together hold `memory` bytes beside 16 KiB each.
    pub fn new(deadline: Duration, memory: usize) -> Self {
        Self {
            deadline,
            memory: Arc::new(Semaphore::new(memory.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Reads a whole body of at most `limit` bytes. A small one needs no memory permit.
    ///
    /// A declared length over the limit is refused before anything is read.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn read(
        &self,
        mut body: Body,
        limit: usize,
    ) -> Result<(Bytes, Option<MemoryPermit>), Failure> {
        if body.size_hint().lower() > limit as u64 {
            return Err(Failure::TooLarge(limit));
        }
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let (mut parts, mut memory) = (Parts::default(), None);
        let end = Instant::now() + self.deadline;
        let mut alarm = std::pin::pin!(sleep_until(end.min(Instant::now() + WINDOW)));
        let mut goal = LEAST_PROGRESS;
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut alarm => {
                    let now = Instant::now();
                    if now >= end || parts.len() < goal {
                        return Err(Failure::TooSlow);
                    }
                    goal = parts.len() + LEAST_PROGRESS;
                    alarm.as_mut().reset(end.min(now + WINDOW));
                    continue;
                }
            };
            let Some(frame) = frame else {
                return Ok((parts.join(), memory));
            };
            let Ok(data) = frame.map_err(|_| Failure::Broken)?.into_data() else {
                continue;
            };
            if parts.len() + data.len() > limit {
                return Err(Failure::TooLarge(limit));
            }
            parts.push(data);
            self.reserve(&mut memory, parts.len().saturating_sub(FREE))?;
        }
    }

    /// Raises the memory permit to `bytes`.
    fn reserve(&self, memory: &mut Option<MemoryPermit>, bytes: usize) -> Result<(), Failure> {
        let more = bytes - memory.as_ref().map_or(0, MemoryPermit::num_permits);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more)
            .ok()
            .and_then(|more| Arc::clone(&self.memory).try_acquire_many_owned(more).ok())
            .ok_or(Failure::NoRoom)?;
        match memory {
            Some(memory) => memory.merge(more),
            None => *memory = Some(more),
        }
        Ok(())
    }
}

/// Received bytes; most bodies come in one piece, which is then not copied.
#[derive(Default)]
struct Parts {
    only: Bytes,
    joined: BytesMut,
}

impl Parts {
    fn len(&self) -> usize {
        self.only.len() + self.joined.len()
    }

    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.only = data;
            return;
        }
        let first = std::mem::take(&mut self.only);
        self.joined.extend_from_slice(&first);
        self.joined.extend_from_slice(&data);
    }

    fn join(self) -> Bytes {
        if self.joined.is_empty() {
            self.only
        } else {
            self.joined.freeze()
        }
    }
}

/// A body that is read, whole, when its handler asks for it: a refusal that the head allows does not wait for it.
pub(super) struct Deferred<F> {
    reading: Option<Pin<Box<F>>>,
}

impl<F: Future<Output = Option<Bytes>> + Send> Deferred<F> {
    /// `reading` gives nothing when the body is refused; the code that answers then knows why.
    pub(super) fn new(reading: F) -> Self {
        Self {
            reading: Some(Box::pin(reading)),
        }
    }
}

impl<F: Future<Output = Option<Bytes>> + Send> http_body::Body for Deferred<F> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(cx));
        self.reading = None;
        let refused = || std::io::Error::other("the body was refused");
        Poll::Ready(Some(read.map(Frame::data).ok_or_else(refused)))
    }
}

/// An answer that keeps the memory permit of its request until it is sent, because most echo the request.
pub(super) fn charged(body: Body, memory: MemoryPermit) -> Body {
    struct Charged(
        Bytes,
        #[expect(dead_code, reason = "held until the bytes are sent")] Arc<MemoryPermit>,
    );
    impl AsRef<[u8]> for Charged {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let memory = Arc::new(memory);
    Body::new(body.map_frame(move |frame| {
        frame.map_data(|data| Bytes::from_owner(Charged(data, Arc::clone(&memory))))
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn chunks(parts: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(
            parts
                .iter()
                .map(|part| Ok::<_, std::io::Error>(Bytes::from(*part))),
        ))
    }

    /// This many bytes a second, for ever.
    fn trickle(bytes: usize) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; bytes])), ()))
        }))
    }

    async fn read(body: Body, limit: usize) -> Result<Bytes, Failure> {
        let reader = BodyReader::new(DEADLINE, 1 << 20);
        reader.read(body, limit).await.map(|(bytes, _)| bytes)
    }

    #[tokio::test]
    async fn a_body_is_whole_or_refused() {
        assert_eq!(read(Body::from("hello"), 5).await, Ok(Bytes::from("hello")));
        assert_eq!(
            read(chunks(&["he", "l", "lo"]), 5).await,
            Ok(Bytes::from("hello"))
        );
        for body in [Body::from("hello!"), chunks(&["he", "ll", "o!"])] {
            assert_eq!(read(body, 5).await, Err(Failure::TooLarge(5)));
        }
        assert_eq!(read(Body::empty(), 5).await, Ok(Bytes::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_move_and_end() {
        let took = async |body| {
            let began = Instant::now();
            assert_eq!(read(body, 1 << 20).await, Err(Failure::TooSlow));
            began.elapsed().as_secs()
        };
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(took(silent).await, WINDOW.as_secs());
        assert_eq!(took(trickle(10)).await, WINDOW.as_secs());
        assert_eq!(took(trickle(LEAST_PROGRESS)).await, DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn large_bodies_share_the_memory_and_small_ones_need_none() {
        let (reader, large) = (BodyReader::new(DEADLINE, 10_000), FREE + 6_000);
        let body = || Body::from(vec![b'x'; large]);
        let again = async || {
            let read = reader.read(body(), large).await;
            read.map(|(bytes, _)| bytes.len())
        };
        let (_, memory) = reader.read(body(), large).await.unwrap();
        assert_eq!(memory.as_ref().map(MemoryPermit::num_permits), Some(6_000));
        assert_eq!(again().await, Err(Failure::NoRoom));
        assert!(reader.read(Body::from("small"), large).await.is_ok());

        let answer = charged(Body::from("echo"), memory.unwrap());
        let sent = answer.collect().await.unwrap().to_bytes();
        assert_eq!(again().await, Err(Failure::NoRoom));
        drop(sent);
        assert_eq!(again().await, Ok(large));
    }
}
