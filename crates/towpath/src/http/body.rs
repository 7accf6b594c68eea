//! Request bodies, bounded in size and in time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;

/// How long a body may take when nothing else is said.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Why a body was not read. Nothing of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is over the limit: 413.
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// It was not complete in time: 408.
    TooSlow,
    /// The connection broke or the encoding is wrong: 400.
    Broken,
}

/// How long this server gives a body; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Duration);

/// Reads a whole body of at most `limit` bytes within `deadline`.
///
/// A declared length over the limit is refused before anything is read.
///
/// # Errors
/// See [`Failure`].
pub async fn read(body: Body, limit: usize, deadline: Duration) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > limit as u64 {
        return Err(Failure::TooLarge { limit });
    }
    tokio::time::timeout(deadline, collect(body, limit))
        .await
        .unwrap_or(Err(Failure::TooSlow))
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    let mut only: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Failure::Broken)?.into_data() else {
            continue;
        };
        if whole.len() + only.as_ref().map_or(0, Bytes::len) + data.len() > limit {
            return Err(Failure::TooLarge { limit });
        }
        // Most bodies come in one piece, which is then not copied.
        match only.take() {
            None if whole.is_empty() => only = Some(data),
            first => {
                whole.extend_from_slice(&first.unwrap_or_default());
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(only.unwrap_or_else(|| whole.freeze()))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunks(parts: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(
            parts
                .iter()
                .map(|part| Ok::<_, std::io::Error>(Bytes::from(*part))),
        ))
    }

    #[tokio::test]
    async fn a_body_is_whole_or_refused() {
        assert_eq!(
            read(Body::from("hello"), 5, DEADLINE).await,
            Ok(Bytes::from("hello"))
        );
        assert_eq!(
            read(chunks(&["he", "l", "lo"]), 5, DEADLINE).await,
            Ok(Bytes::from("hello"))
        );
        assert_eq!(
            read(Body::from("hello!"), 5, DEADLINE).await,
            Err(Failure::TooLarge { limit: 5 })
        );
        assert_eq!(
            read(chunks(&["he", "ll", "o!"]), 5, DEADLINE).await,
            Err(Failure::TooLarge { limit: 5 })
        );
        assert_eq!(read(Body::empty(), 5, DEADLINE).await, Ok(Bytes::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_too_slow() {
        let endless = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(endless, 5, DEADLINE).await, Err(Failure::TooSlow));
    }
}
