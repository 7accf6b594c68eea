//! W3C trace context of a request, validated before it is stored with a message.
//!
//! Source: W3C, "Trace Context", level 1.

use http::{HeaderMap, HeaderName};
use rand::Rng;
use towpath_core::message::{Headers, header};

/// The longest `tracestate` that is passed along, in bytes: the minimum of the standard.
const STATE_BYTES: usize = 512;

/// Bytes of the part of `traceparent` that every version has.
const PARENT_BYTES: usize = 55;

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// The context in these headers; absent when there is none.
    ///
    /// An invalid `traceparent` is dropped, and its `tracestate` with it: the message starts a trace of its own then.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(header::TRACEPARENT).iter();
        let parent = parents.next()?;
        let parent = parent.to_str().ok().map(str::trim);
        Some(match parent {
            Some(parent) if is_parent(parent) && parents.next().is_none() => Self {
                // Later versions may be longer, and a receiver that does not know them keeps the known part.
                parent: parent[..PARENT_BYTES].to_owned(),
                state: state(headers),
            },
            _ => Self {
                parent: fresh_parent(&mut rand::rng()),
                state: None,
            },
        })
    }

    /// Puts the context into a message's headers.
    pub fn write(&self, headers: &mut Headers) {
        headers.set(header::TRACEPARENT, &self.parent);
        if let Some(state) = &self.state {
            headers.set(header::TRACESTATE, state);
        }
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not zero; later versions may say more behind it.
fn is_parent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut hex = |length: usize| {
        parts.next().filter(|part| {
            part.len() == length
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let not_zero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let (Some(version), Some(trace), Some(span), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2))
    else {
        return false;
    };
    let more = parts.next();
    version != "ff" && not_zero(trace) && not_zero(span) && (more.is_none() || version != "00")
}

fn fresh_parent(random: &mut impl Rng) -> String {
    // One more than zero, which is not a valid id.
    let (trace, span) = (
        random.random_range(1..=u128::MAX),
        random.random_range(1..=u64::MAX),
    );
    // Not sampled: no client asked for it.
    format!("00-{trace:032x}-{span:016x}-00")
}

/// Every `tracestate` header, joined; absent when it is not a list of `key=value`, or too long.
fn state(headers: &HeaderMap) -> Option<String> {
    let name = HeaderName::from_static(header::TRACESTATE);
    let parts: Option<Vec<&str>> = headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().ok())
        .collect();
    let joined = parts?.join(",");
    let member = |member: &str| {
        member.is_empty()
            || member.split_once('=').is_some_and(|(key, value)| {
                !key.is_empty() && !value.is_empty() && !value.contains('=')
            })
    };
    let valid = !joined.is_empty()
        && joined.len() <= STATE_BYTES
        && joined.split(',').map(str::trim).all(member);
    valid.then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn context(pairs: &[(&'static str, &str)]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        TraceContext::from_headers(&headers)
    }

    #[test]
    fn a_valid_context_is_passed_along_as_it_came() {
        assert_eq!(context(&[("tracestate", "a=1")]), None);
        let later = VALID.replacen("00", "01", 1) + "-" + &"z".repeat(10_000);
        for parent in [VALID, &later] {
            let found = context(&[
                ("traceparent", parent),
                ("tracestate", "rojo=00f067aa0ba902b7, t61rc"),
            ]);
            assert_eq!(
                found.as_ref().map(|found| found.parent.as_str()),
                Some(&parent[..PARENT_BYTES])
            );
            assert_eq!(found.unwrap().state, None, "no list");
        }
        let found = context(&[
            ("traceparent", VALID),
            ("tracestate", "rojo=00f067aa0ba902b7"),
            ("tracestate", "tenant@congo=t61"),
        ]);
        assert_eq!(
            found.unwrap().state.as_deref(),
            Some("rojo=00f067aa0ba902b7,tenant@congo=t61")
        );
    }

    #[test]
    fn an_invalid_parent_starts_a_trace_of_its_own() {
        let upper = VALID.to_uppercase();
        let cases = [
            "",
            "0",
            "00-1-2-3",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            upper.as_str(),
        ];
        for parent in cases {
            let fresh = context(&[("traceparent", parent), ("tracestate", "a=1")]).unwrap();
            assert!(is_parent(&fresh.parent), "{fresh:?}");
            assert_ne!(fresh.parent, parent);
            assert_eq!(fresh.state, None);
        }
        let twice = context(&[("traceparent", VALID), ("traceparent", VALID)]).unwrap();
        assert_ne!(twice.parent, VALID);
    }
}
