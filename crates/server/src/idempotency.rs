//! Tells a repeated request from another one under the same idempotency key.
//!
//! The id of a message that is stored under a key carries a digest of its request, so every backend that remembers the
//! first id of a dedup id remembers the request too.

use aws_lc_rs::digest::{Context, SHA256};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};
use towpath_core::port::queue::Enqueued;
use towpath_core::{MessageId, NewMessage};

use crate::http::error::Problem;

/// Makes a retry harmless. Source: IETF draft "The Idempotency-Key HTTP Header Field".
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that an answer repeats an earlier one. Source: Stripe's API, the same name.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Longest key, in characters. Source: Stripe's API; the tables of the reference system.
pub(crate) const LONGEST_KEY: usize = 255;

/// The sentence for the client.
pub(crate) const OTHER_REQUEST: &str =
    "this Idempotency-Key came with another body before; use a new key for a new request";

/// The key of a request, if it has one: the same rule on every route.
///
/// # Errors
/// 400: a key that is not understood is refused, because a retry would not be harmless.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut keys = headers.get_all(KEY).iter();
    let Some(first) = keys.next() else {
        return Ok(None);
    };
    let text = std::str::from_utf8(first.as_bytes()).ok().map(str::trim);
    let is_key = |text: &&str| {
        (1..=LONGEST_KEY).contains(&text.chars().count()) && !text.contains(char::is_control)
    };
    let text = text.filter(is_key);
    match text.filter(|_| keys.next().is_none()) {
        Some(text) => Ok(Some(text)),
        None => Err(Problem::invalid(format!(
            "`Idempotency-Key` must be sent once, as 1 to {LONGEST_KEY} characters of UTF-8"
        ))),
    }
}

/// The answer to a request, marked when it repeats an earlier one.
pub(crate) fn replayed(mut response: Response, is_replay: bool) -> Response {
    if is_replay {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert(REPLAYED, yes);
    }
    response
}

/// The digest of a request: its key and everything that it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; 8]);

impl Digest {
    /// Of these parts, separated by their lengths.
    pub(crate) fn of<'a>(key: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in std::iter::once(key.as_bytes()).chain(parts) {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&context.finish().as_ref()[..8]);
        Self(first)
    }

    /// Gives the message at this place of the request an id that carries the digest.
    pub(crate) fn mark(self, message: &mut NewMessage, place: usize) {
        message.id = MessageId::with_digest(self.at(place));
    }

    /// Whether the first request with the key was another one.
    ///
    /// An id without a digest tells nothing: its message is of an earlier version, or of another producer.
    pub(crate) fn is_other(self, outcome: Enqueued, place: usize) -> bool {
        match outcome {
            Enqueued::New(_) => false,
            Enqueued::Duplicate(first) => first.carries(self.at(place)) == Some(false),
        }
    }

    /// Ids of one moment differ by their contents.
    const fn at(self, place: usize) -> [u8; 8] {
        (u64::from_be_bytes(self.0) ^ place as u64).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_short_text() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
                headers.append(KEY, value);
            }
            key(&headers)
                .map(|key| key.map(str::to_owned))
                .map_err(|_| ())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[" k 1 "]), Ok(Some("k 1".to_owned())));
        assert_eq!(read(&["k\u{e9}"]), Ok(Some("k\u{e9}".to_owned())));
        let longest = "k".repeat(LONGEST_KEY);
        assert_eq!(read(&[&longest]), Ok(Some(longest.clone())));
        let longer = format!("{longest}k");
        for wrong in [&[""][..], &[longer.as_str()], &["a", "b"], &["a", "a"]] {
            assert_eq!(read(wrong), Err(()), "{wrong:?}");
        }
    }

    #[test]
    fn a_digest_tells_requests_apart_and_knows_its_own() {
        let digest = |parts: &[&str]| Digest::of("key", parts.iter().map(|part| part.as_bytes()));
        let one = digest(&["a", "bc"]);
        let mut message = NewMessage::new("a");
        one.mark(&mut message, 0);
        let before = Enqueued::Duplicate(message.id);
        assert!(!one.is_other(before, 0));
        assert!(one.is_other(before, 1), "another message of the request");
        for other in [&["ab", "c"][..], &["a", "bc", ""], &["a"], &[]] {
            assert!(digest(other).is_other(before, 0), "{other:?}");
        }
        assert!(Digest::of("other", [&b"a"[..], b"bc"]).is_other(before, 0));
        let unmarked = Enqueued::Duplicate(MessageId::new());
        assert!(!one.is_other(unmarked, 0), "it says nothing of its request");
    }
}
